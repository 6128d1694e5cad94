"""Which folders hold data, runs and models: the names in them say so."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from .folders import RUN_FILE

_MAX_DEPTH, _MAX_FOLDERS, _LOOKED_AT = 4, 2000, 400  # entries of a folder that say what it is
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".npy"}
_TABLES = {".parquet", ".arrow", ".tar"}
# Of a run or a model: no data sets of the user's.
_PARTS = {"samples", "images", "evaluation", "logs", "ema", "unet", "vae", "adapter", "text_encoder", "guide"}


def kinds_in(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """All "data", "runs" and "models" (also of runs) in folders, by kind; hidden folders and links are passed over.

    Example:
        >>> kinds_in([Path("work")])
        {"data": [PosixPath("work/photos")], "runs": [PosixPath("work/flowers")], "models": []}
    """
    result: dict[str, list[Path]] = {"data": [], "runs": [], "models": []}
    for path, names, inner in islice(_walk(folders), _MAX_FOLDERS):
        if _is_run(names):
            result["runs"].append(path)
        if "model_index.json" in names:
            result["models"].append(path)
        if not _is_run(names) and "model_index.json" not in names and _is_data(path, names, inner):
            result["data"].append(path)
    return result


def with_room(folders: Sequence[str]) -> list[str]:
    """The folders, and first one that can hold a new run: it is not itself data, a run or a model.

    Where each of them is, this is the folder that the command was started in.

    Example:
        >>> with_room(["photos", "work"]), with_room(["photos"])
        (["work", "photos"], [".", "photos"])
    """
    free = [folder for folder in folders if not _is_of_a_kind(Path(folder))]
    return list(dict.fromkeys([*(free or ["."]), *folders]))


def _is_of_a_kind(path: Path) -> bool:
    names, inner = _entries(path)
    return _is_run(names) or "model_index.json" in names or _is_data(path, names, inner)


def _walk(folders: Sequence[Path]) -> Iterator[tuple[Path, set[str], list[str]]]:
    """Each folder that may be of a kind, with the names of its first entries and its folders."""
    waiting, seen = [(folder, 0) for folder in reversed(folders)], set()
    while waiting:
        path, depth = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names, inner = _entries(path)
        yield path, names, inner
        is_ours = _is_run(names) or "model_index.json" in names
        if depth < _MAX_DEPTH and not (_is_data(path, names, inner) and not is_ours):
            if is_ours:
                inner = [name for name in inner if name not in _PARTS and not name.startswith("checkpoint-")]
            waiting += [(path / name, depth + 1) for name in sorted(inner, reverse=True)]


def _entries(path: Path) -> tuple[set[str], list[str]]:
    """The names of the first entries of a folder, and its folders: links and hidden ones are passed over."""
    names, folders = set(), []
    try:
        with os.scandir(path) as entries:
            for number, entry in enumerate(entries):
                if number >= _LOOKED_AT:
                    break
                if entry.name.startswith((".", "unfinished-")) and entry.name != RUN_FILE:
                    continue
                names.add(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
    except OSError:  # it went away, or may not be read
        return set(), []
    return names, folders


def _is_run(names: set[str]) -> bool:
    return bool({RUN_FILE, "log.jsonl"} & names) or any(name.startswith("checkpoint-") for name in names)


def _is_data(path: Path, names: set[str], folders: list[str]) -> bool:
    """Whether there are images, or tables of them, or folders that hold nothing else."""
    if any(_suffix(name) in _IMAGES | _TABLES or name == "metadata.jsonl" for name in names - set(folders)):
        return True
    inner = [_entries(path / name) for name in folders[:8]]
    return bool(inner) and all(_holds_images(names, folders) for names, folders in inner)


def _holds_images(names: set[str], folders: list[str]) -> bool:
    files = names - set(folders)
    return "model_index.json" not in names and any(_suffix(name) in _IMAGES for name in files) and not _is_run(names)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
