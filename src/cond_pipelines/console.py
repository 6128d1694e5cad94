"""stdout and stderr: text of others stays text there, and a pipe or a terminal that is gone does not end a run.

Every line of this package that holds text of others (names of files, labels, captions, what the Hub or a library says)
is printed by `say`, or with `for_terminal`. What other libraries print themselves passes through the streams of a
command, which write control characters out too.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_CURSOR_UP = re.compile(r"\n*(\x1b\[A)*")  # how tqdm goes from bar to bar: a write of nothing else
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # can hide text: dropped, since transformers has it in its reports
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


def lines_for_terminal(text: str) -> str:
    """As `for_terminal`, of text of several lines that are ours: each of them stays one line."""
    return "\n".join(map(for_terminal, text.split("\n")))


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line on stderr (or `file`), above all progress bars, as `for_terminal` shows it."""
    from tqdm.auto import tqdm

    tqdm.write(for_terminal(line), file=sys.stderr if file is None else file)


def _shown(text: str) -> str:
    r"""What a library prints, without what moves the cursor or hides text; `\r` only where a progress bar has it."""
    if _CURSOR_UP.fullmatch(text):
        return text
    text = _COLOUR.sub("", text)
    start = "\r" if text.startswith("\r") else ""
    return start + "\n".join(
        "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)
        for line in text[len(start) :].replace("\r\n", "\n").split("\n")
    )


class _Steady:
    """A stream that shows text of others as text, and falls silent when nobody can read it any more."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(_shown(text))
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
