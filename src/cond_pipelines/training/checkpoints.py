"""Checkpoints to resume from: written beside, then renamed, so that one that is there is whole."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator

_PREFIX = "checkpoint-"


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: optimizer steps done.
        position: images seen, over all processes.
        elapsed_sec: of training, over all its parts.
    """

    step: int = 0
    position: int = 0
    elapsed_sec: float = 0.0


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int | None = None) -> Path:
    """Write `checkpoint-<step>` under `folder`, then delete the oldest beyond `keep`."""
    path = folder / f"{_PREFIX}{progress.step}"
    unfinished = folder / f"unfinished-{path.name}"
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished), safe_serialization=True)
    accelerator.wait_for_everyone()  # save_state ends without a barrier
    if accelerator.is_main_process:
        (unfinished / "progress.json").write_text(json.dumps(asdict(progress)))
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
        for old in all_checkpoints(folder)[: -keep if keep else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def all_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if (p / "progress.json").is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)))


def load_checkpoint(accelerator: Accelerator, folder: Path, which: str) -> Progress:
    """Restore all that was prepared or registered; `latest` of an empty folder starts fresh.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if which == "latest":
        found = all_checkpoints(folder)
        if not found:
            return Progress()
        path = found[-1]
    else:
        path = next((p for p in (Path(which), folder / which) if (p / "progress.json").is_file()), None)
        if path is None:
            there = ", ".join(p.name for p in all_checkpoints(folder)) or "none"
            raise ValueError(f"--resume_from_checkpoint {which}: no complete checkpoint there (in {folder}: {there})")
    accelerator.load_state(str(path))
    return Progress(**json.loads((path / "progress.json").read_text()))
