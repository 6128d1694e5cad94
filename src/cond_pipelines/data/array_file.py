"""Arrays that are made once and read again: in one memory-mapped file, shared by all processes."""

import json
import mmap
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..console import say
from ..errors import read_json
from ..files import read_checked_json, sha256_of, whole_folder, write_checked_json

# Pages of a mapped file count as this process's memory until it lets go of them; the page cache keeps them. A read maps
# the 64 KiB around its first and its last page too (Linux' fault_around_bytes).
MOST_MAPPED_BYTES, _AROUND_BYTES = 32 * 2**20, 2 * 2**16
_FACTS, _BLOCK_BYTES, _MOST_CHECKED = "facts.json", 2**20, 4096


class ArrayFile:
    """Arrays of one dtype, each with a shape of its own; some may be missing. Memory is the page cache's.

    Args:
        folder: as `stored` wrote it.

    Example:
        >>> file = stored(folder, lambda notes: (decode(path) for path in paths))
        >>> file[3]  # a read-only view
    """

    def __init__(self, folder: Path):
        self.folder = folder
        facts = read_json(folder / _FACTS)
        self.notes = {int(k): v for k, v in facts["notes"].items()}
        self.index = np.load(folder / "index.npy")  # (N, 1 + dimensions): offset, shape, -1 for what is not there
        self.dtype, self.mapped_bytes = np.dtype(facts["dtype"]), 0
        with (folder / "data.bin").open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if facts["dtype"] else None

    def __reduce__(self) -> tuple[type["ArrayFile"], tuple[Path]]:
        return ArrayFile, (self.folder,)  # a worker process maps the file itself

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, number: int) -> bool:
        return 0 <= number < len(self.index) and self.index[number, 0] >= 0

    def __getitem__(self, number: int) -> np.ndarray:
        if number not in self:
            raise KeyError(number)
        offset, *shape = (n for n in self.index[number].tolist() if n >= 0)
        count = int(np.prod(shape))
        self.mapped_bytes += count * self.dtype.itemsize + _AROUND_BYTES
        if self.mapped_bytes > MOST_MAPPED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)
            self.mapped_bytes = 0
        return np.frombuffer(self.map, self.dtype, count, offset * self.dtype.itemsize).reshape(shape)


def stored(
    folder: Path,
    make: Callable[[dict[int, str]], Iterable[np.ndarray | None]],
    is_outdated: Callable[[ArrayFile], bool] = lambda file: False,
) -> ArrayFile:
    """The arrays in `folder`, which are made first where they are not there, are damaged, or `is_outdated`.

    Written whole, under a lock: a run that is killed, or loses its power, leaves nothing that is taken for whole, and
    of several processes one makes them while the others wait.

    Args:
        make: gives the arrays in order, None for one that is missing; may note a word on any in the dictionary it gets.

    Raises:
        OSError: `folder` cannot be written to; nothing is left there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir() or _damage(folder) is not None or is_outdated(ArrayFile(folder)):
        with FileLock(f"{folder}.lock"):
            damage = _damage(folder) if folder.is_dir() else None  # another process may have made it
            if damage is not None:
                say(f"warning: {folder} does not verify ({damage}): it is made again")
            if damage is not None or not folder.is_dir() or is_outdated(ArrayFile(folder)):
                try:
                    with whole_folder(folder) as unfinished:
                        _write(unfinished, make)
                except OSError as error:
                    raise OSError(error.errno, error.strerror or str(error), str(folder)) from error
    return ArrayFile(folder)


def _write(folder: Path, make: Callable[[dict[int, str]], Iterable[np.ndarray | None]]) -> None:
    notes: dict[int, str] = {}
    index, offset, dtype = [], 0, None
    with (folder / "data.bin").open("wb") as file:
        for array in make(notes):
            if array is None:
                index.append(None)
                continue
            dtype = array.dtype
            file.write(np.ascontiguousarray(array).tobytes())
            index.append([offset, *array.shape])
            offset += array.size
    width = max((len(entry) for entry in index if entry), default=1)
    padded = [(entry or []) + [-1] * (width - len(entry or [])) for entry in index]
    np.save(folder / "index.npy", np.array(padded, np.int64).reshape(-1, width))
    facts = {"dtype": dtype.str if dtype is not None else None, "notes": notes}
    write_checked_json(folder / _FACTS, json.loads(json.dumps(facts)) | _checksums(folder))


def _damage(folder: Path) -> str | None:
    """What is wrong with the files, by their checksums; None where nothing is."""
    try:
        facts = read_checked_json(folder / _FACTS, ("dtype", "notes", "index", "num_bytes", "blocks"))
        if (folder / "data.bin").stat().st_size != facts["num_bytes"]:
            return "data.bin is cut off"
        found = _checksums(folder, facts["blocks"])
    except (OSError, ValueError) as error:
        return str(error)
    return next((f"the checksum of {k} is wrong" for k in ("index", "blocks") if found[k] != facts[k]), None)


def _checksums(folder: Path, expected: list[int] | None = None) -> dict[str, Any]:
    """Of the index, and of each MiB of the data; of `expected` ones no more than 4 GiB are read, evenly spread."""
    num_bytes = (folder / "data.bin").stat().st_size
    count = -(-num_bytes // _BLOCK_BYTES)
    blocks = list(expected or [0] * count)
    chosen = (
        range(count) if expected is None else np.unique(np.linspace(0, count - 1, min(count, _MOST_CHECKED)).round())
    )
    with (folder / "data.bin").open("rb") as file:
        for number in map(int, chosen):
            file.seek(number * _BLOCK_BYTES)
            blocks[number] = zlib.crc32(file.read(_BLOCK_BYTES))
    return {"index": sha256_of(folder / "index.npy"), "num_bytes": num_bytes, "blocks": blocks}
