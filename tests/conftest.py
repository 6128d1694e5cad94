"""What all tests share. The models are real and tiny: one thread is faster for them than many."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test needs the Hub

import pytest
import torch

THIRD_PARTY = Path(__file__).parent / "third_party"
CAPTIONS = ["a red circle", "a small blue square on a white background", "two stars", "a green triangle, left of it"]

torch.set_num_threads(1)
sys.path.insert(0, str(THIRD_PARTY))


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return CAPTIONS


@pytest.fixture(scope="session")
def subprocess_env() -> dict[str, str]:
    """The environment of a fresh interpreter that finds this checkout and the third party's package."""
    source = Path(__file__).parents[1] / "src"
    path = [str(source), str(THIRD_PARTY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
