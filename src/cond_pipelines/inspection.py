"""What a training run would see of a data set, without training: lines and two contact sheets."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .command_line import Parser
from .console import for_terminal
from .data.config import ConditionColumn, DataArguments
from .files import whole_file
from .flags import SEED, flag
from .settings import find_setting

if TYPE_CHECKING:
    from .data.dataset import ImageDataset
    from .data.load import TrainingData

_NUM_SHOWN, _NUM_LOOKED_AT, _NUM_NAMED, _LEFT_OUT_SIDE_PX = 64, 2000, 100, 96


@dataclass
class InspectionConfig(DataArguments):
    """What to inspect."""

    conditioning: str = flag(
        "none", "Read the conditions of this setting: none, class, text, embedding, custom.", common=3
    )
    seed: int = flag(0, "Hold out the images that a run with this seed holds out.", bounds=SEED)
    output_dir: str = flag(".", "Write inspect.png and left_out.png into this folder.", common=5)

    @property
    def column(self) -> ConditionColumn | None:  # type: ignore[override]
        """How the column of the conditions is read; None where the setting has none."""
        return find_setting(self.conditioning).column


def parse_config(args: list[str]) -> InspectionConfig:
    """`FOLDER --conditioning class ...` as a configuration; unreadable images are counted, unless said otherwise."""
    usage = "cond-pipelines inspect FOLDER [--conditioning class] [...]"
    parser = Parser("cond-pipelines inspect", InspectionConfig, [InspectionConfig], __doc__ or "", usage=usage)
    if args and not args[0].startswith("-"):
        args = ["--train_data_dir", *args]
    values, unknown = parser.parse(args)
    parser.refuse_unknown(unknown)
    config = InspectionConfig(**{"on_bad_image": "skip"} | values)
    find_setting(config.conditioning)  # a typo is answered before anything is read
    return config


def inspect(config: InspectionConfig) -> str:
    """The lines that a run begins with and more on sizes, classes, captions and copies; writes the contact sheets.

    Raises:
        ValueError: in one line: what a run could not use either.

    Example:
        >>> print(inspect(InspectionConfig(train_data_dir="flowers", conditioning="class")))
    """
    from .data.load import load_data

    return describe(config, load_data(config))


def describe(config: InspectionConfig, data: "TrainingData") -> str:
    """The lines and contact sheets of `inspect`, of data that are loaded."""
    lines = [data.summary()]
    if data.train is None:
        return "\n".join(lines)
    lines += _sizes(data.dataset)
    conditions = data.dataset.conditions()
    if data.id2label:
        lines += map(for_terminal, _balance(conditions, data.id2label))
    elif find_setting(config.conditioning).has_captions:
        lines += _tokens(conditions)
    folder = Path(config.output_dir)
    if config.data_around(folder):
        lines.append(
            f"inspect.png and left_out.png are not written into {folder}: they would be images of the data; give "
            "--output_dir"
        )
        return "\n".join(lines)
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {
        "inspect.png": ("what the network sees", _sheet(data)),
        "left_out.png": ("what is left out", _left_out_sheet(data.account.root, data.account.excluded)),
    }
    for name, (what, sheet) in sheets.items():
        if sheet is not None:
            with whole_file(folder / name) as unfinished:  # a link of that name is replaced, not followed
                sheet.save(unfinished, "PNG")
            lines.append(f"{what}: {folder / name}")
    return "\n".join(lines)


def facts_of(data: "TrainingData") -> dict[str, Any]:
    """What `describe` says in lines as values: what is left out and why, classes, lengths of captions, copies.

    Returns:
        Counts ("total", "num_train", "num_held_out", "resolution_px"); "excluded", by reason; "bad_rows" and "notes",
        lines; "classes", with counts; "caption_lengths", pairs of words and captions; "num_duplicates", how many groups
        of images with the same pixels; "duplicates", the indices of the first 100 groups.
    """
    from .data.labels import all_of

    dataset, account = data.dataset, data.account
    captions = [text for text in all_of(dataset.conditions()) if isinstance(text, str)]
    counts = Counter(names_of(data)) if data.id2label else {}
    same: dict[bytes, list[int]] = {}
    for i, content in enumerate(data.keys if dataset.decoded else ()):
        same.setdefault(content, []).append(i)
    duplicates = [group for group in same.values() if len(group) > 1]
    reasons = account.excluded.items()
    return {
        "total": len(dataset),
        "num_train": 0 if data.train is None else len(data.train),
        "num_held_out": len(data.held_out),
        "resolution_px": dataset.resolution,
        "excluded": [{"reason": why, "count": len(names), "files": names[:_NUM_NAMED]} for why, names in reasons],
        "bad_rows": dataset.skipped,
        "notes": [*account.notes, *account.unread],
        "classes": [{"name": name, "count": count} for name, count in sorted(counts.items())],
        "caption_lengths": sorted(Counter(len(text.split()) for text in captions).items()),
        "num_duplicates": len(duplicates),
        "duplicates": duplicates[:_NUM_NAMED],
    }


def names_of(data: "TrainingData") -> list[str]:
    """The condition of each image in words; "" where the setting has none."""
    from .data.labels import condition_name

    every = np.arange(len(data.dataset))
    if data.dataset.columns.condition is None:
        return [""] * len(every)
    return [condition_name(condition, data.id2label) for condition in data.conditions(every)]


def image_of(dataset: "ImageDataset", row: int) -> Image.Image:
    """The image of a row after crop and resize, as the network sees it. Raises BadRow."""
    from .pictures import visible

    array = dataset.centre(row).astype(np.float32)
    return visible(array / 255 if dataset.value_range is None else (array + 1) / 2)


def write_thumbnail(dataset: "ImageDataset", row: int, path: Path, side_px: int = 128) -> bool:
    """Write the image of a row, as the network sees it, as a PNG of at most `side_px`; False: it cannot be read."""
    from .data.rows import BadRow
    from .pictures import write_again

    try:
        picture = image_of(dataset, row)
    except BadRow:
        return False
    picture.thumbnail((side_px, side_px))
    write_again(picture, path)
    return True


def _sizes(dataset: Any) -> list[str]:
    """Lines on the images' own sizes, on how much is cropped, and on what is converted."""
    from .data.images import read_header

    rows = dataset.usable[:: max(1, len(dataset.usable) // _NUM_LOOKED_AT)].tolist()
    headers = []
    for row in rows:
        with suppress(OSError):
            if (header := read_header(dataset.undecoded(row))) is not None:
                headers.append(header)
    if not headers:
        return []
    heights, widths = (np.array([getattr(h, side) for h in headers]) for side in ("height", "width"))
    shorter, longer = np.minimum(heights, widths), np.maximum(heights, widths)
    of = f" (of {len(headers):,} images)" if len(rows) < len(dataset) else ""
    smaller = int((shorter < dataset.resolution).sum())
    lines = [
        f"sizes{of}: {widths.min():,} to {widths.max():,} px wide, {heights.min():,} to {heights.max():,} px high",
        f"scaled up to {dataset.resolution} px: {smaller:,}; cropped away: {100 * (1 - shorter / longer).mean():.0f} % "
        "of an image on average",
    ]
    animated = sum(h.num_frames > 1 for h in headers)
    if animated and not dataset.decoded:  # or the summary has it
        lines.append(f"files of several frames or pages, of which the first is used{of}: {animated:,}")
    modes = Counter(h.mode for h in headers)
    lines.append("modes: " + ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common()))
    if profiles := sum(h.has_profile for h in headers):
        lines.append(f"with a colour profile, converted to sRGB: {profiles:,}")
    return lines


def _balance(conditions: list[Any], id2label: dict[int, str]) -> list[str]:
    counts = Counter(i for c in conditions for i in (c if isinstance(c, tuple) else [c]) if i is not None)
    if not counts:
        return []
    if len(counts) == 1:  # which the summary says
        return []
    (most, many), (least, few) = counts.most_common()[0], counts.most_common()[-1]
    return [f"balance: {id2label[most]} has {many:,} images, {id2label[least]} {few:,}: {many / few:.3g} times as many"]


def _tokens(conditions: list[Any]) -> list[str]:
    """Lines on the tokens of captions, by the tokenizer that a run without --text_encoder_name_or_path makes."""
    from .adapters.text import lost_words
    from .data.labels import all_of
    from .networks.text_encoders import train_tokenizer

    captions = [text for text in all_of(conditions) if isinstance(text, str)]
    if not captions:
        return []
    tokenizer = train_tokenizer(captions)
    lengths = np.array([len(ids) for ids in tokenizer(captions, verbose=False)["input_ids"]])
    line = f"tokens of a caption: {lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}"
    return [line, *lost_words(captions, tokenizer, tokenizer.model_max_length)]


def _sheet(data: Any) -> Image.Image | None:
    """Images after scaling and cropping, in the order of their classes or captions; None where none can be read."""
    from .data.labels import condition_name
    from .data.rows import BadRow
    from .pictures import image_grid

    chosen = np.unique(np.linspace(0, len(data.dataset) - 1, min(_NUM_SHOWN, len(data.dataset))).round().astype(int))
    names = [condition_name(c, data.id2label) for c in data.conditions(chosen)]
    order = sorted(range(len(chosen)), key=lambda i: names[i])
    images, captions = [], []
    for i in order:
        with suppress(BadRow):  # images that are not kept decoded are not all looked at
            images.append(image_of(data.dataset, int(data.dataset.usable[chosen[i]])))
            captions.append(names[i])
    if not images:
        return None
    return image_grid(images, captions=captions if data.dataset.columns.condition is not None else None)


def _left_out_sheet(root: str, left_out: dict[str, list[str]]) -> Image.Image | None:
    """Some images of each reason for which images are left out, as far as they can be opened."""
    from .data.images import convert, open_image
    from .pictures import image_grid

    images, captions = [], []
    for reason, names in left_out.items():
        for name in names[: max(1, _NUM_SHOWN // len(left_out))]:
            with suppress(OSError):
                image = open_image(os.path.join(root, name))
                if isinstance(image, Image.Image):
                    small = convert(image, 3)
                    small.thumbnail((_LEFT_OUT_SIDE_PX, _LEFT_OUT_SIDE_PX))
                    square = Image.new("RGB", (_LEFT_OUT_SIDE_PX, _LEFT_OUT_SIDE_PX), "white")
                    square.paste(small)
                    images.append(square)
                    captions.append(f"{name}: {reason}")
    return image_grid(images, captions=captions) if images else None
