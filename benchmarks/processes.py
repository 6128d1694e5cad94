"""End what a benchmark started, down to the last grandchild."""

import contextlib
import os
import signal
import subprocess

import psutil

MARK = "COND_PIPELINES_BENCHMARK"  # an environment variable, which children inherit


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL, also of the workers, which torchrun gives sessions of their own."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    _kill(everyone)
    process.wait(timeout=30)


def kill_marked(mark: str, server_pid: int | None = None) -> None:
    """SIGKILL of every process whose environment has MARK=`mark`, also where its parent has ended before it.

    Args:
        server_pid: a fork server, whose children keep the environment that it had itself: all of them are ended.
    """
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(server_pid).children(recursive=True) if server_pid else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
    _kill(found)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=30)
