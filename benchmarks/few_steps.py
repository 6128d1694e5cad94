"""A model distilled to few steps against the model that it was distilled from: table and picture.

    python benchmarks/few_steps.py --data shapes --minutes 4 --distill_minutes 1 --output_dir output/few_steps

For each seed it trains a parent, distills it, and measures both: share of samples that show their class (`captions`:
all that the caption says), by a reader that no model was trained with; Frechet distance to images that no model saw,
in pixels; how often p(y|x) is right on such images. Trainings that are finished are kept, so the command can be given
again.
`mnist` needs what benchmarks/mnist_digits.py prepares: --mnist_dir and --mnist_reader.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from mnist_digits import DIGIT_NAMES, DigitReader, read_digits
from PIL import Image
from safetensors.torch import load_file

from cond_pipelines import ConditionalPipeline
from cond_pipelines.data.shapes import SHAPES, caption, load_shapes, read_attributes, split_combinations
from cond_pipelines.errors import read_json
from cond_pipelines.evaluation import measures as m
from cond_pipelines.evaluation.features import pixels
from cond_pipelines.files import write_json, write_text
from cond_pipelines.pictures import image_grid
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

sys.path.append(str(Path(__file__).parents[1] / "studies"))

STEPS = (1, 2, 4, 8)
FLOW_STEPS = 24
# Of the parents; what an image shows is decided at high noise.
TRAINING = {
    "validation_fraction": 0.0,
    "validation_steps": 0,
    "report_to": "none",
    "optimizer": "adamw",  # with which the results were made
    "logit_mean": 0.5,
    "logit_std": 1.2,
    "default_num_inference_steps": FLOW_STEPS,
    "default_guidance_scale": 2.0,
}


# ------------------------------------------------------------------------------------------------------ the data
class Shapes:
    """Drawn shapes of 16 px; the reader is exact."""

    conditioning = "class"
    names = SHAPES

    def train(self) -> datasets.Dataset:
        return load_shapes(20_000, combinations="seen")

    def real(self) -> datasets.Dataset:
        return load_shapes(2000, seed=10**6, combinations="seen")

    def read(self, images: list[Image.Image]) -> list[str | None]:
        return [read_attributes(image)["shape"] for image in images]


class Captions(Shapes):
    """The same with captions: shape, colour and background must be right."""

    conditioning = "text"
    names = tuple(caption(*attributes) for attributes in split_combinations()[0])

    def real(self) -> datasets.Dataset:
        rows = super().real()
        found = [self.names.index(name) for name in self.read(rows["image"])]
        return rows.remove_columns("label").add_column("label", found)

    def read(self, images: list[Image.Image]) -> list[str | None]:
        found = [read_attributes(image) for image in images]
        known = [all(x.values()) for x in found]
        return [caption(**x) if ok else None for x, ok in zip(found, known, strict=True)]


class Digits:
    """scikit-learn's digits of 8 px, white on black: a half to train, a half for the reader and the comparison."""

    conditioning = "class"

    def __init__(self) -> None:
        from common import Digits as Painted  # of studies/

        self.painted = Painted()
        self.names = self.painted.names

    def train(self) -> datasets.Dataset:
        return self.painted.rows(self.painted.half, seed=1000)

    def real(self) -> datasets.Dataset:
        return self.painted.real()

    def read(self, images: list[Image.Image]) -> list[str | None]:
        return [self.painted.read(image)[0] for image in images]


class MNIST:
    """28 px reduced to 16; the reader saw the training digits, the comparison is with digits that nobody saw."""

    conditioning = "class"
    names = DIGIT_NAMES

    def __init__(self, folder: Path, reader: Path):
        self.folder, self.reader = folder, DigitReader()
        self.reader.load_state_dict(load_file(reader))

    def train(self) -> datasets.Dataset:
        return self._rows("train")

    def real(self) -> datasets.Dataset:
        return self._rows("test").select(range(2000))

    def _rows(self, split: str) -> datasets.Dataset:
        import json

        rows = [json.loads(line) for line in (self.folder / split / "metadata.jsonl").read_text().splitlines()]
        images = [
            Image.open(self.folder / split / row["file_name"]).resize((16, 16), Image.Resampling.BOX) for row in rows
        ]
        label = datasets.ClassLabel(names=list(self.names))
        features = datasets.Features(image=datasets.Image(), label=label)
        labels = [self.names.index(row["label"]) for row in rows]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    def read(self, images: list[Image.Image]) -> list[str | None]:
        arrays = torch.from_numpy(np.stack([np.asarray(image.convert("L")) for image in images]))
        digits = read_digits(self.reader, arrays)[0]
        return [self.names[i] if i < len(self.names) else None for i in digits.tolist()]


