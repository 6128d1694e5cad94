"""python -m cond_pipelines.demo: the three settings on drawn shapes, on two CPU cores in ten to fourteen minutes.

    unconditional --swap the adapter--> class-conditional
                  --swap the adapter--> text-conditional

The class and text models start from the unconditional one: every UNet weight is kept, only the adapter is new. What the
samples show is then read back from their pixels, so the report needs no judge but `read_attributes`.
"""

from .console import for_terminal
from .demo_arguments import parse_demo_args

if __name__ == "__main__":
    OPTIONS = parse_demo_args()  # help and a typo are answered before torch is imported

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image, ImageDraw

from .data.shapes import SHAPES, caption, load_shapes, read_attributes, split_combinations
from .evaluation.config import Row
from .evaluation.features import extract, pixels
from .evaluation.questions import distribution_rows
from .files import write_json
from .pictures import image_grid
from .pipelines.conditional import ConditionalPipeline
from .provenance import save_picture
from .settings import find_setting
from .training.config import TrainingConfig
from .training.dtypes import fast_precision
from .training.failures import writable_folder
from .training.loop import train
from .training.sharding import run_state

_ATTRIBUTES = ("shape", "colour", "background")
_SETTINGS = {"unconditional": "none", "class_conditional": "class", "text_to_image": "text"}
_STEPS = {"unconditional": 1700, "class_conditional": 480, "text_to_image": 600}  # on every machine


def demo_shapes() -> datasets.Dataset:
    """The demo's training set: 20,000 images of 16 px; a fifth of all attribute combinations is never seen."""
    return load_shapes(20_000, combinations="seen")


def demo_config(name: str, output_dir: Path, parent: Path | None, steps: int, **changes: object) -> TrainingConfig:
    """How one of the three models is trained.

    Args:
        name: "unconditional", "class_conditional" or "text_to_image".
        output_dir: of this model.
        parent: the model to start from; None: a new one.
        changes: other arguments of TrainingConfig than the demo's own.
    """
    conditioning = _SETTINGS[name]
    settings: dict[str, Any] = {
        "conditioning": conditioning,
        "dataset_name": "cond_pipelines.demo:demo_shapes",
        "caption_column": "caption" if find_setting(conditioning).has_captions else None,
        "resolution": 16,
        "pretrained_model_name_or_path": str(parent) if parent else None,
        "max_train_steps": steps,
        "learning_rate": 2e-3,
        "optimizer": "muon",
        "lr_warmup_steps": 20 if parent else 100,
        "lr_decay_fraction": 0.5 if parent else 0.7,
        "logit_mean": 0.5,  # shape, colour and background are decided at high noise
        "logit_std": 1.2,
        "validation_fraction": 0.005,
        "output_dir": str(output_dir),
        "overwrite_output_dir": True,  # `make demo` again makes it again
        "default_num_inference_steps": 16,
    }
    # p(x) has no guidance but by an early average of the run itself, which shows what is not learned yet.
    settings |= {"default_guidance_scale": 2.0} if parent else {"autoguidance": True}
    return TrainingConfig(**settings | changes)


def train_demo(output_dir: Path, speed: float = 1.0, **changes: object) -> dict[str, Path]:
    """Train the three models under `output_dir`.

    Args:
        speed: divides the steps of each.
        changes: other arguments of TrainingConfig than the demo's own.
    """
    folders: dict[str, Path] = {}
    for name in _SETTINGS:
        print(f"\n=== {name}", flush=True)
        steps = max(1, round(_STEPS[name] / speed))
        config = demo_config(name, output_dir / name, folders.get("unconditional"), steps, **changes)
        folders[name] = train(config)
    return folders


def sample(
    pipe: ConditionalPipeline, conditions: Sequence[object], seed: int = 0, **sampling: object
) -> list[Image.Image]:
    """One image for each raw condition, each from a seed of its own, in batches; `sampling`: of the call."""
    images: list[Image.Image] = []
    for start in range(0, len(conditions), 128):
        batch = conditions[start : start + 128]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        fast = fast_precision(pipe.device) == "bf16"
        with torch.autocast(pipe.device.type, torch.bfloat16, enabled=fast):  # as in training
            images += pipe.sample(batch, generator=generators, **sampling).images
    return images


def right(images: list[Image.Image], wanted: list[dict[str, str]]) -> float:
    """The share of images that show every attribute of their prompt."""
    reads = [read_attributes(image) for image in images]
    return sum(all(read[k] == v for k, v in want.items()) for read, want in zip(reads, wanted, strict=True)) / len(
        wanted
    )


