"""What an evaluation shows."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..files import whole_file
from ..pictures import image_grid, short_title


def samples_sheet(images: list[Image.Image], names: list[str] | None) -> Image.Image:
    """The first 64 samples, with their conditions."""
    return image_grid(images[:64], columns=8, captions=names[:64] if names else None)


def nearest_sheet(images: list[Image.Image], neighbours: list[Image.Image]) -> Image.Image:
    """Pairs: a sample, and the training image nearest to it."""
    pairs = [image for pair in zip(images, neighbours, strict=True) for image in pair][:64]
    return image_grid(pairs, columns=8, captions=["sample", "nearest"] * (len(pairs) // 2))


def per_class_sheet(
    images: list[Image.Image], labels: list[object], id2label: dict[int, str], each: int = 10
) -> Image.Image:
    """A row for each class, of the samples that there are of it."""
    blank = Image.new(images[0].mode, images[0].size)
    shown, names = [], []
    for i, name in list(id2label.items())[:40]:
        row = [image for image, label in zip(images, labels, strict=False) if label == i][:each]
        shown += row + [blank] * (each - len(row))
        names += [name] * each
    return image_grid(shown, columns=each, captions=names)


def confusion_plot(counts: np.ndarray, names: list[str], path: Path) -> None:
    """The conditions (rows) against what was read (columns), as shares of a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    side = min(12.0, 2.5 + 0.3 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="read", ylabel="asked for")
    if len(names) <= 40:
        shown = [short_title(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), shown, parse_math=False)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")
