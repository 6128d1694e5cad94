"""All files of a folder in one pass: links are followed, and nothing is opened."""

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError, describe
from .formats import is_hidden_folder


@dataclass
class Tree:
    """The files of a folder.

    Args:
        root: the folder, absolute.
        files: paths relative to the root, with `/`, sorted.
        skipped: by reason, paths that are not looked at: hidden files, folders that were read already, broken links.
        archives: those of which `files` has the members, below the archive's path: `photos.zip/cat/1.png`.
    """

    root: str
    files: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    archives: set[str] = field(default_factory=set)

    def skip(self, reason: str, name: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def path(self, name: str) -> str:
        """The absolute path of one of `files`; for `open_path`, as what lies in an archive is no file of its own."""
        return os.path.join(self.root, name)


def below(root: str, name: str) -> str | None:
    """The path, relative to an absolute `root`, of a file that a table names; None where it leads out of `root`.

    Example:
        >>> below("/photos", "cat/../1.png"), below("/photos", "/photos/1.png"), below("/photos", "../1.png")
        ('1.png', '1.png', None)
    """
    path = posixpath.normpath(posixpath.join(root, name.replace("\\", "/")))
    folder = root.rstrip("/") + "/"
    return path.removeprefix(folder) if path.startswith(folder) else None


def walk(root: str | Path, progress: Callable[[int], object] = lambda count: None) -> Tree:
    """List a folder.

    Every real folder is read once: links to folders are followed after all others, so cycles end. Files and folders
    whose name begins with a dot are left out, and folders that a system makes, such as `@eaDir`.

    Args:
        progress: is called with the number of files of each folder.

    Raises:
        UserError: the root cannot be read.
    """
    tree = Tree(os.path.abspath(root))
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
    if not found and name:
        tree.skip("empty folder", name)
    folders: list[str] = []
    for entry in found:
        path = f"{name}/{entry.name}" if name else entry.name
        try:
            path.encode()
            is_folder = entry.is_dir()
            if is_folder and is_hidden_folder(entry.name):
                tree.skip("hidden folder", path)
            elif is_folder:
                (links if entry.is_symlink() else folders).append(path)
            elif entry.name.startswith(".") and entry.name.endswith(".icloud"):  # .1.jpg.icloud stands for 1.jpg
                tree.skip("that iCloud has not downloaded", path[: -len(entry.name)] + entry.name[1:-7])
            elif entry.name.startswith("."):
                tree.skip("hidden", path)
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
