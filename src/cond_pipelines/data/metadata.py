"""Tables that say what the images of a folder show: metadata.csv, metadata.jsonl or metadata.parquet."""

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, describe
from .archives import open_path
from .formats import kind_of
from .text_files import text_of
from .walk import Tree

_MOST_TABLE_BYTES = 2**28  # of a table in an archive; as rows it takes several times as much memory
_FEW_ROWS = 1_000_000  # that are read in no time
_ADDRESS = re.compile(r"(https?|s3|gs|ftp)://")
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class CannotBeRead(UserError):
    """A table that is damaged, or no table."""


def read_table(tree: Tree, name: str) -> dict[str, Sequence[Any]]:
    """The columns of a table. Raises CannotBeRead, which says which line or column is the reason."""
    path = tree.path(name)
    try:
        with open_path(path, _MOST_TABLE_BYTES) as file:
            content = file.read()
        if name.lower().endswith(".parquet"):
            check_num_rows(path, pq.read_metadata(io.BytesIO(content)).num_rows, len(content))
            return dict(pq.read_table(io.BytesIO(content)).to_pydict())
        text = _decoded(content, path)
        return _json_columns(text, path) if name.lower().endswith(".jsonl") else _csv_columns(text, path)
    except CannotBeRead:
        raise
    except Exception as error:  # neither pyarrow nor csv has a base class for what damaged files raise
        raise CannotBeRead(f"cannot read {path}: {describe(error)}") from error


def check_num_rows(path: str, num_rows: int, num_bytes: int) -> None:
    """Refuse a table that repeats itself without end: a hundred million rows of one value are a few bytes.

    Raises:
        CannotBeRead: it has more rows than bytes.
    """
    if num_rows > max(num_bytes, _FEW_ROWS):
        raise CannotBeRead(f"{path} has {num_rows:,} rows in {num_bytes:,} bytes: it repeats itself, and is not read")


def read_metadata(tree: Tree, name: str) -> tuple[list[str], dict[str, Sequence[Any]], list[str]]:
    """One table.

    Returns:
        The images' paths within the tree, the other columns by name, and notes for the user.

    Raises:
        UserError: it cannot be read, or it names no images; the line says which line or column.
    """
    path, notes, columns = tree.path(name), [], read_table(tree, name)
    of_files = [k for k in columns if k == "file_name" or k.endswith("_file_name")]
    usual = ("file_name", "image_file_name")  # before mask_file_name
    key = next((k for k in (*usual, *of_files) if k in of_files), None)
    if key is None:
        refuse_addresses(columns)
        raise UserError(_no_file_names(path, columns))
    refuse_addresses({key: columns[key]})
    names = columns.pop(key)
    folder = posixpath.dirname(name)
    paths = [_path(folder, value, path, row) for row, value in enumerate(names)]
    others = [k for k in columns if k.endswith(("_file_name", "_file_names")) or k == "image"]
    for other in others:
        columns.pop(other)
        notes.append(f"column {other} of {name} is not read")
    return paths, columns, notes


def _path(folder: str, value: Any, path: str, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: row {row} names no file ({value!r}): write its file_name, or take the row out")
    return posixpath.normpath(posixpath.join(folder, value.replace("\\", "/")))


def _no_file_names(path: str, columns: dict[str, Sequence[Any]]) -> str:
    """What to say of a table without file names: which of its columns may hold them under another name."""
    like = next((k for k, v in columns.items() if any(isinstance(x, str) and kind_of(x) == "images" for x in v)), None)
    line = f"{path} has no column file_name, which names the images, but {', '.join(columns) or 'none'}"
    return line if like is None else f"{line}: rename {like} to file_name"


def refuse_addresses(columns: Mapping[str, Iterable[Any]]) -> None:
    """Raise UserError for a column of addresses of images: downloading is not this package's."""
    for name, values in columns.items():
        first = next((value for value in values if value), None)
        if isinstance(first, str) and _ADDRESS.match(first):
            raise UserError(
                f"column {name!r} holds addresses of images ({first[:60]}), not images: fetch them first, for instance "
                f"with img2dataset --url_list TABLE --url_col {name} --output_format files --output_folder FOLDER"
            )


def _decoded(content: bytes, path: str) -> str:
    try:
        return text_of(content)
    except UnicodeDecodeError as error:
        raise CannotBeRead(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _csv_columns(text: str, path: str) -> dict[str, Sequence[Any]]:
    """Columns of a CSV file, separated by commas, semicolons or tabs; an empty cell is None, nothing else is."""
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=lambda mark: (header.count(mark), mark == ","))
    csv.field_size_limit(2**31 - 1)  # a caption may be long
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    if not rows:
        raise CannotBeRead(f"{path} is empty")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names):
        raise CannotBeRead(f"{path}: two columns have one name: {', '.join(names)}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise CannotBeRead(
                f"{path}: row {number - 2} has {len(row)} cells, and the first line names {len(names)} columns: a cell "
                "with a separator or a line break in it needs double quotes"
            )
    cells = zip(*rows[1:], strict=True) if len(rows) > 1 else [()] * len(names)
    return {
        name: list(column) if name.endswith("file_name") else typed(column)
        for name, column in zip(names, cells, strict=True)
    }


def typed(cells: Sequence[str]) -> list[Any]:
    """Numbers where every cell that is not empty is one, text otherwise; empty cells are None.

    Example:
        >>> typed(["1", "", "3"]), typed(["1", "NA"]), typed(["01", "02"]), typed(["1.1", "1.10"])
        ([1, None, 3], ['1', 'NA'], ['01', '02'], ['1.1', '1.10'])
    """
    filled = [cell for cell in cells if cell.strip()]
    for pattern, kind in ((_INTEGER, int), (_DECIMAL, float)):
        if filled and all(pattern.fullmatch(cell.strip()) and len(cell) < 19 for cell in filled):
            if kind is float and (any(re.fullmatch(r"[+-]?0\d+", cell.strip()) for cell in filled) or _merges(filled)):
                break  # 007 is a name, and so are the versions 1.1 and 1.10
            return [kind(cell) if cell.strip() else None for cell in cells]
    return [cell if cell.strip() else None for cell in cells]


def _merges(cells: Sequence[str]) -> bool:
    """Whether cells that are written differently would be one number that is not whole."""
    written = {cell.strip() for cell in cells}
    numbers = [number for cell in written if not (number := float(cell)).is_integer()]
    return len(set(numbers)) < len(numbers)


def _json_columns(text: str, path: str) -> dict[str, Sequence[Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CannotBeRead(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise CannotBeRead(f'{path}: line {number} is no object in braces, such as {{"file_name": "a.png"}}')
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def arrow_column(values: Sequence[Any]) -> pa.Array | None:
    """A column as Arrow has it; None where its values are of kinds that do not go together."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        pass
    if all(v is None or isinstance(v, str | list) for v in values):  # one caption, and several
        with suppress(pa.ArrowException, TypeError):
            return pa.array([[v] if isinstance(v, str) else v for v in values], pa.list_(pa.string()))
    if all(v is None or isinstance(v, str | int | float) for v in values):
        return pa.array([None if v is None else _as_text(v) for v in values])
    return None


def _as_text(value: str | float) -> str:
    """A cell of a column with text in it: 1.0 is the number 1, however it is written."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
