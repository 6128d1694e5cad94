"""Part "compiled": `train --compile` on a GPU, which runs the network as CUDA graphs, against the run in eager mode.

Also what must not change: the losses, a validation between two steps, and a run that is resumed.
"""

import time

import numpy as np
import torch

from cond_pipelines import TrainingConfig, train
from cond_pipelines.networks.unet_sizes import build_unet
from cond_pipelines.training.muon import GraphOfOrthogonalized, is_matrix, orthogonalized
from cond_pipelines.training.run_files import read_log
from gpu_parts.context import Context
from gpu_parts.icons import icons

_TINY = {"unet_size": "xxs", "train_batch_size": 2, "resolution": 8, "default_num_inference_steps": 1}
_LOG_EVERY = 10


def run(context: Context) -> None:
    """Muon's graph, then a run in eager mode, compiled, and compiled again from its checkpoint."""
    data = icons(context)
    if data is None:
        return
    if context.device == "cuda":
        muon(context)
    steps = 20 if context.tiny else 300
    eager = _train(context, "eager", data, steps, compile=False)
    if context.tiny:  # a compiler takes a minute on a CPU: what would be compiled runs as it is
        torch.compiler.set_stance("force_eager")
    if not context.enough("train --compile", 100):
        return
    compiled = _train(context, "compiled", data, steps, compile=True, checkpointing_steps=steps // 2)
    ratio = np.median(compiled["images_per_sec"]) / np.median(eager["images_per_sec"])
    context.row("images/s with --compile over eager", float(ratio), "x", at_least=2)
    mean = float(np.mean(compiled["loss"]))
    difference = abs(mean / float(np.mean(eager["loss"])) - 1)
    context.row("losses with --compile and in eager mode, all steps: relative difference", difference, at_most=0.01)
    if not context.enough("resumed --compile", 40):
        return
    more = {"output_name": "compiled", "resume_from_checkpoint": "latest"}
    resumed = _train(context, "resumed", data, 2 * steps, compile=True, **more)
    after = [loss for step, loss in zip(resumed["step"], resumed["loss"], strict=True) if step > steps]
    context.row("mean loss after it is resumed, below that before", float(np.mean(after)), at_most=mean)


def _train(
    context: Context, name: str, data: dict[str, str], steps: int, output_name: str | None = None, **settings: object
) -> dict[str, list[float]]:
    """Its log, of `read_log`."""
    start, folder = time.perf_counter(), context.scratch / (output_name or name)
    settings |= {**data, "conditioning": "class", "resolution": 32, "report_to": "none"}
    settings |= {"validation_steps": steps // 2, "logging_steps": _LOG_EVERY, "max_train_steps": steps}
    train(TrainingConfig(**settings | (_TINY if context.tiny else {}), output_dir=str(folder)))
    log = read_log(folder)
    note = (
        f"{time.perf_counter() - start:.0f} s in all; {log['images_per_sec'][0]:,.0f} in the first {_LOG_EVERY} steps"
    )
    context.row(f"train, {name}", float(np.median(log["images_per_sec"])), "images/s", note=note)
    return log


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
