"""Members of .zip and .tar files, as files below the archive's path: `photos.zip/cat/1.png`."""

import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ..errors import UserError, describe
from ..files import is_mostly_hole
from .formats import CAPTIONS, is_hidden_folder, is_metadata, kind_of
from .walk import Tree

_MOST_MEMBER_BYTES, _MOST_OPEN, _NUM_LOOKED_AT = 2**30, 8, 1000
_SUFFIXES = (".zip", ".tar")
_local = threading.local()
_Info: TypeAlias = zipfile.ZipInfo | tarfile.TarInfo


class _Archive:
    """An open .zip or .tar, and its files by path."""

    def __init__(self, path: str):
        self.file: zipfile.ZipFile | tarfile.TarFile
        infos: list[_Info]
        if path.lower().endswith(".zip"):
            self.file = zipfile.ZipFile(path)
            infos = [info for info in self.file.infolist() if not info.is_dir()]
        else:
            # One that is compressed has no members that could be read by themselves.
            self.file = tarfile.open(path, "r:")  # noqa: SIM115 (it stays open)
            infos = [info for info in self.file.getmembers() if not info.isdir()]
        self.infos = [(_plain(name_of(info)), info) for info in infos]
        self.members = dict(self.infos)  # of two with one name the later one, as when it is unpacked

    def read(self, member: str, most_bytes: int) -> bytes:
        info = self.members[member]
        size = info.file_size if isinstance(info, zipfile.ZipInfo) else info.size
        if size > most_bytes:
            raise OSError(_too_large(size, most_bytes))
        if isinstance(self.file, tarfile.TarFile):
            opened = self.file.extractfile(info)  # type: ignore[arg-type]
            if opened is None:
                raise OSError("it is no file")
            return opened.read()
        return b"".join(_parts(self.file, info, most_bytes))  # type: ignore[arg-type]


def _parts(file: zipfile.ZipFile, info: zipfile.ZipInfo, most_bytes: int) -> Iterator[bytes]:
    """A member, in parts: its real size may be another than the declared one."""
    # All but DEFLATE unpack a part whole, however large it becomes.
    bounded = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    num_bytes = 0
    with file.open(info) as opened:
        while part := opened.read(2**20 if bounded else 2**12):
            num_bytes += len(part)
            if num_bytes > most_bytes:
                raise OSError(_too_large(num_bytes, most_bytes))
            yield part


def _too_large(num_bytes: int, most_bytes: int) -> str:
    return f"it has {num_bytes:,} bytes unpacked or more (at most {most_bytes:,} are read): unpack the archive"


def name_of(info: _Info) -> str:
    """A member's path, as the archive has it."""
    return info.filename if isinstance(info, zipfile.ZipInfo) else info.name


def _plain(name: str) -> str:
    """With `/`, as Windows' programs do not always write, and without the `./` of tar."""
    return name.replace("\\", "/").removeprefix("./")


def _is_link(info: _Info) -> bool:
    if isinstance(info, zipfile.ZipInfo):
        return stat.S_ISLNK(info.external_attr >> 16)
    return not info.isreg()  # links, and devices


# -------------------------------------------------------------------------------------------------------- listing
def with_members(tree: Tree, names: list[str]) -> Tree:
    """The files of a tree, with the members of some of its archives in the place of all images and archives.

    Raises:
        UserError: an archive cannot be read.
    """
    outside = [name for name in tree.files if kind_of(name) is None or is_metadata(name)]
    opened = Tree(tree.root, outside, tree.skipped, set(names))
    for name in names:
        _list_members(opened, name)
    opened.files.sort()
    return opened


def _list_members(tree: Tree, name: str) -> None:
    path = tree.path(name)
    try:
        archive = _Archive(path)
    except Exception as error:  # a damaged archive raises what it likes
        raise UserError(f"cannot read {path}: {describe(error)}; unpack it into a folder, or make it again") from error
    hidden: dict[str, None] = {}
    with archive.file:
        for member, info in archive.infos:
            *folders, file_name = member.split("/")
            at = next((i for i, part in enumerate(folders) if is_hidden_folder(part)), None)
            if any(part in ("", ".", "..") for part in (*folders, file_name)):  # absolute, or it leaves the archive
                tree.skip("path that is not one below the archive", f"{name}/{member}")
            elif at is not None:
                hidden["/".join([name, *folders[: at + 1]])] = None
            elif archive.members[member] is not info:
                tree.skip("file that a later one of the same name in the archive replaces", f"{name}/{member}")
            elif _is_link(info):
                tree.skip("link within an archive", f"{name}/{member}")
            elif file_name.startswith("."):
                tree.skip("hidden", f"{name}/{member}")
            else:
                tree.files.append(f"{name}/{member}")
    for folder in hidden:
        tree.skip("hidden folder", folder)


