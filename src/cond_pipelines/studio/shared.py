"""What the routes share: the folders, the records of commands, the workers, the cache; and the state of it all."""

import threading
import time
from contextlib import suppress
from pathlib import Path

from .. import __version__
from ..background import Job, Jobs
from ..errors import UserError
from ..files import strict_json
from ..folder_kinds import kinds_in
from ..training.run_files import conditioning_of, config_of, of_now, process_in, state_of
from ..worker import Worker
from .places import Places, check_recorded

_WRONG_INPUT = 2  # exit code of a command that has not begun: its folder may never have been made
_STATE_SEC = 0.5  # for so long several pages get the same state


class Studio:
    """See above; `home`: where thumbnails, drawn images and the records of commands are kept."""

    def __init__(self, places: Places, home: Path):
        self.places, self.home, self.jobs = places, home, Jobs(home / "jobs")
        self.look, self.draw, self.plan = Worker(), Worker(), Worker()
        self.check = Worker(niceness=5, gives_up=True)
        self._starting = threading.Lock()
        self._state: tuple[float, bytes] = (float("-inf"), b"")

    def close(self) -> None:
        """End the workers."""
        for worker in (self.look, self.check, self.draw, self.plan):
            worker.close()

    def state(self) -> bytes:
        """All that each page shows of what is there, as JSON."""
        if time.monotonic() - self._state[0] > _STATE_SEC:
            self._state = (time.monotonic(), strict_json(self._read_state()).encode())
        return self._state[1]

    def _read_state(self) -> dict[str, object]:
        kinds, jobs, name = kinds_in(self.places.folders), self._own_jobs(), self.places.name
        trainings = {Path(job.path): job for job in reversed(jobs) if job.kind == "train"}  # the newest of each
        started = [path for path, job in trainings.items() if path.is_dir() or job.exit_code in (None, _WRONG_INPUT)]
        folders = dict.fromkeys([*kinds["runs"], *started])
        return {
            "version": __version__,
            "folders": list(map(str, self.places.folders)),
            "data": [{"path": str(path), "name": name(path)} for path in kinds["data"]],
            "runs": [{"path": str(p), "name": name(p)} | state_of(p, trainings.get(p)) for p in folders],
            "models": [{"path": str(p), "name": name(p), "conditioning": conditioning_of(p)} for p in kinds["models"]],
            "jobs": [job.as_json() for job in jobs],
        }

    def _own_jobs(self) -> list[Job]:
        """Those that are about the folders of this studio; others may have used the same cache."""
        own = []
        for job in self.jobs.all():
            with suppress(OSError, ValueError):
                self.places.path(job.path, must_exist=False)
                own.append(job)
        return own

    def training_of(self, folder: Path) -> Job | None:
        """The newest training that was started here in a folder."""
        jobs = (job for job in self.jobs.all() if job.kind == "train" and job.path == str(folder))
        return of_now(folder, next(jobs, None))

    def train(self, folder: Path, args: list[str]) -> dict[str, object]:
        """Start a training. Raises UserError where one is at work in the folder."""
        with self._starting:  # two pages may ask at once
            job = self.training_of(folder)
            if process_in(folder) is not None or (job is not None and job.exit_code is None):
                raise UserError(f"a training is at work in {folder}: wait until it ends, or name another folder")
            return {"job": self.jobs.start("train", folder, args).id}

    def model(self, text: object) -> str:
        """The path of a model, or of a checkpoint or a run whose configuration may be followed."""
        path = self.places.path(text)
        if (path / "manifest.json").is_file():
            check_recorded(config_of(path.parent), self.places)
        if not (path / "model_index.json").is_file():
            check_recorded(config_of(path), self.places)
        return str(path)
