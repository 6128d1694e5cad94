"""Find the images, their labels and their captions, whatever form they come in."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from ..errors import UserError, describe
from ..user_code import load_object
from .account import Account, ReadOptions
from .config import NO_SOURCE, ConditionColumn
from .formats import kind_of
from .hub import folder_of_images
from .metadata import refuse_addresses
from .sources import read_source, what_cannot_be_loaded
from .tables import rows_inside

_IMAGES = ConditionColumn(
    flag="image_column",
    names=("image", "img", "images", "picture", "photo", "jpg", "png", "webp"),
    remedy="--image_column",
    is_certain=lambda feature: isinstance(feature, datasets.Image),
)


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use; None where the setting needs none."""

    image: str
    condition: str | None = None


def load_source(
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    cache_dir: str | None = None,
    account: Account | None = None,
    options: ReadOptions | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a data set from a folder, the Hub, or a function.

    Args:
        train_data_dir: folder of images, parquet, arrow, tar or .zip files, one such file, or a saved data set.
        dataset_name: Hub id, a folder, or "module:function" with a function that returns a data set.
        account: notes the files that are left out.
        options: how a folder is read; its `split` is not looked at.

    Raises:
        ValueError: in one line, where there is nothing to load.
    """
    account = Account() if account is None else account
    options = replace(options or ReadOptions(), split=split)
    if bool(train_data_dir) == bool(dataset_name):
        raise ValueError(NO_SOURCE)
    if dataset_name and not dataset_config_name and Path(dataset_name).is_dir():
        train_data_dir, dataset_name = dataset_name, None
    if train_data_dir and not Path(train_data_dir).is_dir() and kind_of(train_data_dir) in (None, "images", "arrays"):
        of_file = "a file: give the folder that it lies in, or a .zip, .tar, .parquet or .arrow file"
        what = of_file if Path(train_data_dir).is_file() else "not a folder"
        raise ValueError(f"--train_data_dir {train_data_dir} is {what}")
    if dataset_name and ":" in dataset_name:
        return _of_function(dataset_name, dataset_config_name, split, streaming)
    try:
        if train_data_dir and any((Path(train_data_dir) / f).is_file() for f in ("state.json", "dataset_dict.json")):
            saved = _chosen(datasets.load_from_disk(train_data_dir), split, streaming)
            return _inside(saved, train_data_dir, options, account)
        folder = train_data_dir
        if not folder and not dataset_config_name:
            folder = folder_of_images(str(dataset_name), cache_dir, account)
        if folder:
            rows = read_source(folder, options, account, streaming, cache_dir)
            # Files of images are known to be inside: `read_folder` lists them.
            return rows if account.num_images is not None else _inside(rows, folder, options, account)
        loaded = datasets.load_dataset(dataset_name, dataset_config_name, streaming=streaming, cache_dir=cache_dir)
        chosen = _pick_split(loaded, split)
        if len(loaded) > 1:
            account.notes.append(f"splits: {', '.join(loaded)}; used: {chosen}")
        return loaded[chosen]
    except Exception as error:  # neither `datasets` nor the libraries below it have a base class for damaged files
        raise what_cannot_be_loaded(train_data_dir or str(dataset_name), error) from error


def _inside(rows: Any, source: str, options: ReadOptions, account: Account) -> Any:
    """Rows of tables without those whose image is a file outside of the source's folder."""
    try:
        column = find_columns(rows.features, None, options.image_column).image
        undecoded = as_files(rows, column)
    except (ValueError, TypeError):  # whoever needs the column says so
        return rows
    root = Path(source).absolute()
    return rows_inside(rows, undecoded, column, str(root if root.is_dir() else root.parent), root.name, account)


def _of_function(
    name: str, config_name: str | None, split: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """What "module:function" returns."""
    if config_name:
        raise UserError(f"--dataset_config_name {config_name} has no effect on {name}: leave it out")
    data = load_object(name, num_arguments=0)()
    kinds = (datasets.Dataset, datasets.IterableDataset)
    if not isinstance(data, (*kinds, dict)) or not all(isinstance(x, kinds) for x in _splits(data)):
        raise UserError(f"--dataset_name {name} returned a {type(data).__name__}, not a datasets.Dataset")
    return _chosen(data, split, streaming)


def _splits(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, dict) else [data]


def _chosen(data: Any, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    if isinstance(data, dict):
        data = data[_pick_split(data, split)]
    elif split != "train":
        raise UserError(f"--dataset_split {split}: it has no splits, leave that out")
    return data.to_iterable_dataset() if streaming and isinstance(data, datasets.Dataset) else data


def as_files(rows: Any, image_column: str) -> Any:
    """`rows` with the images undecoded, as {"bytes", "path"}. Raises ValueError where the column holds none."""
    feature = rows.features[image_column]
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        refuse_addresses({image_column: (row[image_column] for row in itertools.islice(rows, 16))})
    is_file = getattr(feature, "dtype", None) in ("string", "large_string", "binary", "large_binary")
    is_image = isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} & set(feature))
    if not (is_file or is_image):
        raise ValueError(f"column {image_column!r} holds no images but {feature}: name another with --image_column")
    return rows.cast_column(image_column, datasets.Image(decode=False))


def readable(rows: Any, where: str, first: int = 0) -> Iterator[dict[str, Any]]:
    """`rows`, which are read from files as they are used. Raises UserError, which names the place, for damaged ones."""
    rows = iter(rows)
    for number in itertools.count(first):
        try:
            yield next(rows)
        except StopIteration:
            return
        except MemoryError:
            raise
        except Exception as error:  # `datasets` has no base class for what damaged files raise
            raise UserError(f"image {number} of {where} cannot be read: {describe(error)}") from error


def reopened(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows, of files that are mapped into memory anew: what was read of the old mapping counts as ours."""
    return pickle.loads(pickle.dumps(rows)) if rows.cache_files else rows


def _pick_split(found: Any, split: str) -> str:
    if split in found:
        return split
    if len(found) == 1:
        return next(iter(found))
    raise ValueError(f"there is no split {split!r}, only {', '.join(found)}: give --dataset_split")


def find_columns(
    features: datasets.Features,
    column: ConditionColumn | None,
    image_column: str | None = None,
    condition_column: str | None = None,
) -> Columns:
    """The columns of images and conditions, named by an argument or found by feature type, then by name.

    Args:
        column: how the conditions are found; None: there are none.
        image_column, condition_column: names that were given.

    Raises:
        ValueError: a named column that is not there, or none that fits; the message lists those that are.
    """
    image = _find(features, _IMAGES, image_column)
    return Columns(image, None if column is None else _find(features, column, condition_column))


def _find(features: datasets.Features, column: ConditionColumn, given: str | None) -> str:
    there = ", ".join(features)
    if given is not None:
        if given not in features:
            raise ValueError(f"--{column.flag} {given!r} is not among the columns: {there}")
        return given
    by_type = [name for name, feature in features.items() if column.is_certain(feature)]
    by_name = [name for name in column.names if name in features]
    if by_type:
        return next((name for name in by_name if name in by_type), by_type[0])
    if by_name:
        return by_name[0]
    possible = [name for name, feature in features.items() if column.is_possible(feature)]
    if len(possible) == 1:
        return possible[0]
    what = column.flag.removesuffix("_column")
    if what == "image" and (urls := [name for name in features if "url" in name.lower().split("_")]):
        raise ValueError(
            f"no image column among {there}, but {urls[0]!r}: fetch the images first, for instance with img2dataset "
            f"--url_list TABLE --url_col {urls[0]} --output_format files --output_folder FOLDER"
        )
    raise ValueError(f"no {what} column among {there}: name it with {column.remedy}")
