"""Processes of their own, with their output in a file, from Python's fork server.

The server is asked to import what is slow only where no GPU is used: there a start takes no time, and CUDA does not go
with a process that was forked from one that has looked at it.
"""

import importlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from processes import MARK

from gpu_parts.context import Context

_SLOW_IMPORTS = ["cond_pipelines.training.loop", "cond_pipelines.demo", "torch.utils.flop_counter", "torch.profiler"]


def import_beforehand() -> None:
    """Let the fork server import what is slow, and wait for it. To be called before the first `start`, if at all."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_SLOW_IMPORTS)
    process = server.Process(target=int)
    process.start()
    process.join()


def start(log: Path, environment: dict[str, str], target: Callable[..., None], *args: Any) -> BaseProcess:
    """Call `target(*args)` in a new process and session, whose output is appended to `log`."""
    process = multiprocessing.get_context("forkserver").Process(target=_inside, args=(log, environment, target, *args))
    process.start()
    return process


def _inside(log: Path, environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    os.setsid()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    target(*args)


def start_part(module: str, context: Context, log: Path, mark: str) -> BaseProcess:
    """Start `run(context)` of a part's module; what it starts in turn carries `mark`."""
    return start(log, {MARK: mark}, _run_module, module, context)


def _run_module(module: str, context: Context) -> None:
    importlib.import_module(module).run(context)
