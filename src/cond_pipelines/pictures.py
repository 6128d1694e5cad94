"""Pictures of a training run: a grid of samples, the loss curve."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .files import whole_file


def image_grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    min_side_px: int = 64,
) -> Image.Image:
    """Images of one size as a grid, enlarged by whole pixels to at least `min_side_px` a side.

    Args:
        captions: one line under each image, cut to its width.

    Example:
        >>> image_grid(pipe(batch_size=16).images).save("samples.png")
    """
    if not images:
        raise ValueError("no images to lay out")
    columns = columns or max(1, round(len(images) ** 0.5))
    scale = max(1, -(-min_side_px // max(images[0].size)))
    width, height = (side * scale for side in images[0].size)
    gap, line = max(2, width // 32), 14 if captions else 0
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw = ImageDraw.Draw(grid)
    for number, image in enumerate(images):
        left = gap + number % columns * (width + gap)
        top = gap + number // columns * (height + line + gap)
        large = image.resize((width, height), Image.Resampling.NEAREST).convert("RGBA")
        grid.paste(large, (left, top), large)
        if captions:
            text = " ".join(captions[number].split())  # on one line, whatever it was
            while text and draw.textlength(text) > width:
                text = text[:-1]
            draw.text((left, top + height + 1), text, fill="black")
    return grid


def visible(image: np.ndarray) -> Image.Image:
    """A sample (H, W, C) in [0, 1] as a picture; of two channels the first, of five and more the first three."""
    channels = image.shape[-1]
    pixels = (image * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels < 3 else pixels if channels < 5 else pixels[..., :3])


def loss_plot(
    path: Path, train: list[tuple[int, float]], held_out: list[tuple[int, float]], run: str | None = None
) -> None:
    """Write the loss curve as PNG.

    Args:
        train: (step, mean loss since the last entry).
        held_out: (step, loss of held-out images at fixed noise and times).
        run: the file says that it is of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for points, label, style in ((train, "training", "-"), (held_out, "held out, EMA", "o-")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    values = sorted(loss for _, loss in train + held_out if math.isfinite(loss))
    if values and values[0] > 0:
        axes.set_ylim(values[0] * 0.9, values[int(0.98 * (len(values) - 1))] * 1.2)
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.grid(alpha=0.3)
    if train or held_out:
        axes.legend()
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png", metadata=None if run is None else {"run": run})
