"""What a run left in its folder, and which process is at work there: read from the disk alone, without torch."""

import functools
import json
import os
import re
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from ..background import Job
from ..errors import read_yaml
from ..files import tail
from ..folders import CONFIG_FILE, LOCK_FILE, RUN_FILE
from ..settings import setting_of

Values = dict[str, Any]  # of JSON and YAML
_CHECKPOINT, _GRID = re.compile(r"checkpoint-(\d+)", re.ASCII), re.compile(r"(\d{6,})\.png", re.ASCII)
_RARE = re.compile(rb'"images": \d+, "(?!loss")')  # a line of a validation, between those of the training loss
_MOST_RARE, _PART_BYTES, _TAIL_BYTES, _MOST = 5000, 2**22, 2**18, 2**53
_STOP_CODES = {128 + number for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)}  # somebody ended the run


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


def of_now(folder: Path, job: Job | None) -> Job | None:
    """A job, unless somebody began another run in its folder after it had ended, in a terminal for example."""
    if job is None or job.exit_code is None:
        return job
    began, ended = _mtime(folder / LOCK_FILE), _mtime(job.record.with_suffix(".code"))
    return None if process_in(folder) is not None or (began and ended and began > ended) else job


def state_of(folder: Path, job: Job | None) -> Values:
    """All that a list of runs shows of one.

    Args:
        job: the newest training that was started in the background in this folder.
    """
    process, job = process_in(folder), of_now(folder, job)
    checkpoints, grids = checkpoints_of(folder), grids_of(folder)
    last, held_out = _last_lines(folder)
    config = config_of(folder)
    log, code = folder / "log.jsonl", None if job is None else job.exit_code
    is_active = process is not None or (job is not None and code is None)
    is_new = job is not None and log.is_file() and log.stat().st_mtime < job.started - 1
    if is_active:
        state = "running" if log.is_file() and not is_new else "starting"
    elif (folder / "model_index.json").is_file():
        state = "finished"
    elif code and code not in _STOP_CODES and not (checkpoints and _is_of_signal(code)):
        state = "failed"
    else:
        state = "paused" if checkpoints else "stopped"
    if not is_active and checkpoints and last:  # a pause saves more steps than the log has lines for
        last = last | {"step": max(last["step"], checkpoints[-1])}
    values: Values = {"state": state, "checkpoints": checkpoints, "samples": [step for step, _ in grids]}
    values |= {key: last.get(key) for key in ("step", "loss", "lr", "images_per_sec", "elapsed_sec")}
    values |= {"newest_grid": str(grids[-1][1]) if grids else None, "held_out_loss": held_out}
    values |= {"has_model": (folder / "model_index.json").is_file(), "conditioning": _text(config.get("conditioning"))}
    values |= {"message": None if job is None else _message(job, checkpoints), "mtime": _mtime(log)}
    return values | _progress(folder, config, last)


def _is_of_signal(code: int) -> bool:
    """Whether an exit code says that a signal, or a power cut, ended the process."""
    return code < 0 or code > 128


def _message(job: Job, checkpoints: list[int]) -> str | None:
    code = job.exit_code
    if code is None or not _is_of_signal(code):
        return job.message()
    name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else "a signal, or with the machine"
    return f"ended by {name}; " + (
        f"it can go on after step {checkpoints[-1]:,}" if checkpoints else "nothing is saved"
    )


def _progress(folder: Path, config: Values, last: Values) -> Values:
    """How much of the run is done, and how long the rest takes at the pace so far."""
    steps, minutes = (_number(config.get(name)) for name in ("max_train_steps", "max_train_minutes"))
    steps = num_steps_of(folder) or steps
    step, elapsed = last.get("step") or 0, last.get("elapsed_sec") or 0.0
    parts = [step / steps] if steps else []
    parts += [elapsed / (60 * minutes)] if minutes else []
    done = min(1.0, max(parts)) if parts else None
    left = elapsed * (1 - done) / done if done and elapsed else None
    return {"num_steps": steps, "fraction": done, "left_sec": left}


def num_steps_of(folder: Path) -> int | None:
    """Of the whole run, where it has said so."""
    with suppress(ValueError, AttributeError, RecursionError):
        num_steps = _number(json.loads(tail(folder / RUN_FILE, _TAIL_BYTES)).get("num_steps"))
        return num_steps if isinstance(num_steps, int) else None
    return None


def _number(value: object) -> float | None:
    """The value where it is a number that fits a float, otherwise None: a folder may come from somebody else."""
    return value if isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:200]


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


def _last_lines(folder: Path) -> tuple[Values, object]:
    """The last line of the training loss, and the last held-out loss."""
    path = folder / "log.jsonl"
    try:
        status = path.stat()
    except OSError:
        return {}, None
    return _at_the_end_of(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)  # a list of runs is asked for each second
def _at_the_end_of(path: Path, changed: int, size: int) -> tuple[Values, object]:
    training: Values = {}
    held_out = None
    for text in tail(path, _TAIL_BYTES).splitlines():
        line = _parsed(text)
        training = line if "lr" in line else training
        held_out = line.get("held_out_loss", held_out)
    return training, held_out


