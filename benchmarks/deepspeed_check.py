"""python benchmarks/deepspeed_check.py: does DeepSpeed ZeRO-2 train as DDP does? Needs `pip install deepspeed`.

Two processes each, on the CPU (DS_ACCELERATOR=cpu) or on two GPUs: the loss curves of DDP and of ZeRO-2 with the same
images, noise and times, and of ZeRO-2 stopped and resumed. Prints the largest relative differences as one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LAUNCHERS = {
    "ddp": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "zero2": [
        *("-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no"),
        *("--config_file", str(ROOT / "training/accelerate/deepspeed_zero2.yaml")),
    ],
}


def run(folder: Path, kind: str, options: argparse.Namespace, steps: int) -> list[float]:
    """The losses of a run of two processes, which resumes what is in `folder`."""
    env = dict(os.environ)
    if not torch.cuda.is_available():
        env |= {"OMP_NUM_THREADS": "1"} | {"ddp": {"ACCELERATE_USE_CPU": "true"}, "zero2": {"DS_ACCELERATOR": "cpu"}}[
            kind
        ]
    flags = {
        "conditioning": "class",
        "dataset_name": "cond_pipelines.demo:demo_shapes",
        "resolution": 16,
        "unet_size": "xxs",
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_train_steps": steps,
        "lr_scheduler": "constant",
        "checkpointing_steps": options.steps // 2,
        "resume_from_checkpoint": "latest",
        "logging_steps": 1,
        "validation_steps": 0,
        "validation_fraction": 0.01,
        "report_to": "none",
        "default_num_inference_steps": 2,
        "mixed_precision": options.mixed_precision,
        "output_dir": folder,
    }
    args = [x for name, value in flags.items() for x in (f"--{name}", str(value))]
    command = [sys.executable, *LAUNCHERS[kind], "-m", "cond_pipelines.training", *args]
    subprocess.run(command, env=env, check=True)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mixed_precision", default="no")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ddp = run(Path(folder) / "ddp", "ddp", options, options.steps)
        zero = run(Path(folder) / "zero", "zero2", options, options.steps)
        run(Path(folder) / "resumed", "zero2", options, options.steps // 2)
        resumed = run(Path(folder) / "resumed", "zero2", options, options.steps)
    assert len(ddp) == len(zero) == len(resumed) == options.steps

    def difference(a: list[float], b: list[float]) -> float:
        return max(abs(x - y) / y for x, y in zip(a, b, strict=True))

    result = {"steps": options.steps, "mixed_precision": options.mixed_precision, "torch": torch.__version__}
    result |= {"zero2_against_ddp": difference(zero, ddp), "resumed_against_whole": difference(resumed, zero)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
