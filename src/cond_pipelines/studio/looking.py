"""What the Data view shows: the facts of a data set and the wall of its images. The functions run in a worker."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.load import TrainingData, load_data, open_data
from ..errors import UserError
from ..files import cache_json, keep_newest
from ..inspection import InspectionConfig, describe, facts_of, names_of, parse_config, write_thumbnail

_LOOK_FILE, _CHECKED_FILE, _BLOCK, _MOST_OPEN, _MOST_KEPT = "look.json", "checked.json", 16, 3, 50


class _Wall:
    """A data set before its check; `order`: rows in the order of their conditions' names; `bad`: without thumbnail."""

    def __init__(self, args: list[str], home: str):
        _, self.data, self.folder = opened(args, home)
        rows = zip(self.data.dataset.usable.tolist(), names_of(self.data), strict=True)
        self.order = dict(sorted(rows, key=lambda pair: (pair[1], pair[0])))
        self.place = {row: place for place, row in enumerate(self.order)}
        self.bad: set[int] = set()
        _walls[self.folder.name] = self
        while len(_walls) > _MOST_OPEN:
            del _walls[next(iter(_walls))]

    def checked(self) -> dict[str, Any]:
        """What `check` wrote; {} before it."""
        path = self.folder / _CHECKED_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


_walls: dict[str, _Wall] = {}


def opened(args: list[str], home: str) -> tuple[InspectionConfig, TrainingData, Path]:
    """A data set before its check, and its cache: named by arguments, conditions and files (by size and time)."""
    config = parse_config(args)
    if config.streaming:
        raise UserError("a streaming set is not looked at here: leave --streaming out")
    data = open_data(config)
    account, images = data.account, data.dataset.images_fingerprint()
    named = [__version__, args, images, names_of(data), account.excluded, *account.lines()]
    folder = Path(home) / "thumbs" / hashlib.sha256(repr(named).encode(errors="replace")).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    keep_newest(folder.parent, _MOST_KEPT)
    cache_json(folder / _LOOK_FILE, {"args": args})
    return config, data, folder


def look(args: list[str], home: str) -> dict[str, object]:
    """The facts that need no image, or those of a check that read every image; `args`: of `cond-pipelines inspect`."""
    wall = _Wall(args, home)
    facts: dict[str, object] = wall.checked().get("facts", {"bad_rows": True})
    if facts["bad_rows"]:  # to be checked again: a package or a permission that was missing may be there now
        facts = facts_of(wall.data) | {"is_checked": False}
    return facts | {"key": wall.folder.name}


def check(args: list[str], home: str) -> dict[str, object]:
    """Read each image and return all facts, with the text of `cond-pipelines inspect`. `wall` and `look` use them."""
    config, _, folder = opened(args, home)
    data = load_data(config)
    config.output_dir = str(folder)
    rows, facts = data.dataset.usable, facts_of(data)
    facts |= {"is_checked": True, "text": describe(config, data), "key": folder.name}
    facts["duplicates"] = [rows[group].tolist() for group in facts["duplicates"]]
    known = {"facts": facts, "usable": rows.tolist(), "held_out": rows[data.held_out].tolist()}
    cache_json(folder / _CHECKED_FILE, known)
    return facts


def wall(key: str, start: int, count: int, choice: dict[str, str], home: str) -> dict[str, object]:
    """A part of the wall, in the order of conditions; `choice`: "class", "held_out" or neither."""
    wall = _wall_of(key, home)
    checked, only = wall.checked(), choice.get("class")
    held_out = set(checked.get("held_out", ()))
    wanted = held_out if choice.get("held_out") else set(checked.get("usable", wall.order))
    rows = [row for row, name in wall.order.items() if row in wanted and only in (None, name)]
    items = [
        {"i": i, "condition": wall.order[i] or None, "held_out": i in held_out, "name": wall.data.dataset.name(i)}
        for i in rows[start : start + count]
    ]
    return {"total": len(rows), "items": items}


def _wall_of(key: str, home: str) -> _Wall:
    path = Path(home) / "thumbs" / key / _LOOK_FILE
    if key not in _walls and path.is_file():  # of another server, or of a look before others
        _Wall(json.loads(path.read_text(encoding="utf-8"))["args"], home)
    if key not in _walls:
        raise UserError("these are no longer the files of this wall: look at the data again")
    return _walls[key]


def thumbnails(key: str, row: int, home: str) -> dict[str, object]:
    """Write the thumbnails of a row and of its neighbours on the wall, each once: the middle, as the network sees it.

    An image that cannot be read gets none; "is_bad" says whether the row's own is such a one.
    """
    wall = _wall_of(key, home)
    start = wall.place.get(row, len(wall.order)) // _BLOCK * _BLOCK
    for one in list(wall.order)[start : start + _BLOCK]:
        path = wall.folder / f"{one}.png"
        if not path.is_file() and (one == row or one not in wall.bad):
            is_written = write_thumbnail(wall.data.dataset, one, path)
            (wall.bad.discard if is_written else wall.bad.add)(one)
    return {"is_bad": row in wall.bad}
