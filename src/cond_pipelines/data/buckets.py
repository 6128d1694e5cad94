"""Aspect-ratio buckets: images keep their shape, about; every batch is of one size."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from .shard import Shard

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


class BucketSampler(torch.utils.data.Sampler):
    """Batches of (position, index), endless, each from one bucket.

    The bucket that lags most behind its share of the images is next, so that all images are seen equally often; within
    a bucket no image comes again before all came. The order is a function of the seed and of the images in a step.

    Args:
        buckets: the rows of each.
        shard: which of the images this process sees.
    """

    def __init__(self, buckets: list[np.ndarray], shard: Shard):
        self.buckets, self.shard = [b for b in buckets if len(b)], shard

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        shard = self.shard
        block, offset = shard.images_per_step, shard.rank * shard.batch_size
        counts, given = np.array([len(b) for b in self.buckets]), np.zeros(len(self.buckets), int)
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for number in itertools.count():
            chosen = int(np.argmin((given + 0.5) / counts))
            first = given[chosen] * block + offset  # within the bucket
            given[chosen] += 1
            if number * block < shard.start:
                continue
            batch = []
            for i in range(shard.batch_size):
                epoch, place = divmod(int(first) + i, len(self.buckets[chosen]))
                if orders.get(chosen, (-1, None))[0] != epoch:
                    rng = np.random.default_rng([shard.seed, chosen, epoch])
                    orders[chosen] = epoch, rng.permutation(self.buckets[chosen])
                position = number * block + offset + i
                batch.append((position, (position, int(orders[chosen][1][place]))))
            yield batch
