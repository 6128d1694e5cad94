"""A run that a signal reaches at an exact place: `python -m at_an_event open:log.jsonl:2:SIGTERM MODULE ARGUMENTS...`

The place is an audit event of Python (`open`, `os.rename`, `os.mkdir`, ...) about a path that holds the text given,
when it comes for the given time. The signal is a real one. SIGKILL takes the launcher and the other processes along, as
a machine that loses power does.
"""

import os
import runpy
import signal
import sys

import psutil


def signal_at(event: str, text: str, count: int, name: str) -> None:
    """Send this process the signal at the `count`-th such event; only rank 0 does so."""
    if os.environ.get("RANK", "0") != "0":
        return
    seen = 0

    def hook(what: str, args: tuple) -> None:
        nonlocal seen
        if what != event or not any(text in str(part) for part in args[:2]):
            return
        seen += 1
        if seen == count:
            if name == "SIGKILL" and "RANK" in os.environ:
                launcher = psutil.Process().parent()
                others = [p for p in launcher.children(recursive=True) if p.pid != os.getpid()]
                for process in (launcher, *others):
                    process.kill()
            os.kill(os.getpid(), signal.Signals[name])

    sys.addaudithook(hook)


if __name__ == "__main__":
    event, text, count, name = sys.argv[1].split(":")
    signal_at(event, text, int(count), name)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