def data_set(options: argparse.Namespace) -> Shapes | Digits | MNIST:
    if options.data == "mnist":
        return MNIST(options.mnist_dir, options.mnist_reader)
    return {"shapes": Shapes, "captions": Captions, "digits": Digits}[options.data]()


# -------------------------------------------------------------------------------------------------- the trainings
def trained(folder: Path, data: str, **config: Any) -> Path:
    """Train into `folder`, unless that is done."""
    if not (folder / "training_summary.json").is_file():
        train(
            TrainingConfig(train_data_dir=data, output_dir=str(folder), overwrite_output_dir=True, **TRAINING | config)
        )
    return folder


def minutes_of(folder: Path) -> float:
    return float(read_json(folder / "training_summary.json")["minutes"])


# ------------------------------------------------------------------------------------------------------ the measures
class Judge:
    """What is measured of samples: right, Frechet distance, seconds."""

    def __init__(self, data: Shapes | Digits | MNIST, num_samples: int, unconditional: bool = False):
        self.data, self.num_samples, self.unconditional = data, num_samples, unconditional
        rows = data.real()
        self.images, self.labels = list(rows["image"]), list(rows["label"])
        self.features = pixels(self.images)
        self.real = m.Gaussian.of(self.features)

    def __call__(self, pipe: ConditionalPipeline, **sampling: Any) -> dict[str, Any]:
        wanted = [self.data.names[i % len(self.data.names)] for i in range(self.num_samples)]
        start, images = time.perf_counter(), []
        for first in range(0, len(wanted), 125):
            batch = wanted[first : first + 125]
            generators = [torch.Generator().manual_seed(10**6 + first + i) for i in range(len(batch))]
            conditions = [None] * len(batch) if self.unconditional else batch
            images += pipe.sample(conditions, generator=generators, **sampling).images
        sec = time.perf_counter() - start
        read = self.data.read(images)
        right = [a is not None if self.unconditional else a == b for a, b in zip(read, wanted, strict=True)]
        features = pixels(images)
        row: dict[str, Any] = {
            "right": float(np.mean(right)),  # readable, where nothing was asked for
            "frechet": m.frechet_distance(m.Gaussian.of(features), self.real),
            "interval": m.interval_of_frechet(features, self.real),
            "recall": float(m.manifolds(self.features, features)["recall"].mean()),
            "sec_per_image": sec / len(images),
        }
        shown = {name: value for name, value in sampling.items() if not isinstance(value, torch.nn.Module)}
        print(shown, row, flush=True)  # a run that is killed has said that much
        return row | {"images": images[:20]}

    def classified(self, pipe: ConditionalPipeline, count: int) -> float:
        """How often p(y|x) is right on real images."""
        found = pipe.classify(self.images[:count], list(self.data.names), num_noise=16).best.tolist()
        return float(np.mean([a == b for a, b in zip(found, self.labels[:count], strict=True)]))


def load(folder: Path) -> ConditionalPipeline:
    pipe = ConditionalPipeline.from_pretrained(folder)
    pipe.unet.set_default_attn_processor()  # faster on a CPU
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def measured(judge: Judge, parent: Path, student: Path, num_classified: int) -> dict[str, dict[str, Any]]:
    """The rows of a table."""
    pipe, rows = load(parent), {}
    scale = pipe.config.default_guidance_scale
    rows[f"parent, {FLOW_STEPS} steps, guided"] = judge(pipe)
    rows["parent, 4 steps, guided"] = judge(pipe, num_inference_steps=4)
    classes = {"parent": judge.classified(pipe, num_classified)} if num_classified else {}
    pipe = load(student)
    for steps in STEPS:
        rows[f"distilled, {steps} steps"] = judge(pipe, num_inference_steps=steps)
    pipe.use_scheduler("euler")
    rows[f"distilled, its flow, {FLOW_STEPS} steps, guided"] = judge(
        pipe, num_inference_steps=FLOW_STEPS, guidance_scale=scale
    )
    if num_classified:
        rows[f"parent, {FLOW_STEPS} steps, guided"]["p(y|x)"] = classes["parent"]
        rows[f"distilled, its flow, {FLOW_STEPS} steps, guided"]["p(y|x)"] = judge.classified(pipe, num_classified)
    return rows


