"""Parquet files, arrow files and tar shards to rows, by `datasets`, from a list of files: nothing is guessed."""

import glob
import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets

_BUILDERS = {"parquet": "parquet", "arrow": "arrow", "tar": "webdataset"}


def read_tables(
    kind: str, paths: list[str], streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    """The rows of all files, in the files' order."""
    links = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "cond_pipelines" / "links"
    files = [glob.escape(_with_plain_name(path, links)) for path in paths]
    rows: Any = datasets.load_dataset(
        _BUILDERS[kind], data_files={"train": files}, split="train", streaming=streaming, cache_dir=cache_dir
    )
    return rows


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
