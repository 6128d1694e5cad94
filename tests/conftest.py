"""What all tests share. The models are real and tiny: one thread is faster for them than many."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from hub_server import Hub

# The Hub of all tests is a server on this machine; huggingface_hub reads its address when it is imported.
HUB = Hub().__enter__()
_HOME = tempfile.mkdtemp(prefix="hf_home_")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HOME": _HOME, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
for name in ("HF_TOKEN", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE"):
    os.environ.pop(name, None)

import pytest
import torch
from warm import WarmStart

THIRD_PARTY = Path(__file__).parent / "third_party"
CAPTIONS = ["a red circle", "a small blue square on a white background", "two stars", "a green triangle, left of it"]

torch.set_num_threads(1)
sys.path.insert(0, str(THIRD_PARTY))


@pytest.fixture()
def hub():
    """An empty Hub that works."""
    HUB.reset()
    yield HUB
    HUB.reset()


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return CAPTIONS


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP model of tiny size, and a tokenizer made from captions."""
    from transformers import CLIPConfig, CLIPModel

    from cond_pipelines.networks.text_encoders import new_text_encoder

    folder = tmp_path_factory.mktemp("clip")
    _, tokenizer = new_text_encoder(["a red circle on white", "a blue square"], hidden_size=16, num_layers=1)
    tokenizer.save_pretrained(folder)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = part | {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {"eos_token_id": tokenizer.eos_token_id}
    vision = part | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16, '
        '"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}'
    )
    return folder


@pytest.fixture(scope="session")
def subprocess_env() -> dict[str, str]:
    """The environment of a fresh interpreter that finds this checkout and the third party's package."""
    source = Path(__file__).parents[1] / "src"
    path = [str(source), str(THIRD_PARTY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


@pytest.fixture(scope="session")
def warm(subprocess_env):
    """Starts commands in processes of their own, without the seconds that a fresh interpreter takes to import.

    They find training_common, too. For tests that are not about the start of the interpreter.
    """
    env = subprocess_env | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    env["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"
    with WarmStart(env) as started:
        yield started
