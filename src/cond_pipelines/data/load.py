"""From arguments to a checked data set."""

import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..console import for_terminal, say
from ..data import images as im
from ..processes import is_main_process
from .account import Account, ReadOptions, examples
from .buckets import bucket_sizes
from .classes import say_merged, say_minus_one
from .config import DataArguments
from .copies import say_near_duplicates, say_several_labels
from .dataset import ImageDataset, row_name
from .folder import REPEATS
from .headers import any_colour, say_8_bits
from .labels import first
from .loading import Columns, as_files, find_columns, load_source, readable
from .prior import balanced, with_prior
from .split import halves, hold_out, hold_out_rows, number_to_hold_out


@dataclass
class TrainingData:
    """A checked data set.

    Args:
        dataset: reads rows.
        train, held_out: indices into it; None, and empty, for a streaming set.
        id2label: class names, for class labels.
        account: the files that are left out, and how the others are read.
        content: a fingerprint of all images and conditions; None for a streaming set.
        held_out_by: "row" where that gives the same rows as "content".
        other_half: indices of the training images that a run with --half does not see.
        keys: a short checksum of each usable image, see `ImageDataset.content_keys`.
    """

    dataset: ImageDataset
    train: np.ndarray | None
    held_out: np.ndarray
    id2label: dict[int, str] | None
    account: Account = field(default_factory=Account)
    content: str | None = None
    held_out_by: str = "row"
    other_half: np.ndarray = field(default_factory=lambda: np.array([], dtype=int))
    keys: list[bytes] = field(default_factory=list)

    @property
    def both_halves(self) -> np.ndarray | None:
        """`train` and `other_half`: what makes a new network, so that both halves start from the same weights."""
        is_half = self.train is not None and len(self.other_half)
        return np.union1d(self.train, self.other_half) if is_half else self.train

    def conditions(self, indices: np.ndarray) -> list[Any]:
        """Raw conditions of rows, the first where a row has several; None of each where the setting has none."""
        if self.dataset.columns.condition is None:
            return [None] * len(indices)
        return [first(self.dataset.read_condition(int(self.dataset.usable[i]))) for i in indices]

    def use_labels(self, label_id: Callable[[str], int], whose: str) -> None:
        """Number the classes as a model does, by their names.

        Args:
            label_id: the model's id of a name; raises ValueError for one that it does not know.
            whose: the model, for the error.

        Raises:
            ValueError: the data have a class that the model does not know.
        """
        ids = {}
        for i, name in (self.id2label or {}).items():
            try:
                ids[i] = label_id(name)
            except ValueError as error:
                raise ValueError(f"the data have a class {name!r}, and {whose} does not: {error}") from error
        self.id2label = {ids[i]: name for i, name in (self.id2label or {}).items()}
        self.dataset.renumber(ids)

    def summary(self) -> str:
        """What a run sees, for a person: the images, what is left out, the conditions, the held-out images."""
        if self.train is None:
            size = f"{self.dataset.resolution} px, {self.dataset.channels} channel(s)"
            names = list((self.id2label or {}).values())
            classes = [f"classes ({len(names)}): {examples(names, 20)}"] if names else []
            return "\n".join([f"images: streamed, {size}", *map(for_terminal, [*self.account.lines(), *classes])])
        images, *rest = self.dataset.summary(self.id2label).splitlines()
        held_out = f"held out for validation: {len(self.held_out):,}"
        return "\n".join([images, *map(for_terminal, self.account.lines()), *rest, held_out])


def load_data(config: DataArguments, channels: int | None = None) -> TrainingData:
    """Load and check the data set, with the `channels` that a pretrained model takes, where there is one.

    Args:
        config: a TrainingConfig, or another DataArguments with a `seed` and a `column` of conditions.

    Raises:
        ValueError: in one line for bad input; see `data.dataset`.
    """
    data, source, num_own = _opened(config, channels)
    if num_own is None:
        return data
    dataset = data.dataset
    dataset.check()
    data = _split(config, dataset, _with_images(data.id2label, dataset, data.account), data.account)
    if config.class_data_dir:
        is_prior = dataset.usable >= num_own
        data.train, data.held_out = balanced(data.train, data.held_out, is_prior, config.prior_loss_weight)
    if config.folder_repeats:
        data.train = _repeated(data.train, dataset, source)
    return data


def open_data(config: DataArguments) -> TrainingData:
    """A data set whose conditions are checked and whose images are not: of 10,000 files in a second.

    Nothing is held out, and no image is left out. An image is decoded when it is read.
    """
    data, _, num_own = _opened(config)
    if num_own is not None:
        data.dataset.check(with_images=False)
    return data


