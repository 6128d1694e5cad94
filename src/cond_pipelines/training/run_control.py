"""What can be done to a run: pause, stop, sample, save, continue."""

import signal
from contextlib import suppress
from pathlib import Path

import psutil

from ..background import Job
from ..errors import UserError
from ..files import write_text
from ..folders import CONFIG_FILE, REQUESTS
from .run_files import checkpoints_of, process_in


def act(action: str, folder: Path, job: Job | None) -> str:
    """Do something to a run that is under way; returns what will happen. Raises UserError where there is none."""
    process = process_in(folder)
    targets = [process] if process is not None else [] if job is None else job.processes()
    if not targets:
        raise UserError(f"nothing runs in {folder}")
    if action in REQUESTS:
        if process is None:  # what lies in the folder when it begins is taken for a wish of before
            raise UserError(f"the run in {folder} is only starting: wait for its first step")
        write_text(folder / REQUESTS[action], "")
        return {"sample": "samples come after the step under way", "save": "a checkpoint follows the step"}[action]
    with suppress(psutil.NoSuchProcess):
        if action == "pause":
            targets[0].terminate()
            return "it ends" if process is None else "it saves after the step under way, and ends"
        # A process that does not handle SIGQUIT yet would leave a dump of its memory.
        targets[0].send_signal(signal.SIGTERM if process is None else signal.SIGQUIT)
    return "it ends at once"


def continuing(folder: Path) -> list[str]:
    """The arguments that go on with a run. Raises UserError where there is nothing to go on with."""
    if not checkpoints_of(folder):
        raise UserError(f"{folder} has no checkpoint to go on with: start it anew")
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}: go on with the command that started it")
    given = ["--config", str(folder / CONFIG_FILE), "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
    return ["train", *given]
