"""An endless stream of batches in which everything random is a function of (seed, position).

Position p counts the images of the whole run, over all processes. Image p of the run is the same whatever the number of
processes, the batch size, or the number of interruptions; so are its crop, flip, caption, noise, time and dropout.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import describe
from ..user_code import raised_by_user_code
from .buckets import BucketSampler
from .dataset import BadRow, ImageDataset, Row
from .loading import readable
from .workers import ignore_signals, room_for_workers

_SHUFFLE_BUFFER, _MOST_LANES, _MOST_BAD_IN_A_ROW = 1000, 32, 1000


@dataclass
class Batch:
    """What one process needs for one micro-step.

    Args:
        positions: (B,) int64 in the run.
        pixels: (B, C, H, W) uint8, or float32 in [-1, 1].
        inputs: of the adapter's `preprocess`, tensors with B rows.
        latents: (B, c, h, w) float32 where they were kept.
    """

    positions: Tensor
    pixels: Tensor
    inputs: dict[str, Tensor]
    latents: Tensor | None = None

    def images(self, device: torch.device) -> Tensor:
        """(B, C, H, W) float32 in [-1, 1] on the device."""
        return signed(self.pixels.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        inputs = {name: x.pin_memory() for name, x in self.inputs.items()}
        return Batch(
            self.positions,
            self.pixels.pin_memory(),
            inputs,
            None if self.latents is None else self.latents.pin_memory(),
        )


def signed(pixels: Tensor) -> Tensor:
    """uint8, or what is so already, to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


class PositionSampler(torch.utils.data.Sampler):
    """Batches of (position, index), endless, each epoch in an order of its own.

    Args:
        indices: rows to train on.
        batch_size: of one process.
        start: position of the run's next image.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1, start: int = 0
    ):
        self.indices, self.batch_size = indices, batch_size
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, self.indices
        first = self.start + self.rank * self.batch_size
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                if position // len(self.indices) != epoch:
                    epoch = position // len(self.indices)
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.indices)
                batch.append((position, int(order[position % len(order)])))
            yield [(position, (position, index)) for position, index in batch]
            first += self.batch_size * self.world_size


class _Positioned(torch.utils.data.Dataset):
    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, tuple[int, int]]) -> tuple[int, Row]:
        return key[0], self.dataset[key[1]]


class _Stream(torch.utils.data.IterableDataset):
    """Rows of a streaming set, over and over, shuffled in a buffer: image p of the run is a function of (seed, p).

    The shards are dealt to lanes, and image p is number p // lanes of lane p % lanes, whatever the number of processes;
    each process reads only the lanes that its images are in. To get to a position, rows are read but not decoded.

    Args:
        batch_size: of one process; it takes every `world_size`-th batch.
        start: position of the run's next image.
    """

    def __init__(self, reader: ImageDataset, batch_size: int, seed: int, rank: int, world_size: int, start: int):
        self.reader, self.seed, self.start = reader, seed, start
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_lanes = min(reader.rows.num_shards, _MOST_LANES)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        lanes: dict[int, Iterator[tuple[int, dict]]] = {}
        first = self.start + self.rank * self.batch_size
        while True:
            for position in range(first, first + self.batch_size):
                number, lane = divmod(position, self.num_lanes)
                rows = lanes.setdefault(lane, self._rows(lane))
                values = next(values for at, values in rows if at == number)
                row = self.reader.read(values, position, f"image {number} of part {lane} of the stream")
                row = row or self._stand_in(lane, number, position)
                yield position, row
            first += self.batch_size * self.world_size

    def _rows(self, lane: int) -> Iterator[tuple[int, dict]]:
        """(number, values) of a lane, endless, each epoch in an order of its own."""
        part = self.reader.rows.shard(self.num_lanes, lane) if self.num_lanes > 1 else self.reader.rows
        part = part.shuffle(self.seed, buffer_size=max(16, _SHUFFLE_BUFFER // self.num_lanes))
        number = 0
        for epoch in itertools.count():
            part.set_epoch(epoch)
            before = number
            for values in readable(part, f"part {lane} of the stream", number):
                yield number, values
                number += 1
            if number == before:
                raise BadRow("the streaming data set gave no image")

    def _stand_in(self, lane: int, number: int, position: int) -> Row:
        """For an image that is skipped: the next one of its lane that can be read."""
        for at, values in itertools.islice(self._rows(lane), number + 1, number + 1 + _MOST_BAD_IN_A_ROW):
            row = self.reader.read(values, position, f"image {at} of part {lane} of the stream")
            if row is not None:
                return row
        raise BadRow(f"the streaming data set gave no usable image; {self.reader.skipped[-1]}")


def make_loader(
    dataset: ImageDataset,
    indices: np.ndarray | None,
    preprocess: Callable[[list[Any]], dict[str, Tensor]],
    *,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    pin_memory: bool = False,
) -> torch.utils.data.DataLoader:
    """An endless loader of `Batch`.

    Args:
        indices: rows to train on; None where `dataset.rows` is a streaming set.
        preprocess: raw conditions to inputs; runs in the workers.
        start: position of the next image; those before it are not read.
    """

    def collate(items: list[tuple[int, Row]]) -> Batch:
        pixels = np.stack([row.pixels for _, row in items]).transpose(0, 3, 1, 2)  # (B, C, H, W)
        return Batch(
            positions=torch.tensor([position for position, _ in items]),
            pixels=torch.from_numpy(np.ascontiguousarray(pixels)),
            inputs=_inputs([row for _, row in items], preprocess, dataset),
            latents=None if items[0][1].latents is None else torch.tensor(np.stack([row.latents for _, row in items])),
        )

    common = {"collate_fn": collate, "num_workers": num_workers, "pin_memory": pin_memory}
    if num_workers:
        room_for_workers(num_workers)
        # What they need is not pickled. Python 3.14 does not fork by itself.
        common |= {"persistent_workers": True, "prefetch_factor": 4, "multiprocessing_context": "fork"}
        common |= {"worker_init_fn": ignore_signals}
    if indices is None:
        stream = _Stream(dataset, batch_size, seed, rank, world_size, start)
        return torch.utils.data.DataLoader(
            stream, batch_size=batch_size, **common | {"num_workers": min(1, num_workers)}
        )
    where = {"seed": seed, "rank": rank, "world_size": world_size, "start": start}
    if dataset.buckets is not None:
        sampler = BucketSampler(dataset.by_bucket(indices), batch_size, **where)
    else:
        sampler = PositionSampler(indices, batch_size, **where)
    return torch.utils.data.DataLoader(_Positioned(dataset), batch_sampler=sampler, **common)


def _inputs(
    rows: list[Row], preprocess: Callable[[list[Any]], dict[str, Tensor]], dataset: ImageDataset
) -> dict[str, Tensor]:
    """What an adapter makes of the conditions of a batch. Raises BadRow for the first that it cannot take."""
    try:
        return preprocess([row.condition for row in rows])
    except Exception as error:  # an adapter may be anybody's
        for row in rows:
            try:
                preprocess([row.condition])
            except Exception as reason:
                name = row.source if isinstance(row.source, str) else dataset.name(row.source)
                why = raised_by_user_code(reason) or describe(reason)
                raise BadRow(f"{name}: the adapter cannot take its condition: {why}; mend it") from reason
        names = ", ".join(str(row.source) for row in rows[:8])
        raise BadRow(f"the conditions of a batch (rows {names}) do not go together: {describe(error)}") from error
