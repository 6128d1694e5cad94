"""Part "learning": what a class-conditional model learns from 1,725 icons in equal seconds, by batch, size, optimizer.

The samples come back as learning_samples.npz, for the judges of quality_judge.py, which run where their wheels are:

    python benchmarks/quality_data.py quality
    PYTHONPATH=benchmarks python -m gpu_parts.learning quality output/gpu/learning_samples.npz
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from cond_pipelines import ClassConditionalPipeline, TrainingConfig, train
from cond_pipelines.training.run_files import read_log
from gpu_parts.context import Context
from gpu_parts.icons import icons

TINY = {"unet_size": "xxs", "train_batch_size": 2, "validation_steps": 0, "default_num_inference_steps": 1}
_SAMPLES_OF_A_CLASS = 50
# In order of value: the defaults twice, so that chance is seen. What is not named is the default.
_CHOICES: dict[str, dict[str, object]] = {
    "defaults": {},
    "batch 64": {"train_batch_size": 64},
    "size s32": {"unet_size": "s32"},
    "defaults, seed 1": {"seed": 1},
    "AdamW": {"optimizer": "adamw"},
    "batch 64, size s32": {"train_batch_size": 64, "unet_size": "s32"},
    "batch 1,024": {"train_batch_size": 1024},
}


def run(context: Context) -> None:
    """One training for each choice, of equal seconds."""
    data = icons(context)
    if data is None:
        return
    sec = 1.0 if context.tiny else 30.0
    samples: dict[str, np.ndarray] = {}
    for name, settings in list(_CHOICES.items())[: 2 if context.tiny else None]:
        if not context.enough(f"icons, {name}", sec + 12):
            continue
        start, folder = time.perf_counter(), context.scratch / name.replace(" ", "_")
        settings = settings | data | {"conditioning": "class", "resolution": 32}
        settings |= {"validation_steps": 0, "report_to": "none", "max_train_minutes": sec / 60}
        train(TrainingConfig(**settings | (TINY if context.tiny else {}), output_dir=str(folder)))
        log = read_log(folder)
        tail = float(np.mean(log["loss"][-max(1, len(log["loss"]) // 10) :]))
        note = f"{log['step'][-1]} steps; {time.perf_counter() - start:.0f} s in all"
        context.row(f"icons in {sec:.0f} s, {name}: loss of the last tenth", tail, note=note)
        samples[name] = sample(folder, context)
        np.savez_compressed(context.out / "learning_samples.npz", **samples)


def sample(folder: Path, context: Context) -> np.ndarray:
    """(N, H, W, 3) uint8, the classes in turn, by the pipeline's own defaults."""
    pipe = ClassConditionalPipeline.from_pretrained(folder).to(context.device)
    pipe.set_progress_bar_config(disable=True)
    count = len(pipe.adapter.id2label)
    labels = torch.arange(count * (1 if context.tiny else _SAMPLES_OF_A_CLASS)) % count
    with torch.autocast(context.device, torch.bfloat16):
        generator = torch.Generator(context.device).manual_seed(0)
        images = pipe(class_labels=labels.tolist(), generator=generator).images
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def judge(quality: Path, file: Path) -> None:
    """Print a row of markdown for each choice."""
    from PIL import Image
    from time_to_quality import judges_of

    judges = judges_of(quality / "icons", quality / "packages")
    print("| what | Frechet, resnet | right, resnet | Frechet, yolo | right, yolo |\n|---|---|---|---|---|")
    for name, arrays in np.load(file).items():
        images = [Image.fromarray(array) for array in arrays]
        classes = np.arange(len(images)) % (judges["resnet"].classes.max() + 1)
        found = [judges[key](images, classes) for key in ("resnet", "yolo")]
        print(f"| {name} | " + " | ".join(f"{distance:.3g} | {right:.2f}" for distance, right in found) + " |")


if __name__ == "__main__":
    judge(Path(sys.argv[1]), Path(sys.argv[2]))
