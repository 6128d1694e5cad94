"""All files of a folder, or of a .zip, in one pass: links are followed, and nothing is opened."""

import io
import os
import stat
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError, describe
from .formats import kind_of

_MOST_MEMBER_BYTES = 2**30
_local = threading.local()


@dataclass
class Tree:
    """The files of a folder.

    Args:
        root: the folder, or a .zip, absolute.
        files: paths relative to the root, with `/`, sorted.
        skipped: by reason, paths that are not looked at: hidden files, folders that were read already, broken links.
    """

    root: str
    files: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def path(self, name: str) -> str:
        """The absolute path of one of `files`; for `open_path`, as what lies in a .zip has no file of its own."""
        return os.path.join(self.root, name)


def walk(root: str | Path, progress: Callable[[int], object] = lambda count: None) -> Tree:
    """List a folder, or a .zip.

    Every real folder is read once: links to folders are followed after all others, so cycles end. Files and folders
    whose name begins with a dot are left out.

    Args:
        progress: is called with the number of files of each folder.

    Raises:
        UserError: the root cannot be read.
    """
    tree = Tree(os.path.abspath(root))
    if os.path.isfile(tree.root):
        _list_zip(tree, "")
        progress(len(tree.files))
        return tree
    seen: set[tuple[int, int]] = set()
    links: list[str] = []
    to_read = [""]
    while to_read or links:
        if not to_read:  # every real folder is read
            links.sort(reverse=True)
            to_read.append(links.pop())
        name = to_read.pop()
        before = len(tree.files)
        to_read += reversed(_list_folder(tree, name, seen, links))
        progress(len(tree.files) - before)
    tree.files.sort()
    return tree


def _list_folder(tree: Tree, name: str, seen: set[tuple[int, int]], links: list[str]) -> list[str]:
    """Add the files of one folder; returns its real sub-folders and appends linked ones to `links`."""
    try:
        of_folder = os.stat(tree.path(name))
        key = (of_folder.st_dev, of_folder.st_ino)
        if key in seen:
            tree.skip("link to a folder that is read already", name)
            return []
        seen.add(key)
        with os.scandir(tree.path(name)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not name:
            raise UserError(f"cannot read {tree.root}: {describe(error)}") from error
        tree.skip("folder that cannot be read", name)
        return []
    folders: list[str] = []
    for entry in found:
        path = f"{name}/{entry.name}" if name else entry.name
        try:
            path.encode()
            is_folder = entry.is_dir()
            if entry.name.startswith("."):
                tree.skip("hidden folder" if is_folder else "hidden", path)
            elif is_folder:
                (links if entry.is_symlink() else folders).append(path)
            elif entry.is_file():
                tree.files.append(path)
            elif entry.is_symlink():
                tree.skip("link to nothing", path)
            else:
                tree.skip("not a file", path)
        except UnicodeEncodeError:
            tree.skip("name that is not UTF-8", path.encode(errors="surrogateescape").decode(errors="replace"))
        except OSError:  # a link that leads to itself
            tree.skip("link to nothing", path)
    return folders


# ------------------------------------------------------------------------------------------------------ .zip files
def with_zip_members(tree: Tree, names: list[str]) -> Tree:
    """The members of some .zip files of a tree, each under the archive's path: `a.zip/cat/1.png`."""
    members = Tree(tree.root, skipped=tree.skipped)
    for name in names:
        _list_zip(members, name)
    members.files.sort()
    return members


def _list_zip(tree: Tree, name: str) -> None:
    path = tree.path(name) if name else tree.root
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except Exception as error:  # a damaged archive raises what it likes
        raise UserError(f"cannot read {path}: {describe(error)}; unpack it into a folder, or make it again") from error
    for info in infos:
        member = f"{name}/{info.filename}" if name else info.filename
        parts = info.filename.split("/")
        if info.is_dir():
            continue
        if any(part in ("", ".", "..") for part in parts):  # an absolute path, or one that leaves the archive
            tree.skip("path that is not one below the .zip", member)
        elif any(part.startswith(".") or part == "__MACOSX" for part in parts[:-1]):
            if kind_of(member) == "images":
                tree.skip("in a hidden folder", member)
        elif parts[-1].startswith("."):
            tree.skip("hidden", member)
        elif stat.S_ISLNK(info.external_attr >> 16):
            tree.skip("link within a .zip", member)
        else:
            tree.files.append(member)


def open_path(path: str) -> BinaryIO:
    """A file, or a member of a .zip that stands in its path as a folder: `photos.zip/cat/1.png`.

    Raises:
        OSError: there is no such file, it cannot be read, or it is encrypted or too large to be read into memory.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe is to wait for its other end
            raise OSError(f"{path} is not a file")
        return open(path, "rb")
    except NotADirectoryError:
        return io.BytesIO(_read_member(*_archive_of(path)))


def size_and_time(path: str) -> tuple[int, int] | None:
    """Bytes and time of change of a file; of a member of a .zip its bytes and checksum; None where it is not there."""
    try:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    except OSError:
        pass
    try:
        archive, member = _archive_of(path)
        info = _archive(archive).getinfo(member)
        return info.file_size, info.CRC
    except Exception:  # as `_read_member` says when it is read
        return None


def _archive_of(path: str) -> tuple[str, str]:
    archive = next((str(p) for p in Path(path).parents if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is None:
        raise FileNotFoundError(2, "No such file or directory", path)
    return archive, path[len(archive) + 1 :]


def _archive(path: str) -> zipfile.ZipFile:
    # An open archive belongs to one process and thread: forked processes would move each other's place in the file.
    key = (os.getpid(), path)
    if getattr(_local, "key", None) != key:
        _local.key, _local.file = key, zipfile.ZipFile(path)
    file: zipfile.ZipFile = _local.file
    return file


def _read_member(archive: str, member: str) -> bytes:
    try:
        file = _archive(archive)
        info = file.getinfo(member)
        if info.file_size > _MOST_MEMBER_BYTES:
            raise OSError(f"it has {info.file_size:,} bytes unpacked: unpack the archive")
        return file.read(info)
    except KeyError as error:
        raise FileNotFoundError(2, "No such file in the archive", f"{archive}/{member}") from error
    except OSError:
        raise
    except Exception as error:  # encrypted, damaged, of an unknown compression
        raise OSError(f"it cannot be read from the archive: {describe(error)}") from error
