"""Does a run of two processes always end? Many runs of three steps beside a busy loop on every core.

    python benchmarks/ends_of_two.py --num_runs 200
    python benchmarks/ends_of_two.py --num_runs 20 --launcher torchrun
    python benchmarks/ends_of_two.py --num_runs 20 --command evaluate
    python benchmarks/ends_of_two.py --num_runs 20 --end failure

Prints how many of the runs ended, and with which exit codes. Exit code 1: one did not end in `--limit_sec`, or with
another code than it should.

`--launcher warm` forks both processes from one that has imported everything, and holds the store for them as torchrun's
agent does (see warm.py). So a run needs no imports; all else is the same, the end of the process too. `--nice_gloo`
gives gloo's threads the lowest priority: they come last to let go of what they hold, and that is what an end must
survive.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from processes import kill_all
from warm import WarmProcess, WarmStart

if TYPE_CHECKING:
    import datasets

Process = WarmProcess | subprocess.Popen
NUM_PROCESSES = 2
FLAGS = {
    "conditioning": "class",
    "dataset_name": "ends_of_two:few_shapes",
    "resolution": 8,
    "unet_size": "xxs",
    "train_batch_size": 4,
    "max_train_steps": 3,
    "validation_steps": 0,
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

    return load_shapes(96)  # of fewer than 64 none are held out


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


def launch(options: argparse.Namespace, warm: WarmStart, module: str, args: list[str]) -> Process:
    """Start the run: a process whose exit code is 0 where both ended well."""
    if options.launcher == "warm":
        return warm.start(["-m", module, *args], num_processes=NUM_PROCESSES)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={NUM_PROCESSES}", "-m", module]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *launcher, *args], env=warm.env, **pipes)


def wait(process: Process, options: argparse.Namespace) -> int | None:
    """Its exit code; None where it did not end in time, and then it is killed with all that it started."""
    end, texts = time.monotonic() + options.limit_sec, []
    # A full pipe would hold it up.
    reader = threading.Thread(target=lambda: texts.extend(process.communicate(timeout=2 * options.limit_sec)))
    reader.start()
    while reader.is_alive():
        if time.monotonic() > end:
            kill_all(process)
            return None
        if options.nice_gloo:
            nice_gloo(process.pid)
        time.sleep(0.02)
    if process.returncode != EXPECTED[options.end]:
        print(texts[1][-500:])
    return process.returncode


def nice_gloo(pid: int) -> None:
    """Of all children of the launcher `pid`."""
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process(pid).children():
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                if "gloo" in (task / "comm").read_text():
                    os.setpriority(os.PRIO_PROCESS, int(task.name), 19)


def main() -> None:
    """Run them; exit code 1 where one did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_runs", type=int, default=200)
    parser.add_argument("--launcher", choices=["warm", "torchrun"], default="warm")
    parser.add_argument("--command", choices=["train", "evaluate"], default="train")
    parser.add_argument("--end", choices=list(EXPECTED), default="success")
    parser.add_argument("--limit_sec", type=float, default=180.0, help="a run that takes longer hangs")
    parser.add_argument("--nice_gloo", action="store_true")
    options = parser.parse_args()
    here = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        with tempfile.TemporaryDirectory(prefix="ends_of_two_") as root, WarmStart(env) as warm:
            counts, seconds = run_all(options, warm, Path(root))
    finally:
        for process in busy:
            process.kill()
            process.wait(timeout=60)
    ended = sum(n for codes, n in counts.items() if codes in ("0", str(EXPECTED[options.end])))
    result = vars(options) | {"ended": ended, "exit_codes": dict(counts), "seconds_a_run": round(seconds, 1)}
    print(json.dumps(result))
    raise SystemExit(0 if set(counts) == {str(EXPECTED[options.end])} else 1)


def run_all(options: argparse.Namespace, warm: WarmStart, root: Path) -> tuple[Counter, float]:
    """How often each exit code came ("None": it did not end), and the mean time."""
    counts: Counter = Counter()
    model = root / "model"
    if options.command == "evaluate":
        args = as_flags(FLAGS | {"output_dir": model, "validation_fraction": 0.4})
        subprocess.run([sys.executable, "-m", "cond_pipelines.training", *args], env=warm.env, check=True, timeout=600)
    start = time.monotonic()
    for number in range(options.num_runs):
        folder = root / str(number)
        folder.mkdir()
        code = wait(launch(options, warm, *command(options, folder, model)), options)
        counts[str(code)] += 1
        print(f"run {number + 1}: {code}; {dict(counts)}", flush=True)
        shutil.rmtree(folder)
    return counts, (time.monotonic() - start) / options.num_runs


if __name__ == "__main__":
    main()
