"""Kill a training run at random instants, resume it each time, and compare the end with a run that nobody disturbed.

    python benchmarks/kill_test.py --num_kills 20 --num_processes 1
    python benchmarks/kill_test.py --num_kills 20 --num_processes 2

Kills come while the run starts, while it trains and while it saves. Prints how many came during a save, the most steps
that one kill lost, and whether weights (EMA) and loss log are bit-identical. The model is tiny: a step takes
milliseconds, so that saves are a good part of the time. The runs are forked from a process that has imported the
libraries (see warm.py).
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from processes import kill_all
from safetensors.torch import load_file
from warm import WarmProcess, WarmStart

from cond_pipelines.data.shapes import load_shapes

STEPS, SAVE_EVERY = 480, 6


def drawn_shapes(root: Path) -> Path:
    """A small data set, drawn once: a run that is started again should start quickly."""
    load_shapes(500).save_to_disk(root / "shapes")
    return root / "shapes"


def start(folder: Path, options: argparse.Namespace, warm: WarmStart) -> WarmProcess:
    """The same command every time, as a scheduler would restart it."""
    num_processes = options.num_processes
    flags = {
        "conditioning": options.conditioning,
        "train_data_dir": options.train_data_dir,
        "resolution": 16,
        "unet_size": "xxs",
        "train_batch_size": 8 // num_processes,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "max_train_steps": options.max_train_steps,
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
    args = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return warm.start(["-m", "cond_pipelines.training", *args], num_processes=num_processes, quiet=True)


def warm_start() -> WarmStart:
    """What the runs are forked from."""
    return WarmStart(os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})


def saved_step(folder: Path) -> int:
    steps = [int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")]
    return max(steps, default=0)


def logged_step(folder: Path) -> int:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def result(folder: Path) -> tuple[dict, list]:
    """Weights, and the log but for its clock."""
    weights = {
        f"{part}.{name}": tensor
        for part in ("unet", "adapter")
        for name, tensor in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return weights, [{k: v for k, v in line.items() if not k.endswith("_sec")} for line in lines]


def wait_for_an_instant(process: WarmProcess, folder: Path, rng: random.Random) -> None:
    """A random one of three kinds: while the run starts, while it trains, while it saves."""
    kind, before = rng.choice(["start", "train", "train", "save"]), logged_step(folder)
    if kind == "start":
        _sleep(process, rng.uniform(0, 4))
        return
    while process.poll() is None and logged_step(folder) <= before:
        time.sleep(0.001)
    _sleep(process, rng.uniform(0, 2))
    while kind == "save" and process.poll() is None and not list(folder.glob("unfinished-*")):
        time.sleep(0.001)
    if kind == "save":
        _sleep(process, rng.uniform(0, 0.1))


def _sleep(process: WarmProcess, sec: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=sec)


def main() -> None:
    """Run the study; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_kills", type=int, default=20)
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--conditioning", default="class")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=2)
    parser.add_argument("--max_train_steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, root = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kill_test_"))
    whole, killed = root / "whole", root / "killed"
    options.train_data_dir = drawn_shapes(root)
    warm = warm_start()
    if start(whole, options, warm).wait(timeout=3600) != 0:
        raise SystemExit("the run that nobody disturbs failed")
    kills, during_save, lost = 0, 0, 0
    while kills < options.num_kills:
        process = start(killed, options, warm)
        wait_for_an_instant(process, killed, rng)
        if process.poll() is not None:
            raise SystemExit(
                f"the run ended with code {process.returncode} after {kills} kills; take more --max_train_steps"
            )
        unfinished = bool(list(killed.glob("unfinished-*")))
        kill_all(process)
        kills, during_save = kills + 1, during_save + unfinished
        lost = max(lost, logged_step(killed) - saved_step(killed))
        where = ", during a save" if unfinished else ""
        print(f"kill {kills}: logged step {logged_step(killed)}, saved {saved_step(killed)}{where}", flush=True)
    if start(killed, options, warm).wait(timeout=3600) != 0:
        raise SystemExit(f"the resumed run failed, after {kills} kills")
    (weights, log), (expected, expected_log) = result(killed), result(whole)
    same = weights.keys() == expected.keys() and all((weights[name] == expected[name]).all() for name in expected)
    left = [path.name for path in killed.glob("unfinished-*")]
    print(
        f"{options.conditioning}, {options.num_processes} process(es), {kills} kills, {during_save} during a save; "
        f"at most {lost} logged steps lost (a checkpoint every {SAVE_EVERY}); weights identical: {same}; "
        f"log identical: {log == expected_log}; left over: {left}"
    )
    raise SystemExit(0 if same and log == expected_log and not left and lost <= SAVE_EVERY else 1)


if __name__ == "__main__":
    main()
