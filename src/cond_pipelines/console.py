"""stdout and stderr that do not end a run: a pipe or a terminal that is gone, a terminal that lacks a character."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ESTALE}  # EIO: the terminal was closed


def show_any_text() -> None:
    r"""Let a terminal show a character that its encoding lacks as \u.... instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not, and shows everything
            stream.reconfigure(errors="backslashreplace")


def for_terminal(text: str) -> str:
    r"""Text of others as a terminal may show it, on one line: what would move its cursor or hide text is written out.

    Example:
        >>> for_terminal("rose\x1b[2J")
        'rose\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Steady:
    """A stream that falls silent when nobody can read it any more."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fall_silent(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())  # for child processes and what is buffered too
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Within, what is written to a pipe or a terminal that is gone is dropped, and a character that cannot be shown is
    escaped."""
    before = sys.stdout, sys.stderr
    if any(stream is None or isinstance(stream, _Steady) for stream in before):
        yield
        return
    show_any_text()
    sys.stdout, sys.stderr = _Steady(before[0]), _Steady(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
