"""One program at a time in an output folder."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from .console import say
from .folders import LOCK_FILE


@contextmanager
def locked_folder(folder: Path, is_main_process: bool, flag: str = "--output_dir") -> Iterator[None]:
    """Keep others out of `folder` within the block. The main process holds the lock for all processes of a run.

    The system gives the lock back when the process ends, however it ends, so none is left by one that was killed.

    Raises:
        ValueError: another process is at work there; the message names it. Or the lock is a link. In all processes.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LOCK_FILE).is_symlink():  # it would be opened where it leads
            raise ValueError(f"{flag} {folder}: its {LOCK_FILE} is a link to another file: delete it")
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"{flag} {folder} is in use by {_holder(folder)}: wait until it ends, or name another folder"
            ) from error
        except OSError as error:  # a file system without locks
            say(f"warning: {folder} cannot be locked ({error}): let no other run write there")
            return
        with suppress(OSError):  # who it is helps the next one, but is not needed
            if (folder / LOCK_FILE).stat().st_nlink > 1:
                return  # it is another name of a file elsewhere, which stays as it is
            (folder / LOCK_FILE).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    try:
        by_main_process(take, is_main_process)
        yield
    finally:
        lock.release(force=True)


def by_main_process(function: Callable[[], Any], is_main_process: bool) -> Any:
    """What `function` returns in the main process, in all of them; its ValueError in all of them too."""
    result: list[Any] = [None, None]
    if is_main_process:
        try:
            result = [function(), None]
        except ValueError as error:
            result = [None, str(error)]
    value, problem = broadcast_object_list(result)
    if problem is not None:
        raise ValueError(problem)
    return value


def _holder(folder: Path) -> str:
    with suppress(OSError, ValueError):
        if text := (folder / LOCK_FILE).read_text(encoding="utf-8").strip():
            return text
    return "another process"
