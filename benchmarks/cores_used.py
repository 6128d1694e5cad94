"""Does a run use the cores that it was given? CPU time over wall time of the README's training command.

    python benchmarks/cores_used.py --minutes 8
    python benchmarks/cores_used.py --minutes 1 --resolution 16

The command runs through `accelerate launch`, without OMP_NUM_THREADS, on drawn shapes. Prints one JSON object: CPU time
over wall time of the whole command, imports and samples included; the images a second of its training; what the run
says of its cores. Other work on the machine lowers them, so the load is printed too.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cpu_sec() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Train, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=32)
    options = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    with tempfile.TemporaryDirectory(prefix="cores_used_") as folder:
        flags = {
            "conditioning": "class",
            "dataset_name": "cond_pipelines.demo:demo_shapes",
            "resolution": options.resolution,
            "train_batch_size": options.train_batch_size,
            "max_train_minutes": options.minutes,
            "report_to": "none",
            "output_dir": folder,
        }
        command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "cond_pipelines.training"]
        command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        before, start = cpu_sec(), time.monotonic()
        done = subprocess.run(
            command, env=env, check=True, capture_output=True, text=True, timeout=60 * options.minutes + 1800
        )
        wall, cpu = time.monotonic() - start, cpu_sec() - before
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    (run,) = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("run: ")]
    result = vars(options) | {
        "cpu_over_wall": round(cpu / wall, 2),
        "wall_sec": round(wall),
        "said": run.split(", ")[-1],
    }
    last = next(line for line in reversed(lines) if "elapsed_sec" in line)  # the others are of a validation
    result["images_per_sec"] = round(last["images"] / last["elapsed_sec"], 1)
    result["load_average"] = [round(x, 1) for x in os.getloadavg()]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
