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
from .dataset import BadRow, ImageDataset, Row
from .loading import readable
from .shard import Shard
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
        shard: which of the images this process sees.
    """

    def __init__(self, indices: np.ndarray, shard: Shard):
        self.indices, self.shard = indices, shard

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        epoch, order = -1, self.indices
        for first in self.shard.first_positions():
            batch = []
            for position in range(first, first + self.shard.batch_size):
                if position // len(self.indices) != epoch:
                    epoch = position // len(self.indices)
                    order = np.random.default_rng([self.shard.seed, epoch]).permutation(self.indices)
                batch.append((position, int(order[position % len(order)])))
            yield [(position, (position, index)) for position, index in batch]


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


class _Positioned(torch.utils.data.Dataset):
    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, tuple[int, int]]) -> tuple[int, Row]:
        return key[0], self.dataset[key[1]]


class _Stream(torch.utils.data.IterableDataset):
    """Rows of a streaming set, over and over, shuffled in a buffer: image p of the run is a function of (seed, p).

    The shards are dealt to lanes, and image p is number p // lanes of lane p % lanes, whatever the number of processes;
    each process reads only the lanes that its images are in. To get to a position, rows are read but not decoded.

    """

    def __init__(self, reader: ImageDataset, shard: Shard):
        self.reader, self.shard = reader, shard
        self.num_lanes = min(reader.rows.num_shards, _MOST_LANES)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        lanes: dict[int, Iterator[tuple[int, dict]]] = {}
        for first in self.shard.first_positions():
            for position in range(first, first + self.shard.batch_size):
                number, lane = divmod(position, self.num_lanes)
                rows = lanes.setdefault(lane, self._rows(lane))
                values = next(values for at, values in rows if at == number)
                row = self.reader.read(values, position, f"image {number} of part {lane} of the stream")
                row = row or self._stand_in(lane, number, position)
                yield position, row

    def _rows(self, lane: int) -> Iterator[tuple[int, dict]]:
        """(number, values) of a lane, endless, each epoch in an order of its own."""
        part = self.reader.rows.shard(self.num_lanes, lane) if self.num_lanes > 1 else self.reader.rows
        part = part.shuffle(self.shard.seed, buffer_size=max(16, _SHUFFLE_BUFFER // self.num_lanes))
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
    shard: Shard,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> torch.utils.data.DataLoader:
    """An endless loader of `Batch`.

    Args:
        indices: rows to train on; None where `dataset.rows` is a streaming set.
        preprocess: raw conditions to inputs; runs in the workers.
        shard: which of the images this process sees; those before its start are not read.
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
        common["num_workers"] = min(1, num_workers)
        return torch.utils.data.DataLoader(_Stream(dataset, shard), batch_size=shard.batch_size, **common)
    if dataset.buckets is not None:
        sampler = BucketSampler(dataset.by_bucket(indices), shard)
    else:
        sampler = PositionSampler(indices, shard)
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
