"""How good a model is after so many minutes: ours, diffusers' training script and denoising-diffusion-pytorch.

    python benchmarks/quality_data.py quality
    OMP_NUM_THREADS=1 python benchmarks/time_to_quality.py quality --sets icons --our_steps 250 500 1000 2000 \
        --peer_minutes 4 16 --output_dir output/time_to_quality

The same images, classes, cores and judges; networks of about the same size. Ours is `cond-pipelines train` with its
defaults, and samples with the defaults that it saved. A minute is one core's CPU time, so that other programs of the
machine do not count. Ours includes the start of the program and its 64 samples at the end; theirs are steps alone. Each
point is a training of its own, from the start, with the schedule for its length. What is finished is kept, so the
command can be given again with more points.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import quality_peers
import torch
from PIL import Image
from quality_data import load
from quality_judge import Features, Judge

from cond_pipelines import ConditionalPipeline
from cond_pipelines.files import write_text
from cond_pipelines.pictures import image_grid
from cond_pipelines.training.dtypes import fast_precision

OURS, PEERS = "ours", ("train_unconditional", "denoising_diffusion_pytorch")
_SAMPLE_BATCH = 100


def train_ours(data: Path, steps: int, folder: Path, arguments: list[str]) -> float:
    """Train by the command; returns its CPU seconds."""
    if not (folder / "model_index.json").is_file():
        with Image.open(next((data / "train").rglob("*.png"))) as image:
            side_px = image.width
        command = [sys.executable, "-m", "cond_pipelines.training", "--conditioning", "class"]
        command += ["--train_data_dir", str(data / "train"), "--resolution", str(side_px), "--report_to", "none"]
        command += ["--max_train_steps", str(steps), "--validation_steps", "0", "--output_dir", str(folder)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, *arguments], check=True, timeout=24 * 3600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (folder / "cpu_sec.json").write_text(json.dumps(after.ru_utime - before.ru_utime))
    return float(json.loads((folder / "cpu_sec.json").read_text()))


def sample_ours(folder: Path, classes: np.ndarray) -> tuple[list[Image.Image], int]:
    """(images, parameters), with the pipeline's own defaults; bfloat16 where the CPU has it."""
    pipe = ConditionalPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(classes), _SAMPLE_BATCH):
        labels = classes[start : start + _SAMPLE_BATCH].tolist()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_precision(torch.device("cpu")) == "bf16"):
            images += pipe(class_labels=labels, generator=torch.Generator().manual_seed(start)).images
    return [image.convert("RGB") for image in images], sum(p.numel() for p in pipe.unet.parameters())


def peer(name: str, data: Path, minutes: float, classes: np.ndarray, pypi: Path) -> tuple[list[Image.Image], int, int]:
    """Train and sample one of the others: (images, steps, parameters)."""
    images, labels, _ = load(data / "train")
    gray = all(np.ptp(np.asarray(image), axis=2).max() == 0 for image in images[:50])
    arrays = [np.asarray(image.convert("L"))[..., None] if gray else np.asarray(image) for image in images]
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, C, h, w)
    torch.manual_seed(0)
    precision = torch.bfloat16 if fast_precision(torch.device("cpu")) == "bf16" else None
    more = {"pypi": pypi} if name == "denoising_diffusion_pytorch" else {}
    train = getattr(quality_peers, name)
    sampler, steps, parameters = train(x, torch.tensor(labels), minutes, quality_peers.cpu_clock, precision, **more)
    parts = [sampler(torch.from_numpy(classes[i : i + _SAMPLE_BATCH])) for i in range(0, len(classes), _SAMPLE_BATCH)]
    samples = quality_peers.levels(torch.cat(parts)).permute(0, 2, 3, 1).numpy()  # (N, h, w, C)
    return [Image.fromarray(s[..., 0] if gray else s).convert("RGB") for s in samples], steps, parameters


