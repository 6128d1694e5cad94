"""Waiting for the Hub: not for ever, and not in silence. By itself huggingface_hub waits without a limit."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http

from ..console import say

_SILENCE_SEC = 60.0  # without a single byte
_NUM_SILENCES = 2  # in a row, then it is given up: huggingface_hub alone would try six times
_FIRST_LINE_SEC, _NEXT_LINES_SEC = 10.0, 30.0


class HubIsSilent(Exception):
    """The Hub took the connection and did not answer. No TimeoutError, which huggingface_hub would try again."""


@contextmanager
def limited_waiting() -> Iterator[None]:
    """Within, a request to the Hub without an answer is tried a second time, and then raises HubIsSilent."""
    factory = _http._GLOBAL_CLIENT_FACTORY  # there is no public way to ask for it
    silences: Counter[str] = Counter()  # of each address, in a row

    def make() -> Any:
        client = factory()
        client.timeout = (10.0, _SILENCE_SEC, _SILENCE_SEC, _SILENCE_SEC)  # connect, read, write, a free connection
        send = client.send

        def limited(*args: Any, **kwargs: Any) -> Any:
            address = str(args[0].url).partition("?")[0]
            try:
                answer = send(*args, **kwargs)
            except Exception as error:
                if "Timeout" not in type(error).__name__:
                    raise
                silences[address] += 1
                if silences[address] < _NUM_SILENCES:
                    raise
                raise HubIsSilent(str(error)) from error
            silences[address] = 0
            return answer

        client.send = limited
        return client

    set_client_factory(make)
    try:
        yield
    finally:
        set_client_factory(factory)


def is_silence(error: BaseException | None) -> bool:
    """Whether the Hub's silence is behind an error."""
    while error is not None and not isinstance(error, HubIsSilent):
        error = error.__cause__
    return error is not None


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Within, lines on stderr say now and then what is waited for, and for how long.

    Example:
        >>> with waiting_for("the upload"):
        ...     api.upload_folder(...)  # after 10 s: "waiting for the Hub: the upload, 10 s"
    """
    over, start = threading.Event(), time.monotonic()

    def tell() -> None:
        pause = _FIRST_LINE_SEC
        while not over.wait(pause):
            say(f"waiting for the Hub: {what}, {time.monotonic() - start:.0f} s")
            pause = _NEXT_LINES_SEC

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()
