"""Processes of their own, with their output in a file, from Python's fork server.

The server is asked to import what is slow only where no GPU is used: there a start takes no time, and CUDA does not go
with a process that was forked from one that has looked at it.
"""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gpu_parts.context import Context

_SLOW_IMPORTS = ["cond_pipelines.training.loop", "cond_pipelines.demo", "torch.utils.flop_counter", "torch.profiler"]


def start_server(import_slow: bool) -> None:
    """Start the fork server, let it import what is slow if asked, and wait for it."""
    server = multiprocessing.get_context("forkserver")
    if import_slow:
        server.set_forkserver_preload(_SLOW_IMPORTS)
    process = server.Process(target=int)
    process.start()
    process.join()


def start(
    log: Path, environment: dict[str, str], target: Callable[..., None], *args: Any, fork: bool = False
) -> BaseProcess:
    """Call `target(*args)` in a new process and session, whose output is appended to `log`.

    `fork` copies this process, with what it has imported: never one that uses a GPU, or has other threads.
    """
    method = multiprocessing.get_context("fork" if fork else "forkserver")
    process = method.Process(target=_inside, args=(log, environment, target, *args))
    process.start()
    return process


def _inside(log: Path, environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    os.setsid()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    target(*args)


def start_part(module: str, context: Context, log: Path) -> BaseProcess:
    """Start `run(context)` of a part's module."""
    return start(log, {}, _run_module, module, context)


def _run_module(module: str, context: Context) -> None:
    signal.alarm(max(1, int(context.left_sec()) + 5))  # the end, where whoever is to end it was killed
    importlib.import_module(module).run(context)
