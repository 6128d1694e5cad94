"""An image folder to rows: splits, classes, captions and metadata, each by one rule, and nothing by a guess."""

import posixpath
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import datasets
import pyarrow as pa

from ..errors import UserError
from .account import Account, examples
from .formats import CAPTIONS, METADATA, is_mask, kind_of, repeats_of, split_of
from .metadata import arrow_column, read_metadata
from .walk import Tree, open_path

# Where metadata have one of these columns, folders are no classes.
_LABELS = {"label", "labels", "class", "classes", "category", "fine_label", "target", "cls"}
REPEATS = "repeats"  # the column of how often each image is to be drawn


def read_folder(tree: Tree, kind: str, split: str, account: Account) -> datasets.Dataset:
    """The images of a folder, with the columns `label`, `text` or those of its metadata, where it has them.

    Args:
        kind: "images" or "arrays".
        split: which of the folders train, test and validation to read, where the folder holds nothing else.
        account: notes every image file that is not used, and how the others are read.

    Raises:
        UserError: there is no such split, or the metadata cannot be read.
    """
    images = [name for name in tree.files if kind_of(name) == kind]
    account.root = tree.root
    account.num_images = len(images) + sum(kind_of(n) == kind for names in tree.skipped.values() for n in names)
    for reason, names in tree.skipped.items():
        account.exclude(reason, *(name for name in names if kind_of(name) == kind))
        others = [name for name in names if kind_of(name) != kind]
        if others and reason != "hidden":  # folders, of images perhaps
            account.notes.append(f"not looked at: {len(others):,} {reason} ({examples(others)})")
    masks = {name for name in images if is_mask(name)}
    account.exclude("masks of other images", *sorted(masks))
    images = [name for name in images if name not in masks]
    images = _of_split(images, split, account)
    tables = [name for name in tree.files if posixpath.basename(name) in METADATA]
    if tables:
        return _with_metadata(tree, images, tables, account)
    if not images:
        raise UserError(f"there are no images in {tree.root} that can be used; {'; '.join(account.lines())}")
    columns: dict[str, Any] = {}
    features: dict[str, Any] = {}
    captions = _captions(tree, images, account)
    if captions is not None:
        columns["text"] = captions
    classes, names = _classes(images, account)
    if names and (repeats := repeats_of(names)):
        _say_repeats(repeats, account)
        columns[REPEATS] = [repeats.get(name or "", 1) for name in classes]
    elif names:
        columns |= _labels(classes, names)
        features |= _class_label(names)
    return _dataset([tree.path(name) for name in images], columns, features)


def _dataset(paths: list[str], columns: dict[str, Any], features: dict[str, Any]) -> datasets.Dataset:
    nothing = pa.nulls(len(paths), pa.binary())
    arrays = {"image": pa.StructArray.from_arrays([nothing, pa.array(paths, pa.string())], ["bytes", "path"])}
    arrays |= {
        name: values if isinstance(values, pa.Array) else arrow_column(values) for name, values in columns.items()
    }
    table = pa.table(arrays)
    known = datasets.Features.from_arrow_schema(table.schema)
    known |= {"image": datasets.Image()} | features
    return datasets.Dataset(datasets.table.InMemoryTable(table.cast(datasets.Features(known).arrow_schema)))


# ---------------------------------------------------------------------------------------------------------- splits
def _of_split(images: list[str], split: str, account: Account) -> list[str]:
    """The images of one split, where the folders at the top are splits and nothing else."""
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in images}
    splits = {top: split_of(top) for top in tops}
    names = [name for name in splits.values() if name is not None]
    if not names or len(names) < len(splits):
        if split != "train":
            raise UserError(f"--dataset_split {split}: the folder has no splits, leave that out")
        if len(set(names)) > 1:  # one may be a class that is called so
            others = [name for name in images if splits[name.split("/", 1)[0] if "/" in name else ""] is None]
            of_splits = ", ".join(sorted(top for top, name in splits.items() if name))
            account.notes.append(
                f"{of_splits} are not taken as splits, since other images are next to them ({examples(others)}): all "
                "are used"
            )
        return images
    chosen = [top for top, name in splits.items() if split in (top, name)]
    if not chosen and len(splits) == 1:
        chosen = list(splits)
    if not chosen:
        raise UserError(f"there is no split {split!r}, only {', '.join(sorted(tops))}: give --dataset_split")
    counts = Counter(name.split("/", 1)[0] for name in images)
    shown = ", ".join(f"{top} {counts[top]:,}" for top in sorted(tops))
    account.notes.append(f"splits, by the folders' names: {shown}; used: {', '.join(sorted(chosen))}")
    account.exclude("in another split", *(name for name in images if name.split("/", 1)[0] not in chosen))
    return [name for name in images if name.split("/", 1)[0] in chosen]


# --------------------------------------------------------------------------------------------------------- classes
def _classes(images: list[str], account: Account) -> tuple[list[str | None], list[str]]:
    """The class of each image by its folder, and the classes in order; no classes where there are no sub-folders."""
    parents = [PurePosixPath(name).parts[:-1] for name in images]
    common = _common(parents)
    inner = [tuple(part.removesuffix(".zip") for part in parts[len(common) :]) for parts in parents]
    if not any(inner):
        return [None] * len(images), []
    depths = {len(parts) for parts in inner if parts}
    one_depth = len(depths) == 1
    classes = [None if not parts else parts[-1] if one_depth else parts[0] for parts in inner]
    if not one_depth:
        account.notes.append("folders lie at several depths: the first level is taken for the classes")
    elif depths != {1}:
        several = Counter(name for name, _ in {(parts[-1], parts) for parts in inner if parts})
        shared = sorted(name for name, count in several.items() if count > 1)
        if shared:
            account.notes.append(f"classes of several folders of one name: {examples(shared)}")
    return classes, in_order({name for name in classes if name is not None})


