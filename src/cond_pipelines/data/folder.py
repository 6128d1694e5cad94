"""An image folder to rows: splits, classes, captions and metadata, each by one rule, and nothing by a guess."""

import posixpath
from collections import Counter
from typing import Any

import datasets
import pyarrow as pa

from ..errors import UserError
from .account import Account, ReadOptions, examples
from .captions import Texts, has_caption, read_captions, say_unread, text_files
from .classes import class_name, classes_of, images_of_split, in_order, say_merged, with_repeats
from .formats import is_mask, is_metadata, kind_of, split_of
from .metadata import arrow_column, read_metadata
from .walk import Tree, below

# Where metadata have one of these columns, folders are no classes, or text files no captions.
_LABELS = {"label", "labels", "class", "classes", "category", "fine_label", "target", "cls"}
_TEXTS = {"text", "caption", "captions", "prompt", "description", "txt"}
_SPLITS = {"split", "subset", "partition", "set"}  # columns that may name them
REPEATS = "repeats"  # the column of how often each image is to be drawn


def read_folder(tree: Tree, kind: str, options: ReadOptions, account: Account) -> datasets.Dataset:
    """The images of a folder, with the columns `label`, `text` or those of its metadata, where it has them.

    Args:
        kind: "images" or "arrays".
        options: among others, which of the folders train, test and validation to read, where they are splits.
        account: notes every image file that is not used, and how the others are read.

    Raises:
        UserError: there is no such split, the metadata cannot be read, or name a file that is not there.
    """
    images = [name for name in tree.files if kind_of(name) == kind]
    account.num_images = account.num_excluded + len(images)
    note_skipped(tree, kind, account)
    masks = {name for name in images if is_mask(name)}
    account.exclude("with the name of a mask", *sorted(masks))
    images = [name for name in images if name not in masks]
    images = images_of_split(images, options.split, account)
    texts = text_files(tree)
    if tables := [name for name in tree.files if is_metadata(name)]:
        return _with_metadata(tree, images, tables, texts, options, account)
    if not images:
        raise UserError(f"there are no images in {tree.root} that can be used; {'; '.join(account.lines())}")
    columns: dict[str, Any] = {}
    if texts and (captions := read_captions(tree, texts, images, account)) is not None:
        columns["text"] = captions
    return _dataset(tree, images, columns, classes_of(images, tree, account), options, account)


def note_skipped(tree: Tree, kind: str, account: Account) -> None:
    """Note what the walk passed over: images, which count, and folders and others that may matter."""
    account.root = tree.root
    for reason, names in tree.skipped.items():
        skipped = [name for name in names if kind_of(name) == kind]
        account.num_images = (account.num_images or 0) + len(skipped)
        account.exclude(reason, *skipped)
        others = [name for name in names if kind_of(name) != kind]
        if others and reason != "hidden":  # folders, of images perhaps
            account.unread.append(f"not looked at: {len(others):,} {reason} ({examples(others)})")


def _dataset(
    tree: Tree,
    names: list[str],
    columns: dict[str, Any],
    classes: list[str | None],
    options: ReadOptions,
    account: Account,
) -> datasets.Dataset:
    """Rows of images, with a column of labels where there are classes."""
    features: dict[str, Any] = {}
    if any(name is not None for name in classes):
        classes, repeats = with_repeats(classes, options.folder_repeats, account)
        if options.folder_repeats:
            columns[REPEATS] = repeats
        written = {name for name in classes if name is not None}
        say_merged(written, account)
        labels = in_order({class_name(name) for name in written})
        ids = {name: i for i, name in enumerate(labels)}
        account.folders = dict(Counter(class_name(name) for name in classes if name is not None))
        columns["label"] = [None if name is None else ids[class_name(name)] for name in classes]
        features["label"] = datasets.ClassLabel(names=labels)
    paths = [tree.path(name) for name in names]
    nothing = pa.nulls(len(paths), pa.binary())
    arrays = {"image": pa.StructArray.from_arrays([nothing, pa.array(paths, pa.string())], ["bytes", "path"])}
    arrays |= {
        name: values if isinstance(values, pa.Array) else arrow_column(values) for name, values in columns.items()
    }
    table = pa.table(arrays)
    known = datasets.Features.from_arrow_schema(table.schema)
    known |= {"image": datasets.Image()} | features
    return datasets.Dataset(datasets.table.InMemoryTable(table.cast(datasets.Features(known).arrow_schema)))


