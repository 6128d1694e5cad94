"""Part "compiled": `train --compile` on a GPU, which runs the network as CUDA graphs, against the run in eager mode.

Also what must not change: the losses, a validation between two steps, and a run that is resumed.
"""

import json
import time

import numpy as np
import torch

from cond_pipelines import TrainingConfig, train
from cond_pipelines.networks.unet_sizes import build_unet
from cond_pipelines.training.muon import GraphOfOrthogonalized, is_matrix, orthogonalized
from gpu_parts.context import Context

_TINY = {"unet_size": "xxs", "train_batch_size": 2, "resolution": 8, "default_num_inference_steps": 1}
_LOG_EVERY = 10


def run(context: Context) -> None:
    """Muon's graph, then a run in eager mode, compiled, and compiled again from its checkpoint."""
    icons = context.data / "icons"
    if not (context.tiny or icons.is_dir()):
        context.row("train --compile", None, note=f"{icons} is not there: see the head of benchmarks/gpu.py")
        return
    data = {"dataset_name": "gpu_parts.reference:few_shapes"} if context.tiny else {"train_data_dir": str(icons)}
    if context.device == "cuda":
        muon(context)
    steps = 20 if context.tiny else 300
    eager = _train(context, "eager", data, steps, compile=False)
    if context.tiny:  # a compiler takes a minute on a CPU: what would be compiled runs as it is
        torch.compiler.set_stance("force_eager")
    if not context.enough("train --compile", 100):
        return
    compiled = _train(context, "compiled", data, steps, compile=True, checkpointing_steps=steps // 2)
    speed = [_images_per_sec(lines) for lines in (eager, compiled)]
    context.row("images/s with --compile over eager", speed[1] / speed[0], "x", at_least=2)
    difference = abs(_loss(compiled) - _loss(eager)) / _loss(eager)
    context.row("losses with --compile and in eager mode, all steps: relative difference", difference, at_most=0.01)
    if not context.enough("resumed --compile", 40):
        return
    resumed = _train(context, "compiled", data, 2 * steps, compile=True, resume_from_checkpoint="latest")
    first = [line["loss"] for line in resumed if line["step"] > steps]
    context.row("loss after it is resumed", float(np.mean(first)), note=f"{len(resumed)} lines of the log")


def _train(context: Context, name: str, data: dict[str, str], steps: int, **settings: object) -> list[dict]:
    """The lines of its log."""
    start, folder = time.perf_counter(), context.scratch / name
    settings |= {**data, "conditioning": "class", "resolution": 32, "report_to": "none"}
    settings |= {"validation_steps": steps // 2, "logging_steps": _LOG_EVERY, "max_train_steps": steps}
    train(TrainingConfig(**settings | (_TINY if context.tiny else {}), output_dir=str(folder)))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    note = f"{time.perf_counter() - start:.0f} s in all; the first {_LOG_EVERY} steps {lines[0]['elapsed_sec']:.0f} s"
    context.row(f"train, {name}", _images_per_sec(lines), "images/s", note=note)
    return lines


def _images_per_sec(lines: list[dict]) -> float:
    """Of the median line of the log."""
    sec, images = (np.diff([line[key] for line in lines]) for key in ("elapsed_sec", "images"))
    return float(np.median(images / sec))


def _loss(lines: list[dict]) -> float:
    return float(np.mean([line["loss"] for line in lines]))


def muon(context: Context) -> None:
    """The graph gives what the same products give one by one, and again with other matrices."""
    with torch.device("cuda"):
        matrices = [p.flatten(1) for p in build_unet("m").parameters() if is_matrix(p)]
    shapes = sorted({m.shape for m in matrices})
    stacks = [torch.stack([m for m in matrices if m.shape == shape]).detach() for shape in shapes]
    graph, largest = GraphOfOrthogonalized(stacks), 0.0
    for scale in (1.0, -3.0):
        for found, x in zip(graph([scale * x for x in stacks]), stacks, strict=True):
            largest = max(largest, float((found - orthogonalized(scale * x)).abs().max()))
    context.row("Muon's CUDA graph against its products one by one: largest difference", largest, at_most=1e-2)
