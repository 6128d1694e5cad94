"""What a run left in its folder, and which process is at work there: read from the disk alone, without torch."""

import functools
import json
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..errors import read_yaml
from ..files import tail
from ..folders import CONFIG_FILE, LOCK_FILE, RUN_FILE

Values = dict[str, Any]  # of JSON and YAML
_CHECKPOINT, _GRID = re.compile(r"checkpoint-(\d+)", re.ASCII), re.compile(r"(\d{6,})\.png", re.ASCII)
_RARE = ("held_out_loss", "kernel_distance")  # in lines between those of the training loss
_MOST_RARE = 5000


# ---------------------------------------------------------------------------------------------------------- now
def process_in(folder: Path) -> psutil.Process | None:
    """The process of this machine that holds the lock of a run's folder."""
    text = tail(folder / LOCK_FILE, 200)
    match = re.fullmatch(r"process (\d+) on (.*)\n?", text)
    if match is None or match[2] != socket.gethostname():
        return None
    lock = (folder / LOCK_FILE).resolve()
    with suppress(psutil.Error, OSError):
        process = psutil.Process(int(match[1]))
        if any(Path(file.path) == lock for file in process.open_files()):
            return process
    return None


def progress_of(folder: Path, config: Values, last: Values) -> Values:
    """How much of the run is done, and how long the rest takes at the pace so far."""
    steps, minutes = num_steps_of(folder) or config.get("max_train_steps"), config.get("max_train_minutes")
    step, elapsed = last.get("step") or 0, last.get("elapsed_sec") or 0.0
    parts = [step / steps] if steps else []
    parts += [elapsed / (60 * minutes)] if minutes else []
    done = min(1.0, max(parts)) if parts else None
    left = elapsed * (1 - done) / done if done and elapsed else None
    return {"num_steps": steps, "fraction": done, "left_sec": left}


def num_steps_of(folder: Path) -> int | None:
    """Of the whole run, where it has said so."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / RUN_FILE).read_text()).get("num_steps")
        return found if isinstance(found, int) else None
    return None


def checkpoints_of(folder: Path) -> list[int]:
    """The steps of complete checkpoints, in order."""
    names = (_CHECKPOINT.fullmatch(path.parent.name) for path in folder.glob("checkpoint-*/manifest.json"))
    return sorted(int(name[1]) for name in names if name)


def grids_of(folder: Path) -> list[tuple[int, Path]]:
    """The step and the file of each grid of samples, in order."""
    names = ((path, _GRID.fullmatch(path.name)) for path in folder.glob("samples/*.png"))
    return sorted((int(name[1]), path) for path, name in names if name)


def config_of(folder: Path) -> Values:
    """The configuration of a run as it was saved; empty where there is none."""
    path = folder / CONFIG_FILE
    with suppress(OSError, ValueError):
        return _config(path, path.stat().st_mtime_ns)
    return {}


@functools.lru_cache(maxsize=256)
def _config(path: Path, changed: int) -> Values:
    return read_yaml(path)


def _mtime(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None


def last_lines(folder: Path) -> tuple[Values, object]:
    """The last line of the training loss, and the last held-out loss."""
    training: Values = {}
    held_out = None
    for text in tail(folder / "log.jsonl", 2**18).splitlines():
        line = _parsed(text)
        training = line if "lr" in line else training
        held_out = line.get("held_out_loss", held_out)
    return training, held_out


def _parsed(text: str | bytes) -> Values:
    with suppress(ValueError, RecursionError):  # the last line of a run that was killed; half of one
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line
    return {}


# -------------------------------------------------------------------------------------------------------- log
def read_log(folder: Path, points: int = 600) -> Values:
    """The curves of log.jsonl, thinned: of a long log lines at equal distances, and each line of a validation."""
    try:
        content = (folder / "log.jsonl").read_bytes()
    except FileNotFoundError:
        content = b""
    num_lines = content.count(b"\n")
    if num_lines <= 4 * points:
        lines = [line for text in content.splitlines() if (line := _parsed(text))]
    else:
        starts = [content.find(b"\n", i * len(content) // points) + 1 for i in range(points)]
        starts.append(content.rfind(b"\n", 0, len(content) - 1) + 1)
        lines = [line for start in dict.fromkeys(starts) if (line := _parsed(_line_at(content, start)))]
        lines += [line for name in _RARE for line in _lines_with(content, name)]
    training = sorted((line for line in lines if "lr" in line), key=lambda line: line["step"])
    training = training[:: max(1, len(training) // points)]
    others = {line["step"]: line for line in lines if "held_out_loss" in line}
    columns = {key: [line.get(key) for line in training] for key in ("step", "loss", "lr", "images_per_sec")}
    measures: dict[str, dict[int, Any]] = {}
    for line in lines:
        for name in line.keys() - {"step", "images"} if not {"lr", "held_out_loss"} & line.keys() else ():
            measures.setdefault(name, {})[line["step"]] = line[name]
    held_out = [[step, others[step]["held_out_loss"]] for step in sorted(others)]
    by_name = {name: [list(point) for point in sorted(points.items())] for name, points in measures.items()}
    return {"num_lines": num_lines, **columns, "held_out": held_out, "measures": by_name}


def _line_at(content: bytes, start: int) -> bytes:
    end = content.find(b"\n", start)
    return content[start : end if end >= 0 else len(content)]


def _lines_with(content: bytes, name: str) -> list[Values]:
    found: list[Values] = []
    place, word = -1, f'"{name}"'.encode()
    while len(found) < _MOST_RARE and (place := content.find(word, place + 1)) >= 0:
        found.append(_parsed(_line_at(content, content.rfind(b"\n", 0, place) + 1)))
    return [line for line in found if line]


def differences(folders: list[Path]) -> list[Values]:
    """The settings in which runs differ, with the value of each."""
    configs = [config_of(folder) for folder in folders]
    names = [name for name in dict.fromkeys(name for config in configs for name in config) if name != "output_dir"]
    rows = [{"name": name, "values": [config.get(name) for config in configs]} for name in names]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def watched(folder: Path) -> Values:
    """What a run was like at its checkpoints: where to draw from, what was drawn and measured on the way."""
    log, finished = read_log(folder), (folder / "model_index.json").is_file()
    steps = checkpoints_of(folder)
    points = [{"model": str(folder / f"checkpoint-{n}"), "step": n, "label": f"step {n:,}"} for n in steps]
    if finished:
        last = last_lines(folder)[0].get("step")
        points.append({"model": str(folder), "step": last, "label": "finished"})
    lengths = config_of(folder).get("ema_lengths") or []
    has_snapshots = finished and next(folder.glob("ema/*.safetensors"), None) is not None
    return {
        "points": points,
        "grids": [{"step": step, "path": str(path)} for step, path in grids_of(folder)],
        "held_out": log["held_out"],
        "copies": log["measures"].get("copies", []),
        "measures": log["measures"],
        "ema_lengths": [min(lengths), max(lengths)] if lengths and has_snapshots else None,
    }
