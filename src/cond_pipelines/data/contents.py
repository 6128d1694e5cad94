"""The content of every image of a data set, as short checksums: which rows are the same image, and what changed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow.compute as pc

from .archives import open_path, size_and_time
from .fingerprints import short_hash

Stored: TypeAlias = (
    Any  # pa.Buffer | str | None, which has no types: an image file: what it holds, its path, or nothing
)
_PART, _WHOLE_BYTES, _BLOCK_BYTES = 1000, 2**16, 2**12


def of_decoded(arrays: Iterable[np.ndarray]) -> list[bytes]:
    """A checksum of each decoded image: the same for a copy in another lossless format too."""
    return [short_hash(repr(a.shape).encode() + np.ascontiguousarray(a).tobytes()) for a in arrays]


def of_files(files: Callable[[], Iterator[Stored]]) -> list[bytes]:
    """A checksum of each image file: of its size, and, where others have the same size, of what it holds.

    Of a file of more than 64 KiB, its beginning, middle and end count: all of it would take minutes of 100,000 photos.

    Args:
        files: begins to give them again at each call.
    """
    sizes = [_size(file) for file in files()]
    counts = Counter(sizes)
    keys = []
    for file, size in zip(files(), sizes, strict=True):
        key = size.to_bytes(8, "little", signed=True)
        keys.append(key + short_hash(_part_of(file, size)) if counts[size] > 1 else key)
    return keys


def fingerprint(keys: Iterable[bytes], conditions: Iterable[Any]) -> str:
    """Of all images, by their checksums, and of all conditions."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key)
    for condition in conditions:
        digest.update(repr(condition).encode(errors="replace") + b"\\n")
    return digest.hexdigest()[:12]


def times_of_files(files: Iterable[Stored]) -> str:
    """Of the times of change of all image files; the same for images that lie in tables."""
    digest = hashlib.sha256()
    for file in files:
        if isinstance(file, str):
            digest.update(repr(size_and_time(file)).encode())
    return digest.hexdigest()[:12]


def stored_files(rows: datasets.Dataset, column: str, which: np.ndarray) -> Iterator[Stored]:
    """Some images as they are stored, without a copy: bytes that lie in a table, or paths.

    Args:
        column: holds {"bytes", "path"}. which: (N,) sorted rows.
    """
    tables, wanted = rows.select_columns([column]).with_format("arrow"), np.zeros(len(rows), dtype=bool)
    wanted[which] = True
    for start in range(0, len(rows), _PART):
        of_part = wanted[start : start + _PART]
        if not of_part.any():
            continue
        images = tables[start : start + _PART].column(0)
        contents, paths = (pc.struct_field(images, name) for name in ("bytes", "path"))
        for content, path, is_wanted in zip(contents, paths, of_part, strict=True):
            if is_wanted:
                yield content.as_buffer() if content.is_valid else path.as_py()


def _size(file: Stored) -> int:
    if not isinstance(file, str):
        return -1 if file is None else int(file.size)
    found = size_and_time(file)
    return -1 if found is None else found[0]


def _part_of(file: Stored, size: int) -> bytes:
    """All of a small file, three blocks of a large one; the path of one that cannot be read, as its row will say."""
    starts = (0,) if size <= _WHOLE_BYTES else (0, size // 2, size - _BLOCK_BYTES)
    length = size if size <= _WHOLE_BYTES else _BLOCK_BYTES
    if not isinstance(file, str):
        return b"" if file is None else b"".join(bytes(memoryview(file)[start : start + length]) for start in starts)
    try:
        with open_path(file) as opened:
            parts = []
            for start in starts:
                opened.seek(start)
                parts.append(opened.read(length))
            return b"".join(parts)
    except OSError:
        return str(file).encode(errors="replace")
