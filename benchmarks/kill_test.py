"""Kill a training run at random instants, resume it each time, and compare the end with a run that nobody disturbed.

    python benchmarks/kill_test.py --num_kills 20 --num_processes 1
    python benchmarks/kill_test.py --num_kills 20 --num_processes 2

Prints how many kills came during a save, the most steps that one kill lost, and whether weights (EMA) and loss log are
bit-identical. The model is tiny: a step takes milliseconds, so that saves are a good part of the time.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file

STEPS, SAVE_EVERY = 240, 6


def start(folder: Path, num_processes: int) -> subprocess.Popen:
    """The same command every time, as a scheduler would restart it."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if num_processes > 1 else []), "cond_pipelines.training"]
    flags = {
        "conditioning": "class",
        "dataset_name": "cond_pipelines.demo:demo_shapes",
        "max_train_samples": 500,
        "resolution": 16,
        "unet_size": "xxs",
        "train_batch_size": 8 // num_processes,
        "gradient_accumulation_steps": 2,
        "max_train_steps": STEPS,
        "checkpointing_steps": SAVE_EVERY,
        "checkpoints_total_limit": 2,
        "logging_steps": 4,
        "validation_steps": 0,
        "mixed_precision": "no",
        "report_to": "none",
        "default_num_inference_steps": 1,
        "resume_from_checkpoint": "latest",
        "output_dir": folder,
    }
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    return subprocess.Popen(command, env=env, **quiet)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL, also of the workers, which torchrun gives sessions of their own."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone, timeout=30)
    process.wait()


def saved_step(folder: Path) -> int:
    steps = [int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")]
    return max(steps, default=0)


def logged_step(folder: Path) -> int:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def result(folder: Path) -> tuple[dict, list]:
    weights = {
        f"{part}.{name}": tensor
        for part in ("unet", "adapter")
        for name, tensor in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return weights, [{k: v for k, v in line.items() if not k.endswith("_sec")} for line in lines]


def main() -> None:
    """Run the study; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_kills", type=int, default=20)
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, root = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kill_test_"))
    whole, killed = root / "whole", root / "killed"
    assert start(whole, options.num_processes).wait() == 0
    kills, during_save, lost = 0, 0, 0
    while True:
        process, before = start(killed, options.num_processes), saved_step(killed)
        if kills < options.num_kills:
            # Somewhere in the next two checkpoints, so that the run lives long enough to be killed again.
            target, deadline = before + rng.randint(1, 2), time.monotonic() + 300
            while process.poll() is None and saved_step(killed) <= target and time.monotonic() < deadline:
                time.sleep(0.001)
                if saved_step(killed) > before and rng.random() < 0.02:
                    break
            if process.poll() is None:
                during_save += bool(list(killed.glob("unfinished-*")))
                kill_all(process)
                kills += 1
                lost = max(lost, logged_step(killed) - saved_step(killed))
                print(
                    f"kill {kills}: last line of the log {logged_step(killed)}, saved {saved_step(killed)}", flush=True
                )
                continue
        if process.wait() != 0:
            raise SystemExit(f"the resumed run failed, after {kills} kills")
        break
    (weights, log), (expected, expected_log) = result(killed), result(whole)
    same = all((weights[name] == expected[name]).all() for name in expected) and weights.keys() == expected.keys()
    print(
        f"{options.num_processes} process(es), {kills} kills, {during_save} during a save; at most {lost} steps lost "
        f" (a checkpoint every {SAVE_EVERY}); weights identical: {same}; log identical: {log == expected_log}; "
        f"left over: {[p.name for p in killed.glob('unfinished-*')]}"
    )
    raise SystemExit(0 if same and log == expected_log else 1)


if __name__ == "__main__":
    main()
