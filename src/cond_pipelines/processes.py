"""The processes of a run: the CPU cores that each of them uses, and an end that cannot wait for itself."""

import atexit
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

# What `accelerate launch` and `torchrun` set in every process that they start, and nobody else sets.
_MARKS = ("ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID")
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


def is_main_process() -> bool:
    """Whether this process is the first of a run, or the only one: then torch, which takes seconds, is not imported."""
    if "accelerate" not in sys.modules and not any(name in os.environ for name in ("WORLD_SIZE", *_LOCAL_SIZES)):
        return True
    from accelerate import PartialState

    join_on_cpus()
    return bool(PartialState().is_main_process)


def join_on_cpus() -> None:
    """Before accelerate's first state: let it join the processes of a machine that has no GPU.

    `torchrun` says nothing of CPUs, and without this variable accelerate would make as many runs of one process each.
    A WORLD_SIZE without a rank is somebody else's: this process is the only one.
    """
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        import torch

        if not torch.accelerator.is_available():
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")


# ------------------------------------------------------------------------------------------------------------ cores
def use_all_cores() -> None:
    """Let PyTorch use the cores that this process was given, shared among the processes of this machine.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS to 1 where the user set nothing. A number of threads that the
    user chose stays, by OMP_NUM_THREADS or by `torch.set_num_threads`.
    """
    import torch

    share, threads = max(1, available_cores() // _num_local_processes()), torch.get_num_threads()
    value = os.environ.get("OMP_NUM_THREADS", "")
    launchers_choice = _a_launcher_set("OMP_NUM_THREADS") and value == str(threads)
    if launchers_choice or (not value and threads > share):
        torch.set_num_threads(share)


def cores_in_words() -> str:
    """What the run uses: "2 cores", "1 of 4 cores (OMP_NUM_THREADS=1)"."""
    import torch

    cores, value = available_cores(), os.environ.get("OMP_NUM_THREADS")
    used = min(cores, torch.get_num_threads() * _num_local_processes())
    words = f"{cores} core{'s' if cores > 1 else ''}"
    if used == cores:
        return words
    return f"{used} of {words}" + (f" (OMP_NUM_THREADS={value})" if value == str(torch.get_num_threads()) else "")


def busy_elsewhere(duration_sec: float = 0.3) -> float:
    """How many cores other programs use, measured for a moment; 0 where this process may not use all of the machine's.

    Then the machine's times, of all cores, do not say what is used of those that it may use.
    """

    def used_sec() -> float:
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        return float(machine.user + getattr(machine, "nice", 0.0) + machine.system - own.user - own.system)

    with suppress(Exception):  # a system that shows no times: nothing depends on them but a warning
        if available_cores() == os.cpu_count():
            before, start = used_sec(), time.perf_counter()
            time.sleep(duration_sec)
            return max(0.0, used_sec() - before) / (time.perf_counter() - start)
    return 0.0


def crowded_warning() -> str | None:
    """A line where other programs leave too few cores for the threads of this one.

    Each operation of PyTorch waits, and computes while it waits, for all threads of this process. Two trainings of two
    threads each on two cores were measured: 14 s a step instead of 0.2 s; where one of them has one thread, 0.6 s.
    """
    import torch

    cores, threads = available_cores(), torch.get_num_threads()
    busy = busy_elsewhere() if threads > 1 else 0.0  # one thread waits for no other
    if busy < max(0.75, cores / 4) or busy + threads <= cores:  # one small program hardly slows many cores
        return None
    free = max(1, cores - math.ceil(busy - 0.25))
    return (
        f"warning: other programs use {busy:.1f} of {cores} cores, and this one has {threads} threads: all of them can "
        f"be many times slower; end the others, or start this one with the variable OMP_NUM_THREADS={free}"
    )


def available_cores() -> int:
    """The CPUs that this process may run on, and no more than the quota of its control groups allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in cpu_quotas())]))


def cpu_quotas(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[float]:
    """The CPUs that each control group around this process allows (Linux; versions 1 and 2)."""
    found = []
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers
        group = top / path.lstrip("/")
        # A container sees its own group as the root, whatever the path says.
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(top))]:
            found += _quota(folder)
    return found


def _quota(folder: Path) -> list[float]:
    with suppress(OSError, ValueError):  # ValueError: "max"
        quota, period = (int(part) for part in (folder / "cpu.max").read_text().split())
        return [quota / period]
    with suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return [quota / period] if quota > 0 else []  # -1: no limit
    return []


def _num_local_processes() -> int:
    return max(1, next((int(os.environ[name]) for name in _LOCAL_SIZES if name in os.environ), 1))


def _a_launcher_set(name: str) -> bool:
    """Whether the value of `name` is the choice of a launcher: its own environment, as it was started, lacks it."""
    marks = [mark for mark in _MARKS if mark in os.environ]
    if name not in os.environ or not marks:
        return False
    for process in psutil.Process().parents():
        try:
            environment, command = process.environ(), process.cmdline()
        except psutil.Error:
            return False
        if any(mark not in environment for mark in marks):  # it set them, so it is the launcher
            flags = [part.replace("-", "_") for part in command]
            return name not in environment and not any(f.startswith("__num_cpu_threads_per_process") for f in flags)
        if environment.get(name) != os.environ[name]:  # a script between the launcher and this process set it
            return False
    return False


# -------------------------------------------------------------------------------------------------------------- end
def command_line(main: Callable[..., None]) -> Callable[..., None]:
    """A decorator for the `main(args)` of a command: without `args` it is the command of this process, which ends here.

    One of several processes ends by `leave`, whatever `main` raises.
    """

    @functools.wraps(main)
    def whole_command(args: list[str] | None = None, **defaults: Any) -> None:
        if args is not None:
            return main(args, **defaults)
        try:
            main(None, **defaults)
        except BaseException as error:
            if not _is_one_of_several():
                raise
            leave(_exit_code(error))
        if _is_one_of_several():
            leave(0)

    return whole_command


def leave(code: int = 0) -> None:
    """End this process, one of several, once all is written: the last line of a script that calls `train`.

    Without destructors, which can wait for themselves: that of gloo's process group waits for gloo's thread under the
    GIL, while that thread wants the GIL to let go of what was reduced last (torch 2.13). So the group stays.

    Example:
        >>> train(config)
        >>> leave()
    """
    import torch.distributed as dist

    if code == 0 and dist.is_initialized() and "gloo" not in dist.get_backend():
        dist.destroy_process_group()  # NCCL wants it
    try:
        atexit._run_exitfuncs()  # as multiprocessing does for a process that it forked: workers, trackers, log files
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads any more
                stream.flush()
    finally:
        os._exit(code)


def _is_one_of_several() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def _exit_code(error: BaseException) -> int:
    """As Python's own: what SystemExit says, otherwise a traceback and 1."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    sys.excepthook(type(error), error, error.__traceback__)
    return 128 + 2 if isinstance(error, KeyboardInterrupt) else 1  # 2 is SIGINT
