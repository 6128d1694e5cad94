"""What ends a run before its time: a signal, or a failure. Neither loses more than the steps since the last save."""

import errno
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from ..data.rows import BadRow
from ..data.workers import STOPPING
from ..errors import UserError, describe, of_a_limit
from ..user_code import raised_by_user_code
from .checkpoints import Progress, all_checkpoints

Handler = Callable[[int, FrameType | None], object] | int | None  # as `signal.signal` returns it
HOW_TO_RESUME = "go on with the same command and --resume_from_checkpoint latest"
_ALWAYS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}  # even where they are ignored, as of a shell's background job
_HEADER_BYTES = 2**20  # of a file of weights, at most
_CHECK_EVERY = 8  # steps, where several processes must agree


class TrainingFailure(RuntimeError):
    """A run that cannot go on, in one line that says at which step, why, and what to do."""

    exit_code = 1


class Interrupted(Exception):
    """A run that a signal ended; it is saved, and the message says how to go on."""

    exit_code = 0


class StoppedAtOnce(KeyboardInterrupt):
    """A signal where there is nothing to save; like Ctrl-C, it passes through all `except Exception`."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number  # as a shell has it


class StopSignal:
    """SIGTERM, SIGINT, SIGHUP and the notices of schedulers stop a run in order; a second SIGINT stops it at once.

    SIGQUIT stops it at once the first time: two SIGINTs that a busy process has not looked at yet are one.

    At first, while data and models are loaded, they do so at once. From `hold` on the run ends after the step
    under way, of the training or of the last samples.

    Example:
        >>> with StopSignal() as stop:
        ...     prepare()
        ...     stop.hold(accelerator)
        ...     while not stop.requested(step): ...
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.before: dict[signal.Signals, Handler] = {}
        self.at_once = True
        self.accelerator: Accelerator  # from `hold` on

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python's own rule for signal handlers
            ignored = {s for s in STOPPING - _ALWAYS if signal.getsignal(s) == signal.SIG_IGN}  # nohup
            self.before = {s: signal.signal(s, self._note) for s in STOPPING - ignored}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self.before.items():
            signal.signal(which, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_second = self.signal is not None and number == signal.SIGINT
        is_forced, self.signal = is_second or number == signal.SIGQUIT, signal.Signals(number)
        if self.at_once or is_forced:
            self.at_once = False  # the next one finds this one under way
            when = "at once" if is_forced else "before the first step, so there is nothing to save"
            raise StoppedAtOnce(f"{self.signal.name}: stopped {when}", number)

    def hold(self, accelerator: Accelerator) -> None:
        """From now on a signal takes effect where `requested`, `check` or `now` look for one."""
        self.at_once, self.accelerator = False, accelerator

    @property
    def now(self) -> bool:
        """Whether to skip what follows the last step; several processes always go through to its end."""
        is_alone: bool = self.accelerator.num_processes == 1  # several would wait for the one that leaves
        return self.signal is not None and is_alone

    def check(self, *_: object) -> dict[str, object]:
        """A pipeline's `callback_on_step_end`. Raises StoppedAtOnce between two steps of the sampler."""
        if self.now and self.signal is not None:
            raise StoppedAtOnce("", self.signal)
        return {}

    @property
    def name(self) -> str:
        """Of the signal."""
        return "a signal to another process" if self.signal is None else self.signal.name

    def requested(self, step: int) -> bool:
        """After `step`: True in all processes as soon as one has had a signal."""
        if self.accelerator.num_processes == 1:
            return self.signal is not None
        if step % _CHECK_EVERY:
            return False
        received = torch.tensor(float(self.signal is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(received, "sum").item())


@contextmanager
def one_line_failures(progress: Progress, output_dir: Path) -> Iterator[None]:
    """Turn what can go wrong in the middle of a run into a TrainingFailure; bugs of this library stay as they are."""
    try:
        yield
    except (TrainingFailure, Interrupted):
        raise
    except StoppedAtOnce as stop:
        raise StoppedAtOnce(f"{stop} in step {progress.step + 1:,}; {how_to_go_on(output_dir)}", stop.number) from None
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise TrainingFailure(f"step {progress.step + 1:,}: {reason}; {how_to_go_on(output_dir)}") from error


def writable_folder(path: str) -> Path:
    """Make `path`, and look whether it can be written to, before hours are spent. Raises ValueError."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"--output_dir {path} cannot be written to: {error.strerror}: name another") from error


def check_file_limit(modules: Iterable[nn.Module]) -> None:
    """Refuse a limit of the shell under which the weights cannot be saved. Raises ValueError."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    largest = max((sum(p.nbytes for p in module.parameters()) for module in modules), default=0)
    if limit != resource.RLIM_INFINITY and limit < largest + _HEADER_BYTES:
        sizes = f"ulimit -f allows files of {limit / 2**20:.1f} MiB, and a file of weights has {largest / 2**20:.1f}"
        raise ValueError(f"{sizes}: raise it")


def is_full_disk(error: OSError | SafetensorError) -> bool:
    """Whether there is no room, or no more than the user may have."""
    if isinstance(error, SafetensorError):  # it has the system's number in its text only
        return any(f"(os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def how_to_go_on(output_dir: Path) -> str:
    """What is safe, and how to start from it."""
    checkpoints = all_checkpoints(output_dir)
    if not checkpoints:
        return "nothing was saved yet (--checkpointing_steps saves now and then)"
    return f"{checkpoints[-1]} is whole: {HOW_TO_RESUME}"


def _reason(error: BaseException) -> str | None:
    text = " ".join(str(error).split())
    if isinstance(error, BadRow):
        return text
    if isinstance(error, UserError):
        return text.rsplit("UserError: ", 1)[-1]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return (
            "out of memory; a smaller --train_batch_size with more --gradient_accumulation_steps trains the same, "
            "--gradient_checkpointing takes less"
        )
    if "DataLoader worker" in text and "Original Traceback" not in text:
        return (
            "a worker process that reads images was killed, most often by the system for want of memory: give fewer "
            f"--dataloader_num_workers, or 0 ({text[:80]})"
        )
    if limit := of_a_limit(text):
        return limit
    if blame := raised_by_user_code(error):
        return blame
    if isinstance(error, OSError):
        return f"{describe(error)} (make room, or mend the path)"
    if isinstance(error, SafetensorError):
        return f"{text} (make room, or mend the path)"
    if not isinstance(error, RuntimeError):
        return None
    if "No space left" in text or "PytorchStreamWriter" in text or "inline_container" in text:
        return f"the disk is full, or cannot be written to ({text[:120]})"
    return None
