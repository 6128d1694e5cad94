"""Tables that say what the images of a folder show: metadata.csv, metadata.jsonl or metadata.parquet."""

import csv
import io
import json
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, describe
from .walk import Tree, open_path

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_metadata(tree: Tree, name: str) -> tuple[list[str], dict[str, Sequence[Any]], list[str]]:
    """One table.

    Returns:
        The images' paths within the tree, the other columns by name, and notes for the user.

    Raises:
        UserError: it cannot be read, or it names no images; the line says which line or column.
    """
    path, notes = tree.path(name), []
    try:
        with open_path(path) as file:
            content = file.read()
        if name.endswith(".parquet"):
            columns = pq.read_table(io.BytesIO(content)).to_pydict()
        else:
            text = _decoded(content, path)
            columns = _csv_columns(text, path) if name.endswith(".csv") else _json_columns(text, path)
    except UserError:
        raise
    except Exception as error:  # neither pyarrow nor csv has a base class for what damaged files raise
        raise UserError(f"cannot read {path}: {describe(error)}") from error
    key = next((k for k in columns if k == "file_name"), None) or next(
        (k for k in columns if k.endswith("_file_name")), None
    )
    if key is None:
        raise UserError(f"{path} has no column file_name, which names the images, but {', '.join(columns) or 'none'}")
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


def _decoded(content: bytes, path: str) -> str:
    for start, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(start):
            return content.decode(encoding)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _csv_columns(text: str, path: str) -> dict[str, Sequence[Any]]:
    """Columns of a CSV file, separated by commas, semicolons or tabs; an empty cell is None, nothing else is."""
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=lambda mark: (header.count(mark), mark == ","))
    csv.field_size_limit(2**31 - 1)  # a caption may be long
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row]
    if not rows:
        raise UserError(f"{path} is empty")
    names = [name.strip() for name in rows[0]]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have one name: {', '.join(names)}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise UserError(
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
        >>> typed(["1", "", "3"]), typed(["1", "NA"]), typed(["01", "02"])
        ([1, None, 3], ['1', 'NA'], ['01', '02'])
    """
    filled = [cell for cell in cells if cell.strip()]
    for pattern, kind in ((_INTEGER, int), (_DECIMAL, float)):
        if filled and all(pattern.fullmatch(cell.strip()) and len(cell) < 19 for cell in filled):
            if kind is float and any(re.fullmatch(r"[+-]?0\d+", cell.strip()) for cell in filled):
                break  # 007 is a name
            return [kind(cell) if cell.strip() else None for cell in cells]
    return [cell if cell.strip() else None for cell in cells]


def _json_columns(text: str, path: str) -> dict[str, Sequence[Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}: line {number} is no object in braces, such as {{"file_name": "a.png"}}')
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def arrow_column(values: Sequence[Any]) -> pa.Array | None:
    """A column as Arrow has it; None where its values are of kinds that do not go together."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        pass
    if all(v is None or isinstance(v, str | int | float) for v in values):
        return pa.array([None if v is None else str(v) for v in values])
    return None
