"""Pictures: a grid of images with titles and captions, an animation, the loss curve."""

import bisect
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .files import whole_file
from .fonts import Font, parts_of, whole_characters

_MAX_TITLE = 24  # characters in a plot
_FONT_PX = 10  # for images of up to 280 px; larger ones have larger text
_MAX_WORD_PX = 160  # small images are enlarged until the longest word fits; a longer one is broken
_PAD_PX = 4  # left of a title
_MIN_LINES = 5  # of a caption that are shown below an image, however small


def image_grid(
    images: Sequence[Image.Image | None],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    min_side_px: int = 64,
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
) -> Image.Image:
    """Images of one size as a grid, row by row, enlarged by whole pixels to at least `min_side_px` a side.

    Text is wrapped between words. Small images are enlarged until the longest word of a caption or a column title fits.

    Args:
        images: None leaves its place empty; one at least is an image.
        columns: images in a row; default: about as many as rows, or what the titles of rows leave.
        captions: text under each image, on as many lines as it needs; what is higher than half an image ends in "...".
        row_titles: text left of each row.
        column_titles: text above each column, or above equal groups of columns.

    Raises:
        ValueError: there is no image, or the titles do not fit the number of rows and columns.

    Example:
        >>> image_grid(pipe(batch_size=16).images).save("samples.png")
        >>> image_grid(images, row_titles=["circle", "ring"], column_titles=["scale 1", "scale 4"]).save("grid.png")
    """
    first = next((image for image in images if image is not None), None)
    if first is None:
        raise ValueError("no images to lay out")
    columns = columns or (-(-len(images) // len(row_titles)) if row_titles else default_columns(len(images)))
    rows = -(-len(images) // columns)
    _check_titles(rows, columns, row_titles, column_titles)
    font = Font(_font_px(min_side_px, first.size), [*(captions or ()), *row_titles, *column_titles])
    group = columns // len(column_titles) if column_titles else 1
    word_px = max(_longest_word_px(captions or (), font), -(-_longest_word_px(column_titles, font, _PAD_PX) // group))
    scale = max(1, -(-min_side_px // max(first.size)), -(-word_px // first.width))
    width, height = (side * scale for side in first.size)
    line_px = _line_px(font.size_px)
    texts = [wrapped(text, width, max(_MIN_LINES, height // (2 * line_px)), font) for text in captions or ()]
    num_lines = max(1, *map(len, texts)) if captions else 0
    gap, below = max(2, width // 32), num_lines * line_px
    grid = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + below + gap) + gap), "white")
    draw = ImageDraw.Draw(grid)
    for number, image in enumerate(images):
        left = gap + number % columns * (width + gap)
        top = gap + number // columns * (height + below + gap)
        if image is None:
            continue
        for line, text in enumerate(texts[number] if captions else ()):
            font.draw(draw, (left, top + height + 1 + line * line_px), text)
        large = image.resize((width, height), Image.Resampling.NEAREST).convert("RGBA")
        grid.paste(large, (left, top), large)
    return _with_titles(grid, row_titles, column_titles, font) if row_titles or column_titles else grid


def _check_titles(rows: int, columns: int, row_titles: Sequence[str], column_titles: Sequence[str]) -> None:
    if row_titles and len(row_titles) != rows:
        raise ValueError(f"{len(row_titles)} row_titles for {rows} rows: give one for each row")
    if column_titles and columns % len(column_titles):
        raise ValueError(f"{len(column_titles)} column_titles for {columns} columns: give one for each, or for groups")


def _with_titles(grid: Image.Image, rows: Sequence[str], columns: Sequence[str], font: Font) -> Image.Image:
    """The grid with a title left of each row and above each column, or group of columns."""
    line_px = _line_px(font.size_px)
    column_px, row_px = grid.width // max(1, len(columns)), grid.height // max(1, len(rows))
    above = [wrapped(title, column_px - _PAD_PX, 4, font) for title in columns]
    top = max(map(len, above), default=0) * line_px
    left = max(14 * font.size_px, _longest_word_px(rows, font, 2 * _PAD_PX)) if any(rows) else 0
    left_lines = [wrapped(title, left - 2 * _PAD_PX, max(1, row_px // line_px), font) for title in rows]
    picture = Image.new("RGB", (left + grid.width, top + grid.height), "white")
    picture.paste(grid, (left, top))
    draw = ImageDraw.Draw(picture)
    for column, lines in enumerate(above):
        for number, line in enumerate(lines):
            font.draw(draw, (left + column * column_px + _PAD_PX, number * line_px), line)
    for row, lines in enumerate(left_lines):
        for number, line in enumerate(lines):
            font.draw(draw, (_PAD_PX, top + row * row_px + _PAD_PX + number * line_px), line)
    return picture


def _font_px(min_side_px: int, size: tuple[int, int]) -> int:
    return max(_FONT_PX, max(min_side_px, *size) // 28)


def _line_px(font_px: int) -> int:
    return round(1.4 * font_px)


def _longest_word_px(texts: Sequence[str], font: Font, pad_px: int = 0) -> int:
    """Of the words that are not longer than what is enlarged for, with `pad_px`; 0 where there is none."""
    words = {word for text in texts for word in text[:2000].split() if len(word) <= _MAX_WORD_PX}
    most = _MAX_WORD_PX * font.size_px // _FONT_PX
    widths = [math.ceil(font.width(part)) for word in words for part in parts_of(font.shown(word))]
    return max((width + pad_px for width in widths if width <= most), default=0)


def default_columns(count: int) -> int:
    """Of a grid of so many images: it is about square."""
    return max(1, round(math.sqrt(count)))


def wrapped(text: str, width_px: int, max_lines: int, font: Font | None = None) -> list[str]:
    """The text on lines of at most `width_px`, as the font shows it, broken between words; cut with "...".

    The number of measurements grows with the lines and not with the text: the end of each is found by bisection.

    Args:
        font: default: a small one.

    Example:
        >>> wrapped("a very small red circle", 64, 2)
        ['a very small', 'red circle']
    """
    # A visible character is at least a pixel wide, so more than this is never shown.
    most = 4 * (width_px + 1) * max_lines
    font = font or Font(_FONT_PX, [text[:most]])
    rest = font.shown(text[:most])[:most]
    lines: list[str] = []

    def fitting(text: str, ending: str = "") -> int:
        """The most of its first characters that fit on a line together with `ending`."""
        return bisect.bisect_right(
            range(1, len(text) + 1), float(width_px), key=lambda n: font.width(text[:n].rstrip() + ending)
        )

    while rest and len(lines) < max_lines:
        count = fitting(rest)
        if count < len(rest) and len(lines) == max_lines - 1:
            return [*lines, _at_a_word(rest, fitting(rest, "...")).rstrip() + "..."]
        line = _at_a_word(rest, max(1, count))
        lines.append(line.rstrip())
        rest = rest[len(line) :].lstrip()
    return lines


def short_title(text: object, font: Font) -> str:
    """Text of others as a title in a plot: one line of at most 24 characters, all of which can be drawn.

    Give `parse_math=False` to what draws it: matplotlib takes "$...$" for a formula, and fails or never ends.

    Example:
        >>> short_title("a very" + " very" * 20 + " red rose", Font(10))
        'a very very very very...'
    """
    line = font.shown(str(text)[: 4 * _MAX_TITLE])
    return line if len(line) <= _MAX_TITLE else _at_a_word(line, _MAX_TITLE - 3).rstrip() + "..."


def _at_a_word(text: str, count: int) -> str:
    """The first `count` characters, or fewer so that no word is cut that is not a line long, and no escape."""
    if count >= len(text) or text[count] == " ":
        return text[:count]
    space = text.rfind(" ", 0, count)
    return text[: space if space > 0 else whole_characters(text, count) or count]


def animation(frames: Sequence[tuple[str, Image.Image]], path: Path, side_px: int = 480, max_frames: int = 12) -> None:
    """Write an animated GIF: small enough for a page, at most 3 MB, whatever the run.

    Args:
        frames: (label, picture), all of one size. Of more than `max_frames` the first, the last and evenly between.
    """
    if len(frames) > max_frames:
        frames = [frames[round(i * (len(frames) - 1) / (max_frames - 1))] for i in range(max_frames)]
    scale = min(1.0, side_px / max(frames[0][1].size))
    width, height = (max(1, round(scale * px)) for px in frames[0][1].size)
    pictures = []
    for label, picture in frames:
        frame = Image.new("RGB", (width, height + _line_px(_FONT_PX)), "white")
        frame.paste(picture.convert("RGB").resize((width, height), Image.Resampling.BOX if scale < 1 else None))
        ImageDraw.Draw(frame).text((2, height), label, fill="black")
        pictures.append(frame.quantize(256))
    duration_ms = [700] * (len(pictures) - 1) + [2500]
    with whole_file(path) as unfinished:
        pictures[0].save(unfinished, "GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0)


def write_again(picture: Image.Image, path: Path) -> None:
    """Write a PNG that can be made again: whole, but not waiting for the disk as `whole_file` does."""
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    picture.save(unfinished, "PNG", compress_level=1)
    os.replace(unfinished, path)


def write_once(picture: Image.Image, folder: Path) -> str:
    """The name of a PNG in `folder`, by its pixels; written where it is not there."""
    content = f"{picture.mode}{picture.size}".encode() + picture.tobytes()
    name = hashlib.sha256(content).hexdigest()[:24] + ".png"
    if not (folder / name).is_file():
        write_again(picture, folder / name)
    return name


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

    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.12, top=0.97)  # a layout engine would draw it twice
    for points, label, style in ((train, "training", "-"), (held_out, "held out, EMA", "o-")):
        if points:
            style = "o-" if len(points) < 10 else style  # a line of one point cannot be seen
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
