"""In a worker: the wall of what a training would see of a data set, and what is to be said of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..data.load import TrainingData, load_data, open_data
from ..data.rows import BadRow
from ..errors import UserError
from ..files import write_json
from ..inspection import InspectionConfig, describe, facts_of, image_of, names_of, parse_config
from ..pictures import write_again

_LOOK_FILE, _CHECKED_FILE, _SIDE_PX, _BLOCK, _MOST_OPEN = "look.json", "checked.json", 128, 16, 3


class _Wall:
    """A data set whose images nobody has looked at; `order`: its rows in the order of their conditions' names."""

    def __init__(self, args: list[str], home: str):
        _, self.data, self.folder = opened(args, home)
        rows = zip(self.data.dataset.usable.tolist(), names_of(self.data), strict=True)
        self.order = dict(sorted(rows, key=lambda pair: (pair[1], pair[0])))
        self.place = {row: place for place, row in enumerate(self.order)}
        _walls[self.folder.name] = self
        while len(_walls) > _MOST_OPEN:
            del _walls[next(iter(_walls))]

    def checked(self) -> dict[str, Any]:
        """What `check` wrote, if it has."""
        path = self.folder / _CHECKED_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


_walls: dict[str, _Wall] = {}


def opened(args: list[str], home: str) -> tuple[InspectionConfig, TrainingData, Path]:
    """A data set that is not checked, and the folder of what is known of it.

    The name of the folder changes with the arguments, the files (by size and time) and the conditions.
    """
    config = parse_config(args)
    if config.streaming:
        raise UserError("a streaming set is not looked at here: leave --streaming out")
    data = open_data(config)
    named = [__version__, args, data.dataset.images_fingerprint(), names_of(data), data.account.excluded]
    named += data.account.lines()
    folder = Path(home) / "thumbs" / hashlib.sha256(repr(named).encode(errors="replace")).hexdigest()[:20]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _LOOK_FILE, {"args": args})
    return config, data, folder


def look(args: list[str], home: str) -> dict[str, object]:
    """What names and conditions tell of a data set, or all where it was checked before; `args`: of `inspect`."""
    wall = _Wall(args, home)
    facts: dict[str, object] = wall.checked().get("facts") or facts_of(wall.data) | {"is_checked": False}
    return facts | {"key": wall.folder.name}


def check(args: list[str], home: str) -> dict[str, object]:
    """What takes a look at each image too, as the text of `inspect`: it is kept, and `look` gives it at once then."""
    config, _, folder = opened(args, home)
    data = load_data(config)
    config.output_dir = str(folder)
    rows, facts = data.dataset.usable, facts_of(data)
    facts |= {"is_checked": True, "text": describe(config, data), "key": folder.name}
    facts["duplicates"] = [rows[group].tolist() for group in facts["duplicates"]]
    known = {"facts": facts, "usable": rows.tolist(), "held_out": rows[data.held_out].tolist()}
    write_json(folder / _CHECKED_FILE, known)
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
    """Write the thumbnails of a row and of its neighbours on the wall, once: the middle, as the network sees it."""
    wall = _wall_of(key, home)
    start = wall.place.get(row, len(wall.order)) // _BLOCK * _BLOCK
    for one in list(wall.order)[start : start + _BLOCK]:
        if not (path := wall.folder / f"{one}.png").is_file():
            try:
                picture = image_of(wall.data.dataset, one)
            except BadRow:
                picture = Image.new("RGB", (8, 8), "gray")
            picture.thumbnail((_SIDE_PX, _SIDE_PX))
            write_again(picture, path)
    return {}
