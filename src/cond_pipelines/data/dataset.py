"""Rows of a data set to (pixels, raw condition), checked before the first step."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..console import for_terminal
from ..data import images as im
from ..errors import describe
from .array_file import MOST_MAPPED_BYTES, ArrayFile
from .buckets import nearest_size
from .contents import Stored, fingerprint, of_decoded, of_files, stored_files, times_of_files
from .decoded import DecodedImages
from .fingerprints import data_fingerprint, images_fingerprint
from .labels import Captions, draw
from .loading import Columns, as_files, reopened
from .rows import BadRow, Row, row_name
from .split import MOST_HELD_OUT, hold_out
from .summary import summary_of_conditions, summary_of_skipped

_logger = logging.getLogger(__name__)
_REMEDY = "; mend it, or --on_bad_image skip"
_DECODING = 3  # raised where the same file gives other pixels or notes than before, so that it is decoded again


@dataclass
class ImageDataset:
    """Images and raw conditions of a map-style data set, without torch, which takes seconds to import.

    `dataset[position, index]` is row `index`, with its crop, flip and choice of caption drawn from (seed, position): a
    run that is resumed, or spread over other processes, draws the same.

    Args:
        rows: a `datasets.Dataset` (or a streaming one, of which only `read` is used).
        columns: which columns to read.
        channels, resolution, center_crop, random_flip, interpolation: as the training flags.
        on_bad_image: "error" or "skip".
        parse_condition: value of the condition column to raw condition; raises ValueError for a bad one.
        value_range: what becomes -1 and 1, for images that are not of 8 bits; see `images.to_array`.
        buckets: (height, width) of which each image gets the nearest, instead of (resolution, resolution).
        cache_dir: where decoded images are kept in a file, if they are.
        cache_images: True: in a file; False: decoded at every use; None: in memory, in a file or not at all, by what
            room and time it takes.
        has_classes: conditions are labels, so that one image of each stays in training.
    """

    rows: datasets.Dataset
    columns: Columns
    resolution: int
    channels: int
    center_crop: bool = True
    random_flip: bool = False
    interpolation: str = "lanczos"
    on_bad_image: str = "error"
    parse_condition: Callable[[Any], Any] = lambda value: value
    seed: int = 0
    value_range: tuple[float, float] | None = None
    buckets: list[tuple[int, int]] | None = None
    cache_dir: Path | None = None
    cache_images: bool | None = None
    has_classes: bool = False
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._read_bytes = 0
        self.animated: set[int] = set()  # rows of animations that were decoded
        used = [c for c in (self.columns.image, self.columns.condition) if c is not None]
        self.rows = as_files(self.rows.select_columns(used), self.columns.image)
        self.splits: list[np.ndarray] = []
        self.usable = np.arange(len(self.rows) if isinstance(self.rows, datasets.Dataset) else 0)
        self.kept = DecodedImages(
            decode=self._decode,
            undecoded=self._images,
            reject=self._reject,
            raises_bad=self.on_bad_image == "error",
            animated=self.animated,
            file=None if self.cache_dir is None else self._images_file,
            keep=self.cache_images,
        )
        self.latents: ArrayFile | None = None
        self._conditions: dict[int, Any] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, key: tuple[int, int]) -> Row:
        position, index = key
        size = self.size_of(int(self.usable[index]))
        for stand_in in self._stand_ins(index):
            row = int(self.usable[stand_in])
            try:
                if self.size_of(row) != size:  # a batch is of one size
                    continue
                found = self._augment(self._array(row), self.read_condition(row), position, size)
                found.source = row
                if self.latents is not None:  # of the centre, as it is and, where images are flipped, as it is flipped
                    number = 2 * row + found.flipped if self.random_flip else row
                    found.latents = self.latents[number]
                return found
            except BadRow as error:
                self._skip(error)
        raise BadRow(f"no usable image is left; {self.skipped[-1]}")

    def read(self, values: dict[str, Any], position: int, name: str) -> Row | None:
        """A row of a streaming set; None for one that is skipped. Raises BadRow."""
        value = values.get(self.columns.image)  # a row of a stream may lack it
        name = row_name(name, value)
        try:
            array = self._to_array(value, lambda: name)
            condition = self._to_condition(values.get(self.columns.condition), lambda: name)
        except BadRow as error:
            return self._skip(error)
        found = self._augment(array, condition, position)
        found.source = name
        return found

    def _stand_ins(self, index: int) -> Iterator[int]:
        """`index`, then those to use if it is bad: the next ones of its split. Every process agrees."""
        yield index
        split = next((s for s in self.splits if index in s), np.arange(len(self)))
        yield from np.roll(split, -int(np.searchsorted(split, index)))[1:]

    def _skip(self, error: BadRow) -> None:
        """Of a row found bad after the check: say so once (once a worker)."""
        if self.on_bad_image == "error":
            raise BadRow(f"{error}{_REMEDY}") from error
        if str(error) not in self.skipped:
            self.skipped.append(str(error))
            _logger.warning(for_terminal(f"skipped {error}"))

    def _augment(
        self, array: np.ndarray, condition: Any, position: int, size: int | tuple[int, int] | None = None
    ) -> Row:
        size = size or self.resolution
        if self.center_crop and not self.random_flip and not isinstance(condition, Captions):
            return Row(im.crop(array, size, None), condition)  # nothing is random
        # Philox is counter-based: an independent stream for every position, at no cost of skipping there.
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, position]))
        pixels = im.crop(array, size, None if self.center_crop else rng)
        flipped = bool(self.random_flip and rng.random() < 0.5)
        return Row(pixels[:, ::-1] if flipped else pixels, draw(condition, rng), flipped)

    def _array(self, row: int) -> np.ndarray:
        return self.kept[row] if row in self.kept else self.read_image(row)

    def centre(self, row: int) -> np.ndarray:
        """The middle (H, W, C) of a row of `rows`. Raises BadRow."""
        return im.crop(self._array(row), self.size_of(row), None)

    def size_of(self, row: int) -> int | tuple[int, int]:
        """The side, or (height, width), that a row of `rows` is cropped to. Raises BadRow."""
        if self.buckets is None:
            return self.resolution
        if row not in self._sizes:
            try:
                found = im.size_px(self.undecoded(row))
            except OSError as error:
                raise self._unreadable(error, self.name(row)) from error
            self._sizes[row] = nearest_size(*found, self.buckets)
        return self._sizes[row]

    def by_bucket(self, indices: np.ndarray) -> list[np.ndarray]:
        """Those of `indices` that are of each bucket."""
        of_size: dict[Any, list[int]] = {size: [] for size in self.buckets or [self.resolution]}
        for index in indices:
            try:
                of_size[self.size_of(int(self.usable[index]))].append(int(index))
            except BadRow as error:
                self._skip(error)
        return [np.array(found, dtype=int) for found in of_size.values()]

    def name(self, row: int) -> str:
        """How a user finds this row: its file where there is one."""
        return row_name(f"row {row}", self.undecoded(row))

    def read_image(self, row: int) -> np.ndarray:
        """(H, W, C) uint8 with the shorter side at the resolution. Raises BadRow."""
        return self._decode(row, self.undecoded(row))

    def read_condition(self, row: int) -> Any:
        """The raw condition, None where the setting has none. Raises BadRow."""
        if self.columns.condition is None:
            return None
        if row not in self._conditions:
            value = self.rows[row][self.columns.condition]
            self._conditions[row] = self._to_condition(value, lambda: self.name(row))
        return self._conditions[row]

    def _to_array(self, value: Any, name: Callable[[], str], row: int | None = None) -> np.ndarray:
        try:
            image, size = im.open_image(value, deep=self.value_range is not None), self.resolution
            if isinstance(image, Image.Image) and image.info.get(im.ANIMATED) and row is not None:
                self.animated.add(row)
            if self.buckets is not None:
                size = nearest_size(*im.size_px(image), self.buckets)
            return im.to_array(image, self.channels, size, self.interpolation, self.value_range)
        except (Exception, MemoryError) as error:  # there is no base class for what broken files and arrays raise
            raise self._unreadable(error, name()) from error

    def _decode(self, row: int, value: Any) -> np.ndarray:
        return self._to_array(value, lambda: self.name(row), row)

    def _images_file(self) -> Path:
        return self.cache_dir / f"images-{self.images_fingerprint()}"

    def _unreadable(self, error: Exception, name: str) -> BadRow:
        if isinstance(error, MemoryError):
            error = OSError("it needs more memory than there is")
        reason = " ".join(str(error).split()) or type(error).__name__
        return BadRow(f"{name}: unreadable image: {reason}")

    def _to_condition(self, value: Any, name: Callable[[], str]) -> Any:
        if self.columns.condition is None:
            return None
        try:
            return self.parse_condition(value)
        except (ValueError, TypeError, LookupError) as error:  # a label of another type, or one that was never seen
            raise BadRow(f"{name()}: {describe(error)}") from error

    def check(self, with_images: bool = True) -> None:
        """Look at every condition, and `with_images` at every image too where they are kept decoded.

        Raises:
            BadRow: for the first bad row, where on_bad_image is "error".
            ValueError: no usable row is left.
        """
        bad: list[int] = []
        if self.columns.condition is not None:
            values = self.rows.select_columns([self.columns.condition])[self.columns.condition]
            for row, value in enumerate(values):
                try:
                    self._conditions[row] = self._to_condition(value, lambda row=row: self.name(row))
                except BadRow as error:
                    self._reject(error)
                    bad.append(row)
        rows = np.setdiff1d(np.arange(len(self.rows)), bad)
        self.usable = self.kept.load(rows, len(self.rows)) if with_images else rows
        if not len(self):
            raise ValueError(
                f"no usable image among {len(self.rows)} rows" + "".join(f"; {s}" for s in self.skipped[:3])
            )

    def renumber(self, ids: dict[int, int]) -> None:
        """Give each label another id."""
        before = self.parse_condition

        def renumbered(label: Any) -> Any:
            return tuple(ids[i] for i in label) if isinstance(label, tuple) else ids.get(label)

        self.parse_condition = lambda value: renumbered(before(value))
        self._conditions = {row: renumbered(label) for row, label in self._conditions.items()}

    def _reject(self, error: BadRow) -> None:
        """Of a row found bad in the check."""
        if self.on_bad_image == "error":
            raise BadRow(f"{error}{_REMEDY}") from error
        self.skipped.append(str(error))

    @property
    def decoded(self) -> bool:
        """Whether all images are kept decoded."""
        return self.kept.has_all

    def images_fingerprint(self) -> str:
        """Of every image file, by its content or by path, size and time, and of how it is decoded."""
        how = (len(self.rows), self.channels, self.resolution, self.interpolation, self.value_range, self.buckets)
        how += (_DECODING,)
        parts = (range(start, min(start + 256, len(self.rows))) for start in range(0, len(self.rows), 256))
        return images_fingerprint((value for part in parts for value in self._images(list(part))), how)

    def fingerprint(self) -> str:
        """Of what is trained on: the columns, the usable rows, and the content of up to 256 of them."""
        how = (self.columns, self.center_crop, self.random_flip)
        if not isinstance(self.rows, datasets.Dataset):
            return data_fingerprint(how)
        some = self.usable[np.linspace(0, len(self.usable) - 1, min(256, len(self.usable))).astype(int)].tolist()
        images = self.rows[some][self.columns.image]
        return data_fingerprint(how, self.usable, images, [self._conditions.get(row) for row in some])

    def undecoded(self, row: int) -> Any:
        """The image of a row of `rows`, as {"bytes", "path"}."""
        return self._images([row])[0]

    def _images(self, rows: list[int]) -> list[Any]:
        """Undecoded: a path, or bytes from a file that `datasets` maps into memory, and never lets go of."""
        values = self.rows[rows][self.columns.image]
        self._read_bytes += sum(len(v["bytes"]) for v in values if isinstance(v, dict) and v.get("bytes"))
        if self._read_bytes > MOST_MAPPED_BYTES:
            self.rows, self._read_bytes = reopened(self.rows), 0
        return values

    def content_keys(self) -> list[bytes]:
        """A short checksum of each usable image: of its pixels where they are kept decoded, of its file otherwise."""
        if self.decoded:
            return of_decoded(self.kept[row] for row in self.usable.tolist())
        return of_files(self._stored_files)

    def _stored_files(self) -> Iterator[Stored]:
        return stored_files(self.rows, self.columns.image, self.usable)

    def content_fingerprint(self, keys: list[bytes]) -> str:
        """Of all images and conditions; `keys`: `content_keys`."""
        return fingerprint(keys, (self._conditions.get(row) for row in self.usable.tolist()))

    def times_of_files(self) -> str:
        """Of the times at which the images' files were changed."""
        return times_of_files(self._stored_files())

    def use_split(self, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(training, held-out) indices; what stands in for a bad image comes from the same of the two."""
        train = np.setdiff1d(np.arange(len(self)), held_out)
        self.splits = [train, held_out]
        return train, held_out

    def use_halves(self, first: np.ndarray, second: np.ndarray) -> None:
        """Split the training images once more: what stands in for a bad image comes from its own half."""
        self.splits = [first, second, *self.splits[1:]]

    def split(self, fraction: float, most: int = MOST_HELD_OUT) -> tuple[np.ndarray, np.ndarray]:
        """(training, held-out) indices, drawn from the seed by the images' content; see `split.hold_out`."""
        classes = [self._conditions.get(row) for row in self.usable.tolist()] if self.has_classes else None
        return self.use_split(hold_out(self.content_keys(), classes, fraction, self.seed, most))

    @property
    def declares_classes(self) -> bool:
        """Whether the column of labels has a list of names."""
        feature = self.rows.features[self.columns.condition]
        return isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)

    def conditions(self) -> list[Any]:
        """Of the usable rows, as parsed, where they were read in the check."""
        return [self._conditions[r] for r in self.usable if r in self._conditions]

    def summary(self, condition_names: dict[int, str] | None = None) -> str:
        """How many images and conditions there are, for a person."""
        counts = f"{len(self):,} usable of {len(self.rows):,}"
        lines = [f"images: {counts}, {self.resolution} px, {self.channels} channel(s)"]
        if self.animated:
            lines.append(f"files of several frames or pages, of which the first is used: {len(self.animated):,}")
        lines += [*summary_of_conditions(self.conditions(), condition_names), *summary_of_skipped(self.skipped)]
        return "\n".join(map(for_terminal, lines))  # names and labels are text of others: each line stays one
