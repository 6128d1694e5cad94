"""What an evaluation leaves: report.json, report.md and pictures."""

import itertools
from pathlib import Path

import numpy as np

from ..data.labels import condition_name
from ..data.load import TrainingData
from ..files import write_json, write_text
from ..provenance import save_picture
from ..sharing.escaping import markdown_text, table_cell
from ..sharing.sampler import SamplerFacts
from .conditions import ModelCondition
from .config import Report, class_tables
from .pictures import MOST_SHOWN, confusion_plot, nearest_sheet, per_class_sheet, samples_sheet
from .reader import Samples, real_image
from .sampling import to_image


def write_report(report: Report, folder: Path) -> None:
    """report.json and report.md."""
    write_json(folder / "report.json", report)
    is_pool = report.get("is_pool", False)
    value = "mean over seeds" if is_pool else "samples"
    lines = [
        f"# Evaluation of {markdown_text(report['model'])}\n",
        f"{report['num_samples']:,} samples against {report['num_train']:,} training images and "
        f"{report['num_held_out']:,} held-out ones, drawn with {markdown_text(SamplerFacts.of_report(report))}. "
        f"Features of {markdown_text(report['feature_extractor'])}: {markdown_text(report['protocol'])}.\n",
        f"| question | measure | {value} | 95 % interval | held-out real images | better |" + " each seed |" * is_pool,
        "|---" * (6 + is_pool) + "|",
    ]
    for row in report["measures"]:
        interval = "" if row["interval"] is None else f"{row['interval'][0]} to {row['interval'][1]}"
        real = "" if row["real"] is None else row["real"]
        cells = [row["question"], row["name"], row["value"], interval, real, row["better"]]
        lines.append(_table_line([*cells, ", ".join(map(str, row["seeds"]))] if is_pool else cells))
    for name, classes in class_tables(report).items():
        lines += [*([f"\n## {markdown_text(name)}"] if name else []), *_class_lines(classes)]
    write_text(folder / "report.md", "\n".join(lines) + "\n")


def _class_lines(classes: Report) -> list[str]:
    if "auc" in classes:
        lines = ["", "| label | samples with it | AUC | AUC of held-out images |", "|---" * 4 + "|"]
        columns = [classes[name] for name in ("names", "samples", "auc", "auc_real")]
        return lines + [_table_line(["" if x is None else x for x in cells]) for cells in zip(*columns, strict=True)]
    lines = ["", "| class | samples | read right | most often taken for | Frechet distance | kernel distance |"]
    lines.append("|---" * 6 + "|")
    for i, name in enumerate(classes["names"]):
        counts = np.array(classes["confusion"][i])
        wrong = np.where(np.arange(len(counts)) == i, 0, counts)
        other = f"{classes['names'][wrong.argmax()]} ({wrong.max()})" if wrong.max() else ""
        distances = [classes[k][i] for k in ("frechet_distance", "kernel_distance")]
        lines.append(_table_line([name, counts.sum(), counts[i], other, *("" if d is None else d for d in distances)]))
    return lines


def _table_line(cells: list[object]) -> str:
    return "| " + " | ".join(map(table_cell, cells)) + " |"


def write_pictures(
    folder: Path,
    samples: Samples,
    data: TrainingData,
    train: np.ndarray,
    pairs: np.ndarray,
    model_conditions: list[ModelCondition],
    report: Report,
) -> None:
    """samples.png, nearest.png, and with classes per_class.png and confusion.png.

    Args:
        train: rows of the training images; pairs: for each sample the index into them of its nearest.
    """
    images = [to_image(array) for array in itertools.islice(samples.images(), 512)]
    conditions = samples.plan.drawn[: len(images)]
    names = [condition_name(condition, data.id2label) for condition in conditions]
    has_conditions = data.dataset.columns.condition is not None
    save_picture(samples_sheet(images, names if has_conditions else None), folder / "samples.png")
    nearest = nearest_sheet(images, [real_image(data, train[i]) for i in pairs[: len(images)]])
    save_picture(nearest, folder / "nearest.png")
    labels: list[tuple[str, int, list[object]]] = []
    for each in model_conditions:
        of_images = [each.read(condition) for condition in conditions]
        if each.has_classes and any(label is not None for label in of_images):
            labels += [(each.title(name), i, of_images) for i, name in list(each.id2label.items())[:MOST_SHOWN]]
    if labels:
        save_picture(per_class_sheet(images, labels), folder / "per_class.png")
    if matrices := {name: table for name, table in class_tables(report).items() if "confusion" in table}:
        confusion_plot(matrices, folder / "confusion.png")
