"""Does a run of two processes always end? Many runs of three steps beside a busy loop on every core.

    python benchmarks/ends_of_two.py --num_runs 200
    python benchmarks/ends_of_two.py --num_runs 20 --launcher torchrun
    python benchmarks/ends_of_two.py --num_runs 20 --command evaluate
    python benchmarks/ends_of_two.py --num_runs 20 --end failure

Prints how many of the runs ended, and with which exit codes. Exit code 1: one did not end in `--limit_sec`, or with
another code than it should.

`--launcher fork` forks both processes from one that has imported everything, and holds the store for them as torchrun's
agent does. So a run needs no imports; all else is the same, the end of the process too. `--nice_gloo` gives gloo's
threads the lowest priority: they come last to let go of what they hold, and that is what an end must survive.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

NUM_PROCESSES = 2
FLAGS = {
    "conditioning": "class",
    "dataset_name": "ends_of_two:few_shapes",
    "resolution": 8,
    "unet_size": "xxs",
    "train_batch_size": 4,
    "max_train_steps": 3,
    "validation_steps": 0,
    "num_validation_images": 2,
    "mixed_precision": "no",
    "report_to": "none",
    "default_num_inference_steps": 1,
    "default_guidance_scale": 1.0,
}
EVALUATION_FLAGS = {"num_samples": 16, "num_inference_steps": 1, "feature_extractor": "pixels", "num_real": 32}
EVALUATION_FLAGS |= {"dataset_name": FLAGS["dataset_name"]}
EXPECTED = {"success": 0, "failure": 1}
BUSY = "while True: pass"


def few_shapes() -> "datasets.Dataset":
    from cond_pipelines.data.shapes import load_shapes

    return load_shapes(32)


def as_flags(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def command(options: argparse.Namespace, folder: Path, model: Path | None) -> tuple[str, list[str]]:
    """Module and arguments of the run."""
    if options.command == "evaluate":
        return "cond_pipelines.evaluate", [str(model), *as_flags(EVALUATION_FLAGS | {"output_dir": folder})]
    changed = {"output_dir": folder}
    if options.end == "failure":  # checkpoints cannot be written where a file is in the way
        changed["checkpointing_steps"] = 2
        (folder / "unfinished-checkpoint-2").write_text("in the way")
    return "cond_pipelines.training", as_flags(FLAGS | changed)


def start_by_torchrun(module: str, args: list[str], env: dict[str, str]) -> list[int]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={NUM_PROCESSES}", "-m", module]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [subprocess.Popen([sys.executable, "-m", *launcher, *args], env=env, **pipes).pid]


def start_by_fork(module: str, args: list[str], env: dict[str, str]) -> list[int]:
    """Both processes, forked; the store is this process's, as it is the agent's under torchrun."""
    from torch.distributed import TCPStore

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_by_fork.store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    env |= {"WORLD_SIZE": str(NUM_PROCESSES), "LOCAL_WORLD_SIZE": str(NUM_PROCESSES), "TORCHELASTIC_RUN_ID": "ends"}
    found = []
    for rank in range(NUM_PROCESSES):
        pid = os.fork()
        if not pid:
            run_forked(module, args, env | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        found.append(pid)
    return found


def run_forked(module: str, args: list[str], env: dict[str, str]) -> None:
    """As `python -m module *args`, in the process that was forked; it ends as that would."""
    import runpy

    quiet = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(quiet, number)
    os.environ.update(env)
    sys.argv = [module, *args]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    # A process that comes here ends with Python's destructors, but not through the frames of the one that forked it.
    ctypes.pythonapi.Py_FinalizeEx()
    os._exit(code or 0)


def wait(pids: list[int], options: argparse.Namespace) -> list[int | None]:
    """Their exit codes; None of one that did not end in time, which is killed."""
    end, codes = time.monotonic() + options.limit_sec, dict.fromkeys(pids)
    while None in codes.values() and time.monotonic() < end:
        for pid in [pid for pid, code in codes.items() if code is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif options.nice_gloo:
                nice_gloo(pid)
        time.sleep(0.02)
    for pid in [pid for pid, code in codes.items() if code is None]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return list(codes.values())


def nice_gloo(pid: int) -> None:
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            if "gloo" in (task / "comm").read_text():
                os.setpriority(os.PRIO_PROCESS, int(task.name), 19)


def main() -> None:
    """Run them; exit code 1 where one did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_runs", type=int, default=200)
    parser.add_argument("--launcher", choices=["fork", "torchrun"], default="fork")
    parser.add_argument("--command", choices=["train", "evaluate"], default="train")
    parser.add_argument("--end", choices=list(EXPECTED), default="success")
    parser.add_argument("--limit_sec", type=float, default=180.0, help="a run that takes longer hangs")
    parser.add_argument("--nice_gloo", action="store_true")
    options = parser.parse_args()
    here = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    root = Path(tempfile.mkdtemp(prefix="ends_of_two_"))  # no TemporaryDirectory: a forked process would delete it
    try:
        counts, seconds = run_all(options, env, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for process in busy:
            process.kill()
            process.wait(timeout=60)
    ended = sum(n for codes, n in counts.items() if codes in ("0", str(EXPECTED[options.end])))
    result = vars(options) | {"ended": ended, "exit_codes": dict(counts), "seconds_a_run": round(seconds, 1)}
    print(json.dumps(result))
    raise SystemExit(0 if set(counts) == {str(EXPECTED[options.end])} else 1)


def run_all(options: argparse.Namespace, env: dict[str, str], root: Path) -> tuple[Counter, float]:
    """How often each exit code came ("None": it did not end), and the mean time."""
    counts: Counter = Counter()
    model = root / "model"
    if options.command == "evaluate":
        args = as_flags(FLAGS | {"output_dir": model, "validation_fraction": 0.4})
        subprocess.run([sys.executable, "-m", "cond_pipelines.training", *args], env=env, check=True, timeout=600)
    if options.launcher == "fork":
        import_everything()
    start = time.monotonic()
    for number in range(options.num_runs):
        folder = root / str(number)
        folder.mkdir()
        module, args = command(options, folder, model)
        launch = start_by_fork if options.launcher == "fork" else start_by_torchrun
        codes = wait(launch(module, args, dict(env)), options)
        worst = next((code for code in codes if code is None), max((c or 0 for c in codes), key=abs))
        counts[str(worst)] += 1
        print(f"run {number + 1}: {codes}; {dict(counts)}", flush=True)
        shutil.rmtree(folder)
    return counts, (time.monotonic() - start) / options.num_runs


def import_everything() -> None:
    import cond_pipelines.evaluation.evaluate
    import cond_pipelines.training.loop  # noqa: F401


if __name__ == "__main__":
    main()
