"""Short checksums of image files and of data sets: whether they are still what they were."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


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
            found = Path(value["path"])
            stat = found.stat() if found.exists() else None
            digest.update(repr((str(found), stat and (stat.st_size, stat.st_mtime_ns))).encode())
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
        if isinstance(value, dict):
            content = value.get("bytes") or Path(value["path"]).read_bytes()
        else:
            content = repr(value).encode()
        digest.update(content)
    digest.update(repr(list(conditions)).encode())
    return f"{digest.hexdigest()[:12]} ({len(usable)} images)"
