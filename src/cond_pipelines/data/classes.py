"""Classes and splits, by the folders that images lie in."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import UserError
from .account import Account, examples
from .formats import are_repeats, repeats_of, split_of
from .walk import Tree

_Folders = tuple[str, ...]


def class_name(text: str) -> str:
    """A label as it is compared: without spaces around it, and with accents written in one way."""
    return unicodedata.normalize("NFC", text.strip())


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes sorted; those that are all whole numbers as numbers.

    Example:
        >>> in_order(["10", "9"]), in_order(["b", "10", "9"])
        (['9', '10'], ['10', '9', 'b'])
    """
    names = list(names)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def say_merged(names: Iterable[str], account: Account) -> None:
    """Note labels that are written in several ways, which `class_name` makes one."""
    ways: dict[str, set[str]] = {}
    for name in names:
        ways.setdefault(class_name(name), set()).add(name)
    merged = [sorted(written) for written in ways.values() if len(written) > 1]
    if merged:
        shown = examples(["; ".join(map(repr, written)) for written in merged])
        account.notes.append(
            f"labels that differ only in spaces around them or in how accents are coded are one: {shown}"
        )


def say_minus_one(values: Iterable[object], account: Account) -> None:
    """Note labels of -1, which mean that there is none; a class may be meant."""
    labels = (label for value in values for label in (value if isinstance(value, list) else [value]))
    if count := sum(label == -1 for label in labels):
        account.notes.append(f"labels of -1 mean no label: {count:,}; where it is a class, number it from 0 or name it")


# ---------------------------------------------------------------------------------------------------------- splits
def images_of_split(images: list[str], split: str, account: Account) -> list[str]:
    """The images of one split, where the folders of one level are splits and nothing else.

    The level is the first below the folders that all images lie in, or, where every class has its own train/ and
    test/, the one below the classes.

    Raises:
        UserError: there is no such split.
    """
    parents = [_folders(name) for name in images]
    level = _split_level(parents)
    tops = [folders[level] if len(folders) > level else "" for folders in parents]
    splits = {top: split_of(top) for top in tops}
    names = [name for name in splits.values() if name is not None]
    if not names or len(names) < len(splits):
        if split != "train":
            raise UserError(f"--dataset_split {split}: the folder has no splits, leave that out")
        if len(set(names)) > 1:  # one may be a class that is called so
            others = [name for name, top in zip(images, tops, strict=True) if splits[top] is None]
            of_splits = ", ".join(sorted(top for top, name in splits.items() if name))
            account.notes.append(
                f"{of_splits} are not taken as splits, since other images are next to them ({examples(others)}): all "
                "are used"
            )
        return images
    chosen = [top for top, name in splits.items() if split in (top, name)]
    if not chosen and len(splits) == 1:
        chosen = list(splits)
    if not chosen:
        raise UserError(f"there is no split {split!r}, only {', '.join(sorted(splits))}: give --dataset_split")
    counts = Counter(tops)
    shown = ", ".join(f"{top} {counts[top]:,}" for top in sorted(splits))
    account.notes.append(f"splits, by the folders' names: {shown}; used: {', '.join(sorted(chosen))}")
    account.exclude("in another split", *(name for name, top in zip(images, tops, strict=True) if top not in chosen))
    return [name for name, top in zip(images, tops, strict=True) if top in chosen]


def _split_level(parents: list[_Folders]) -> int:
    common = _common(parents)
    level = len(common) - bool(common and split_of(common[-1]) is not None)
    depths = {len(folders) for folders in parents}
    if len(depths) == 1:  # cat/train, cat/test, dog/train
        for inner in range(level + 1, depths.pop()):
            names = {folders[inner] for folders in parents}
            if len(names) > 1 and all(map(split_of, names)):
                return inner
    return level


def _folders(name: str) -> _Folders:
    return tuple(name.split("/")[:-1])


def _common(parents: Sequence[_Folders]) -> _Folders:
    """The folders that all images lie in."""
    common: list[str] = []
    for level in zip(*parents, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return tuple(common)


# --------------------------------------------------------------------------------------------------------- classes
def classes_of(images: list[str], tree: Tree, account: Account) -> list[str | None]:
    """The class of each image by its folder; None for each where there are no sub-folders.

    At one depth it is the folder that the image lies in, of the levels at which the folders have several names; at
    several depths it is the first level.
    """
    parents = [_folders(name) for name in images]
    start = len(_common(parents))
    inner = [folders[start:] for folders in parents]
    if not any(inner):
        return [_single_class(parents[0], tree)] * len(images) if images else []
    depths = {len(folders) for folders in inner if folders}
    if len(depths) > 1:
        account.notes.append("folders lie at several depths: the first level is taken for the classes")
        level = 0
    else:
        several = [at for at in range(depths.pop()) if len({folders[at] for folders in inner if folders}) > 1]
        level = several[-1] if several else 0
        if len(several) > 1:
            example = "/".join(next(folders for folders in inner if folders))
            account.notes.append(
                f"of several levels of folders the last one is taken for the classes: of {example} "
                f"{example.split('/')[level]}"
            )
    return [
        _without_suffix(folders[: start + level + 1], tree) if len(folders) > start else None for folders in parents
    ]


def _single_class(folders: _Folders, tree: Tree) -> str | None:
    """The one folder that all images lie in: a class, unless it is a split or an archive."""
    if not folders or "/".join(folders) in tree.archives or split_of(folders[-1]) is not None:
        return None
    return folders[-1]


def _without_suffix(folders: _Folders, tree: Tree) -> str:
    is_archive = "/".join(folders) in tree.archives
    return folders[-1].rpartition(".")[0] if is_archive else folders[-1]


def with_repeats(
    classes: list[str | None], folder_repeats: bool, account: Account
) -> tuple[list[str | None], list[int]]:
    """Classes, and how often each image is to be drawn: `10_cat` is a class, or ten times the class cat.

    Args:
        folder_repeats: the user says that folders are named as kohya's.

    Raises:
        UserError: no folder is named so.
    """
    names = sorted({name for name in classes if name is not None})
    found = {name: repeats for name in names if (repeats := repeats_of(name)) is not None}
    if not folder_repeats:
        if are_repeats(names):
            first, count = names[0], found[names[0]][0]
            account.notes.append(
                f"folders named such as {first} are taken for classes, and each image is drawn once; --folder_repeats "
                f"draws those of {first} {count} times, as kohya's scripts do"
            )
        return classes, [1] * len(classes)
    if not found:
        raise UserError("--folder_repeats needs folders named such as 10_cat: leave it out")
    shown = ", ".join(f"{name} {count} x" for name, (count, _) in list(found.items())[:5])
    others = [name for name in names if name not in found]
    once = f"; {examples(others)}, which name no number, once" if others else ""
    account.notes.append(f"--folder_repeats draws the images of {shown}{', ...' if len(found) > 5 else ''}{once}")
    return [found[name][1] if name in found else name for name in classes], [
        found[name][0] if name in found else 1 for name in classes
    ]
