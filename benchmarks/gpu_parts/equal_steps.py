"""Part "equal_steps": what a class-conditional model learns from the icons in the steps that two CPU cores make in 8
minutes, by one setting each, with several seeds. A GPU is idle most of such a step, so the trainings run side by side:
on an H100, ten made 95 steps a second together and four 60, so ten take 4.5 minutes with their samples.

The samples come back as equal_steps_samples.npz, for the judges of quality_judge.py, which run where their wheels are:

    python benchmarks/quality_data.py quality
    PYTHONPATH=benchmarks python -m gpu_parts.learning quality output/gpu/equal_steps_samples.npz
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpu_parts.context import Context
from gpu_parts.icons import icons
from gpu_parts.learning import TINY, sample

if TYPE_CHECKING:
    from cond_pipelines import TrainingConfig

_AT_ONCE = 10
_SHARED = {"conditioning": "class", "resolution": 32, "unet_size": "s32", "train_batch_size": 32, "report_to": "none"}
_SHARED |= {"validation_steps": 0}
# What is not named is the default. All of them start at once.
SETTINGS: dict[str, dict[str, object]] = {
    "defaults": {},
    "flips": {"random_flip": True},
    "twice the rate": {"learning_rate": 4e-3, "adapter_lr": 4e-3},
    "times of mean 0.5": {"logit_mean": 0.5},
    "average of power 0.9": {"ema_max_decay": 0.9999, "ema_power": 0.9},
}
_SEEDS = (0, 1)


def run(context: Context) -> None:
    """All settings with all seeds."""
    data = icons(context)
    if data is None:
        return
    if not context.enough("icons in equal steps", 270):
        return
    steps = 2 if context.tiny else 2_000
    cases = [(name, seed) for seed in _SEEDS for name in SETTINGS][: 2 if context.tiny else None]
    samples: dict[str, np.ndarray] = {}
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with ProcessPoolExecutor(_AT_ONCE, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_train, context, data, name, seed, steps) for name, seed in cases]
        for job in as_completed(jobs):
            if error := job.exception():  # the others go on
                context.row("icons in equal steps", None, note=f"one training failed: {error}")
                continue
            name, loss, sec, images = job.result()
            context.row(f"icons, {steps:,} steps, {name}: loss of the last tenth", loss, note=f"{sec:.0f} s in all")
            samples[name] = images
            np.savez_compressed(context.out / "equal_steps_samples.npz", **samples)


def config_of(setting: str, data: dict[str, str], seed: int, steps: int) -> "TrainingConfig":
    """How one model is trained. Raises ValueError for a setting that has no effect."""
    from cond_pipelines import TrainingConfig

    return TrainingConfig(**_SHARED | data | SETTINGS[setting], seed=seed, max_train_steps=steps)


def _train(
    context: Context, data: dict[str, str], setting: str, seed: int, steps: int
) -> tuple[str, float, float, np.ndarray]:
    """The case's name, its loss, its seconds, and its samples."""
    from cond_pipelines import train
    from cond_pipelines.training.run_files import read_log

    start, name = time.perf_counter(), f"{setting}, seed {seed}"
    folder = Path(context.scratch) / name.replace(" ", "_")
    config = config_of(setting, data, seed, steps)
    config = replace(config, **TINY) if context.tiny else config
    train(replace(config, output_dir=str(folder)))
    loss = read_log(folder)["loss"]
    tail = float(np.mean(loss[-max(1, len(loss) // 10) :]))
    return name, tail, time.perf_counter() - start, sample(folder, context)
