"""Worker processes of a loader: they leave signals to the run that started them, and end with it."""

import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from .batches import Batch

# Of schedulers that give notice: SLURM by --signal, submitit and SGE (USR1, USR2), a limit of CPU time (XCPU).
_NOTICES = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU}
STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, *_NOTICES}
_PR_SET_PDEATHSIG = 1


@contextmanager
def signals_held() -> Iterator[None]:
    """For the start of workers: a signal waits until they can ignore it, and the run gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def batches_of(loader: "DataLoader[Batch]") -> "Iterator[Iterator[Batch]]":
    """The batches of an endless loader. Its workers end with the block, also where an error keeps the frames alive."""
    with signals_held():
        batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # PyTorch has no public way


def room_for_workers(num_workers: int) -> None:
    """Raise the number of open files as far as workers need it: each batch that one hands over is open files.

    Raises:
        UserError: it must not be raised so far.
    """
    needed = 64 + 64 * num_workers
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now == resource.RLIM_INFINITY or now >= needed:
        return
    if most != resource.RLIM_INFINITY and most < needed:
        raise UserError(
            f"{num_workers} worker processes need {needed} open files, and {most} are allowed: raise `ulimit -n`, or "
            "give --dataloader_num_workers 0"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def ignore_signals(worker: int) -> None:
    """`worker_init_fn` of a loader whose run ends by signals in order, which takes its workers to the end.

    `timeout`, systemd and SLURM send SIGTERM to every process of a run. Only the run itself may end a worker by it, as
    PyTorch does with one that hangs.
    """
    for number in STOPPING - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_run_says, daemon=True).start()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING - {signal.SIGTERM})


def _end_when_the_run_says() -> None:
    run = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
