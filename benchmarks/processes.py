"""End what a benchmark started, down to the last grandchild."""

import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Collection

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL, also of the workers, which torchrun gives sessions of their own."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    _kill(everyone)
    process.wait(timeout=30)


def adopt_orphans() -> None:
    """On Linux: let this process be the parent of each descendant whose own parent has ended, so that none is lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants(kept: Collection[psutil.Process]) -> None:
    """SIGKILL of all descendants of this process but those in `kept`, until there is none: one may be just starting."""
    while True:
        found = [p for p in psutil.Process().children(recursive=True) if p not in kept]
        living = []
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                living += [process] if process.status() != psutil.STATUS_ZOMBIE else []
        if not living:
            return
        _kill(living)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=30)
