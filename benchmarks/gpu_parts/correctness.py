"""Part "correctness": the losses of a CPU, a killed run that ends as one nobody disturbed, FSDP2 and DDP on one GPU.

Nothing here is timed, so what needs processes of its own runs at the same time.
"""

import argparse
import json
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import sharding_check
import torch
from accelerate.state import AcceleratorState
from kill_test import logged_step, result

from cond_pipelines import TrainingConfig, train
from gpu_parts import reference
from gpu_parts.context import Context
from gpu_parts.starting import start

_SPREAD = 3  # standard deviations over seeds within which a loss is the same
_TINY = {
    "max_train_steps": 2,
    "train_batch_size": 2,
    "validation_steps": 2,
    "dataset_name": "gpu_parts.reference:few_shapes",
}
_KILL = {
    "conditioning": "class",
    "dataset_name": "gpu_parts.reference:drawn_shapes",
    "max_train_samples": 500,
    "resolution": 16,
    "unet_size": "xxs",
    "train_batch_size": 16,
    "logging_steps": 2,
    "validation_steps": 0,
    "checkpoints_total_limit": 2,
    "report_to": "none",
    "default_num_inference_steps": 1,
    "resume_from_checkpoint": "latest",
}


def run(context: Context) -> None:
    """Each check writes its rows, whatever becomes of the others."""
    where = "one GPU" if context.device == "cuda" else "one CPU"
    checks: dict[str, tuple[Callable[[], dict[str, Any]], Callable[..., None]]] = {
        "killed and resumed, deterministic algorithms": (partial(kill_and_resume, context), _kill_rows),
        f"fsdp2.yaml on {where}": (partial(compare, context, "fsdp2"), _shard_rows),
        f"ddp.yaml on {where}": (partial(compare, context, "ddp"), _shard_rows),
    }
    if context.tiny:  # of the two that start runs by a launcher's variables, the one that does more
        checks.pop(f"ddp.yaml on {where}")
    if context.device == "cpu":  # one after the other: what is forked must have one thread
        for what, (check, rows) in checks.items():
            _write(context, what, check, rows)
        losses(context)
        return
    log = context.out / "gpu.log"  # processes, not threads: each trains
    processes = [start(log, {}, _write, context, what, check, rows) for what, (check, rows) in checks.items()]
    losses(context)
    for process in processes:
        process.join()


def _write(context: Context, what: str, check: Callable[[], dict[str, Any]], rows: Callable[..., None]) -> None:
    try:
        rows(context, what, check())
    except Exception as error:  # whatever it is, the other checks have their rows
        note = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        context.row(what, "failed", goal="works", met=False, note=note)


# ------------------------------------------------------------------------------------------------ against a CPU
def losses(context: Context) -> None:
    """The held-out loss after 200 steps in each precision, against the spread of float32 runs on a CPU."""
    known = json.loads(reference.RESULT.read_text())
    mean, deviation = known["mean"], known["standard_deviation"]
    if known["config"] != reference.CONFIG:
        raise SystemExit(f"{reference.RESULT} is of another configuration: python -m gpu_parts.reference")
    changes = _TINY if context.tiny else {}
    for precision in ("bf16", "fp16") if context.device == "cuda" else ("no",):
        loss = reference.held_out_loss(context.scratch / precision, mixed_precision=precision, **changes)
        goal = f"{mean:.4f} ± {_SPREAD * deviation:.4f}, {_SPREAD} deviations of a CPU's seeds"
        near = abs(loss - mean) <= _SPREAD * deviation
        skipped = [line for line in _log(context.scratch / precision) if line.get("skipped_steps")]
        note = f"{skipped[-1]['skipped_steps']} steps were skipped" if skipped else ""
        context.row(f"held-out loss after {reference.STEPS} steps, {precision}", loss, goal=goal, met=near, note=note)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------- killed, resumed
def train_deterministically(settings: dict[str, Any]) -> None:
    """A run whose every operation gives the same bits again, as far as PyTorch has one that does."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    train(TrainingConfig(**settings))


def kill_and_resume(context: Context) -> dict[str, Any]:
    """A run that nobody disturbs beside one that is killed and resumed: at which step, and what differs."""
    steps, save_every = (6, 2) if context.tiny else (240, 30)
    settings = _KILL | {"max_train_steps": steps, "checkpointing_steps": save_every}
    settings |= {"train_batch_size": 2, "dataset_name": _TINY["dataset_name"]} if context.tiny else {}
    folders = {name: context.scratch / f"killed_or_not/{name}" for name in ("whole", "killed")}

    def begin(name: str) -> BaseProcess:
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        arguments = settings | {"output_dir": str(folders[name])}
        log, fork = context.out / "gpu.log", context.device == "cpu"
        return start(log, environment, train_deterministically, arguments, fork=fork)

    whole, killed = begin("whole"), begin("killed")
    while killed.is_alive() and logged_step(folders["killed"]) < steps // 2:
        time.sleep(0.002)
    was_alive = killed.is_alive()
    killed.kill()
    killed.join()
    at = logged_step(folders["killed"])
    if not was_alive:
        raise RuntimeError(f"the run ended by itself with exit code {killed.exitcode} at step {at}")
    again = begin("killed")
    for process in (whole, again):
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a run ended with exit code {process.exitcode}: see gpu.log")
    (weights, log), (expected, expected_log) = result(folders["killed"]), result(folders["whole"])
    different = [name for name in expected if not torch.equal(weights[name], expected[name])]
    return {"at": at, "steps": steps, "different": different, "count": len(expected), "log": log == expected_log}


def _kill_rows(context: Context, what: str, found: dict[str, Any]) -> None:
    note = f"killed at step {found['at']} of {found['steps']}; log identical: {found['log']}"
    different = len(found["different"])
    context.row(f"{what}: tensors that differ", different, f"of {found['count']}", at_most=0, note=note)


# --------------------------------------------------------------------------------------------------- FSDP2, DDP
def compare(context: Context, kind: str) -> dict[str, float]:
    """20 steps through training/accelerate/<kind>.yaml with one process, against none of it, and resumed half-way."""
    steps = 2 if context.tiny else 20
    options = argparse.Namespace(kind=kind, steps=steps, mixed_precision="no", num_processes=1)
    options.dataset_name = (_TINY if context.tiny else _KILL)["dataset_name"]
    launch = sharding_check.launch if context.device == "cuda" else partial(_launch_here, context)
    return sharding_check.compare(options, launch)


def _shard_rows(context: Context, what: str, found: dict[str, float]) -> None:
    # A GPU adds up in an order of its own, which the optimizer turns into differences of this size within 20 steps.
    for name, value in found.items():
        context.row(f"{what}, {name.replace('_', ' ')}", value, at_most=1e-3)


def _launch_here(context: Context, options: argparse.Namespace, args: list[str]) -> None:
    """As `accelerate launch` of one process on a CPU, with what accelerate reads in the file, but forked."""
    environment = sharding_check.launch_environment(options.kind, 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    target = sharding_check.train_as_on_gpus if options.kind == "fsdp2" else sharding_check.main_of_training
    process = start(context.out / "gpu.log", environment, _from_anew, target, args, fork=True)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{options.kind} ended with exit code {process.exitcode}: see gpu.log")


def _from_anew(target: Callable[[list[str]], None], args: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # the process that was forked had run alone
    target(args)
