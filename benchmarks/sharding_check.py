"""Do FSDP2 and DeepSpeed ZeRO-2 train as one process does?

    python benchmarks/sharding_check.py --kind fsdp2
    python benchmarks/sharding_check.py --kind deepspeed_zero2    # needs `pip install deepspeed`

The loss curves of one process, of two sharded ones (on CPUs or on two GPUs) with half of the batch each, so with the
same images, noise and times, and of those resumed half-way. Prints the largest relative differences as one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import accelerate
import datasets
import torch
from accelerate import DistributedType, PartialState
from safetensors.torch import load_file

from cond_pipelines import TrainingConfig, train
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.training.__main__ import main as main_of_training

ROOT = Path(__file__).parents[1]


def few_shapes() -> datasets.Dataset:
    return load_shapes(500)


def as_on_gpus() -> None:
    """Let accelerate take the CPUs for GPUs: it would not shard there, though PyTorch does."""
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def command(kind: str) -> list[str]:
    """What launches a sharded run of two processes, up to its own flags."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no"]
    launcher += ["--config_file", str(ROOT / f"training/accelerate/{kind}.yaml")]
    if kind == "fsdp2" and not torch.cuda.is_available():
        return [*launcher, __file__, "as_on_gpus"]
    return [*launcher, "-m", "cond_pipelines.training"]


def run(folder: Path, options: argparse.Namespace, sharded: bool = True) -> list[float]:
    """The losses of a run, which resumes what is in `folder`, and the losses of the images held out."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path}
    if not torch.cuda.is_available():
        env |= {"OMP_NUM_THREADS": "1"}
        env |= {"DS_ACCELERATOR": "cpu"} if options.kind == "deepspeed_zero2" else {"ACCELERATE_USE_CPU": "true"}
    flags = {
        "conditioning": "class",
        "dataset_name": "sharding_check:few_shapes",
        "resolution": 16,
        "adam_epsilon": 1e-2,  # a small one makes rounding large where a gradient is nearly zero
        "unet_size": "xxs",
        "train_batch_size": 4 if sharded else 8,
        "gradient_accumulation_steps": 2,
        "max_train_steps": options.steps,
        "lr_scheduler": "constant",
        "checkpointing_steps": options.steps // 2,
        "resume_from_checkpoint": "latest",
        "logging_steps": 1,
        "validation_steps": options.steps // 2,
        "report_to": "none",
        "default_num_inference_steps": 2,
        "mixed_precision": options.mixed_precision,
        "output_dir": str(folder),
    }
    if sharded:
        args = [x for name, value in flags.items() for x in (f"--{name}", str(value))]
        subprocess.run([sys.executable, *command(options.kind), *args], env=env, check=True, timeout=1800)
    else:
        train(TrainingConfig(**flags))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("loss", "held_out_loss") if key in line]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("fsdp2", "deepspeed_zero2"), default="fsdp2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mixed_precision", default="no")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone = run(Path(folder) / "alone", options, sharded=False)
        sharded = run(Path(folder) / "sharded", options)
        half = f"sharded/checkpoint-{options.steps // 2}"
        shutil.copytree(Path(folder) / half, Path(folder) / "resumed" / Path(half).name)
        shutil.copy(Path(folder) / "sharded/log.jsonl", Path(folder) / "resumed")
        resumed = run(Path(folder) / "resumed", options)
        weights = [
            load_file(Path(folder) / name / "unet/diffusion_pytorch_model.safetensors") for name in ("alone", "sharded")
        ]
    assert len(alone) == len(sharded) == len(resumed) == options.steps + 2

    def difference(a: list[float], b: list[float]) -> float:
        return max(abs(x - y) / y for x, y in zip(a, b, strict=True))

    result = {**vars(options), "torch": torch.__version__, "accelerate": accelerate.__version__}
    result |= {"against_one_process": difference(sharded, alone), "resumed_against_whole": difference(resumed, sharded)}
    result["largest_difference_of_saved_weights"] = max(
        (weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]
    )
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["as_on_gpus"]:
        as_on_gpus()
        sys.argv[1:] = sys.argv[2:]
        main_of_training()  # the command of this process, which ends as a command does
    else:
        main()
