"""In the worker: a wall of what a training would see of a data set, and the defaults that it would choose."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.load import TrainingData, load_data
from ..data.rows import BadRow
from ..errors import UserError
from ..files import write_json
from ..inspection import describe, facts_of, image_of, names_of, parse_config
from ..training.command_line import parse_args
from ..training.plan import planned

_SIDE_PX = 128


@lru_cache(maxsize=2)
def _loaded(args: tuple[str, ...]) -> tuple[Any, TrainingData]:
    config = parse_config(list(args))
    data = load_data(config)
    if data.train is None:
        raise UserError("a streaming set is not looked at here: leave --streaming out")
    return config, data


def look(args: list[str], home: str) -> dict[str, object]:
    """All that the view of the data shows, but the images; `args`: of `cond-pipelines inspect`."""
    _loaded.cache_clear()  # files may have changed
    config, data = _loaded(tuple(args))
    named = json.dumps([args, data.content, data.dataset.fingerprint()])
    key = hashlib.sha256(named.encode()).hexdigest()[:20]
    folder = Path(home) / "thumbs" / key
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "look.json", {"args": args})
    config.output_dir = str(folder)
    return {"key": key, "text": describe(config, data)} | facts_of(data)


def wall(key: str, start: int, count: int, choice: dict[str, str], home: str) -> dict[str, object]:
    """A part of the wall, in the order of conditions; `choice`: "class", "held_out" or neither."""
    data = _of_key(key, home)
    names, held_out, dataset = names_of(data), set(data.held_out.tolist()), data.dataset
    in_order = sorted(range(len(names)), key=lambda i: (names[i], i))
    only, every = choice.get("class"), "held_out" not in choice
    wanted = [i for i in in_order if only in (None, names[i]) and (every or i in held_out)]
    items = [
        {"i": i, "condition": names[i] or None, "held_out": i in held_out, "name": dataset.name(int(dataset.usable[i]))}
        for i in wanted[start : start + count]
    ]
    return {"total": len(wanted), "items": items}


def _of_key(key: str, home: str) -> TrainingData:
    path = Path(home) / "thumbs" / key / "look.json"
    if not path.is_file():
        raise UserError("this wall is not known any more: look at the data again")
    return _loaded(tuple(json.loads(path.read_text(encoding="utf-8"))["args"]))[1]


def thumbnails(key: str, block: int, size: int, home: str) -> None:
    """Write the thumbnails of a block of `size` images, once: the middle of each image, as the network sees it."""
    dataset, folder = _of_key(key, home).dataset, Path(home) / "thumbs" / key
    for i in range(size * block, min(size * (block + 1), len(dataset))):
        try:
            picture = image_of(dataset, i)
        except BadRow:  # of those that are not kept decoded
            picture = Image.new("RGB", (8, 8), "gray")
        picture.thumbnail((_SIDE_PX, _SIDE_PX))
        cached(picture, folder / f"{i}.png")


def cached(picture: Image.Image, path: Path) -> None:
    """Write a PNG that can be made again: whole, but not waiting for the disk as `whole_file` does."""
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    picture.save(unfinished, "PNG")
    os.replace(unfinished, path)


def plan(args: list[str]) -> dict[str, object]:
    """What a training with these arguments would choose for its data on this device."""
    chosen, lines = planned(parse_args(args))
    return {"decided": chosen, "lines": lines}
