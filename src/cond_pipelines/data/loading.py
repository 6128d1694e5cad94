"""Find the images, their labels and their captions, whatever form they come in."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..errors import UserError, describe
from ..user_code import load_object
from .config import ConditionColumn

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
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a data set from a folder, the Hub, or a function.

    Args:
        train_data_dir: image folder, folder of parquet or arrow files, or what `save_to_disk` wrote.
        dataset_name: Hub id, or "module:function" with a function that returns a data set.

    Raises:
        ValueError: in one line, where there is nothing to load.
    """
    if bool(train_data_dir) == bool(dataset_name):
        raise ValueError("give --train_data_dir (a folder) or --dataset_name (a Hub id, or module:function)")
    if train_data_dir and not Path(train_data_dir).is_dir():
        raise ValueError(f"--train_data_dir {train_data_dir} is not a folder")
    if dataset_name and ":" in dataset_name:
        if dataset_config_name:
            raise UserError(
                f"--dataset_config_name {dataset_config_name} has no effect on {dataset_name}: leave it out"
            )
        data = load_object(dataset_name, num_arguments=0)()
        kinds = (datasets.Dataset, datasets.IterableDataset)
        if not isinstance(data, (*kinds, dict)) or not all(isinstance(x, kinds) for x in _splits(data)):
            raise UserError(f"--dataset_name {dataset_name} returned a {type(data).__name__}, not a datasets.Dataset")
        return _chosen(data, split, streaming)
    try:
        if train_data_dir and any((Path(train_data_dir) / f).is_file() for f in ("state.json", "dataset_dict.json")):
            return _chosen(datasets.load_from_disk(train_data_dir), split, streaming)
        builder = _builder(Path(train_data_dir)) if train_data_dir else dataset_name
        if builder == ".npy":
            if streaming or split != "train":
                raise ValueError(
                    "--streaming and --dataset_split have no effect on a folder of .npy files: leave them out"
                )
            return _array_folder(Path(train_data_dir), cache_dir)
        found = datasets.load_dataset(
            builder,
            dataset_config_name,
            data_dir=train_data_dir,
            streaming=streaming,
            cache_dir=cache_dir,
        )
        return found[_pick_split(found, split)]
    except Exception as error:  # neither `datasets` nor the libraries below it have a base class for damaged files
        cause = error.__cause__ or error
        plain = isinstance(cause, OSError | datasets.exceptions.DatasetsError | ValueError)
        reason = " ".join(str(cause).split()) if plain and str(cause) else describe(cause)
        raise UserError(f"cannot load {train_data_dir or dataset_name}: {reason}") from error


def _splits(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, dict) else [data]


def _chosen(data: Any, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    if isinstance(data, dict):
        data = data[_pick_split(data, split)]
    elif split != "train":
        raise UserError(f"--dataset_split {split}: it has no splits, leave that out")
    return data.to_iterable_dataset() if streaming and isinstance(data, datasets.Dataset) else data


def _array_folder(folder: Path, cache_dir: str | None) -> datasets.Dataset:
    """A folder of .npy files as `imagefolder` reads images: metadata.jsonl or .csv, or one sub-folder per class."""
    metadata = next((p for p in (folder / "metadata.jsonl", folder / "metadata.csv") if p.is_file()), None)
    if metadata is not None:
        kind = "csv" if metadata.suffix == ".csv" else "json"
        rows = datasets.load_dataset(kind, data_files=str(metadata), split="train", cache_dir=cache_dir)
        if "file_name" not in rows.column_names:
            raise ValueError(f"{metadata} has no column file_name")
        paths, rows = [str(folder / name) for name in rows["file_name"]], rows.remove_columns("file_name")
    else:
        paths = sorted(str(p) for p in folder.rglob("*.npy"))
        names = sorted({Path(p).parent.name for p in paths if Path(p).parent != folder})
        rows = datasets.Dataset.from_dict({"label": [Path(p).parent.name for p in paths]} if names else {})
        rows = rows.cast_column("label", datasets.ClassLabel(names=names)) if names else rows
    images = {"image": [{"bytes": None, "path": path} for path in paths]}
    found = datasets.Dataset.from_dict(images, datasets.Features(image=datasets.Image(decode=False)))
    return datasets.concatenate_datasets([found, rows], axis=1) if rows.column_names else found


def as_files(rows: Any, image_column: str) -> Any:
    """`rows` with the images undecoded, as {"bytes", "path"}. Raises ValueError where the column holds none."""
    feature = rows.features[image_column]
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


def _builder(folder: Path) -> str:
    suffixes = {p.suffix.lower() for p in folder.rglob("*") if p.is_file()}
    for suffix, builder in ((".parquet", "parquet"), (".arrow", "arrow"), (".tar", "webdataset"), (".npy", ".npy")):
        if suffix in suffixes:
            return builder
    if not suffixes & {*ImageFolder.EXTENSIONS, ".zip"}:
        raise ValueError("there are no images in it (nor parquet, arrow or tar files)")
    return "imagefolder"


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
    raise ValueError(f"no {what} column among {there}: name it with {column.remedy}")