def table(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Means over the seeds, in Markdown."""
    lines = ["| | right | Frechet distance | p(y given x) right | s an image |", "|---|---|---|---|---|"]
    for name in next(iter(found.values())):
        rows = [rows[name] for rows in found.values()]
        cells = [f"{np.mean([row['right'] for row in rows]):.3f}", f"{np.mean([row['frechet'] for row in rows]):.2f}"]
        cells.append(f"{np.mean([row['p(y|x)'] for row in rows]):.3f}" if "p(y|x)" in rows[0] else "")
        cells.append(f"{np.mean([row['sec_per_image'] for row in rows]):.4f}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def parse_data(parser: argparse.ArgumentParser) -> None:
    """The arguments that name the data, and the folder for results."""
    parser.add_argument("--data", choices=("shapes", "captions", "digits", "mnist"), default="shapes")
    parser.add_argument("--mnist_dir", type=Path, default=Path("mnist"))
    parser.add_argument("--mnist_reader", type=Path, default=Path("mnist_reader.safetensors"))
    parser.add_argument("--output_dir", type=Path, default=Path("output/few_steps"))


def training_set(options: argparse.Namespace, data: Shapes | Digits | MNIST) -> str:
    """The folder of the training images, made once."""
    images = Path(options.output_dir / options.data / "train")
    if not images.is_dir():
        data.train().save_to_disk(images.with_name("unfinished"))
        images.with_name("unfinished").rename(images)
    return str(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse_data(parser)
    parser.add_argument("--minutes", type=float, default=4.0, help="of the parent's training")
    parser.add_argument("--distill_minutes", type=float, help="default: a quarter of that")
    parser.add_argument("--objective_config", help="JSON, of the objective distillation")
    parser.add_argument("--learning_rate", type=float, help="of the distillation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--num_classified", type=int, default=200, help="images; 0: no p(y|x)")
    parser.add_argument("--name", default="distilled", help="of the distillation's folder")
    parser.add_argument("--parent", type=Path, help="a trained parent, in place of a new one")
    options = parser.parse_args()
    data, folder = data_set(options), options.output_dir / options.data
    images = training_set(options, data)
    judge, found = Judge(data, options.num_samples), {}
    for seed in options.seeds:
        parent = options.parent or trained(
            folder / f"parent-{seed}",
            images,
            conditioning=data.conditioning,
            seed=seed,
            max_train_minutes=options.minutes,
            ema_lengths=[0.05],
        )
        student = trained(
            folder / f"{options.name}-{seed}",
            images,
            conditioning=data.conditioning,
            seed=seed,
            objective="distillation",
            pretrained_model_name_or_path=str(parent),
            max_train_minutes=options.distill_minutes or options.minutes / 4,
            logit_mean=None,
            logit_std=None,
            default_num_inference_steps=None,
            default_guidance_scale=None,
            learning_rate=options.learning_rate,
            objective_config=options.objective_config,
        )
        found[seed] = measured(judge, parent, student, options.num_classified)
        found[seed][f"parent, {FLOW_STEPS} steps, guided"]["minutes"] = minutes_of(parent)
        found[seed]["distilled, 4 steps"]["minutes"] = minutes_of(student)
    pictures = [image for row in found[options.seeds[0]].values() for image in row["images"]]
    image_grid(pictures, columns=20, min_side_px=16).save(folder / f"{options.name}.png")
    for rows in found.values():
        for row in rows.values():
            del row["images"]
    write_json(folder / f"{options.name}.json", {str(seed): rows for seed, rows in found.items()})
    write_text(folder / f"{options.name}.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
