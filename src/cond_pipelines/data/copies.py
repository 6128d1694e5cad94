"""Lines on images that are the same as others, or nearly."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .account import Account
from .dataset import ImageDataset
from .labels import condition_name
from .split import near_duplicates, num_with_near_duplicate, thumbnail

_MOST_COMPARED = 4096  # images, each with each other: half a second


def say_several_labels(keys: list[bytes], dataset: ImageDataset, id2label: dict[int, str], account: Account) -> None:
    """Note images whose rows have different labels."""
    rows: dict[bytes, dict[Any, int]] = {}
    for key, row, label in zip(keys, dataset.usable.tolist(), dataset.conditions(), strict=True):
        rows.setdefault(key, {}).setdefault(label, row)
    several = [labels for labels in rows.values() if len(labels) > 1]
    if several:
        shown = [
            f"{dataset.name(next(iter(labels.values())))}: "
            + "; ".join("no label" if i is None else condition_name(i, id2label) for i in labels)
            for labels in several[:3]
        ]
        account.notes.append(
            f"images with several labels, each trained with all of them: {len(several):,} ({', '.join(shown)}"
            f"{', ...' if len(several) > 3 else ''})"
        )


def say_near_duplicates(keys: list[bytes], dataset: ImageDataset, held_out: np.ndarray, account: Account) -> None:
    """Note images that differ little from another one, where all are decoded: of all, or of the held-out ones."""
    if not dataset.decoded:
        return
    scale = 1.0 if dataset.value_range is None else 127.5

    def thumbnails(indices: Iterable[int]) -> Iterator[np.ndarray]:
        return (thumbnail(dataset.centre(int(dataset.usable[i]))) for i in indices)

    one_of_each = list({key: i for i, key in reversed([*enumerate(keys)])}.values())[::-1]
    if len(one_of_each) <= _MOST_COMPARED:
        pairs = [(one_of_each[i], one_of_each[j]) for i, j in near_duplicates(thumbnails(one_of_each), scale)]
        if pairs:
            i, j = (dataset.name(int(dataset.usable[index])) for index in pairs[0])
            account.notes.append(f"images that are nearly the same as another one: {len(pairs):,} ({i} as {j})")
    if len(held_out):
        train = np.setdiff1d(np.arange(len(dataset)), held_out)
        if near := num_with_near_duplicate(thumbnails(held_out), thumbnails(train), scale=scale):
            account.notes.append(f"held-out images with a near-duplicate in training: {near:,}")
