"""Short checksums of image files and of data sets: whether they are still what they were."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from .archives import open_path, size_and_time


def images_fingerprint(images: Iterable[Any], how: tuple[Any, ...]) -> str:
    """Of every image file, by its content or by path, size and time, and of `how` it is decoded.

    Args:
        images: undecoded, as {"bytes", "path"}.
    """
    digest = hashlib.sha256(repr(how).encode())
    for value in images:
        if not isinstance(value, dict) or value.get("bytes") is not None or value.get("path") is None:
            digest.update(repr(value).encode())
        else:
            digest.update(repr((value["path"], size_and_time(value["path"]))).encode())
    return digest.hexdigest()[:16]


def data_fingerprint(
    how: tuple[Any, ...],
    usable: np.ndarray | None = None,
    images: Iterable[Any] = (),
    conditions: Iterable[Any] = (),
) -> str:
    """Of what is trained on: which rows, and the content of some of them.

    Args:
        how: what decides how the rows are used.
        usable: (N,) int, the rows in use; None: a stream, whose rows are not known.
        images: undecoded images of some rows, as {"bytes", "path"}.
        conditions: of the same rows.
    """
    digest = hashlib.sha256(repr(how).encode())
    if usable is None:
        return f"{digest.hexdigest()[:12]} (streamed)"
    digest.update(usable.astype("<i8").tobytes())
    for value in images:
        digest.update(content_of(value) if isinstance(value, dict) else repr(value).encode())
    digest.update(repr(list(conditions)).encode())
    return f"{digest.hexdigest()[:12]} ({len(usable)} images)"


def content_of(value: dict[str, Any]) -> bytes:
    """The bytes of an undecoded image, {"bytes", "path"}. Raises OSError."""
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    with open_path(value["path"]) as file:
        return file.read()


def short_hash(content: Any) -> bytes:
    """8 bytes of a checksum: among a million images, two different ones have the same once in 37 million sets."""
    return hashlib.blake2b(content, digest_size=8).digest()
