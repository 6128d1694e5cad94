"""Captions in text files of the images' names: `1.txt` or `1.caption` next to `1.png`."""

import posixpath
from collections import Counter
from collections.abc import Sequence

from .account import Account, examples
from .archives import open_path
from .formats import CAPTIONS, kind_of
from .text_files import text_of
from .walk import Tree

_MOST_CAPTION_BYTES = 2**20  # of a text file in an archive
Texts = dict[str, dict[str, str]]  # {an image's path, with its suffix or without: {".txt": path}}


def text_files(tree: Tree) -> Texts:
    """The text files of a folder, by the images that they may belong to."""
    texts: Texts = {}
    for name in tree.files:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in CAPTIONS:
            texts.setdefault(stem, {}).setdefault(suffix.lower(), name)
    return texts


def has_caption(texts: Texts, image: str) -> bool:
    """Whether a text file belongs to an image."""
    return bool(_files_of(texts, image))


def _files_of(texts: Texts, image: str) -> list[str]:
    """1.txt, 1.caption, 1.png.txt and 1.png.caption of 1.png, as far as they are there."""
    found = [texts.get(posixpath.splitext(image)[0], {}), texts.get(image, {})]
    return [files[suffix] for files in found for suffix in CAPTIONS if suffix in files]


def read_captions(
    tree: Tree, texts: Texts, images: Sequence[str], account: Account
) -> list[str | list[str] | None] | None:
    """Captions of images, one a line of the file; None where there are none.

    Where a file has several lines, each image has a list of captions. An empty file is the caption "", which no run
    takes for a caption.
    """
    captions: list[list[str] | None] = []
    counts: Counter[str] = Counter()
    images_of: dict[str, set[str]] = {}
    notes: dict[str, list[str]] = {}
    for image in images:
        files = _files_of(texts, image)
        captions.append(None)
        if not files:
            continue
        name = files[0]
        images_of.setdefault(name, set()).add(image)
        if len(files) > 1:
            notes.setdefault("images with several text files, of which the first is read", []).append(" ".join(files))
        lines = _lines(tree, name, notes)
        if lines:
            counts[posixpath.splitext(name)[1].lower()] += 1
        elif lines is not None:
            notes.setdefault("empty caption files", []).append(name)
        captions[-1] = lines
    account.notes += [f"captions: {count:,} from {suffix} files" for suffix, count in counts.items()]
    if images_of and (without := sum(not has_caption(texts, image) for image in images)):
        account.notes.append(f"images without a caption file: {without:,}")
    if several := [name for name, of_it in images_of.items() if len(of_it) > 1]:
        notes["caption files of several images each"] = several
    account.notes += [f"{what}: {len(names):,} ({examples(names)})" for what, names in notes.items() if names]
    if lonely := _lonely(tree, texts):
        account.unread.append(f"text files without an image: {len(lonely):,} ({examples(lonely)})")
    if not images_of:
        return None
    if any(lines and len(lines) > 1 for lines in captions):
        return list(captions)
    return [lines[0] if lines else None if lines is None else "" for lines in captions]


def say_unread(texts: Texts, images: Sequence[str], account: Account, reason: str) -> None:
    """Note the text files of images whose captions are read from somewhere else."""
    unread = [image for image in images if has_caption(texts, image)]
    if unread:
        account.notes.append(
            f"images whose .txt or .caption file is not read, {reason}: {len(unread):,} ({examples(unread)})"
        )


def _lines(tree: Tree, name: str, notes: dict[str, list[str]]) -> list[str] | None:
    """The lines of one file that are not empty; None where it cannot be read as text."""
    try:
        with open_path(tree.path(name), _MOST_CAPTION_BYTES) as file:
            content = file.read()
    except OSError:
        notes.setdefault("caption files that cannot be read", []).append(name)
        return None
    try:
        text = text_of(content)
    except UnicodeDecodeError:
        if b"\0" in content:
            notes.setdefault("caption files that are no text, and not read", []).append(name)
            return None
        text = content.decode("latin-1")
        notes.setdefault("captions that are not UTF-8, read as Latin-1 (save them as UTF-8)", []).append(name)
    return [line.strip() for line in text.splitlines() if line.strip()]


def _lonely(tree: Tree, texts: Texts) -> list[str]:
    """Text files whose name is not that of an image that is there, used or not."""
    stems = {part for name in tree.files if kind_of(name) is not None for part in (name, posixpath.splitext(name)[0])}
    return sorted(name for stem, found in texts.items() if stem not in stems for name in found.values())
