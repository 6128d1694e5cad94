"""Aspect-ratio buckets: images keep their shape, about; every batch is of one size."""

import numpy as np

_MOST_ELONGATED = 2.0


def bucket_sizes(resolution: int) -> list[tuple[int, int]]:
    """(height, width) of about resolution**2 pixels, from 1:2 to 2:1, in multiples of an eighth of the resolution.

    Example:
        >>> bucket_sizes(64)[:2]
        [(48, 80), (56, 72)]
    """
    step = max(4, resolution // 8)
    sizes = [(height, resolution**2 // height // step * step) for height in range(step, 4 * resolution, step)]
    return [(h, w) for h, w in sizes if w and 1 / _MOST_ELONGATED <= w / h <= _MOST_ELONGATED]


def nearest_size(height: int, width: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size whose aspect ratio is nearest to an image's, as a factor."""
    return min(sizes, key=lambda size: abs(np.log(size[1] / size[0]) - np.log(width / height)))
