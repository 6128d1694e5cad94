"""Shard: which images of a run one process sees."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The share of one process: every `world_size`-th batch, from an image of the run on.

    Args:
        batch_size: images in a batch of one process.
        seed: of the order of the images.
        rank: number of this process, from 0.
        world_size: number of processes.
        start: position of the run's next image, over all processes.

    Example:
        >>> batches = Shard(batch_size=4, rank=1, world_size=2).first_positions()
        >>> next(batches), next(batches)
        (4, 12)
    """

    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    start: int = 0

    @property
    def images_per_step(self) -> int:
        """Images in one batch of every process together."""
        return self.batch_size * self.world_size

    def first_positions(self) -> Iterator[int]:
        """The position of the first image of each batch of this process, without end."""
        return itertools.count(self.start + self.rank * self.batch_size, self.images_per_step)
