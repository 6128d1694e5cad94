"""The held-out loss after 200 steps on drawn shapes, in float32 on a CPU: what a run on a GPU has to reach.

    PYTHONPATH=src:benchmarks python -m gpu_parts.reference    # writes benchmarks/results/gpu_reference.json

The configuration stands here alone; gpu_parts/correctness.py trains with it too.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from cond_pipelines import TrainingConfig, train
from cond_pipelines.data.shapes import load_shapes

RESULT = Path(__file__).parents[1] / "results/gpu_reference.json"
STEPS, NUM_SEEDS = 200, 8
CONFIG: dict[str, Any] = {
    "conditioning": "class",
    "dataset_name": "gpu_parts.reference:drawn_shapes",
    "resolution": 16,
    "unet_size": "xxs",
    "train_batch_size": 32,
    "max_train_steps": STEPS,
    "lr_warmup_steps": 20,
    "validation_fraction": 0.1,  # 256 images, the most there are
    "validation_steps": STEPS,
    "num_validation_images": 1,
    "logging_steps": 10,
    "report_to": "none",
    "optimizer": "adamw",  # with which gpu_reference.json was made
    "default_num_inference_steps": 1,
}


def drawn_shapes() -> datasets.Dataset:
    """4,000 images of 16 px, with the class and the caption of each."""
    return load_shapes(4_000)


def few_shapes() -> datasets.Dataset:
    """For a try of the script."""
    return load_shapes(64)


def held_out_loss(folder: Path, **changes: Any) -> float:
    """Train as CONFIG says, but for `changes`; returns the loss of the averaged weights on images held out."""
    train(TrainingConfig(**CONFIG | changes, output_dir=str(folder)))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return next(line["held_out_loss"] for line in reversed(lines) if "held_out_loss" in line)


def main() -> None:
    """One run for each seed; the seed decides weights, images, noise, times and what is held out."""
    losses = []
    for seed in range(NUM_SEEDS):
        with tempfile.TemporaryDirectory() as folder:
            losses.append(held_out_loss(Path(folder), seed=seed, mixed_precision="no"))
        print(f"seed {seed}: {losses[-1]:.5f}", flush=True)
    result = {
        "config": CONFIG,
        "precision": "float32 on a CPU",
        "torch": torch.__version__,
        "held_out_loss": [round(loss, 6) for loss in losses],  # of each seed
        "mean": round(float(np.mean(losses)), 6),
        "standard_deviation": round(float(np.std(losses, ddof=1)), 6),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
