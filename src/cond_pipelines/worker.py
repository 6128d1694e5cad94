"""A process of its own for what takes torch, so that the server starts within a second and stays quick."""

import asyncio
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from dataclasses import asdict, is_dataclass
from io import StringIO
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from .errors import UserError, describe

_CLEAN_UP_SEC = 10  # has a process whose server was killed


class Worker:
    """One process, which does one thing after another; it is started with the first, and again when it was killed.

    Args:
        niceness: what is added to that of this process: others on the machine go first.
        gives_up: a call that is cancelled while it is under way ends the process, and the next one starts another.
            Otherwise it is done to its end, for nobody, and so may be the next call, also when that is cancelled too.
            A call that is cancelled while it waits for another caller is not begun.

    Example:
        >>> await Worker().call("cond_pipelines.sample:main", ["flowers", "rose"])
    """

    def __init__(self, niceness: int = 0, gives_up: bool = False) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.niceness, self.gives_up, self.turn = niceness, gives_up, asyncio.Lock()

    async def call(self, function: str, *args: object) -> dict[str, Any]:
        """What "module:function" returns, values by name. Raises UserError, in one line, for what it could not do."""
        async with self.turn:
            if self.pool is None:
                context = multiprocessing.get_context("spawn")
                self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(self.niceness,))
            try:
                future = await asyncio.to_thread(self.pool.submit, _run, function, args)
                value, problem = await asyncio.wrap_future(future)
            except BrokenProcessPool as error:
                self.pool = None
                raise UserError(
                    "the process that does this was killed, most often for want of memory: try again"
                ) from error
            except asyncio.CancelledError:
                if self.gives_up:
                    self.close()
                raise
        if problem is not None:
            raise UserError(problem)
        return value

    def close(self) -> None:
        """End the process, which cleans up first."""
        if self.pool is not None:
            processes = self.pool._processes
            self.pool.shutdown(wait=False, cancel_futures=True)  # waits for a process that is being started
            self.pool = None
            for process in list(processes.values()):
                process.terminate()


def imported(module: str) -> dict[str, object]:
    """For `call`: a later one need not wait for the import."""
    importlib.import_module(module)
    return {}


def _start(niceness: int) -> None:
    """In the process: it ends with the server, also where that is killed."""
    os.nice(niceness)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which ends this one
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (lines that a command prints on its way)
    signal.signal(signal.SIGTERM, _terminate)


class _Terminated(SystemExit):
    """By SIGTERM: what is under way deletes its unfinished files."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one does not interrupt the clean-up
    raise _Terminated


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_CLEAN_UP_SEC)
    os._exit(0)


def _run(function: str, args: tuple[object, ...]) -> tuple[dict[str, Any], str | None]:
    """(values by name, of a dataclass too; what went wrong in one line)."""
    module, _, name = function.partition(":")
    said = StringIO()
    try:
        with redirect_stderr(said):  # a parser of the command line says there what is wrong, and exits
            value = getattr(importlib.import_module(module), name)(*args)
            return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value, None
    except _Terminated:
        os._exit(0)  # the pool would take an exception for an answer, and go on
    except SystemExit:
        lines = said.getvalue().strip().splitlines() or ["stopped"]
        return {}, lines[-1].removeprefix("error: ")
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        return {}, describe(error)
    except Exception as error:  # a bug: its traceback is for the terminal, and the page says that there is one
        traceback.print_exc()
        return {}, f"this is a fault of the studio, the terminal says more: {describe(error)}"