def judges_of(data: Path, packages: Path) -> dict[str, Judge]:
    """Both judges of a data set; the features of its training images are computed once."""
    images, labels, _ = load(data / "train")
    judges = {}
    for name in ("resnet", "yolo"):
        features, file = Features(name, packages / "pypi"), data / f"{name}.npy"
        if not file.is_file():
            np.save(file, features(images))
        judges[name] = Judge(features, np.load(file), np.asarray(labels))
    return judges


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, sorted by data set and minutes."""
    lines = [
        "| images | whose | core-minutes | steps | million parameters | Frechet, resnet | class read right, resnet | "
        "Frechet, yolo | class read right, yolo |",
        "|---" * 9 + "|",
    ]
    for row in sorted(rows, key=lambda row: (row["set"], row["minutes"])):
        values = [f"{row[name][0]:.3g} | {row[name][1]:.2f}" for name in ("resnet", "yolo")]
        first = f"{row['set']} | {row['whose']} | {row['minutes']:.1f} | {row['steps']} | {row['millions']:.1f}"
        lines.append(f"| {first} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Frechet distance and share read right against minutes: a column for each data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = sorted({row["set"] for row in rows})
    figure = Figure(figsize=(5 * len(sets), 7), layout="constrained")
    FigureCanvasAgg(figure)
    for column, name in enumerate(sets):
        for i, what in enumerate(("Frechet distance (resnet)", "class read right (resnet)")):
            axes = figure.add_subplot(2, len(sets), i * len(sets) + column + 1)
            for whose in sorted({row["whose"] for row in rows}):
                mine = sorted((r["minutes"], r["resnet"][i]) for r in rows if (r["set"], r["whose"]) == (name, whose))
                axes.plot(*zip(*mine, strict=True), "o-", label=whose) if mine else None
            axes.set(xlabel="core-minutes", ylabel=what, xscale="log", title=name)
            axes.legend()
    figure.savefig(path, dpi=100)


def points(options: argparse.Namespace) -> list[tuple[str, str, float]]:
    """(data set, whose, steps or minutes) of each training."""
    of_ours = [(name, OURS, steps) for name in options.sets for steps in options.our_steps]
    return of_ours + [(s, peer, m) for s in options.sets for peer in options.peers for m in options.peer_minutes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of quality_data.py")
    parser.add_argument("--sets", nargs="+", default=["icons", "stamps", "digits"])
    parser.add_argument("--our_steps", type=int, nargs="*", default=[250, 500, 1000, 2000])
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--peer_minutes", type=float, nargs="*", default=[4, 8, 16])
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--output_dir", type=Path, default=Path("output/time_to_quality"))
    options, arguments = parser.parse_known_args()  # the others go to our training
    out: Path = options.output_dir
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, whose, length in points(options):
        data, file = options.data / name, out / f"{name}-{whose}-{length:g}.json"
        if not file.is_file():
            judges = judges_of(data, options.data / "packages")
            classes = np.arange(options.num_samples) % len(load(data / "held_out")[2])
            if whose == OURS:
                folder = file.with_suffix("")
                minutes, steps = train_ours(data, int(length), folder, arguments) / 60, int(length)
                images, parameters = sample_ours(folder, classes)
            else:
                minutes = length
                images, steps, parameters = peer(whose, data, length, classes, options.data / "packages/pypi")
            image_grid(images[: 8 * len(set(classes))], columns=len(set(classes))).save(file.with_suffix(".png"))
            judged = {judge: judges[judge](images, classes) for judge in judges}
            row = {"set": name, "whose": whose, "minutes": minutes, "steps": steps, "millions": parameters / 1e6}
            write_text(file, json.dumps(row | judged))
        rows.append(json.loads(file.read_text()))
        write_text(out / "time_to_quality.md", table(rows))
        plot(rows, out / "time_to_quality.png")
    print(table(rows))


if __name__ == "__main__":
    main()
