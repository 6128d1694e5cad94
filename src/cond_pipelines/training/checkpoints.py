"""Checkpoints to resume from: one that has its name is whole, and on the disk."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ..console import say
from ..errors import UserError, checked, read_json, reading
from ..files import (
    finish_folder,
    is_mostly_hole,
    read_checked_json,
    remove,
    remove_folder,
    sha256_of,
    unfinished_folder,
    whole_folder,
    write_checked_json,
    write_json,
)
from .state_files import KNOWN_FILE, OLD_FILE, convert_state, read_state, write_state

if TYPE_CHECKING:
    from .ema import WeightAverage

_OLD = re.compile(rf"{OLD_FILE.pattern}|scaler\.pt|pytorch_model_fsdp\.bin")
_MANIFEST, _NAME = "manifest.json", re.compile(r"checkpoint-(0|[1-9][0-9]*)", re.ASCII)  # no other is the run's own


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Args:
        files: their checksums. identity: what must be the same when the run is resumed.
        run: that wrote it; None: an earlier version, which did not say.
        number: of the checkpoint, in the order in which the run wrote them; -1: an earlier version's.
    """

    files: dict[str, str]
    identity: dict[str, Any]
    run: str | None = None
    number: int = -1


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: optimizer steps done.
        position: images seen, over all processes.
        elapsed_sec: of training, over all its parts.
        losses: for each process [sum, count] of the losses since the last line of the log.
        skipped: steps left out because their gradient was not finite: all of them, and how many in a row up to now.
        batch: images of an optimizer step, over all processes; num_processes: their number.
    """

    step: int = 0
    position: int = 0
    elapsed_sec: float = 0.0
    losses: list[list[float]] = field(default_factory=list)
    skipped: list[float] = field(default_factory=lambda: [0.0, 0.0])
    batch: int = 0
    num_processes: int = 1


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
    averages: "Sequence[WeightAverage]" = (),
    keep: int | None = None,
    identity: dict[str, Any] | None = None,
    run: str | None = None,
) -> Path:
    """Write `checkpoint-<step>` under `folder`; when it is on the disk, delete the oldest of this run beyond `keep`.

    Args:
        averages: of the weights, saved with all that was prepared.
        identity: the settings of the run, to compare with when it is resumed; see `load_checkpoint`.
        run: see `Manifest`. Checkpoints of another run are left alone.

    Raises:
        OSError: it cannot be written; what was written of it is deleted, older checkpoints stay.
    """
    path = folder / f"checkpoint-{progress.step}"
    unfinished = unfinished_folder(path)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for left in folder.glob(unfinished_folder(folder / "*checkpoint-*").name):  # by a run that was killed here
            remove(left)
    accelerator.wait_for_everyone()
    try:
        write_state(accelerator, unfinished, averages)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_json(unfinished / "progress.json", asdict(progress))
            number = 1 + max((m.number for _, m in _readable(folder)), default=-1)
            _write_manifest(unfinished, Manifest({}, identity or {}, run, number))
            finish_folder(unfinished, path)
    except (OSError, RuntimeError, SafetensorError):  # a full disk is any of these
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if accelerator.is_main_process and keep:
        mine = [p for p, manifest in _readable(folder) if manifest.run in (run, None) and not p.is_symlink()]
        for old in mine[:-keep]:
            remove_folder(old)
    accelerator.wait_for_everyone()
    return path


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    files = {p.relative_to(folder).as_posix(): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_checked_json(folder / _MANIFEST, asdict(manifest) | {"files": files})


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises ValueError for anything but what was written."""
    file = path / _MANIFEST
    try:
        if file.is_symlink():
            raise ValueError("it is a link, which is not followed")
        values = read_json(file)
        if not isinstance(values, dict) or set(values) != {"files", "identity"}:  # which an earlier version wrote
            values = read_checked_json(file, tuple(f.name for f in fields(Manifest)))
        manifest = Manifest(**values)
        files, good = manifest.files, isinstance(manifest.identity, dict) and isinstance(manifest.number, int)
        if not (good and isinstance(files, dict) and files and all(isinstance(v, str) for v in files.values())):
            raise ValueError("it does not list the files")
    except (OSError, ValueError) as error:
        raise ValueError(f"{_MANIFEST} cannot be read: {error}") from error
    return manifest


def all_checkpoints(folder: Path) -> list[Path]:
    """Those whose name says that they are complete, oldest first; a link to one is none.

    The order is that in which they were written: a run that goes back to step 5 leaves an older checkpoint-10.
    """
    complete = [p for p in _named(folder) if not p.is_symlink() and (p / _MANIFEST).is_file()]
    numbers = {path: manifest.number for path, manifest in _manifests(complete)}  # unknown: damaged, looked at first
    return sorted(complete, key=lambda p: (numbers.get(p, float("inf")), int(p.name.removeprefix("checkpoint-"))))


def _named(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]


def _manifests(paths: list[Path]) -> list[tuple[Path, Manifest]]:
    readable = []
    for path in paths:
        try:
            readable.append((path, read_manifest(path)))
        except ValueError:
            continue
    return readable


