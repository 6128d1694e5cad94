"""Which images are held out: whole images, not rows, so that no copy of one is trained on."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

LEAST_HELD_OUT, MOST_HELD_OUT = 10, 256
_THUMBNAIL_PX, _NEAR_RMS = 8, 3.0  # of 255: what is left between a photo and its copy that was saved again or scaled


def number_to_hold_out(num_images: int, fraction: float, most: int = MOST_HELD_OUT) -> int:
    """At least 10 and at most a quarter of the images; none of fewer than 40, or for a fraction of 0.

    Example:
        >>> number_to_hold_out(300, 0.03), number_to_hold_out(39, 0.03), number_to_hold_out(100_000, 0.03)
        (10, 0, 256)
    """
    if not fraction or num_images < 4 * LEAST_HELD_OUT:
        return 0
    return min(max(round(num_images * fraction), LEAST_HELD_OUT), num_images // 4, most)


def hold_out(
    images: Sequence[Hashable], classes: Sequence[Any] | None, fraction: float, seed: int, most: int = MOST_HELD_OUT
) -> np.ndarray:
    """Rows to hold out, sorted: with a row all rows of the same image, and never the last image of a class.

    Where all rows are different images, these are the first of a permutation.

    Args:
        images: (N,) equal for rows with the same content. classes: (N,) labels, tuples of labels or None; None: none.

    Example:
        >>> hold_out(list("abcd" * 20), None, 0.5, seed=0)  # four images: too few
        array([], dtype=int64)
    """
    groups: dict[Hashable, list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault(image, []).append(row)
    wanted = number_to_hold_out(len(groups), fraction, most)
    left = Counter(label for rows in groups.values() for label in _labels(rows, classes))
    held: dict[Hashable, None] = {}
    for row in np.random.default_rng(seed).permutation(len(images)) if wanted else ():
        image = images[row]
        if image in held:
            continue
        labels = _labels(groups[image], classes)
        if all(left[label] > 1 for label in labels):
            held[image] = None
            left.subtract(labels)
            if len(held) == wanted:
                break
    return np.array(sorted(row for image in held for row in groups[image]), dtype=np.int64)


def _labels(rows: list[int], classes: Sequence[Any] | None) -> set[Any]:
    labels: set[Any] = set()
    if classes is None:
        return labels
    for row in rows:
        label = classes[row]
        labels |= set(label) if isinstance(label, tuple) else {label}
    return labels - {None}


def hold_out_rows(num_rows: int, fraction: float, seed: int, most: int = MOST_HELD_OUT) -> np.ndarray:
    """Rows that runs without --held_out_by held out, whatever their images are."""
    held_out = 0 if num_rows < 64 else min(most, round(num_rows * fraction))
    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:held_out])


def halves(
    images: Sequence[Hashable], classes: Sequence[Any] | None, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of `rows`, sorted: all rows of an image are in one, and half of each class is in each.

    Args:
        images, classes: of all rows, as for `hold_out`.

    Raises:
        ValueError: `rows` are fewer than two different images.

    Example:
        >>> halves(list("aabc"), None, np.arange(4), seed=0)
        (array([0, 1]), array([2, 3]))
    """
    groups: dict[Hashable, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        groups.setdefault(images[row], []).append(row)
    if len(groups) < 2:
        raise ValueError(f"--half needs two different images at least, and there are {len(groups)}")
    by_class = sorted(groups.values(), key=lambda group: "" if classes is None else str(classes[group[0]]))
    parts: tuple[list[int], list[int]] = [], []
    for number, group in enumerate(by_class):
        parts[number % 2].extend(group)
    return np.array(sorted(parts[0]), dtype=np.int64), np.array(sorted(parts[1]), dtype=np.int64)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8, or float32 in [-1, 1], to (8 * 8 * C,) float32, 0 to 255: the means of 8 x 8 blocks."""
    side = min(_THUMBNAIL_PX, *pixels.shape[:2])
    for axis in (0, 1):
        starts = np.arange(side) * pixels.shape[axis] // side
        counts = np.diff([*starts, pixels.shape[axis]])
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        pixels = np.add.reduceat(pixels, starts, axis=axis, dtype=np.float32) / counts.reshape(shape)
    return pixels.ravel()


def num_with_near_duplicate(
    some: Iterable[np.ndarray], others: Iterable[np.ndarray], scale: float = 1.0, block: int = 1024
) -> int:
    """How many of `some` thumbnails differ by less than 3 of 255, root mean square, from one of `others`.

    Args:
        scale: brings the thumbnails' values to 0 to 255, but for a constant.
    """
    left = [x * scale for x in some]
    if not left:
        return 0
    mine = np.stack(left)  # (M, D)
    squares, nearest = (mine**2).sum(axis=1)[:, None], np.full(len(mine), np.inf)
    part: list[np.ndarray] = []

    def compare() -> None:
        theirs = np.stack(part)  # (n, D)
        distances = squares - 2 * mine @ theirs.T + (theirs**2).sum(axis=1)  # (M, n)
        np.minimum(nearest, distances.min(axis=1), out=nearest)
        part.clear()

    for other in others:
        part.append(other * scale)
        if len(part) == block:
            compare()
    if part:
        compare()
    return int((nearest < mine.shape[1] * _NEAR_RMS**2).sum())


def near_duplicates(thumbnails: Iterable[np.ndarray], scale: float = 1.0, block: int = 1024) -> list[tuple[int, int]]:
    """(i, j) for each thumbnail i that differs as little from an earlier one, of which j is the nearest.

    Args:
        scale: as for `num_with_near_duplicate`.

    Example:
        >>> near_duplicates([np.zeros(64), np.full(64, 90.0), np.ones(64)])
        [(2, 0)]
    """
    all_of_them = np.stack([x * scale for x in thumbnails]).astype(np.float32)  # (N, D)
    squares, found = (all_of_them**2).sum(axis=1), []
    for start in range(0, len(all_of_them), block):
        mine = all_of_them[start : start + block]  # (n, D)
        earlier = all_of_them[: start + block]
        distances = squares[start : start + block, None] - 2 * mine @ earlier.T + squares[None, : start + block]
        distances[np.arange(len(earlier)) >= start + np.arange(len(mine))[:, None]] = np.inf
        nearest = distances.argmin(axis=1)
        is_near = distances[np.arange(len(mine)), nearest] < mine.shape[1] * _NEAR_RMS**2
        found += [(start + i, int(nearest[i])) for i in np.flatnonzero(is_near).tolist()]
    return found