def _opened(
    config: DataArguments, channels: int | None = None
) -> tuple[TrainingData, datasets.Dataset | datasets.IterableDataset, int | None]:
    """(data without a split, its rows with all columns, how many are not of class_data_dir: None for a stream)."""
    if channels and config.channels not in (None, channels):
        raise ValueError(f"--channels {config.channels}, but the pretrained model takes {channels}: leave it out")
    _quieten_decoders()
    account = Account()
    source = _source(config, account)
    streamed = not hasattr(source, "__len__")
    column = config.column
    columns = _columns(config, source, account)
    num_own = None if streamed else len(source)
    if config.class_data_dir:
        source, columns = with_prior(source, columns, column, config.class_data_dir, config.class_prompt)
    id2label, parse = None, lambda value: value
    if column is not None:
        feature = source.features[columns.condition]
        id2label, parse = column.parser(partial(_values, source, columns.condition, streamed), feature)
        if id2label is not None and not streamed and getattr(feature, "dtype", None) in ("string", "large_string"):
            say_merged((value for value in _values(source, columns.condition, streamed) if value), account)
        elif id2label is not None and not streamed and not hasattr(feature, "names"):
            say_minus_one(_values(source, columns.condition, streamed), account)
    config = replace(config, channels=channels or config.channels)
    if config.value_range and not streamed:
        say_8_bits(config, as_files(source.select_columns([columns.image]), columns.image), account)
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
        has_classes=id2label is not None,
    )
    return TrainingData(dataset, None, np.array([], dtype=int), id2label, account), source, num_own


def _columns(config: DataArguments, source: Any, account: Account) -> Columns:
    """The columns of images and conditions. Raises ValueError, which names what is not read too."""
    named = None if config.column is None else getattr(config, config.column.flag)
    try:
        columns = find_columns(source.features, config.column, config.image_column, named)
    except ValueError as error:  # what is not read may be where the column is
        raise ValueError("; ".join([str(error), *account.not_read()])) from error
    if config.column is not None and named is None:
        usual = [name for name in source.features if name.lower() in config.column.names and name != columns.condition]
        if usual:
            account.notes.append(
                f"--{config.column.flag} is {columns.condition}; other columns with a usual name: {', '.join(usual)}"
            )
    if len(account.folders) > 1 and columns.condition != "label":
        shown = [f"{name} {count:,}" for name, count in account.folders.items()]
        account.notes.append(f"images of all folders are used: {examples(shown, 10)}")
    return columns


def _split(
    config: DataArguments, dataset: ImageDataset, id2label: dict[int, str] | None, account: Account
) -> TrainingData:
    """Training and held-out images, and lines on copies among them."""
    keys = dataset.content_keys()
    content = dataset.content_fingerprint(keys)
    by_row = hold_out_rows(len(dataset), config.validation_fraction, config.seed)
    held_out = by_row
    if config.held_out_by == "content":
        classes = dataset.conditions() if dataset.has_classes else None
        held_out = hold_out(keys, classes, config.validation_fraction, config.seed)
    train, held_out = dataset.use_split(held_out)
    num_images = len(set(keys))
    if num_images < len(keys):
        account.notes.append(f"rows with the same image as another row: {len(keys) - num_images:,}")
    if id2label:
        say_several_labels(keys, dataset, id2label, account)
    wanted = number_to_hold_out(num_images, config.validation_fraction)
    if config.held_out_by == "content" and len({keys[i] for i in held_out}) < wanted:
        account.notes.append(f"fewer than {wanted} images are held out: the last one of a class is trained on")
    say_near_duplicates(keys, dataset, held_out, account)
    rule = "row" if np.array_equal(held_out, by_row) else config.held_out_by
    data = TrainingData(dataset, train, held_out, id2label, account, content, rule, keys=keys)
    if config.half:
        parts = halves(keys, dataset.conditions() if dataset.has_classes else None, train, config.seed)
        dataset.use_halves(*parts)
        data.train, data.other_half = parts[config.half - 1], parts[2 - config.half]
        account.notes.append(f"--half {config.half}: {len(data.train):,} of {len(train):,} images for training")
    return data


def _with_images(id2label: dict[int, str] | None, dataset: ImageDataset, account: Account) -> dict[int, str] | None:
    """The classes of which there is an image that can be used, and those that a table declares.

    Raises:
        ValueError: no image that can be used has a label.
    """
    if not id2label:
        return id2label
    used = {i for label in dataset.conditions() for i in (label if isinstance(label, tuple) else [label])}
    without = [name for i, name in id2label.items() if i not in used]
    if len(without) == len(id2label):
        raise ValueError("; ".join(["no image that can be used has a label", *dataset.skipped[:3]]))
    # Names that a table lists are numbered by it, and a stream of it, which is not read to its end, has them all.
    is_declared = dataset.declares_classes and not account.folders
    if without:
        end = "" if is_declared else " are left out"
        account.notes.append(f"classes without an image that can be used{end}: {len(without):,} ({examples(without)})")
    left = id2label if is_declared else {i: name for i, name in id2label.items() if i in used}
    if len(left) == 1:
        account.notes.append(f"there is one class only ({next(iter(left.values()))}): labels tell nothing apart")
    return left


