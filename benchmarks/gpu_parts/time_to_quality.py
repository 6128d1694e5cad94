"""Part "time_to_quality": a minute of MNIST, and the demo's three settings in a tenth of its time."""

import time
from pathlib import Path

import mnist_digits
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cond_pipelines import ClassConditionalPipeline, TrainingConfig, train
from cond_pipelines.demo import report_demo, train_demo
from gpu_parts.context import Context

# What `make demo` reaches in its full time on two CPU cores.
_DEMO = {
    ("unconditional", "readable"): 0.96,
    ("class_conditional", "right_shape"): 0.99,
    ("text_to_image", "all_right_seen"): 0.97,
    ("text_to_image", "all_right_unseen"): 0.93,
}
_SPEED, _TINY_SPEED = 10, 6_000
_TINY = {"dataset_name": "gpu_parts.reference:few_shapes", "validation_steps": 0, "default_num_inference_steps": 1}


def run(context: Context) -> None:
    """Digits where the data are there, then drawn shapes."""
    if (context.data / "mnist/train.parquet").is_file():
        digits(context)
    else:
        note = f"{context.data / 'mnist'} is not there: python benchmarks/gpu.py --prepare {context.data}"
        context.row("MNIST in 60 s: digit read right", None, at_least=0.95, note=note)
    if context.enough("drawn shapes in a tenth of the demo's time", 75):
        shapes(context)


def digits(context: Context, num_samples: int = 500) -> None:
    """Train for a minute, sample every digit, let the reader read them."""
    sec = 1.0 if context.tiny else 60.0
    tiny = {"unet_size": "xxs", "train_batch_size": 2, "validation_steps": 0, "default_num_inference_steps": 1}
    start, folder = time.perf_counter(), context.scratch / "mnist"
    train(
        TrainingConfig(
            conditioning="class",
            train_data_dir=str(context.data / "mnist"),
            resolution=28,
            max_train_minutes=sec / 60,
            output_dir=str(folder),
            report_to="none",
            **(tiny if context.tiny else {}),
        )
    )
    context.row(
        "MNIST: training and its end", time.perf_counter() - start, "s", note=f"{sec:.0f} s of steps were asked for"
    )
    pipe = ClassConditionalPipeline.from_pretrained(folder).to(context.device)
    pipe.set_progress_bar_config(disable=True)
    asked = torch.arange(10 if context.tiny else num_samples) % 10
    images = sample(pipe, asked.tolist(), num_inference_steps=2 if context.tiny else None)
    reader = mnist_digits.DigitReader()
    reader.load_state_dict(load_file(context.data / "mnist_reader.safetensors"))
    found = mnist_digits.describe(*mnist_digits.read_digits(reader, images), asked)
    context.row(f"MNIST in {sec:.0f} s: digit read right", found["share_right"], at_least=0.95)
    mnist_digits.draw_sheet(images).save(context.out / "mnist.png")


def sample(pipe: ClassConditionalPipeline, labels: list[int], **sampling: int | None) -> Tensor:
    """One image a label: (N, H, W) uint8 on the CPU."""
    images = []
    for start in range(0, len(labels), 250):
        some = labels[start : start + 250]
        names = [mnist_digits.DIGIT_NAMES[label] for label in some]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        batch = pipe(class_labels=names, generator=generators, output_type="np", **sampling).images  # (B, H, W, C)
        images.append(torch.from_numpy(np.asarray(batch)).float().mean(dim=-1))
    return (torch.cat(images) * 255).round().byte()


def shapes(context: Context) -> None:
    """The demo as it is, but for its time."""
    start, folder = time.perf_counter(), Path(context.scratch) / "demo"
    folder.mkdir()
    folders = train_demo(folder, _TINY_SPEED, **_TINY) if context.tiny else train_demo(folder, _SPEED)
    context.row("drawn shapes: training of three settings", time.perf_counter() - start, "s")
    report = report_demo(folders, folder, num_samples=8 if context.tiny else 256)
    for (name, key), share in _DEMO.items():
        context.row(f"drawn shapes in a tenth of the time: {name}, {key}", report[name][key], at_least=share)
    (folder / "gallery.png").rename(folder / "shapes.png")
    (context.out / "shapes.png").write_bytes((folder / "shapes.png").read_bytes())
