"""What a run does now, and what can be done to it."""

import signal
from contextlib import suppress
from pathlib import Path

import psutil

from ..background import Job
from ..errors import UserError
from ..files import write_text
from ..folders import CONFIG_FILE, REQUESTS
from ..training.run_files import Values, checkpoints_of, config_of, grids_of, last_lines, process_in, progress_of

_BETWEEN_SEC = 0.5


def state_of(folder: Path, job: Job | None) -> Values:
    """All that a list of runs shows of one.

    Args:
        job: the newest training that the studio started in this folder.
    """
    process = process_in(folder)
    checkpoints, grids = checkpoints_of(folder), grids_of(folder)
    last, held_out = last_lines(folder)
    config = config_of(folder)
    log, code = folder / "log.jsonl", None if job is None else job.exit_code
    is_active = process is not None or (job is not None and code is None)
    is_new = job is not None and log.is_file() and log.stat().st_mtime < job.started - 1
    if is_active:
        state = "running" if log.is_file() and not is_new else "starting"
    elif (folder / "model_index.json").is_file():
        state = "finished"
    elif code and not (checkpoints and is_of_signal(code)):
        state = "failed"
    else:
        state = "paused" if checkpoints else "stopped"
    values: Values = {"state": state, "checkpoints": checkpoints, "samples": [step for step, _ in grids]}
    values |= {key: last.get(key) for key in ("step", "loss", "lr", "images_per_sec", "elapsed_sec")}
    values |= {"newest_grid": str(grids[-1][1]) if grids else None, "held_out_loss": held_out}
    values |= {"has_model": (folder / "model_index.json").is_file(), "conditioning": config.get("conditioning")}
    values |= {
        "message": None if job is None else _message(job, checkpoints),
        "mtime": log.stat().st_mtime if log.is_file() else None,
    }
    return values | progress_of(folder, config, last)


def is_of_signal(code: int) -> bool:
    """Whether an exit code says that a signal, or a power cut, ended the process."""
    return code < 0 or code > 128


def _message(job: Job, checkpoints: list[int]) -> str | None:
    code = job.exit_code
    if code is None or not is_of_signal(code):
        return job.message()
    name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else "a signal, or with the machine"
    return f"ended by {name}; " + (
        f"it can go on after step {checkpoints[-1]:,}" if checkpoints else "nothing is saved"
    )


def act(action: str, folder: Path, job: Job | None) -> str:
    """Do something to a run that is under way; returns what will happen. Raises UserError where there is none."""
    process = process_in(folder)
    targets = [process] if process is not None else [] if job is None else job.processes()
    if not targets:
        raise UserError(f"nothing runs in {folder}")
    if action in REQUESTS:
        write_text(folder / REQUESTS[action], "")
        return {"sample": "samples come after the step under way", "save": "a checkpoint follows the step"}[action]
    with suppress(psutil.NoSuchProcess):
        if action == "pause":
            targets[0].terminate()
            return "it saves after the step under way, and ends"
        targets[0].send_signal(signal.SIGINT)  # the second Ctrl-C ends a run without saving
        with suppress(psutil.TimeoutExpired):
            targets[0].wait(_BETWEEN_SEC)
        targets[0].send_signal(signal.SIGINT)
    return "it ends at once"


def continuing(folder: Path) -> list[str]:
    """The arguments that go on with a run. Raises UserError where there is nothing to go on with."""
    if not checkpoints_of(folder):
        raise UserError(f"{folder} has no checkpoint to go on with: start it anew")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}: go on with the command that started it")
    given = ["--config", str(folder / CONFIG_FILE), "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
    return ["train", *given]
