"""Start Python commands without their imports: each is forked from one process that has imported the libraries.

    with WarmStart() as warm:
        process = warm.start(["-m", "cond_pipelines.training", "--output_dir", "flowers"])
        out, err = process.communicate(timeout=60)
        pair = warm.start(["-m", "cond_pipelines.training", ...], num_processes=2)

A fresh interpreter takes 5 to 8 s of CPU to import PyTorch and diffusers, torchrun with two processes three times that.
A command that is started here has a process (and session) of its own, signals, pipes, an environment and an end like
any other; what it does not show is the start of the interpreter. Several processes get what torchrun gives them, and
the launcher holds their store. Linux only.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

_READ_AT_IMPORT = ("OMP_", "MKL_", "HF_", "MALLOC_", "LD_", "ATEN_", "ONEDNN_", "PYTHONHASHSEED", "PYTHONUTF8")
_BEFORE_A_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class WarmProcess:
    """A running command, as `subprocess.Popen` has it (text, its output in two pipes)."""

    def __init__(self, out: int, err: int, status: int):
        self.stdout, self.stderr = (os.fdopen(fd, encoding="utf-8", errors="replace") for fd in (out, err))
        self._status, self.returncode = status, None
        self.pid = int(self._line(250.0))  # the first one waits for the imports

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._status)

    def _line(self, timeout: float | None) -> str:
        """The next line of the launcher, or nothing where it is gone; subprocess.TimeoutExpired where none comes."""
        found = b""
        while not found.endswith(b"\n"):
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {getattr(self, 'pid', '?')}", timeout or 0.0)
            if not (part := os.read(self._status, 1)):
                break
            found += part
        return found.decode().strip()

    def wait(self, timeout: float | None) -> int:
        """Its exit code, that of a signal negative."""
        if self.returncode is None:
            line = self._line(timeout)
            self.returncode = int(line) if line else -signal.SIGKILL  # the launcher was killed too
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None as long as it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(timeout=0.0)
        return None

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr."""
        end, texts = time.monotonic() + timeout, {}

        def read(stream: IO[str]) -> None:
            texts[stream] = "" if stream.closed else stream.read()

        readers = [threading.Thread(target=read, args=(s,), daemon=True) for s in (self.stdout, self.stderr)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(max(0.1, end - time.monotonic()))
        if len(texts) < 2:
            raise subprocess.TimeoutExpired(f"the output of process {self.pid}", timeout)
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number: int) -> None:
        """A signal to the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process alone."""
        self.send_signal(signal.SIGKILL)


class WarmStart:
    """The process that has imported everything; it ends with this one, or with `close`.

    Args:
        env: its environment; what libraries read when they are imported (OMP_NUM_THREADS, HF_HOME, ...) stays as here.
        modules: what it imports.
        prefix: a command to run it with, such as ("unshare", "-rm").
        python: of which virtual environment.
    """

    def __init__(
        self,
        env: dict[str, str] | None = None,
        modules: Sequence[str] = (),
        prefix: Sequence[str] = (),
        python: str | Path = sys.executable,
    ):
        self.env = dict(os.environ if env is None else env)
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*prefix, str(python), "-u", __file__, str(theirs.fileno()), *(modules or LIBRARIES)]
        env = {name: value for name, value in self.env.items() if name != "PYTHONPATH"}
        self._server = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def __enter__(self) -> "WarmStart":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Start nothing more; what runs goes on."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # processes that were forked meanwhile have it open too
        self._connection.close()
        self._server.wait(timeout=60)

    def start(
        self,
        args: Sequence[object],
        env: dict[str, str] | None = None,
        num_processes: int = 1,
        cwd: str | None = None,
        quiet: bool = False,
    ) -> WarmProcess:
        """Start what `python *args` would run: `-m module`, `-c code` or a script, with its arguments.

        With several processes, what `torchrun --nproc_per_node num_processes *args` would run.

        Args:
            quiet: throw away what it writes; a pipe that nobody reads would hold it up.
        """
        env = self.env if env is None else env
        changed = {k for k in self.env.keys() | env.keys() if k.startswith(_READ_AT_IMPORT) and k in env}
        if wrong := {k for k in changed if env[k] != self.env.get(k)}:
            raise ValueError(f"{sorted(wrong)} are read by libraries that are imported already: start a fresh process")
        pipes = [os.pipe() for _ in range(3)]
        request = {"args": [str(a) for a in args], "env": env, "num_processes": num_processes}
        text = json.dumps(request | {"cwd": cwd or os.getcwd()}).encode()
        writes = [write for _, write in pipes]
        if quiet:
            with open(os.devnull, "w") as nowhere:
                socket.send_fds(self._connection, [text], [nowhere.fileno()] * 2 + writes[2:])
        else:
            socket.send_fds(self._connection, [text], writes)
        for _, write in pipes:
            os.close(write)
        return WarmProcess(*(read for read, _ in pipes))