def _common(parents: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders that all images lie in, and that hold other folders only, and more than one: these are no classes."""
    common: list[str] = []
    for level in zip(*parents, strict=False):
        if len(set(level)) > 1:
            return tuple(common)
        common.append(level[0])
    if common and set(parents) == {tuple(common)} and split_of(common[-1]) is None:
        return tuple(common[:-1])  # a single class folder
    return tuple(common)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes sorted; those that are all whole numbers as numbers.

    Example:
        >>> in_order(["10", "9"]), in_order(["b", "10", "9"])
        (['9', '10'], ['10', '9', 'b'])
    """
    names = list(names)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _say_repeats(repeats: dict[str, int], account: Account) -> None:
    shown = ", ".join(f"{name} {count} x" for name, count in sorted(repeats.items())[:5])
    account.notes.append(
        f"folders named as kohya's repeats are no classes: {shown}; --folder_repeats draws their images as often as "
        "that, otherwise each is drawn once"
    )


# -------------------------------------------------------------------------------------------------------- captions
def _captions(tree: Tree, images: list[str], account: Account) -> list[Any] | None:
    """Captions of the text files of the images' names, one a line; None where there are no such files."""
    texts = {name for name in tree.files if name.lower().endswith(CAPTIONS)}
    if not texts:
        return None
    captions: list[list[str] | None] = []
    used: Counter[str] = Counter()
    recoded, known = [], set()
    for image in images:
        stem = posixpath.splitext(image)[0]
        name = next((stem + suffix for suffix in CAPTIONS if stem + suffix in texts), None)
        captions.append(None)
        if name is None:
            continue
        known |= {stem + suffix for suffix in CAPTIONS}
        with open_path(tree.path(name)) as file:
            content = file.read()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
            recoded.append(name)
        used[posixpath.splitext(name)[1]] += 1
        captions[-1] = [line.strip() for line in text.splitlines() if line.strip()]
    if not used:
        return None
    account.notes += [f"captions: {count:,} from {suffix} files" for suffix, count in used.items()]
    without = captions.count(None)
    if without:
        account.notes.append(f"images without a caption file: {without:,}")
    if lonely := sorted(texts - known):
        account.notes.append(f"text files without an image: {len(lonely):,} ({examples(lonely)})")
    if recoded:
        account.notes.append(f"captions that are not UTF-8, read as Latin-1: {len(recoded):,} ({examples(recoded)})")
    if any(lines and len(lines) > 1 for lines in captions):
        return captions
    return [lines[0] if lines else None if lines is None else "" for lines in captions]


# -------------------------------------------------------------------------------------------------------- metadata
def _with_metadata(tree: Tree, images: list[str], tables: list[str], account: Account) -> datasets.Dataset:
    """The rows of metadata files, in their order; each names images below its own folder."""
    by_folder = Counter(map(posixpath.dirname, tables))
    if doubled := [folder for folder, count in by_folder.items() if count > 1]:
        both = [name for name in tables if posixpath.dirname(name) == doubled[0]]
        raise UserError(f"{tree.path(doubled[0])} has {' and '.join(map(posixpath.basename, both))}: keep one of them")
    elsewhere = {name for names in account.excluded.values() for name in names}
    paths: list[str] = []
    columns: dict[str, list[Any]] = {}
    for table in tables:
        named, more, notes = read_metadata(tree, table)
        account.notes += notes
        named = [name.removeprefix(f"{tree.root}/") for name in named]
        outside = [name for name in named if name.startswith(("/", "../")) or name == ".."]
        if outside:
            account.notes.append(
                f"rows of {table} whose file is outside of the folder are left out: {len(outside):,} "
                f"({examples(outside)}); copy the files into the folder"
            )
        left_out = elsewhere | set(outside)
        keep = [row for row, name in enumerate(named) if name not in left_out]
        start = len(paths)
        paths += [named[row] for row in keep]
        for name, values in more.items():
            columns.setdefault(name, [None] * start).extend(values[row] for row in keep)
        for values in columns.values():
            values += [None] * (len(paths) - len(values))
    has_row, source = set(paths), posixpath.basename(tables[0])
    account.exclude(f"without a row in {source}", *(name for name in images if name not in has_row))
    if not paths:
        raise UserError(f"{tree.path(tables[0])} names no image that can be used")
    there = set(tree.files)
    if missing := [name for name in paths if name not in there]:
        account.notes.append(f"rows of {source} whose file is not there: {len(missing):,} ({examples(missing)})")
    if len(paths) > len(has_row):
        account.notes.append(f"rows of {source}: {len(paths):,}, of {len(has_row):,} images")
    arrays = {name: arrow_column(values) for name, values in columns.items()}
    if mixed := [name for name, array in arrays.items() if array is None]:
        account.notes.append(f"columns of {source} with values of several kinds are not read: {', '.join(mixed)}")
    arrays = {name: array for name, array in arrays.items() if array is not None}
    if not arrays.keys() & _LABELS:
        classes, names = _classes(paths, account)
        if len(names) > 1 and not repeats_of(names):
            return _dataset([tree.path(name) for name in paths], arrays | _labels(classes, names), _class_label(names))
    return _dataset([tree.path(name) for name in paths], arrays, {})


def _labels(classes: list[str | None], names: list[str]) -> dict[str, list[int | None]]:
    """The column of labels, as numbers of `names`."""
    ids = {name: i for i, name in enumerate(names)}
    return {"label": [None if name is None else ids[name] for name in classes]}


def _class_label(names: list[str]) -> dict[str, Any]:
    return {"label": datasets.ClassLabel(names=names)}