def first_members(path: str) -> list[str]:
    """The paths of the first files of a .zip or a .tar. What a damaged archive raises is not described."""
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as file:
            return [_plain(info.filename) for info in islice(file.infolist(), _NUM_LOOKED_AT) if not info.is_dir()]
    with tarfile.open(path, "r:") as tar:
        return [_plain(info.name) for info in islice(tar, _NUM_LOOKED_AT) if info.isfile()]


def all_members(path: str) -> Iterator[str]:
    """The paths of all files of a .zip or a .tar."""
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as file:
            yield from (_plain(name) for name in file.namelist())
    else:
        with tarfile.open(path) as tar:
            yield from (_plain(name) for name in tar.getnames())


def are_packed_folders(paths: list[str]) -> bool:
    """Whether .tar files hold folders of images, as .zip files do, and not the samples of WebDataset.

    Of WebDataset are those with labels or other data next to the images (`1.jpg`, `1.cls`), and images that lie in no
    folder, unless there is a table with them, or each .tar is a class: `cat.tar`, `dog.tar`.
    """
    try:
        members = first_members(paths[0])
    except Exception:  # damaged, or compressed: whoever reads it says so
        return False
    shown = [name for name in members if not any(is_hidden_folder(part) for part in name.split("/"))]
    images = {_key(name) for name in shown if kind_of(name) == "images"}
    others = {_key(name) for name in shown if kind_of(name) != "images" and not name.lower().endswith(CAPTIONS)}
    if not images or images & others:
        return False
    in_folders = any("/" in name for name in images)
    return in_folders or any(map(is_metadata, shown)) or (len(paths) > 1 and not _are_numbered(paths))


def _key(name: str) -> str:
    """What the files of one sample of WebDataset have in common: all up to the first dot of the file's name."""
    folder, _, file_name = name.rpartition("/")
    return f"{folder}/{file_name.split('.')[0]}" if folder else file_name.split(".")[0]


def _are_numbered(paths: list[str]) -> bool:
    stems = [Path(path).stem for path in paths]
    letters = {"".join(c for c in stem if not c.isdigit()) for stem in stems}
    digits = ["".join(filter(str.isdigit, stem)) for stem in stems]
    if len(letters) > 1 or not all(digits):
        return False
    numbers = sorted(map(int, digits))
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


# -------------------------------------------------------------------------------------------------------- reading
def open_path(path: str, most_bytes: int = _MOST_MEMBER_BYTES) -> BinaryIO:
    """A file, or a member of an archive that stands in its path as a folder: `photos.zip/cat/1.png`.

    Args:
        most_bytes: of a member, which is unpacked into memory.

    Raises:
        OSError: there is no such file, it cannot be read, or it is encrypted or too large to be read into memory.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe is to wait for its other end
            raise OSError(f"{path} is not a file")
        if is_mostly_hole(Path(path)):
            raise OSError(f"it says that it has {os.stat(path).st_size:,} bytes, and most of them are nowhere")
        return open(path, "rb")
    except NotADirectoryError:
        return io.BytesIO(_read_member(*_archive_of(path), most_bytes))


def size_and_time(path: str) -> tuple[int, int] | None:
    """Bytes and time of change of a file; of a member of an archive its bytes and checksum; None: it is not there."""
    try:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    except OSError:
        pass
    try:
        archive, member = _archive_of(path)
        info = _opened(archive).members[member]
        return (info.file_size, info.CRC) if isinstance(info, zipfile.ZipInfo) else (info.size, int(info.mtime))
    except Exception:  # as `_read_member` says when it is read
        return None


def _archive_of(path: str) -> tuple[str, str]:
    archive = next((str(p) for p in Path(path).parents if p.suffix.lower() in _SUFFIXES and p.is_file()), None)
    if archive is None:
        raise FileNotFoundError(2, "No such file or directory", path)
    return archive, path[len(archive) + 1 :]


def _opened(path: str) -> _Archive:
    # An open archive belongs to one process and thread: forked processes would move each other's place in the file.
    opened: dict[tuple[int, str], _Archive] = _local.__dict__.setdefault("archives", {})
    key = (os.getpid(), path)
    if key not in opened:
        while len(opened) >= _MOST_OPEN:
            opened.pop(next(iter(opened))).file.close()
        opened[key] = _Archive(path)
    return opened[key]


def _read_member(archive: str, member: str, most_bytes: int) -> bytes:
    try:
        return _opened(archive).read(member, most_bytes)
    except KeyError as error:
        raise FileNotFoundError(2, "No such file in the archive", f"{archive}/{member}") from error
    except OSError:
        raise
    except Exception as error:  # encrypted, damaged, of an unknown compression
        raise OSError(f"it cannot be read from the archive: {describe(error)}") from error
