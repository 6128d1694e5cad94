"""What a folder is a source of: images, parquet files, archives, ...: what holds most of its images."""

from contextlib import suppress
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..errors import UserError, describe
from ..processes import is_main_process
from .account import Account, ReadOptions, counted, examples
from .archives import all_members, are_packed_folders, open_path, with_members
from .folder import note_skipped, read_folder
from .formats import CAPTIONS, KINDS, PACKED, TABLES, is_metadata, kind_of, split_of
from .images import array_shape
from .metadata import CannotBeRead, read_table, refuse_addresses
from .tables import read_tables
from .walk import Tree, walk

_NUM_SAMPLES, _ANYTHING = 16, "empty"


def read_source(
    root: str,
    options: ReadOptions,
    account: Account,
    streaming: bool,
    cache_dir: str | None,
) -> datasets.Dataset | datasets.IterableDataset:
    """The rows of a folder, or of one file: a .zip, .tar, parquet or arrow file.

    Args:
        account: notes what is left out, and how the rest is read.

    Raises:
        UserError: there are no images, several kinds have about as many, or a file cannot be read.
    """
    if Path(root).is_dir():
        with tqdm(desc="Listing files", unit=" files", delay=2, disable=not is_main_process()) as bar:
            tree = walk(root, bar.update)
    else:
        path = Path(root).absolute()
        if path.exists() and not path.is_file():
            raise UserError("it is neither a file nor a folder")  # a pipe, which would be waited for
        tree = Tree(str(path.parent), [path.name])
    kinds: dict[str, list[str]] = {}
    for name in tree.files:
        if (kind := kind_of(name)) is not None and not is_metadata(name):
            kinds.setdefault(kind, []).append(name)
    kind = _chosen(tree, kinds, options.data_format, account)
    if kind not in ("images", "arrays"):
        account.exclude(f"next to the {kind} files that are read", *kinds.get("images", []))
    if kind == "zip" or (kind == "tar" and are_packed_folders([tree.path(name) for name in kinds["tar"]])):
        archives, tree = kinds[kind], with_members(tree, kinds[kind])
        inside = {k for name in tree.files if (k := kind_of(name))}
        kind = "images" if "images" in inside else "arrays"
        if not inside & {"images", "arrays"}:
            raise UserError(f"there are no images in {examples(archives)}")
    if kind not in ("images", "arrays"):
        _say_other_files(tree, kind, account)
        names = _with_images(tree, kinds[kind], account) if kind == "parquet" else kinds[kind]
        files = _tables_of_split(names, options.split, account)
        if kind == "parquet":
            _check_columns(tree, files)
        return read_tables(kind, [tree.path(name) for name in files], streaming, cache_dir)
    rows = read_folder(tree, kind, options, account)
    _say_other_files(tree, kind, account)
    return rows.to_iterable_dataset(num_shards=1) if streaming else rows


def _chosen(tree: Tree, kinds: dict[str, list[str]], data_format: str | None, account: Account) -> str:
    """The kind of file to read. Raises UserError where none holds images, or several hold about as many."""
    if data_format is not None:
        if data_format not in kinds:
            raise UserError(f"--data_format {data_format}: there are no such files in {tree.root}")
        return data_format
    if not kinds:
        for name in tree.files:
            if Path(name).suffix.lower() in (".csv", ".tsv", ".jsonl"):
                with suppress(CannotBeRead):
                    refuse_addresses(read_table(tree, name))
        note_skipped(tree, "images", account)
        _say_other_files(tree, "images", account)
        raise UserError(
            "; ".join(["there are no images in it (nor .npy, parquet, arrow, tar or zip files)", *account.lines()])
        )
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
            both = " and ".join(f"{counted(counts[kind], 'image')} in {kind} files" for kind in (first, others[0]))
            raise UserError(f"{tree.root} holds {both.replace(' in images files', '')}: say with --data_format which")
    for kind, names in kinds.items():
        if kind != first and kind != "images":
            account.notes.append(
                f"not read: {counted(len(names), f'{kind} file')} ({examples(names)}); see --data_format"
            )
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
        return sum(kind_of(name) == "images" for name in all_members(path))
    except Exception:  # what cannot be read holds no images; where nothing else does, reading it raises
        return 0


def _is_unpacked(tree: Tree, archives: list[str], files: list[str]) -> bool:
    """Whether half of the images of these archives lie next to them as files of the same names."""
    there = {Path(name).name for name in files}
    try:
        members = [m for name in archives for m in all_members(tree.path(name)) if kind_of(m)]
    except Exception:  # damaged: nothing of it can be used
        return True
    return 2 * sum(Path(member).name in there for member in members) >= len(members)


