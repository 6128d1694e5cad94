"""What a test lets a worker do."""

import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

from cond_pipelines.files import whole_folder


def pid() -> dict[str, Any]:
    """Of the worker."""
    return {"pid": os.getpid()}


def killed() -> dict[str, Any]:
    """As by the system, for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def refused() -> dict[str, Any]:
    """As by a user's mistake."""
    raise ValueError("no module of that name")


def endless(started: str) -> NoReturn:
    """Work that somebody has to end: it fills a folder, and the file `started` says that it is under way."""
    with whole_folder(f"{started}-folder") as unfinished:
        (unfinished / "data.bin").touch()
        Path(started).touch()
        while True:
            time.sleep(60)