def _readable(folder: Path) -> list[tuple[Path, Manifest]]:
    return _manifests(all_checkpoints(folder))


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its checksums; None where nothing is."""
    try:
        files = read_manifest(path).files
        for file in path.rglob("*"):
            if file.is_symlink():
                return f"{file.relative_to(path)} is a link, which is not followed"
            if KNOWN_FILE.fullmatch(name := file.relative_to(path).as_posix()) and name not in files:
                return f"{name} is not listed in {_MANIFEST}"
        is_old = any(OLD_FILE.fullmatch(name) for name in files)
        for name, checksum in files.items():
            if not (KNOWN_FILE.fullmatch(name) or (is_old and _OLD.fullmatch(name))):
                return f"{name!r} is no file of a checkpoint"
            if not (path / name).is_file():
                return f"{name} is missing"
            if is_mostly_hole(path / name):
                return f"{name} says that it has {(path / name).stat().st_size:,} bytes, and most of them are nowhere"
            if sha256_of(path / name) != checksum:
                return f"{name} is damaged"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def load_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    which: str,
    averages: "Sequence[WeightAverage]" = (),
    accept: Callable[[dict[str, Any]], None] | None = None,
    run: str | None = None,
) -> tuple[Progress, str | None]:
    """Restore all that was prepared, and `averages`; `latest` of an empty folder starts fresh.

    `latest` is the newest that verifies; damaged ones, and those of another run, are passed over with a warning.

    Args:
        accept: compares the run with the identity that the checkpoint was saved with; raises ValueError for another.
        run: of the folder, where it is known.

    Returns:
        How far the checkpoint is, and the run that wrote it, where it says so.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it is of another run; the message says how.
    """
    chosen: list[Any] = [None]
    if accelerator.is_main_process:
        chosen = [_choose(folder, which, run)]
    path, problem = broadcast_object_list(chosen)[0]
    if problem:
        raise ValueError(f"--resume_from_checkpoint {which}: {problem}")
    if path is None:
        return Progress(), None
    manifest = read_manifest(Path(path))
    if any(OLD_FILE.fullmatch(name) for name in manifest.files):
        raise ValueError(
            f"--resume_from_checkpoint {which}: {path} is of an earlier version, which pickled a part of it: "
            f"`cond-pipelines convert {path}` writes it anew"
        )
    try:
        if accept is not None:
            accept(manifest.identity)
    except ValueError as error:
        raise ValueError(
            f"--resume_from_checkpoint {which}: {path} {error}: give what it had, or start with "
            "--pretrained_model_name_or_path in another --output_dir"
        ) from error
    with reading(f"--resume_from_checkpoint {which}: {path}"):
        try:
            read_state(accelerator, Path(path), averages)
        except RuntimeError as error:  # of a checkpoint that does not name its network, as those of before
            if "loading state_dict" not in str(error):
                raise
            why = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"--resume_from_checkpoint {which}: {path} holds another network: {why}") from error
    file = Path(path) / "progress.json"
    return checked(Progress, read_json(file), file), manifest.run


def _choose(folder: Path, which: str, run: str | None) -> tuple[str | None, str | None]:
    """(path, problem); neither where a fresh start is meant."""
    if which != "latest":
        path = next((p for p in (Path(which), folder / which) if (p / _MANIFEST).is_file()), None)
        if path is None:
            there = ", ".join(p.name for p in all_checkpoints(folder)) or "none"
            return None, f"no complete checkpoint there (in {folder}: {there})"
        problem = broken(path)
        return str(path), problem and f"{path}: {problem}"
    for path in _named(folder):
        if path.is_symlink():  # the folder may be one that somebody else made
            say(f"warning: {path} is passed over: it is a link to {path.readlink()}; name that folder to go on from it")
    known = all_checkpoints(folder)
    others = {
        p: manifest.run for p, manifest in _manifests(known) if run is not None and manifest.run not in (run, None)
    }
    for path, theirs in others.items():
        say(f"warning: {path} is passed over: it is of another run ({theirs}, this folder is of {run})")
    for path in reversed([path for path in known if path not in others]):
        problem = broken(path)
        if problem is None:
            return str(path), None
        say(f"warning: {path} is passed over: {problem}")
    if others:
        newest = list(others)[-1].name
        return None, f"{folder} holds none of its own run, only of another: name it, as in {newest}"
    return None, None


def convert_checkpoint(path: str | Path) -> Path:
    """Write a checkpoint of an earlier version anew, in its place, so that it can be resumed; nothing in it is run.

    Raises:
        UserError: it is no checkpoint, is damaged, or holds something else than tensors and numbers. It stays as it is.
    """
    path = Path(path)
    if not (path / _MANIFEST).is_file():
        raise UserError(f"{path} is no checkpoint: it has no {_MANIFEST}")
    if problem := broken(path):
        raise UserError(f"{path}: {problem}")
    manifest = read_manifest(path)
    if not any(OLD_FILE.fullmatch(name) for name in manifest.files):
        return path
    with whole_folder(path) as unfinished:
        convert_state(path, unfinished)
        shutil.copyfile(path / "progress.json", unfinished / "progress.json")
        _write_manifest(unfinished, manifest)
    return path
