"""What an evaluation leaves: report.json, report.md and pictures."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.load import TrainingData
from ..files import write_json, write_text
from ..provenance import save_picture
from ..sharing.escaping import markdown_text, table_cell
from .config import Report
from .pictures import confusion_plot, nearest_sheet, per_class_sheet, samples_sheet
from .sampling import read_samples, to_image


def write_report(report: Report, folder: Path) -> None:
    """report.json and report.md."""
    write_json(folder / "report.json", report)
    lines = [
        f"# Evaluation of {markdown_text(report['model'])}\n",
        f"{report['num_samples']:,} samples against {report['num_train']:,} training images and "
        f"{report['num_held_out']:,} held-out ones, features of {markdown_text(report['feature_extractor'])}, "
        f"{report['num_inference_steps']} steps, guidance scale {report['guidance_scale']}.\n",
        "| question | measure | samples | 95 % interval | held-out real images | better |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["measures"]:
        interval = "" if row["interval"] is None else f"{row['interval'][0]} to {row['interval'][1]}"
        real = "" if row["real"] is None else row["real"]
        cells = [row["question"], row["name"], row["value"], interval, real, row["better"]]
        lines.append(f"| {' | '.join(map(table_cell, cells))} |")
    lines += _class_lines(report["classes"])
    write_text(folder / "report.md", "\n".join(lines) + "\n")


def _class_lines(classes: Report) -> list[str]:
    if not classes:
        return []
    lines = ["", "| class | samples | read right | most often taken for | Frechet distance | kernel distance |"]
    lines.append("|---" * 6 + "|")
    for i, name in enumerate(classes["names"]):
        counts = np.array(classes["confusion"][i])
        wrong = np.where(np.arange(len(counts)) == i, 0, counts)
        other = f"{classes['names'][wrong.argmax()]} ({wrong.max()})" if wrong.max() else ""
        distances = [classes[k][i] for k in ("frechet_distance", "kernel_distance")]
        cells = [name, counts.sum(), counts[i], other, *("" if d is None else d for d in distances)]
        lines.append("| " + " | ".join(map(table_cell, cells)) + " |")
    return lines


def write_pictures(
    folder: Path,
    samples: Path,
    data: TrainingData,
    conditions: list[object],
    train: np.ndarray,
    pairs: np.ndarray,
    classes: Report,
) -> None:
    """samples.png, nearest.png, and with classes per_class.png and confusion.png.

    Args:
        samples: the folder of the samples; conditions: of each.
        train: rows of the training images; pairs: for each sample the index into them of its nearest.
        classes: as `questions.label_rows` gives it.
    """
    images = list(itertools.islice(read_samples(samples), 512))
    id2label: dict[object, str] = {i: name for i, name in (data.id2label or {}).items()}  # noqa: C416 (types)
    names = [str(id2label.get(c, c)) for c in conditions]
    save_picture(samples_sheet(images, names if conditions[0] is not None else None), folder / "samples.png")
    nearest = nearest_sheet(images, [real_image(data, train[i]) for i in pairs[: len(images)]])
    save_picture(nearest, folder / "nearest.png")
    if data.id2label:
        save_picture(per_class_sheet(images, conditions, data.id2label), folder / "per_class.png")
    if classes:
        confusion_plot(np.array(classes["confusion"]), classes["names"], folder / "confusion.png")


def real_image(data: TrainingData, row: int) -> Image.Image:
    """As it is trained on, not flipped."""
    return to_image(data.dataset[0, int(row)].pixels)
