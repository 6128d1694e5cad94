"""Do FSDP2 and DeepSpeed ZeRO-2 train as one process does?

    python benchmarks/sharding_check.py --kind fsdp2
    python benchmarks/sharding_check.py --kind deepspeed_zero2    # needs `pip install deepspeed`

The loss curves of one process, of two sharded ones (on CPUs or on two GPUs) with half of the batch each, so with the
same images, noise and times, and of those resumed half-way. `--kind ddp` shares the images alone; `--num_processes 1`
goes through the same code on one GPU. Prints the largest relative differences as one JSON object.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import accelerate
import datasets
import torch
from accelerate import DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_multi_gpu_env
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


def train_as_on_gpus(args: list[str]) -> None:
    """A run on CPUs that accelerate takes for GPUs."""
    as_on_gpus()
    main_of_training(args)


def launch_arguments(kind: str, num_processes: int) -> list[str]:
    """What `accelerate launch` is given; port 0 is a free one."""
    arguments = ["--num_processes", str(num_processes), "--mixed_precision", "no", "--main_process_port", "0"]
    return [*arguments, "--config_file", str(ROOT / f"training/accelerate/{kind}.yaml")]


def launch_environment(kind: str, num_processes: int) -> dict[str, str]:
    """The variables that `accelerate launch` sets for the file of `kind`, but for the ranks."""
    launcher = launch_command_parser().parse_args([*launch_arguments(kind, num_processes), "script"])
    return prepare_multi_gpu_env(_validate_launch_command(launcher)[0])


def command(kind: str, num_processes: int) -> list[str]:
    """What launches a run of several processes, up to its own flags."""
    launcher = ["-m", "accelerate.commands.launch", *launch_arguments(kind, num_processes)]
    if kind == "fsdp2" and not torch.cuda.is_available():
        return [*launcher, __file__, "as_on_gpus"]
    return [*launcher, "-m", "cond_pipelines.training"]


def launch(options: argparse.Namespace, args: list[str]) -> None:
    """Run `accelerate launch` with the file of `options.kind`, and wait for it."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path}
    if not torch.cuda.is_available():
        env |= {"OMP_NUM_THREADS": "1"}
        env |= {"DS_ACCELERATOR": "cpu"} if options.kind == "deepspeed_zero2" else {"ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [sys.executable, *command(options.kind, options.num_processes), *args], env=env, check=True, timeout=1800
    )


def run(folder: Path, options: argparse.Namespace, start: Callable[..., None] | None = None) -> list[float]:
    """The losses of a run, which resumes what is in `folder`, and the losses of the images held out.

    Args:
        start: `launch`, or what does the same; None: one process, this one.
    """
    flags = {
        "conditioning": "class",
        "dataset_name": getattr(options, "dataset_name", "sharding_check:few_shapes"),
        "resolution": 16,
        "adam_epsilon": 1e-2,  # a small one makes rounding large where a gradient is nearly zero
        "unet_size": "xxs",
        "train_batch_size": 8 // options.num_processes if start else 8,
        "gradient_accumulation_steps": 2,
        "max_train_steps": options.steps,
        "lr_scheduler": "constant",
        "checkpointing_steps": options.steps // 2,
        "resume_from_checkpoint": "latest",
        "logging_steps": 1,
        "validation_steps": options.steps // 2,
        "report_to": "none",
        "optimizer": "adamw",  # the only one that goes with sharding
        "default_num_inference_steps": 2,
        "autoguidance": True,  # an average more, which is saved as a network of its own
        "mixed_precision": options.mixed_precision,
        "output_dir": str(folder),
    }
    if start:
        start(options, [x for name, value in flags.items() for x in (f"--{name}", str(value))])
    else:
        train(TrainingConfig(**flags))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("loss", "held_out_loss") if key in line]


def _weights(folder: Path) -> list[tuple[str, torch.Tensor]]:
    return list(load_file(folder / "diffusion_pytorch_model.safetensors").items())


def compare(options: argparse.Namespace, start: Callable[..., None] = launch) -> dict[str, float]:
    """The largest relative differences of the losses, and the largest difference of the weights that are saved."""
    with tempfile.TemporaryDirectory() as folder:
        alone = run(Path(folder) / "alone", options)
        sharded = run(Path(folder) / "sharded", options, start)
        half = f"sharded/checkpoint-{options.steps // 2}"
        shutil.copytree(Path(folder) / half, Path(folder) / "resumed" / Path(half).name)
        shutil.copy(Path(folder) / "sharded/log.jsonl", Path(folder) / "resumed")
        resumed = run(Path(folder) / "resumed", options, start)
        weights = [
            {
                f"{part}.{key}": value
                for part in ("unet", "guide")
                for key, value in _weights(Path(folder) / name / part)
            }
            for name in ("alone", "sharded")
        ]
    assert len(alone) == len(sharded) == len(resumed) == options.steps + 2

    def difference(a: list[float], b: list[float]) -> float:
        return max(abs(x - y) / y for x, y in zip(a, b, strict=True))

    found = {"against_one_process": difference(sharded, alone), "resumed_against_whole": difference(resumed, sharded)}
    found["largest_difference_of_saved_weights"] = max(
        (weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]
    )
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("fsdp2", "ddp", "deepspeed_zero2"), default="fsdp2")
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mixed_precision", default="no")
    options = parser.parse_args()
    result = {**vars(options), "torch": torch.__version__, "accelerate": accelerate.__version__}
    print(json.dumps(result | compare(options)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["as_on_gpus"]:
        as_on_gpus()
        sys.argv[1:] = sys.argv[2:]
        main_of_training()  # the command of this process, which ends as a command does
    else:
        main()
