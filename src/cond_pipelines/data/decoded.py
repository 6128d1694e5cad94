"""Decoded images, kept in memory or in a file, so that no image is decoded twice."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from ..console import for_terminal
from .array_file import ArrayFile, stored
from .rows import BadRow

_logger = logging.getLogger(__name__)
_ANIMATED = "animated"  # a note on a row with an image; those without one have the reason


@dataclass
class DecodedImages:
    """Images by row, where they are kept decoded: `row in images`, `images[row]` is (H, W, C).

    Args:
        decode: (row, undecoded image) -> (H, W, C); raises BadRow.
        undecoded: rows -> their undecoded images; many at once are several times quicker to get.
        reject: takes a BadRow; raises it, or notes that the row is skipped.
        raises_bad: whether `reject` raises.
        animated: rows of which `decode` found more than one frame; those in the file are added to it.
        file: names the file for the images, where there is a place for one.
        keep: True: in the file; False: nowhere; None: in memory, in the file or nowhere, by the room and time it takes.
    """

    decode: Callable[[int, Any], np.ndarray]
    undecoded: Callable[[list[int]], list[Any]]
    reject: Callable[[BadRow], None]
    raises_bad: bool
    animated: set[int]
    file: Callable[[], Path] | None = None
    keep: bool | None = None

    # Where `keep` is None, images are kept in memory up to the first, in a file up to the second and third.
    most_in_memory_bytes: ClassVar[int] = 32 * 2**20
    most_in_file_bytes: ClassVar[int] = 2 * 2**30
    most_in_file_sec: ClassVar[float] = 90.0

    def __post_init__(self) -> None:
        self.arrays: dict[int, np.ndarray] | ArrayFile = {}
        self.has_all = False

    def __contains__(self, row: int) -> bool:
        return row in self.arrays

    def __getitem__(self, row: int) -> np.ndarray:
        return self.arrays[row]

    def load(self, rows: np.ndarray, num_rows: int) -> np.ndarray:
        """Decode all of `rows`, or a few where all would take too much room or time; returns the usable rows.

        Args:
            num_rows: of the data set: the file holds all of them.

        Raises:
            BadRow: for the first bad row, where `reject` raises.
        """
        if self.keep:
            return self._from_file(rows, num_rows)
        rng = np.random.default_rng(0)
        start, probe = time.perf_counter(), rows[np.sort(rng.permutation(len(rows))[:32])]
        bad: list[int] = []
        self._to_memory(probe, bad)
        sec = (time.perf_counter() - start) / max(1, len(probe)) * len(rows)
        size = np.mean([a.nbytes for a in self.arrays.values()] or [0]) * len(rows)
        quick = self.keep is None and sec <= self.most_in_file_sec
        self.has_all = bool(quick and size <= self.most_in_memory_bytes)
        if self.has_all:
            self._to_memory(np.setdiff1d(rows, probe), bad, progress=sec > 2)
        elif quick and size <= self.most_in_file_bytes and self.file is not None:
            try:
                return self._from_file(np.setdiff1d(rows, bad), num_rows)
            except OSError as error:
                place = self.file().parent
                _logger.warning(for_terminal(f"images are decoded at every use: {place} cannot be written to: {error}"))
        return np.setdiff1d(rows, bad)

    def _from_file(self, rows: np.ndarray, num_rows: int) -> np.ndarray:
        """All decoded images from the file, which is made where it is not there. Returns the usable rows."""

        def make(notes: dict[int, str]) -> Iterator[np.ndarray | None]:
            for row, result in self._decoded(np.arange(num_rows)):
                if isinstance(result, BadRow):
                    if self.raises_bad:
                        self.reject(result)  # raises
                    notes[row] = str(result)
                elif row in self.animated:
                    notes[row] = _ANIMATED
                yield None if isinstance(result, BadRow) else result

        def can_read_more(file: ArrayFile) -> bool:
            """Whether a bad row can be read now: a package or a permission that was missing may be there."""
            bad = np.array([row for row in range(num_rows) if row not in file], dtype=int)
            return any(not isinstance(result, BadRow) for _, result in self._decoded(bad, progress=False))

        self.arrays = stored(self.file(), make, can_read_more)
        self.has_all, bad = True, []
        self.animated |= {row for row, note in self.arrays.notes.items() if note == _ANIMATED}
        for row in rows:
            if row not in self.arrays:
                self.reject(BadRow(self.arrays.notes[int(row)]))
                bad.append(int(row))
        return np.setdiff1d(rows, bad)

    def _to_memory(self, rows: np.ndarray, bad: list[int], progress: bool = False) -> None:
        for row, result in self._decoded(rows, progress):
            if isinstance(result, BadRow):
                self.reject(result)
                bad.append(row)
            else:
                self.arrays[row] = result

    def _decoded(self, rows: np.ndarray, progress: bool = True) -> Iterator[tuple[int, np.ndarray | BadRow]]:
        """Each row with its image, or what is wrong with it, in order, by threads."""
        bar = tqdm(desc="Decoding images", total=len(rows), disable=not progress)
        with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
            for start in range(0, len(rows), 256):
                part = rows[start : start + 256].tolist()
                yield from zip(part, pool.map(self._try, part, self.undecoded(part)), strict=True)
                bar.update(len(part))

    def _try(self, row: int, value: Any) -> np.ndarray | BadRow:
        try:
            return self.decode(row, value)
        except BadRow as error:
            return error
