"""Files and folders that are there whole or not at all, also after a power cut; text is UTF-8 on every machine.

A file takes its name when its data are on the disk, and is safe when the folder that holds the name is there too:
write, fsync, rename, fsync the folder. A rename alone is not enough: file systems may keep the name and lose the data.
"""

import errno
import functools
import hashlib
import hmac
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .errors import read_json

if TYPE_CHECKING:  # a command is parsed before numpy is imported
    import numpy as np

_CHECKSUM, _DIGEST_BYTES = "sha256", 32
_SMALL_BYTES = 64 * 2**20  # what is read in no time


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` after the block; on an error nothing has changed.

    Example:
        >>> with whole_file("samples.png") as unfinished:
        ...     image.save(unfinished, "PNG")
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.unfinished")  # a suffix that nobody looks for
    unfinished.unlink(missing_ok=True)  # it may be a link to a file elsewhere
    try:
        yield unfinished
        sync_file(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `path` after the block; on an error nothing is changed."""
    path = Path(path)
    unfinished = unfinished_folder(path)
    remove(unfinished)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        finish_folder(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def unfinished_folder(path: Path) -> Path:
    """Where the folder `path` is filled before it takes its name."""
    return path.with_name(f"unfinished-{path.name}")


def finish_folder(unfinished: Path, path: Path) -> None:
    """Bring all of a filled folder to the disk, then give it its name; what had that name is deleted afterwards."""
    sync_tree(unfinished)
    old = unfinished_folder(path.with_name(f"old-{path.name}"))
    if os.path.lexists(path):
        remove(old)
        path.rename(old)
    unfinished.rename(path)
    sync_folder(path.parent)
    remove(old)


def remove(path: Path) -> None:
    """Delete whatever has this name, as far as that is possible: a folder, a file, a link itself, a pipe."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_folder(path: Path) -> None:
    """Delete a folder that is whole; killed in the middle, it leaves nothing that looks whole."""
    old = unfinished_folder(path)
    remove(old)
    path.rename(old)
    shutil.rmtree(old)


def sync_tree(folder: Path) -> None:
    """Bring every file below a folder to the disk, and the names of all of them."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == "nt":  # Windows opens no folder; NTFS keeps a log of names itself
        return
    try:
        sync_file(folder)
    except OSError as error:  # file systems of a network may not know fsync of a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def sync_file(path: Path) -> None:
    """Bring what was written to a file to the disk."""
    number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # it may be read-only
    try:
        os.fsync(number)
    finally:
        os.close(number)


# --------------------------------------------------------------------------------------------------------- text
def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, in UTF-8."""
    with whole_file(path) as unfinished:
        # Half of a surrogate pair (a file's name that is not UTF-8) becomes \udc.., which JSON and YAML read back.
        unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))


def append_text(path: Path, text: str) -> None:
    """Add lines to the end of a text file: all of them, or none where the disk is full.

    A file that has another name elsewhere (a hard link) keeps what it has there.
    """
    content = text.encode()
    if path.is_file() and path.stat().st_nlink > 1:
        with whole_file(path) as own:
            shutil.copyfile(path, own)
    with path.open("ab", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a file as text; "" where there is none."""
    with suppress(OSError):
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read().decode("utf-8", "replace")
    return ""


def write_json(path: str | Path, value: Any, *, sort_keys: bool = False) -> None:
    """Write a whole JSON file, in UTF-8 with characters as they are."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n")


def cache_json(path: Path, value: object) -> None:
    """Write a JSON file of a cache: whole, without waiting for the disk; many processes may write it at once."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    unfinished.write_text(json.dumps(value), encoding="utf-8")  # in ASCII: any file's name can be in it
    os.replace(unfinished, path)


def strict_json(value: Any) -> str:
    """JSON that every reader takes: in ASCII, so that any file's name can be in it, and null for what is no number.

    Example:
        >>> strict_json({"loss": float("nan"), "name": "café"})
        '{"loss": null, "name": "caf\\\\u00e9"}'
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value))


def keep_newest(folder: Path, count: int) -> None:
    """Delete what a cache holds beyond `count`, files and folders: what was not used for longest goes first."""
    with suppress(FileNotFoundError):  # another process deletes here too
        paths = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime)
        for path in paths[: max(0, len(paths) - count)]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_checked_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file with a checksum of itself, so that one bit more or less is seen."""
    write_json(path, values | {_CHECKSUM: _checksum(values)})


def read_checked_json(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What `write_checked_json` wrote with these `names`. Raises ValueError where anything is different."""
    values = read_json(path)
    if not isinstance(values, dict) or set(values) != {*names, _CHECKSUM}:
        raise ValueError(f"{path.name} is damaged: it does not hold {', '.join(names)}")
    # As it was written, to the byte: 1e-08 and 1E-08 are the same number, and a bit apart.
    as_written = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if path.read_bytes() != as_written.encode("utf-8", "backslashreplace"):
        raise ValueError(f"{path.name} is damaged: it is not as it was written")
    if values.pop(_CHECKSUM) != _checksum(values):
        raise ValueError(f"{path.name} is damaged: its checksum is wrong")
    return values


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------- arrays
def save_array(path: Path, array: "np.ndarray", seal: bytes = b"") -> None:
    """Write a whole .npy file, which any reader reads, with a checksum behind the array.

    Args:
        seal: what the checksum depends on too: `load_array` takes the file with the same seal only. See `own_seal`.
    """
    import numpy as np

    content = io.BytesIO()
    np.save(content, array)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(content.getbuffer())
        file.write(_digest(content.getbuffer()) + (_digest(content.getbuffer(), seal) if seal else b""))


def load_array(path: Path, seal: bytes = b"") -> "np.ndarray":
    """What `save_array` wrote with the same seal; without one, also what `numpy.save` wrote.

    Raises:
        ValueError: it is damaged, or has another seal.
    """
    import numpy as np

    data = path.read_bytes()
    sealed, ending = data[: -2 * _DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if seal and not hmac.compare_digest(ending, _digest(sealed, seal)):
        raise ValueError(f"{path} was not made here of the same model and settings, or is damaged")
    content = io.BytesIO(data)
    try:
        array: np.ndarray = np.load(content, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    digest = data[content.tell() :][:_DIGEST_BYTES]
    if digest and digest != _digest(data[: content.tell()]):  # none: of an earlier version
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    return array


def _digest(data: "bytes | memoryview", seal: bytes = b"") -> bytes:
    return hmac.digest(seal, data, "sha256") if seal else hashlib.sha256(data).digest()


def own_seal(key: Any) -> bytes:
    """A seal of what was made here for `key`, any JSON: it depends on a secret of this user, so nobody else makes it.

    The secret is kept in the cache folder of huggingface_hub. If it cannot be written there, it lasts as long as the
    process.
    """
    return hmac.digest(_secret(), json.dumps(key, sort_keys=True).encode(), "sha256")


@functools.cache
def _secret() -> bytes:
    from huggingface_hub.constants import HF_HOME

    path = Path(HF_HOME) / "cond_pipelines" / "secret"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(number, "wb") as file:
                file.write(secrets.token_bytes(_DIGEST_BYTES))
        if len(found := path.read_bytes()) == _DIGEST_BYTES:
            return found
    return secrets.token_bytes(_DIGEST_BYTES)


def without_path(value: Any) -> Any:
    """Only the last part of what is a path of this machine, also within lists, mappings and JSON in text.

    Example:
        >>> without_path({"model": "/home/ann/flowers", "from": "org/name"})
        {'model': 'flowers', 'from': 'org/name'}
    """
    if isinstance(value, dict):
        return {key: without_path(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_path(inner) for inner in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    if value.startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            return json.dumps(without_path(json.loads(value)), ensure_ascii=False)
    deep = os.path.isabs(value) and len(Path(value).parts) > 2  # "/imagine a cat" is a caption
    local = deep or PureWindowsPath(value).is_absolute() or value.startswith(("~/", "./", "../"))
    if local or (os.sep in value and _exists(value)):
        return PureWindowsPath(value).name if "\\" in value else Path(value).name
    return value


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except (OSError, ValueError):
        return False


def is_mostly_hole(path: Path) -> bool:
    """Whether a large file says that it has more than is on the disk: a terabyte of nothing takes hours to read."""
    size = path.stat().st_size
    if size <= _SMALL_BYTES or not hasattr(os, "SEEK_HOLE"):
        return False
    there = start = 0
    try:
        with path.open("rb") as file:
            while 2 * there < size and start < size:
                begin = os.lseek(file.fileno(), start, os.SEEK_DATA)
                start = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
                there += start - begin
    except OSError as error:
        if error.errno != errno.ENXIO:  # a file system that does not say where data are
            return False
    return 2 * there < size  # after ENXIO there are no more data


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
