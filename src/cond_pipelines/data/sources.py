"""What a folder is a source of: images, parquet files, archives, ...: what holds most of its images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm.auto import tqdm

from ..errors import UserError, describe
from .account import Account, examples
from .folder import read_folder
from .formats import CAPTIONS, KINDS, METADATA, kind_of, split_of
from .images import array_shape
from .tables import read_tables
from .walk import Tree, open_path, walk, with_zip_members

DataFormat = Literal["images", "arrays", "parquet", "arrow", "tar", "zip"]
_NUM_SAMPLES = 16


def read_source(
    root: str, split: str, data_format: DataFormat | None, account: Account, streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    """The rows of a folder, or of one file: a .zip, .tar, parquet or arrow file.

    Args:
        data_format: which files to read, where a folder holds several kinds; None: the kind of most of its images.
        account: notes what is left out, and how the rest is read.

    Raises:
        UserError: there are no images, several kinds have about as many, or a file cannot be read.
    """
    single = None if Path(root).is_dir() else kind_of(root)
    if single is not None and single != "zip":
        path = Path(root).absolute()
        tree = Tree(str(path.parent), [path.name])
    else:
        with tqdm(desc="Listing files", unit=" files", delay=2, disable=not PartialState().is_main_process) as bar:
            tree = walk(root, bar.update)
    kinds: dict[str, list[str]] = {}
    for name in tree.files:
        if (kind := kind_of(name)) is not None and Path(name).name not in METADATA:
            kinds.setdefault(kind, []).append(name)
    is_archive = single == "zip"
    kind = _chosen(tree, kinds, data_format, account)
    if kind not in ("images", "arrays") and not is_archive:
        account.exclude(f"next to the {kind} files that are read", *kinds.get("images", []))
    _say_other_files(tree, kind, account)
    if kind in ("parquet", "arrow", "tar"):
        names = _with_images(tree, kinds[kind], account) if kind == "parquet" else kinds[kind]
        files = _tables_of_split(names, split, account)
        return read_tables(kind, [tree.path(name) for name in files], streaming, cache_dir)
    if kind == "zip":
        names = kinds["zip"]
        tree = walk(tree.path(names[0])) if len(names) == 1 else with_zip_members(tree, names)
        inside = {k for name in tree.files if (k := kind_of(name))}
        kind = "images" if "images" in inside else "arrays"
        if not inside & {"images", "arrays"}:
            raise UserError(f"there are no images in {tree.root}")
    rows = read_folder(tree, kind, split, account)
    return rows.to_iterable_dataset(num_shards=1) if streaming else rows


def _chosen(tree: Tree, kinds: dict[str, list[str]], data_format: str | None, account: Account) -> str:
    """The kind of file to read. Raises UserError where none holds images, or several hold about as many."""
    if data_format is not None:
        if data_format not in kinds:
            raise UserError(f"--data_format {data_format}: there are no such files in {tree.root}")
        return data_format
    if not kinds:
        raise UserError("there are no images in it (nor .npy, parquet, arrow, tar or zip files)")
    if len(kinds) == 1:
        return next(iter(kinds))
    counts = {kind: _num_images(tree, kind, names) for kind, names in kinds.items()}
    counts = {kind: count for kind, count in counts.items() if count}
    if not counts:
        raise UserError(f"there are no images in it: its {' and '.join(kinds)} files hold none")
    first, *others = sorted(counts, key=lambda kind: (-counts[kind], KINDS.index(kind)))
    if others:
        # Archives of what lies there unpacked, too.
        if "images" in counts and first in ("tar", "zip") and _is_unpacked(tree, kinds[first], kinds["images"]):
            first = "images"
        elif 2 * counts[others[0]] > counts[first] and not (
            others[0] in ("tar", "zip") and _is_unpacked(tree, kinds[others[0]], kinds[first])
        ):
            both = " and ".join(f"{counts[kind]:,} images in {kind} files" for kind in (first, others[0]))
            raise UserError(f"{tree.root} holds {both.replace(' in images files', '')}: say with --data_format which")
    for kind, names in kinds.items():
        if kind != first and kind != "images":
            account.notes.append(f"not read: {len(names):,} {kind} files ({examples(names)}); see --data_format")
    return first


def _num_images(tree: Tree, kind: str, names: list[str]) -> int:
    """About how many images the files of a kind hold; 0 for tables without a column of images."""
    if kind == "images":
        return len(names)
    if kind == "arrays":
        sample = names[:: max(1, len(names) // _NUM_SAMPLES)]
        shapes = [_shape(tree.path(name)) for name in sample]
        return round(len(names) * sum(len(shape) in (2, 3) for shape in shapes) / len(shapes))
    return sum(_num_in(tree.path(name), kind) for name in names)


def _shape(path: str) -> tuple[int, ...]:
    try:
        with open_path(path) as file:
            return array_shape(file.read(4096))
    except (OSError, ValueError):
        return ()


def _num_in(path: str, kind: str) -> int:
    try:
        if kind == "parquet":
            file = pq.ParquetFile(path)
            return int(file.metadata.num_rows) if _has_images(file.schema_arrow) else 0
        if kind == "arrow":
            with pa.memory_map(path) as mapped:
                reader = pa.ipc.open_stream(mapped)
                return sum(batch.num_rows for batch in reader) if _has_images(reader.schema) else 0
        return sum(kind_of(name) == "images" for name in _members(path, kind))
    except Exception:  # what cannot be read holds no images; where nothing else does, reading it raises
        return 0


def _members(path: str, kind: str) -> Iterable[str]:
    import tarfile

    if kind == "zip":
        return walk(path).files
    with tarfile.open(path) as file:
        return file.getnames()


def _is_unpacked(tree: Tree, archives: list[str], files: list[str]) -> bool:
    """Whether half of the images of these archives lie next to them as files of the same names."""
    there = {Path(name).name for name in files}
    try:
        members = [m for name in archives for m in _members(tree.path(name), kind_of(name) or "") if kind_of(m)]
    except Exception:  # damaged: nothing of it can be used
        return True
    return 2 * sum(Path(member).name in there for member in members) >= len(members)


def _with_images(tree: Tree, names: list[str], account: Account) -> list[str]:
    """Those of several parquet files that have a column of images; all, where none has."""
    if len(names) == 1:
        return names
    found = [name for name in names if _num_in(tree.path(name), "parquet")]
    if found and (others := sorted(set(names) - set(found))):
        account.notes.append(f"not read: {len(others):,} parquet files without images ({examples(others)})")
    return found or names


def _has_images(schema: pa.Schema) -> bool:
    """Whether a table has a column of image files: bytes, or bytes and paths."""
    return any(
        pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        or field.name in ("image", "img", "images", "picture", "photo")
        for field in schema
    )


def _tables_of_split(names: list[str], split: str, account: Account) -> list[str]:
    """The files of one split, where all are named as splits: train.parquet, or train-00000-of-00002.parquet."""
    splits = {name: split_of(Path(name).name) or split_of(name.split("/", 1)[0]) for name in names}
    if None in splits.values():
        if split != "train":
            raise UserError(f"--dataset_split {split}: not all files are named as splits, leave that out")
        return names
    known = sorted({str(found) for found in splits.values()})
    if split not in known and len(known) > 1:
        raise UserError(f"there is no split {split!r}, only {', '.join(known)}: give --dataset_split")
    chosen = split if split in known else known[0]
    if len(known) > 1:
        account.notes.append(f"splits, by the files' names: {', '.join(known)}; used: {chosen}")
    return [name for name in names if splits[name] == chosen]


def _say_other_files(tree: Tree, kind: str, account: Account) -> None:
    """One note on files that are neither images nor anything that says what they show."""
    used = {".zip"} | set(CAPTIONS if kind in ("images", "arrays", "zip") else ())
    others: dict[str, int] = {}
    for name in tree.files:
        suffix = Path(name).suffix.lower()
        if kind_of(name) is None and suffix not in used and Path(name).name not in METADATA:
            others[suffix or "without a suffix"] = others.get(suffix or "without a suffix", 0) + 1
    if others:
        shown = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items(), key=lambda x: -x[1])[:5])
        account.notes.append(f"files of other kinds, not read: {shown}{', ...' if len(others) > 5 else ''}")


def what_cannot_be_loaded(root: str, error: Exception) -> UserError:
    """The one line for a source that cannot be read, by whatever library reads it."""
    cause = error if isinstance(error, UserError) else error.__cause__ or error
    plain = isinstance(cause, OSError | datasets.exceptions.DatasetsError | ValueError)
    reason = " ".join(str(cause).split()) if plain and str(cause) else describe(cause)
    return UserError(f"cannot load {root}: {reason}")