def report_demo(folders: dict[str, Path], output_dir: Path, num_samples: int = 256) -> dict[str, Any]:
    """Sample every model, read the samples, write report.json and gallery.png; returns the report."""
    seen, unseen = ([dict(zip(_ATTRIBUTES, c, strict=True)) for c in part] for part in split_combinations())
    pipes = {name: ConditionalPipeline.from_pretrained(folder) for name, folder in folders.items()}
    for pipe in pipes.values():
        pipe.to(run_state().device)
        if pipe.device.type == "cpu":
            for network in (pipe.unet, pipe.guide):
                if network is not None:
                    network.set_default_attn_processor()  # faster there

    images = sample(pipes["unconditional"], [None] * num_samples)
    reads = [read_attributes(image) for image in images]
    readable = sum(read["shape"] is not None for read in reads) / num_samples
    counts = {shape: sum(read["shape"] == shape for read in reads) for shape in SHAPES}
    report: dict[str, Any] = {"unconditional": {"readable": readable, "shapes": counts}}
    evaluated = {"unconditional": images}
    panels = [("p(x): unconditional", image_grid(images[:30], columns=10))]

    labels = [SHAPES[i % len(SHAPES)] for i in range(num_samples)]
    images = sample(pipes["class_conditional"], labels)
    report["class_conditional"] = {"right_shape": right(images, [{"shape": label} for label in labels])}
    evaluated["class_conditional"] = images
    grid = image_grid(images[:30], columns=10, captions=labels[:30])
    panels.append(("p(x|y): class-conditional", grid))

    report["text_to_image"] = {}
    for kind, combinations in (("seen", seen), ("unseen", unseen)):
        wanted = [combinations[7 * i % len(combinations)] for i in range(num_samples)]  # all of them, mixed
        prompts = [caption(**attributes) for attributes in wanted]
        images = sample(pipes["text_to_image"], prompts)
        if kind == "seen":
            evaluated["text_to_image"] = images
        report["text_to_image"][f"all_right_{kind}"] = right(images, wanted)
        for key in _ATTRIBUTES:
            report["text_to_image"][f"{key}_right_{kind}"] = right(images, [{key: a[key]} for a in wanted])
        short = [f"{a['colour']} {a['shape']} on {a['background']}" for a in wanted[:10]]
        grid = image_grid(images[:10], columns=5, captions=short, min_side_px=128)
        panels.append((f"p(x|text): combinations {'seen' if kind == 'seen' else 'never seen'} in training", grid))

    for name, rows in evaluate_demo(evaluated).items():
        report[name]["evaluation"] = rows
    report["num_samples"] = num_samples
    for name, pipe in pipes.items():
        report[name]["num_inference_steps"] = pipe.config.default_num_inference_steps
        report[name]["guidance_scale"] = pipe.config.default_guidance_scale
    write_json(output_dir / "report.json", report)
    save_picture(gallery(panels), output_dir / "gallery.png")
    return report


def evaluate_demo(samples: dict[str, list[Image.Image]], num_real: int = 2000) -> dict[str, list[Row]]:
    """Alike, all of it, new: what `cond-pipelines evaluate` measures, of samples that are there already.

    In pixels, which is good enough for images this small; the held-out images are drawn from another seed.
    """
    real = load_shapes(num_real, combinations="seen")["image"]
    held_out = load_shapes(500, seed=1, combinations="seen")["image"]
    train, new = (extract(pixels, images, len(images), what="drawn shapes") for images in (real, held_out))
    rows = {}
    for name, images in samples.items():
        fake = extract(pixels, images, len(images), what=f"samples, {name}")
        rows[name], _ = distribution_rows(fake, train, new)
    return rows


def gallery(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Titled pictures, one below the other."""
    title_px = 28
    width = max(picture.width for _, picture in panels)
    sheet = Image.new("RGB", (width, sum(picture.height + title_px for _, picture in panels)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for title, picture in panels:
        draw.text((8, top + 6), title, fill="black", font_size=16)
        sheet.paste(picture, (0, top + title_px))
        top += picture.height + title_px
    return sheet


def run_demo(output_dir: Path, speed: float = 1.0, num_samples: int = 256) -> None:
    """Train, sample, report; see `cli.demo`."""
    start = time.perf_counter()
    output_dir = writable_folder(str(output_dir))
    report = report_demo(train_demo(output_dir, speed), output_dir, num_samples)
    print(json.dumps(report, indent=2))
    print(for_terminal(f"{time.perf_counter() - start:.0f} s; look at {output_dir / 'gallery.png'}"))


if __name__ == "__main__":
    run_demo(**OPTIONS)