def _parsed(text: str | bytes) -> Values:
    """The numbers of a line by name, with its step; {} where it is no line of a log."""
    with suppress(ValueError, RecursionError):  # the last line of a run that was killed; half of one
        line = json.loads(text)
        if isinstance(line, dict) and isinstance(_number(line.get("step")), int):
            return {name: value for name, value in line.items() if value is None or _number(value) is not None}
    return {}


# -------------------------------------------------------------------------------------------------------- log
def read_log(folder: Path, points: int = 600) -> Values:
    """The curves of log.jsonl, thinned: of a long log lines at equal distances, and each line of a validation.

    A million lines take half a second; after that only what was added is read through.

    Returns:
        "num_lines"; "step", "loss", "lr" and "images_per_sec", lists of the same length; "held_out", pairs of step and
        loss; "measures", such pairs by the name of a measure.

    Example:
        >>> read_log(Path("my_model"))["loss"][-1]
        0.21
    """
    index = _index(folder / "log.jsonl")
    lines: list[Values] = []
    if (folder / "log.jsonl").is_file():  # a pipe would be waited for
        with suppress(FileNotFoundError), (folder / "log.jsonl").open("rb") as file:
            index.read_on(file)
            lines = index.rare + _thinned(file, index, points)
    training = {line["step"]: line for line in lines if "lr" in line}
    training = {step: training[step] for step in sorted(training)}
    columns = {key: [line.get(key) for line in training.values()] for key in ("step", "loss", "lr", "images_per_sec")}
    measures: dict[str, dict[int, Any]] = {}
    for line in lines:
        for name in line.keys() - {"step", "images"} if "lr" not in line else ():
            measures.setdefault(name, {})[line["step"]] = line[name]
    by_name = {name: [list(point) for point in sorted(of_step.items())] for name, of_step in measures.items()}
    return {"num_lines": index.num_lines, **columns, "held_out": by_name.pop("held_out_loss", []), "measures": by_name}


class _Index:
    """What is known of a log that grows: its lines in number, and those that are not of the training loss."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._start_anew(None)

    def _start_anew(self, inode: int | None) -> None:
        self.inode, self.end, self.num_lines = inode, 0, 0  # `end`: of the last whole line
        self.rare: list[Values] = []

    def read_on(self, file: BinaryIO) -> None:
        """Read what was added since the last time; all of it where the log is another file."""
        with self.lock:
            status = os.fstat(file.fileno())
            if status.st_ino != self.inode or status.st_size < self.end:
                self._start_anew(status.st_ino)
            file.seek(self.end)
            while part := file.read(_PART_BYTES):
                whole = part[: part.rfind(b"\n") + 1]
                if not whole:
                    break
                self.num_lines += whole.count(b"\n")
                for match in _RARE.finditer(whole):
                    self.rare.append(
                        _parsed(whole[whole.rfind(b"\n", 0, match.start()) + 1 : whole.find(b"\n", match.end())])
                    )
                self.end += len(whole)
                file.seek(self.end)
            self.rare = [line for line in self.rare if line][-_MOST_RARE:]


@functools.lru_cache(maxsize=64)
def _index(path: Path) -> _Index:
    return _Index()


def _thinned(file: BinaryIO, index: _Index, points: int) -> list[Values]:
    """Lines of the training loss: all of them, or about so many at equal distances, with the first and the last."""
    if index.num_lines <= 2 * points:
        file.seek(0)
        return [line for text in file.read().splitlines() if "lr" in (line := _parsed(text))]
    places = [i * index.end // points for i in range(points)]
    lines = []
    for place in [*places, max(0, index.end - 1000)]:
        file.seek(max(0, place - 1))
        if place:
            file.readline()  # the rest of the line before
        lines.append(_parsed(file.readline()))
    last = [line for text in file.read().splitlines() if "lr" in (line := _parsed(text))]
    return [line for line in lines if "lr" in line] + last[-1:]


def conditioning_of(model: Path) -> str | None:
    """The setting of the model in a folder; None where its model_index.json does not tell."""
    with suppress(ValueError, KeyError, IndexError, TypeError, RecursionError):
        index = json.loads(tail(model / "model_index.json", _TAIL_BYTES))
        names = [value[1] if isinstance(value, list) else value for value in (index["_class_name"], index["adapter"])]
        return setting_of(*map(str, names)).name
    return None


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
        last = _last_lines(folder)[0].get("step")
        points.append({"model": str(folder), "step": last, "label": "finished"})
    lengths = config_of(folder).get("ema_lengths") or []
    has_snapshots = bool(points) and next(folder.glob("ema/*.safetensors"), None) is not None
    return {
        "points": points,
        "grids": [{"step": step, "path": str(path)} for step, path in grids_of(folder)],
        "held_out": log["held_out"],
        "copies": log["measures"].pop("copies", []),  # under a heading of its own
        "measures": log["measures"],
        "ema_lengths": [min(lengths), max(lengths)] if lengths and has_snapshots else None,
    }