# -------------------------------------------------------------------------------------------------------- metadata
def _with_metadata(
    tree: Tree, images: list[str], tables: list[str], texts: Texts, options: ReadOptions, account: Account
) -> datasets.Dataset:
    """The rows of metadata files, in their order; each names images below its own folder."""
    by_folder = Counter(map(posixpath.dirname, tables))
    if doubled := [folder for folder, count in by_folder.items() if count > 1]:
        both = [name for name in tables if posixpath.dirname(name) == doubled[0]]
        raise UserError(f"{tree.path(doubled[0])} has {' and '.join(map(posixpath.basename, both))}: keep one of them")
    names, columns = _rows_of(tables, tree, options, account)
    source, there = posixpath.basename(tables[0]), set(images)
    account.named = set(names)
    account.num_images = (account.num_images or 0) + len(account.named - there)  # whatever they are called
    account.exclude(f"without a row in {source}", *(name for name in images if name not in account.named))
    if len(names) > len(account.named):
        account.notes.append(f"rows of {source}: {len(names):,}, of {len(account.named):,} images")
    arrays = {name: arrow_column(values) for name, values in columns.items()}
    if mixed := [name for name, array in arrays.items() if array is None]:
        account.unread.append(f"columns of {source} with values of several kinds are not read: {', '.join(mixed)}")
    known: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    _say_split_column(known, source, account)
    if of_text := sorted(known.keys() & _TEXTS):
        say_unread(texts, names, account, f"since {source} has a column {of_text[0]}")
    elif any(has_caption(texts, name) for name in names):
        known["text"] = read_captions(tree, texts, names, account)
    classes: list[str | None] = [None] * len(names)
    if not known.keys() & _LABELS:
        found = classes_of(names, tree, account)
        if len({name for name in found if name is not None}) > 1:
            classes = found
    return _dataset(tree, names, known, classes, options, account)


def _say_split_column(columns: dict[str, Any], source: str, account: Account) -> None:
    """Note a column that names splits: folders are splits, columns are not."""
    for name in columns:
        if name.lower() in _SPLITS:
            splits = sorted({str(value) for value in columns[name].to_pylist() if value is not None})
            if len(splits) > 1 and all(map(split_of, splits)):
                account.notes.append(
                    f"column {name} of {source} chooses no rows: those of {', '.join(splits)} are all used; for "
                    "splits, put the images into folders of these names"
                )


def _rows_of(
    tables: list[str], tree: Tree, options: ReadOptions, account: Account
) -> tuple[list[str], dict[str, list[Any]]]:
    """(names of files, columns) of the rows of all tables whose file can be used."""
    elsewhere = {name for names in account.excluded.values() for name in names}
    there, by_name = set(tree.files), _by_plain_name(tree)
    names: list[str] = []
    columns: dict[str, list[Any]] = {}
    missing: list[str] = []
    for table in tables:
        named, more, notes = read_metadata(tree, table)
        account.notes += notes
        outside = {name for name in named if below(tree.root, name) is None}
        account.exclude_rows_outside(table, [name for name in named if name in outside])
        named = [_member(tree, table, below(tree.root, name) or name, there) for name in named]
        known = there | elsewhere | outside
        lacking = {name: row for row, name in reversed([*enumerate(named)]) if name not in known}
        if lacking and options.on_bad_image == "error":
            name, row = min(lacking.items(), key=lambda item: item[1])
            raise UserError(
                f"row {row} of {table}: {name} is not there{_like(name, by_name)}; mend it, or --on_bad_image skip"
            )
        missing += (name for name in named if name in lacking)
        left_out = elsewhere | outside | lacking.keys()
        keep = [row for row, name in enumerate(named) if name not in left_out]
        start = len(names)
        names += [named[row] for row in keep]
        for column, values in more.items():
            columns.setdefault(column, [None] * start).extend(values[row] for row in keep)
        for values in columns.values():
            values += [None] * (len(names) - len(values))
    if missing:
        account.notes.append(
            f"rows of {posixpath.basename(tables[0])} whose file is not there are left out: {len(missing):,} "
            f"({examples(missing)}{_like(missing[0], by_name)})"
        )
    if not names:
        raise UserError("; ".join([f"{tree.path(tables[0])} names no image that can be used", *account.lines()]))
    return names, columns


def _member(tree: Tree, table: str, name: str, there: set[str]) -> str:
    """The file that a row means: one below the table's folder, or in an archive that lies there."""
    if name in there:
        return name
    folder = posixpath.dirname(table)
    below = name.removeprefix(f"{folder}/") if folder else name
    found = {f"{archive}/{below}" for archive in tree.archives if posixpath.dirname(archive) == folder}
    found |= {  # photos/1.png of photos.zip
        f"{archive}/{name.removeprefix(unpacked)}"
        for archive in tree.archives
        if name.startswith(unpacked := posixpath.splitext(archive)[0] + "/")
    }
    of_archives = sorted(found & there)
    if len(of_archives) > 1:
        raise UserError(f"{tree.path(table)}: {below} may be {' or '.join(of_archives)}: write the archive's name, too")
    return of_archives[0] if of_archives else name


def _by_plain_name(tree: Tree) -> dict[str, str]:
    """One file of each name, without its folder and without regard to case."""
    return {posixpath.basename(name).lower(): name for name in tree.files if kind_of(name) is not None}


def _like(name: str, by_name: dict[str, str]) -> str:
    """A hint at the file that a row may mean."""
    plain = posixpath.basename(name).lower().strip()
    key = plain if plain in by_name else next((k for k in by_name if posixpath.splitext(k)[0] == plain), None)
    return "" if key is None else f", but {by_name[key]} is"
