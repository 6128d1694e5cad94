"""The judge of hostile_folders.py: an audit hook of the interpreter, and what a command leaves behind.

It sees what Python opens, writes, deletes, executes, starts, unpickles, imports, and whom it connects to. Libraries in
Rust and C++ open files without its knowledge: those outside of the folder tell by the time of their last access.
"""

import contextlib
import io
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

LIMIT_SEC = 10.0
HARD_LINKED = "linked.txt"  # outside, and under a name inside too: it may be read, and must stay as it is
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
_FOUND: list[str] = []  # of the command that runs now
_WATCHED: dict[str, str] = {}  # where the command may write, and what it must not touch; empty: nobody is watched


def _writes(mode: Any, flags: Any) -> bool:
    return any(c in str(mode) for c in "wax+") if mode else bool(int(flags) & (os.O_WRONLY | os.O_RDWR))


def _judge(event: str, args: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    with contextlib.suppress(Exception):
        if event == "open" or event in _CHANGES:
            named = args[:1] if event == "open" else args
            paths = [path for path in named if isinstance(path, str | bytes | os.PathLike)]
            folder = next((f"/proc/self/fd/{arg}" for arg in args[1:] if isinstance(arg, int) and arg >= 0), "")
            for path in paths:
                full = os.path.join("" if event == "open" else folder, os.fsdecode(path))  # relative to an open folder
                _judge_path(event, full, event != "open" or _writes(*args[1:3]))
        elif event in _STARTS:
            _FOUND.append(f"{event}: {str(args)[:100]}")
        elif event == "exec":
            file = getattr(args[0], "co_filename", "")
            if os.path.realpath(file).startswith(_WATCHED["folder"]):
                _FOUND.append(f"executed {file}")
        elif event == "pickle.find_class" and args[0] in ("os", "posix", "subprocess", "builtins", "evil"):
            _FOUND.append(f"unpickled {args[0]}.{args[1]}")
        elif event == "import" and str(args[0]).split(".")[0] == "evil":
            _FOUND.append(f"imported {args[0]}")
        elif event == "socket.getaddrinfo" and str(args[0]) not in ("127.0.0.1", "localhost"):
            _FOUND.append(f"asked the network for {args[0]}")


def _judge_path(event: str, path: str, writes: bool) -> None:
    name = os.path.basename(path)  # what is renamed or deleted is a link itself; what is opened is where it leads
    real = os.path.realpath(path) if event == "open" else os.path.join(os.path.realpath(os.path.dirname(path)), name)
    if real.startswith(_WATCHED["outside"]):
        _FOUND.append(f"{'opened' if event == 'open' else event} outside: {real}")
    elif (
        writes
        and "__pycache__" not in real
        and not real.startswith(("/dev/null", "/dev/shm/sem.", *_WATCHED["allowed"].split(os.pathsep)))
    ):
        _FOUND.append(f"wrote outside ({event}): {real}")


sys.addaudithook(_judge)


class _Late(Exception):
    pass


def _alarm(*_: Any) -> None:
    raise _Late


class _StderrOfNow:
    """For the handlers of logs, which were made with the stderr of before: a command has them on its own."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextlib.contextmanager
def _logs_on_stderr() -> Iterator[None]:
    loggers = [logging.root, *(log for log in logging.root.manager.loggerDict.values())]
    handlers = {handler for log in loggers for handler in getattr(log, "handlers", [])}
    plain = [(h, h.stream) for h in handlers if type(h) is logging.StreamHandler]
    for handler, _ in plain:
        handler.stream = _StderrOfNow()
    try:
        yield
    finally:
        for handler, stream in plain:
            handler.stream = stream


def run_watched(
    command: Callable[[list[str]], None], args: list[str], folder: Path, outside: Path, allowed: list[Path]
) -> tuple[list[str], str, float]:
    """Run a command; returns what it did that it must not, how it ended in words, and the seconds that it took."""
    _FOUND.clear()
    err, out = io.StringIO(), io.StringIO()
    roots = [folder, *allowed, Path(tempfile.gettempdir()) / "push-", Path(HF_HOME)]
    before = _tree(outside)
    for path in [outside, *outside.rglob("*")]:
        os.utime(path, ns=(1, os.stat(path).st_mtime_ns))  # so that the next access is noted, also with relatime
    previous = signal.signal(signal.SIGALRM, _alarm)
    start, end = time.perf_counter(), "done"
    try:
        _WATCHED.update(
            folder=os.path.realpath(folder),
            outside=os.path.realpath(outside),
            allowed=os.pathsep.join([os.path.realpath(root) for root in roots] + [tempfile.gettempdir() + "/tmp"]),
        )
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SEC)
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out), _logs_on_stderr():
            command(args)
    except SystemExit as stop:
        end = "done" if stop.code in (0, None) else "refused"
    except _Late:
        _FOUND.append("hangs")
    except BaseException as error:
        _FOUND.append(f"not one line: {type(error).__name__}: {str(error)[:150]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _WATCHED.clear()
        signal.signal(signal.SIGALRM, previous)
    took = time.perf_counter() - start
    text = err.getvalue() + out.getvalue()
    odd = sorted({c for c in text.replace("\x1b[A", "") if not (c.isprintable() or c in "\n\r\t")})
    if odd:  # progress bars go up a line
        _FOUND.append(f"terminal codes: {odd!r}")
    last = err.getvalue().strip().splitlines()[-1:] or [""]
    if end == "refused" and not last[0].startswith("error: "):
        _FOUND.append(f"not one line: {last[0][:150]!r}")
    files = [path for path in outside.rglob("*") if path.is_file() and path.name != HARD_LINKED]
    read = [path.name for path in files if os.stat(path).st_atime_ns != 1]
    if read and not any("outside" in found for found in _FOUND):
        _FOUND.append(f"read outside, by a library: {read}")
    if _tree(outside) != before:
        _FOUND.append("changed a file outside")
    return list(dict.fromkeys(_FOUND)), end, took


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
