"""What an evaluation shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from ..files import whole_file
from ..fonts import Font
from ..pictures import image_grid, short_title
from .config import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SHOWN = 40  # classes of a condition that have a row and a name
_MOST_NUMBERS = 20  # classes, of which a confusion matrix shows every count


def of_one_size(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Images of any shapes on white of one size, each as large as it is."""
    size = tuple(max(sides) for sides in zip(*(image.size for image in images), strict=True))
    if all(image.size == size for image in images):
        return list(images)
    return [ImageOps.pad(image.convert("RGB"), size, Image.Resampling.BICUBIC, "white") for image in images]


def samples_sheet(images: list[Image.Image], names: list[str] | None) -> Image.Image:
    """The first 64 samples, with their conditions."""
    return image_grid(of_one_size(images[:64]), columns=8, captions=names[:64] if names else None)


def nearest_sheet(images: list[Image.Image], neighbours: list[Image.Image]) -> Image.Image:
    """Pairs: a sample, and the training image nearest to it."""
    pairs = [image for pair in zip(images, neighbours, strict=True) for image in pair][:64]
    return image_grid(of_one_size(pairs), columns=8, captions=["sample", "nearest"] * (len(pairs) // 2))


def per_class_sheet(
    images: list[Image.Image], labels: Sequence[tuple[str, int, Sequence[object]]], each: int = 10
) -> Image.Image:
    """A row for each class of the samples that there are of it.

    Args:
        labels: of each row its title, the id of the class, and the id or ids of each image.
    """
    images = of_one_size(images)
    shown: list[Image.Image | None] = []
    for _, i, of_images in labels:
        mine = [label == i or (isinstance(label, tuple) and i in label) for label in of_images]
        row = [image for image, is_mine in zip(images, mine, strict=True) if is_mine][:each]
        shown += [*row, *[None] * (each - len(row))]
    return image_grid(shown, columns=each, row_titles=[title for title, *_ in labels])


def confusion_plot(tables: Mapping[str, Report], path: Path) -> None:
    """The conditions (rows) against what was read (columns), as shares of a row; the counts, of up to 20 classes.

    Args:
        tables: by the name of the condition, which is its title: "confusion" and "names" of its classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    side = min(14.0, 2.5 + 0.45 * max(len(table["names"]) for table in tables.values()))
    figure = Figure(figsize=(side * len(tables), side), layout="constrained")
    FigureCanvasAgg(figure)
    font = Font(10, [*tables, *(str(name) for table in tables.values() for name in table["names"])])
    for axes, (title, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        axes.set_title(short_title(title, font), parse_math=False, fontfamily=font.families)
        _confusion(axes, np.array(table["confusion"]), table["names"], font)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")


def _confusion(axes: "Axes", counts: np.ndarray, names: list[str], font: Font) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="class that a linear probe reads", ylabel="class that was the condition")
    if len(names) <= MOST_SHOWN:
        shown, families = [short_title(name, font) for name in names], font.families
        axes.set_xticks(range(len(names)), shown, rotation=90, parse_math=False, fontfamily=families)
        axes.set_yticks(range(len(names)), shown, parse_math=False, fontfamily=families)
    for row, column in np.argwhere(counts) if len(names) <= _MOST_NUMBERS else []:
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