def _with_images(tree: Tree, names: list[str], account: Account) -> list[str]:
    """Those of several parquet files that have a column of images; all, where none has."""
    if len(names) == 1:
        return names
    found = [name for name in names if _num_in(tree.path(name), "parquet")]
    if found and (others := sorted(set(names) - set(found))):
        account.notes.append(f"not read: {counted(len(others), 'parquet file')} without images ({examples(others)})")
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


def _check_columns(tree: Tree, names: list[str]) -> None:
    """Raise UserError for two parquet files whose columns have other names, or types that are not alike."""
    first: pa.Schema | None = None
    for name in names:
        try:
            schema = pq.read_schema(tree.path(name))
        except (pa.ArrowException, OSError):  # whoever reads it says so
            continue
        first = schema if first is None else first
        for column in dict.fromkeys((*first.names, *schema.names)):
            theirs, ours = (_type_of(s, column) for s in (schema, first))
            if theirs != ours and _ANYTHING not in (theirs, ours):
                raise UserError(
                    f"{names[0]} and {name} have other columns: {column} is {ours or 'not there'} in the first and "
                    f"{theirs or 'not there'} in the second; put them into folders of their own, or make them alike"
                )


def _type_of(schema: pa.Schema, column: str) -> str | None:
    """What a column holds, without the widths that are converted; None where it is not there."""
    if (at := schema.get_field_index(column)) < 0:
        return None
    kind = schema.field(at).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(kind):
        return _ANYTHING
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return "numbers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes"
    return "a list" if pa.types.is_list(kind) or pa.types.is_large_list(kind) else type(kind).__name__


def _tables_of_split(names: list[str], split: str, account: Account) -> list[str]:
    """The files of one split, where all are named as splits: train.parquet, or train-00000-of-00002.parquet."""
    splits = {name: split_of(Path(name).name) or split_of(name.split("/", 1)[0]) for name in names}
    if None in splits.values():
        if split != "train":
            raise UserError(f"--dataset_split {split}: not all files are named as splits, leave that out")
        if named := sorted(name for name, of_split in splits.items() if of_split is not None):
            other = next(name for name, of_split in splits.items() if of_split is None)
            verb = "is not taken as a split" if len(named) == 1 else "are not taken as splits"
            account.notes.append(f"{examples(named)} {verb}, since {other} is of none: the rows of all files are used")
        return names
    known = sorted({str(found) for found in splits.values()})
    if split not in known and len(known) > 1:
        raise UserError(f"there is no split {split!r}, only {', '.join(known)}: give --dataset_split")
    chosen = split if split in known else known[0]
    if len(known) > 1:
        account.notes.append(f"splits, by the files' names: {', '.join(known)}; used: {chosen}")
    return [name for name in names if splits[name] == chosen]


def _say_other_files(tree: Tree, kind: str, account: Account) -> None:
    """Notes on files that are neither images nor anything that says what they show."""
    is_folder = kind in ("images", "arrays")
    of_images = {_first_part(name) for name in tree.files if kind_of(name) == kind}
    others: dict[str, int] = {}
    tables, packed = [], []
    for name in tree.files:
        suffix, holds = Path(name).suffix.lower(), kind_of(name)
        if name in account.named or (is_folder and (is_metadata(name) or suffix in CAPTIONS)):
            continue
        if holds in ("zip", "tar") and tree.archives:
            packed.append(name)
        elif holds is not None and (holds == kind or not tree.archives):  # `_chosen` has named the others
            continue
        elif suffix in TABLES or (suffix == ".json" and _first_part(name) not in of_images):
            tables.append(name)
        elif suffix in PACKED:
            packed.append(name)
        else:
            others[suffix or "without a suffix"] = others.get(suffix or "without a suffix", 0) + 1
    if others:
        shown = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items(), key=lambda x: -x[1])[:5])
        account.unread.append(f"files of other kinds, not read: {shown}{', ...' if len(others) > 5 else ''}")
    if tables:
        account.unread.append(
            f"not read: {counted(len(tables), 'table')} ({examples(tables)}): one that says what the images show needs "
            "the name metadata.csv, metadata.jsonl or metadata.parquet, and a column file_name"
        )
    if packed:
        account.unread.append(
            f"not read: {counted(len(packed), 'archive')} ({examples(packed)}): unpack them, or make a .zip"
        )


def _first_part(name: str) -> str:
    """A path up to the first dot of the file's name: the same of an image and of the files with more on it."""
    folder, _, file_name = name.rpartition("/")
    return f"{folder}/{file_name.split('.')[0]}"


def what_cannot_be_loaded(root: str, error: Exception) -> UserError:
    """The one line for a source that cannot be read, by whatever library reads it."""
    cause = error if isinstance(error, UserError) else error.__cause__ or error
    plain = isinstance(cause, OSError | datasets.exceptions.DatasetsError | ValueError)
    reason = " ".join(str(cause).split()) if plain and str(cause) else describe(cause)
    return UserError(f"cannot load {root}: {reason}")
