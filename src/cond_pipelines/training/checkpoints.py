"""Checkpoints to resume from: written beside, then renamed, so that one that is there is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from tqdm.auto import tqdm

_PREFIX, _MANIFEST = "checkpoint-", "manifest.json"


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
    keep: int | None = None,
    identity: dict[str, Any] | None = None,
) -> Path:
    """Write `checkpoint-<step>` under `folder`, then delete the oldest beyond `keep`.

    Args:
        identity: the settings of the run, to compare with when it is resumed; see `load_checkpoint`.

    Raises:
        OSError: it cannot be written; what was written of it is deleted, older checkpoints stay.
    """
    path = folder / f"{_PREFIX}{progress.step}"
    unfinished = folder / f"unfinished-{path.name}"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for left in folder.glob(f"unfinished-{_PREFIX}*"):  # by a run that was killed here
            shutil.rmtree(left, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(unfinished), safe_serialization=True)
        accelerator.wait_for_everyone()  # save_state ends without a barrier
        if accelerator.is_main_process:
            (unfinished / "progress.json").write_text(json.dumps(asdict(progress)))
            _write_manifest(unfinished, identity or {})
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
    except (OSError, RuntimeError, SafetensorError):  # a full disk is any of these
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        for old in all_checkpoints(folder)[: -keep if keep else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def _write_manifest(folder: Path, identity: dict[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())  # on the disk before the name says that it is whole
        files[str(path.relative_to(folder))] = _sha256(path)
    (folder / _MANIFEST).write_text(json.dumps({"files": files, "identity": identity}, indent=2))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def all_checkpoints(folder: Path) -> list[Path]:
    """Those whose name says that they are complete, oldest first."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if (p / _MANIFEST).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)))


def broken(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its checksums; None where nothing is."""
    try:
        files = json.loads((path / _MANIFEST).read_text())["files"]
        for name, checksum in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if _sha256(path / name) != checksum:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError) as error:
        return f"{_MANIFEST} cannot be read: {error}"
    return None


def load_checkpoint(
    accelerator: Accelerator, folder: Path, which: str, accept: Callable[[dict[str, Any]], None] | None = None
) -> Progress:
    """Restore all that was prepared or registered; `latest` of an empty folder starts fresh.

    `latest` is the newest that verifies; damaged ones are passed over with a warning.

    Args:
        accept: compares the run with the identity that the checkpoint was saved with; raises ValueError for another.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it is of another run; the message says how.
    """
    chosen: list[Any] = [None]
    if accelerator.is_main_process:
        chosen = [_choose(folder, which)]
    path, problem = broadcast_object_list(chosen)[0]
    if problem:
        raise ValueError(f"--resume_from_checkpoint {which}: {problem}")
    if path is None:
        return Progress()
    before = json.loads((Path(path) / _MANIFEST).read_text())["identity"]
    try:
        if accept is not None:
            accept(before)
    except ValueError as error:
        raise ValueError(
            f"--resume_from_checkpoint {which}: {path} {error}: give what it had, or start with "
            "--pretrained_model_name_or_path in another --output_dir"
        ) from error
    try:
        accelerator.load_state(str(path))
    except RuntimeError as error:  # of a checkpoint that does not name its network, as those of before
        if "loading state_dict" not in str(error):
            raise
        why = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"--resume_from_checkpoint {which}: {path} holds another network: {why}") from error
    return Progress(**json.loads((Path(path) / "progress.json").read_text()))


def _choose(folder: Path, which: str) -> tuple[str | None, str | None]:
    """(path, problem); neither where a fresh start is meant."""
    if which != "latest":
        path = next((p for p in (Path(which), folder / which) if (p / _MANIFEST).is_file()), None)
        if path is None:
            there = ", ".join(p.name for p in all_checkpoints(folder)) or "none"
            return None, f"no complete checkpoint there (in {folder}: {there})"
        problem = broken(path)
        return str(path), problem and f"{path}: {problem}"
    for path in reversed(all_checkpoints(folder)):
        problem = broken(path)
        if problem is None:
            return str(path), None
        tqdm.write(f"warning: {path} is passed over: {problem}")
    return None, None
