"""Parquet files, arrow files and tar shards to rows, by `datasets`, from a list of files: nothing is guessed."""

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.features.features import cast_to_python_objects
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ..console import for_terminal
from .account import Account
from .metadata import check_num_rows
from .walk import below

_logger = logging.getLogger(__name__)
_NUM_SAMPLES = 50  # of a tar, of which the columns are read
_BUILDERS = {"parquet": "parquet", "arrow": "arrow", "tar": "webdataset"}


def read_tables(
    kind: str, paths: list[str], streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    """The rows of all files, in the files' order."""
    for path in paths if kind == "parquet" else []:
        with suppress(pa.ArrowException, OSError):  # one that is damaged: `datasets` says so
            check_num_rows(path, pq.read_metadata(path).num_rows, os.path.getsize(path))
    links = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "cond_pipelines" / "links"
    files = [glob.escape(_with_plain_name(path, links)) for path in paths]
    rows: Any = datasets.load_dataset(
        _BUILDERS[kind],
        data_files={"train": files},
        split="train",
        streaming=streaming,
        cache_dir=cache_dir,
        features=_features_of_tar(paths[0]) if kind == "tar" else None,
    )
    return rows


def _features_of_tar(path: str) -> datasets.Features | None:
    """The columns of a tar of WebDataset whose first samples lack files of each other; None where they do not.

    `datasets` refuses such a tar unless it is given the columns, and then fills in None.
    """
    samples = WebDataset._get_pipeline_from_tar(path, datasets.DownloadManager().iter_archive(path))
    first = list(islice(samples, _NUM_SAMPLES))
    if len({frozenset(sample) for sample in first}) < 2:
        return None
    tables = [pa.Table.from_pylist(cast_to_python_objects([sample], only_1d_for_numpy=True)) for sample in first]
    features = datasets.Features.from_arrow_schema(pa.concat_tables(tables, promote_options="default").schema)
    for name in features:
        if name.rsplit(".", 1)[-1].lower() in WebDataset.IMAGE_EXTENSIONS:
            features[name] = datasets.Image()
    return features


def _with_plain_name(path: str, links: Path) -> str:
    """A link to a file whose path `datasets` would read as a variable or as an address: `$HOME`, `a::b`."""
    if not re.search(r"\$|::|%", path):
        return path
    links.mkdir(parents=True, exist_ok=True)
    link = links / (hashlib.sha256(path.encode()).hexdigest()[:16] + Path(path).suffix.lower())
    if not link.is_symlink():
        with suppress(FileExistsError):  # another process was quicker
            link.symlink_to(path)
    return str(link)


# -------------------------------------------------------------------------------------------------- images elsewhere
def rows_inside(rows: Any, undecoded: Any, column: str, root: str, name: str, account: Account) -> Any:
    """`rows` without those whose image is a path that leads out of a folder; relative paths start in the folder.

    Images that are bytes stay, whatever their path says. Those of a stream come undecoded.

    Args:
        undecoded: `rows` with the images as {"bytes", "path"}; `column` has them.
        root: the folder, absolute. name: of the source, for the line on rows that are left out.
    """
    place = _Place(column, root, name)
    if not hasattr(rows, "__len__"):
        kept = undecoded.filter(place.is_inside)
        return kept.map(place.absolute, features=undecoded.features)
    paths = list(_paths(undecoded, column))
    outside = {row: path for row, path in enumerate(paths) if path is not None and below(root, path) is None}
    account.exclude_rows_outside(name, list(outside.values()))
    if outside:
        left = [row for row in range(len(paths)) if row not in outside]
        rows, undecoded, paths = rows.select(left), undecoded.select(left), [paths[row] for row in left]
    if all(path is None or os.path.isabs(path) for path in paths):
        return rows
    absolute = undecoded.map(place.absolute, keep_in_memory=None not in paths)
    return absolute.cast_column(column, datasets.Image())


def _paths(undecoded: datasets.Dataset, column: str) -> Iterator[str | None]:
    """Of each row the path of its image; None where the image is bytes, which are not read for it."""
    for table in undecoded.select_columns([column]).with_format("arrow").iter(1000):
        for chunk in table[column].chunks:
            is_path = chunk.field("bytes").is_null().to_pylist()
            for path, is_read in zip(chunk.field("path").to_pylist(), is_path, strict=True):
                yield path if is_read else None


class _Place:
    """Where the paths of a stream's images lead."""

    def __init__(self, column: str, root: str, name: str):
        self.column, self.root, self.name, self.is_said = column, root, name, False

    def _path(self, row: dict[str, Any]) -> str | None:
        image = row.get(self.column) or {}
        return image.get("path") if image.get("bytes") is None else None

    def is_inside(self, row: dict[str, Any]) -> bool:
        """False for a row that leads out of the folder; the first one is said."""
        path = self._path(row)
        if path is None or below(self.root, path) is not None:
            return True
        if not self.is_said:
            account = Account()
            account.exclude_rows_outside(self.name, [path])
            _logger.warning(for_terminal(f"{account.notes[0]}; and so are any others"))
            self.is_said = True
        return False

    def absolute(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with a path that does not depend on the folder in which the program runs."""
        path = self._path(row)
        if path is None:
            return row
        return row | {self.column: {"bytes": None, "path": os.path.join(self.root, below(self.root, path) or "")}}