def _repeated(train: np.ndarray, dataset: ImageDataset, source: datasets.Dataset) -> np.ndarray:
    """Indices to train on, each as often as its folder's name says. Raises ValueError where none says so."""
    if REPEATS not in source.column_names:
        raise ValueError("--folder_repeats needs folders named such as 10_cat: leave it out")
    return np.repeat(train, np.array(source[REPEATS])[dataset.usable[train]])


def _quieten_decoders() -> None:
    """What a damaged file makes Pillow, tifffile or `datasets` warn of is its row's line, or none of the user's."""
    warnings.filterwarnings("ignore", module=r"PIL\b")
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    datasets.utils.logging.set_verbosity_error()


def _source(config: DataArguments, account: Account) -> datasets.Dataset | datasets.IterableDataset:
    """The rows, with known features, at most `--max_train_samples` of them."""
    _announce(f"reading {config.train_data_dir or config.dataset_name}")
    source = load_source(
        config.train_data_dir,
        config.dataset_name,
        config.dataset_config_name,
        config.dataset_split,
        config.streaming,
        config.cache_dir,
        account,
        ReadOptions(
            data_format=config.data_format,
            folder_repeats=config.folder_repeats,
            on_bad_image=config.on_bad_image,
            image_column=config.image_column,
        ),
    )
    streamed = not hasattr(source, "__len__")
    if streamed and source.features is None:
        source = source._resolve_features()
    if config.max_train_samples is None or (not streamed and config.max_train_samples >= len(source)):
        return source
    if streamed:
        return source.take(config.max_train_samples)
    # Random rows, as diffusers' scripts take them: the first ones of class folders are all of one class.
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: config.max_train_samples]
    account.notes.append(f"--max_train_samples: {config.max_train_samples:,} of {len(source):,} rows, drawn at random")
    return source.select(np.sort(chosen))


def _announce(line: str) -> None:
    if is_main_process():
        say(line, sys.stdout)


def _values(source: datasets.Dataset | datasets.IterableDataset, column: str, streamed: bool) -> list[Any]:
    """All values of a column; none of a stream whose ClassLabel names the classes already."""
    if not streamed:
        return source.select_columns([column])[column]
    feature = source.features[column]
    return [] if hasattr(getattr(feature, "feature", feature), "names") else _distinct(source, column)


def _distinct(stream: Any, column: str) -> list[Any]:
    """The different labels of a stream, which is read to its end for them; one of a ClassLabel says them itself."""
    _announce(f"reading the whole column {column!r} for its classes")
    rows = readable(stream.select_columns([column]), "the stream")
    return list({tuple(v) if isinstance(v, list) else v for v in (row[column] for row in rows)})


def cache_home(config: DataArguments) -> Path:
    """Where work is kept between runs: under --cache_dir, or where `datasets` keeps its own."""
    return Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "cond_pipelines"


def _look(config: DataArguments, source: Any, image_column: str, streamed: bool) -> tuple[int, int]:
    """Resolution and channels where they are not given: of 64 images, and of all headers where those are gray."""
    if config.resolution and config.channels:
        return config.resolution, config.channels
    images, bad, rows = [], [], as_files(source.select_columns([image_column]), image_column)
    chosen = range(64) if streamed else np.unique(np.linspace(0, len(rows) - 1, min(64, len(rows))).round())
    sample = rows.take(64) if streamed else rows.select([int(row) for row in chosen])
    for row, values in zip(chosen, readable(sample, "the data set"), strict=False):
        try:
            images.append(im.open_image(values[image_column], deep=bool(config.value_range)))
        except OSError as error:  # the check of the whole set comes later
            name = row_name(f"row {int(row)}", values[image_column])
            bad.append(f"{name}: unreadable image: {' '.join(str(error).split())}")
    if bad and not images and config.on_bad_image == "error":
        raise ValueError(f"{bad[0]}; mend it, or --on_bad_image skip")
    if not images:
        raise ValueError(f"none of the first {len(bad)} images can be read; {bad[0]}" if bad else "there are no images")
    side = int(np.median([im.shorter_side_px(image) for image in images]))
    resolution = config.resolution or min(256, max(8, side // 8 * 8))
    channels = config.channels or max(im.num_channels(image) for image in images)
    if channels == 1 and not config.channels and not streamed and not config.value_range and any_colour(rows):
        channels = 3
    return resolution, channels
