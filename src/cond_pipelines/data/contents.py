"""The content of every image of a data set, as short checksums: which rows are the same image, and what changed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .fingerprints import content_of, short_hash
from .walk import size_and_time

Undecoded = Callable[[list[int]], list[Any]]
_PART = 256


def of_decoded(arrays: Iterable[np.ndarray]) -> list[bytes]:
    """A checksum of each decoded image: the same for a copy in another lossless format too."""
    return [short_hash(repr(a.shape).encode() + np.ascontiguousarray(a).tobytes()) for a in arrays]


def of_files(rows: Sequence[int], undecoded: Undecoded) -> list[bytes]:
    """A checksum of each image file; of files of one size only, because others cannot be copies of one another.

    Args:
        undecoded: rows -> their undecoded images, {"bytes", "path"}.
    """
    sizes = [_size(value) for value in _values(rows, undecoded)]
    counts = Counter(sizes)
    shared = [row for row, size in zip(rows, sizes, strict=True) if counts[size] > 1]
    hashes = dict(zip(shared, map(_hash, _values(shared, undecoded)), strict=True))
    return [hashes.get(row, size.to_bytes(8, "little", signed=True)) for row, size in zip(rows, sizes, strict=True)]


def fingerprint(keys: Iterable[bytes], conditions: Iterable[Any]) -> str:
    """Of all images, by their checksums, and of all conditions."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key)
    for condition in conditions:
        digest.update(repr(condition).encode(errors="replace") + b"\\n")
    return digest.hexdigest()[:12]


def times_of_files(rows: Sequence[int], undecoded: Undecoded) -> str:
    """Of the times of change of all image files; the same for images that lie in tables."""
    digest = hashlib.sha256()
    for value in _values(rows, undecoded):
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            digest.update(repr(size_and_time(value["path"])).encode())
    return digest.hexdigest()[:12]


def _values(rows: Sequence[int], undecoded: Undecoded) -> Iterator[Any]:
    for start in range(0, len(rows), _PART):
        yield from undecoded([int(row) for row in rows[start : start + _PART]])


def _size(value: Any) -> int:
    if isinstance(value, dict) and value.get("bytes") is not None:
        return len(value["bytes"])
    found = size_and_time(value["path"]) if isinstance(value, dict) and value.get("path") else None
    return -1 if found is None else found[0]


def _hash(value: Any) -> bytes:
    try:
        return short_hash(content_of(value))
    except (OSError, TypeError, KeyError):  # the row's own error says so when it is read
        return short_hash(repr(value).encode(errors="replace"))
