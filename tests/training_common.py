"""What the training tests share: tiny data sets, served as "training_common:<function>", and a tiny run."""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train


@functools.cache
def shapes() -> datasets.Dataset:
    return load_shapes(96)


def slow_to_load() -> datasets.Dataset:
    """A data set whose download never ends; the file `loading` in the run's --output_dir says that it has begun."""
    (Path(sys.argv[sys.argv.index("--output_dir") + 1]) / "loading").touch()
    time.sleep(600)
    return load_shapes(8)


@functools.cache
def few_shapes() -> datasets.Dataset:
    return load_shapes(8)


def many_images() -> datasets.Dataset:
    """34 MB when they are decoded: more than is kept in memory."""
    image = load_shapes(1, image_size_px=64)["image"][0]
    return datasets.Dataset.from_dict({"image": [image]}).select([0] * 2800)


def angles() -> datasets.Dataset:
    """With a continuous condition, and None where it is not known."""
    rows = load_shapes(16)
    return rows.add_column("angle", [None if i == 3 else 22.5 * i for i in range(16)])


def odd_angle() -> datasets.Dataset:
    """One angle of 32 is a word, which the adapter, that is somebody's own, finds out in the middle of a run."""
    return load_shapes(32).add_column("angle", ["north" if i == 5 else "10" for i in range(32)])


def some_infinite() -> datasets.Dataset:
    """One condition of 32 cannot be computed with: so it is with a file of measurements that nobody looked through."""
    return _infinite(1)


def many_infinite() -> datasets.Dataset:
    return _infinite(8)


def _infinite(count: int) -> datasets.Dataset:
    return load_shapes(32).add_column("angle", [float("inf") if i < count else 10.0 * i for i in range(32)])


INFINITE = {
    "conditioning": "custom",
    "adapter": "angle_adapter:AngleAdapter",
    "condition_column": "angle",
    "condition_dropout": 0.0,
    "validation_fraction": 0.0,
    "train_batch_size": 2,
    "checkpointing_steps": 1,
}

TINY: dict[str, Any] = {
    "dataset_name": "training_common:shapes",
    "resolution": 8,
    "unet_size": "xxs",
    "train_batch_size": 8,
    "max_train_steps": 4,
    "lr_warmup_steps": 0,
    "mixed_precision": "no",
    "report_to": "none",
    "logging_steps": 1,
    "validation_steps": 0,
    "default_num_inference_steps": 1,
    "default_guidance_scale": 1.0,
}


def run(folder: Path, **arguments: Any) -> Path:
    """A tiny run, in float32; None takes an argument of TINY away."""
    given = {k: v for k, v in (TINY | arguments).items() if v is not None}
    return train(TrainingConfig(output_dir=str(folder), **given))


def flags(**arguments: Any) -> list[str]:
    """The same as command-line arguments."""
    given = TINY | arguments
    if given.get("conditioning", "none") == "none" and "default_guidance_scale" not in arguments:
        del given["default_guidance_scale"]  # which p(x) has no use for
    return [f for k, v in given.items() if v is not None for f in (f"--{k}", str(v))]


def log_of(folder: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def few_pixels(images: list[Image.Image]) -> np.ndarray:
    """A feature extractor: the image at 4 x 4 px, (N, 48)."""
    return np.stack(
        [np.asarray(im.resize((4, 4), Image.Resampling.BOX), dtype=np.float32).reshape(-1) for im in images]
    )


def always_the_first(images: list[Image.Image]) -> list[int]:
    """A classifier."""
    return [0 for _ in images]


def rounding_of_training(learning_rate: float, num_steps: int) -> float:
    """How far apart weights may be after the same steps whose sums were taken in another order, in float32.

    With an Adam epsilon no smaller than the rate, a step moves a weight by at most the rate, and an error of its
    gradient by no more than that error. A thousandth of all steps is far above float32's rounding of a gradient of
    norm 1 (6e-8 times the root of a million terms), on any processor, and far below what another batch makes.
    """
    return 1e-3 * learning_rate * num_steps


ROUNDING_OF_LOSS = 1e-4  # relative: 6e-8 times the root of the million products of a forward pass


def largest_difference(a: torch.nn.Module | dict, b: torch.nn.Module | dict) -> float:
    """Of all weights; the keys must be the same."""
    a, b = (x if isinstance(x, dict) else x.state_dict() for x in (a, b))
    assert set(a) == set(b)
    return max((a[k].float() - b[k].float()).abs().max().item() for k in a)
