"""Commands in the background: processes that go on when the one that started them ends, with a record on disk."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from .console import for_terminal
from .errors import UserError
from .files import tail, write_json

_COMMAND = "from cond_pipelines.cli import main; main()"
# The shell stays to write the exit code, whatever signal the command gets; a command sees the signals' usual effect.
_SHELL = 'trap : TERM INT HUP; "$@" >"$0.log" 2>&1; echo $? >"$0.code"'
_MOST_SHOWN, _TAIL_BYTES = 50, 64 * 1024


@dataclass(frozen=True)
class Job:
    """A command that was started.

    Args:
        kind: such as "train". path: the folder that it is about.
        args: of `cond-pipelines`. pid, created: of its shell, which no other process has.
        started: seconds since 1970. record: the file that says all this.
    """

    id: str
    kind: str
    path: str
    args: list[str]
    pid: int
    created: float
    started: float
    record: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -1 where it was killed with its shell."""
        for _ in range(2):  # the shell may end between the two looks
            with suppress(OSError, ValueError):
                return int(self.record.with_suffix(".code").read_text())
            if self._shell() is not None:
                return None
        return -1

    @property
    def command(self) -> str:
        """As a user would type it."""
        return shlex.join(["cond-pipelines", *self.args])

    def output(self) -> str:
        """The end of what it printed."""
        return tail(self.record.with_suffix(".log"), _TAIL_BYTES)

    def message(self) -> str | None:
        """Its last line: of a progress bar what it shows now."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.output()) if line.strip()]
        return for_terminal(lines[-1])[:500] if lines else None

    def processes(self) -> list[psutil.Process]:
        """The command itself, without its shell; none where it has ended."""
        shell = self._shell()
        with suppress(psutil.Error):
            return [] if shell is None else shell.children()
        return []

    def _shell(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if alive else None

    def as_json(self, with_output: bool = False) -> dict[str, object]:
        """What a list of commands shows of it."""
        code = self.exit_code
        state = "running" if code is None else "failed" if code else "done"
        values = {"id": self.id, "kind": self.kind, "path": self.path, "state": state, "started": self.started}
        values |= {"output": self.output()} if with_output else {}
        return values | {"message": self.message(), "command": self.command}


class Jobs:
    """The records of commands in a folder; whoever looks there later sees the same.

    Example:
        >>> job = Jobs(Path("records")).start("train", Path("flowers-model"), ["train", "--train_data_dir", "flowers"])
    """

    def __init__(self, home: Path):
        self.home = home
        self.home.mkdir(parents=True, exist_ok=True)

    def start(self, kind: str, path: Path, args: Sequence[str]) -> Job:
        """Start `cond-pipelines ARGS` in a session of its own: a signal to this process does not reach it."""
        name = f"{time.time_ns():x}"
        record = self.home / f"{name}.json"
        command = [sys.executable, "-c", _COMMAND, *args]
        process = subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, str(record.with_suffix("")), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
        )
        created = psutil.Process(process.pid).create_time()
        threading.Thread(target=process.wait, daemon=True).start()  # so that it does not stay as a zombie
        job = Job(name, kind, str(path), list(args), process.pid, created, time.time(), record)
        write_json(record, {key: value for key, value in asdict(job).items() if key != "record"})
        return job

    def all(self) -> list[Job]:
        """Newest first."""
        jobs = []
        for record in sorted(self.home.glob("*.json"), reverse=True)[:_MOST_SHOWN]:
            with suppress(OSError, ValueError, TypeError):
                jobs.append(Job(**json.loads(record.read_text(encoding="utf-8")), record=record))
        return jobs

    def find(self, name: object) -> Job:
        """By its id. Raises UserError where there is none."""
        job = next((job for job in self.all() if job.id == name), None)
        if job is None:
            raise UserError(f"there is no job {str(name)[:40]!r}")
        return job

    def stop(self, name: object) -> str:
        """End a command in order, as Ctrl-C does."""
        processes = self.find(name).processes()
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGINT)
        return "asked to stop" if processes else "it has ended already"
