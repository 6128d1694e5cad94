"""From arguments to a checked data set."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from ..data import images as im
from .buckets import bucket_sizes
from .config import DataArguments
from .dataset import ImageDataset, row_name
from .labels import Choices
from .loading import as_files, find_columns, load_source, readable
from .prior import balanced, with_prior


@dataclass
class TrainingData:
    """A checked data set.

    Args:
        dataset: reads rows.
        train, held_out: indices into it; None, and empty, for a streaming set.
        id2label: class names, for class labels.
    """

    dataset: ImageDataset
    train: np.ndarray | None
    held_out: np.ndarray
    id2label: dict[int, str] | None

    def conditions(self, indices: np.ndarray) -> list[Any]:
        """Raw conditions of some rows, the first where a row has several."""
        found = [self.dataset.read_condition(int(self.dataset.usable[i])) for i in indices]
        return [c[0] if isinstance(c, Choices) else c for c in found]


def load_data(config: DataArguments, channels: int | None = None) -> TrainingData:
    """Load and check the data set, with the `channels` that a pretrained model takes, where there is one.

    Args:
        config: a TrainingConfig, or another DataArguments with a `seed` and a `column` of conditions.

    Raises:
        ValueError: in one line for bad input; see `data.dataset`.
    """
    if channels and config.channels not in (None, channels):
        raise ValueError(f"--channels {config.channels}, but the pretrained model takes {channels}: leave it out")
    source = _source(config)
    streamed = not hasattr(source, "__len__")
    column = config.column
    named = None if column is None else getattr(config, column.flag)
    columns = find_columns(source.features, column, config.image_column, named)
    num_own = None if streamed else len(source)
    if config.class_data_dir:
        source, columns = with_prior(source, columns, column, config.class_data_dir, config.class_prompt)
    id2label, parse = None, lambda value: value
    if column is not None:
        feature = source.features[columns.condition]
        id2label, parse = column.parser(partial(_values, source, columns.condition, streamed), feature)
    config = replace(config, channels=channels or config.channels)
    resolution, channels = _look(config, source, columns.image, streamed)
    dataset = ImageDataset(
        rows=source,
        columns=columns,
        resolution=resolution,
        channels=channels,
        center_crop=config.center_crop,
        random_flip=config.random_flip,
        interpolation=config.image_interpolation_mode,
        on_bad_image=config.on_bad_image,
        parse_condition=parse,
        seed=config.seed,
        value_range=tuple(config.value_range) or None,
        buckets=bucket_sizes(resolution) if config.aspect_buckets else None,
        cache_dir=cache_home(config),
        cache_images=config.cache_images,
    )
    if streamed:
        return TrainingData(dataset, None, np.array([], dtype=int), id2label)
    dataset.check()
    split = dataset.split(config.validation_fraction)
    if config.class_data_dir:
        split = balanced(*split, dataset.usable >= num_own, config.prior_loss_weight)
    return TrainingData(dataset, *split, id2label)


def _source(config: DataArguments) -> datasets.Dataset | datasets.IterableDataset:
    """The rows, with known features, at most `--max_train_samples` of them."""
    # `datasets` looks through a large folder without a word, for a minute where there are 60,000 files.
    PartialState().on_main_process(tqdm.write)(f"reading {config.train_data_dir or config.dataset_name}")
    source = load_source(
        config.train_data_dir,
        config.dataset_name,
        config.dataset_config_name,
        config.dataset_split,
        config.streaming,
        config.cache_dir,
    )
    streamed = not hasattr(source, "__len__")
    if streamed and source.features is None:
        source = source._resolve_features()
    if config.max_train_samples is not None:
        source = source.take(config.max_train_samples if streamed else min(config.max_train_samples, len(source)))
    return source


def _values(source: datasets.Dataset | datasets.IterableDataset, column: str, streamed: bool) -> list[Any]:
    """All values of a column; none of a stream whose ClassLabel names the classes already."""
    if not streamed:
        return source.select_columns([column])[column]
    feature = source.features[column]
    return [] if hasattr(getattr(feature, "feature", feature), "names") else _distinct(source, column)


def _distinct(stream: Any, column: str) -> list[Any]:
    """The different labels of a stream, which is read to its end for them; one of a ClassLabel says them itself."""
    PartialState().on_main_process(tqdm.write)(f"reading the whole column {column!r} for its classes")
    rows = readable(stream.select_columns([column]), "the stream")
    return list({tuple(v) if isinstance(v, list) else v for v in (row[column] for row in rows)})


def cache_home(config: DataArguments) -> Path:
    """Where work is kept between runs: under --cache_dir, or where `datasets` keeps its own."""
    return Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "cond_pipelines"


def _look(config: DataArguments, source: Any, image_column: str, streamed: bool) -> tuple[int, int]:
    """Resolution and channels where they are not given, from the first readable images."""
    if config.resolution and config.channels:
        return config.resolution, config.channels
    images, bad, rows = [], [], as_files(source.select_columns([image_column]), image_column)
    first = rows.take(64) if streamed else rows.select(range(min(64, len(rows))))
    for row, values in enumerate(readable(first, "the data set")):
        try:
            images.append(im.open_image(values[image_column]))
        except OSError as error:  # the check of the whole set comes later
            bad.append(
                f"{row_name(f'row {row}', values[image_column])}: unreadable image: {' '.join(str(error).split())}"
            )
    if bad and not images and config.on_bad_image == "error":
        raise ValueError(f"{bad[0]}; mend it, or --on_bad_image skip")
    if not images:
        raise ValueError(f"none of the first {len(bad)} images can be read; {bad[0]}" if bad else "there are no images")
    side = int(np.median([im.shorter_side_px(image) for image in images]))
    resolution = config.resolution or min(256, max(8, side // 8 * 8))
    return resolution, config.channels or max(im.num_channels(image) for image in images)