LIBRARIES = (
    "accelerate",
    "datasets",
    "diffusers.loaders.lora_pipeline",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.pipeline_utils",
    "matplotlib.figure",
    "peft",
    "torch.distributed.fsdp",
    "torch.utils.data",
    "transformers.models.bert.modeling_bert",
)


# ------------------------------------------------------------------------------------------------------ the server
def serve(connection: socket.socket, modules: list[str]) -> None:
    """Fork a launcher for each request, until nobody can send one any more."""
    for module in modules:
        __import__(module)
    gc.collect()
    gc.freeze()  # the pages are shared with what is forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for launchers
    while True:
        text, fds, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not text:
            return
        if not os.fork():
            connection.close()
            launch(json.loads(text), fds)
        for fd in fds:
            os.close(fd)


def launch(request: dict[str, object], fds: list[int]) -> NoReturn:
    """In a process of its own: start the command, say its number, wait, say its exit code."""
    out, err, status = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    count = request["num_processes"]
    env = request["env"]
    if count > 1:  # the launcher is one of the group, and outlives it
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        env |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "warm"}
    pids = []
    for rank in range(count):
        if not (pid := os.fork()):
            os.close(status)
            for target, fd in ((1, out), (2, err)):
                os.dup2(fd, target)
                os.close(fd)
            if count == 1:
                os.setsid()
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            run(request["args"], env | own, request["cwd"])
        pids.append(pid)
    for fd in (out, err):
        os.close(fd)
    silent = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(silent, number)
    os.write(status, f"{pids[0] if count == 1 else os.getpid()}\n".encode())
    if count > 1:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # noqa: F841
    codes, left = [], set(pids)
    while left:
        pid, code = os.waitpid(-1, 0)
        left.remove(pid)
        codes.append(os.waitstatus_to_exitcode(code))
        if codes[-1] and left:  # as torchrun: the others could wait for it for ever
            _end(left)
    worst = next((code for code in codes if code), 0)
    os.write(status, f"{worst}\n".encode())
    os._exit(0)


def _end(pids: set[int]) -> None:
    """SIGTERM, and SIGKILL 30 s later."""

    def send(number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    send(signal.SIGTERM)
    signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGKILL))
    signal.alarm(30)


def run(args: list[str], env: dict[str, str], cwd: str) -> NoReturn:
    """As `python *args` in this process, which ends as that would: by leaving all frames of the server, too."""
    for number in _BEFORE_A_RUN:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, name, lines in ((1, "stdout", "PYTHONUNBUFFERED" in env), (2, "stderr", True)):
        stream = os.fdopen(number, "w", 1 if lines else -1, "utf-8", "backslashreplace", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    run_as_main(args)
    raise SystemExit(0)


def run_as_main(args: list[str]) -> None:
    """The module, code or script of a command line."""
    kind, more = args[0], args[1:]
    first = str(Path(kind).resolve().parent) if kind not in ("-m", "-c") else os.getcwd()
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [first, *given]
    if kind == "-m":
        sys.argv = more
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *more[1:]]
        exec(compile(more[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(args)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
