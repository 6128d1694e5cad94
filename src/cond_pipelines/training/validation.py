"""What is looked at during training: the loss on held-out images at fixed noise and times, and samples."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from PIL import Image
from torch import nn

from ..conditional_pipeline import ConditionalPipeline
from ..data.batches import draw_noise, signed
from ..data.labels import condition_name
from ..objectives import Objective
from ..pictures import image_grid, visible
from .config import TrainingConfig
from .ema import WeightAverage
from .optimizers import trainable
from .setup import TrainingData
from .sharding import fill, is_sharded

_NUM_STEPS = 12  # of a sample grid during training: enough to see, quick


@contextmanager
def ema_weights(
    ema: WeightAverage | None,
    modules: list[nn.Module],
    parameters: list[nn.Parameter],
    optimizer: AcceleratedOptimizer,
    restore: bool = True,
) -> Iterator[None]:
    """Within (and after, without `restore`), the modules hold the moving average and are in eval mode.

    They are those that are trained, or, where `parameters` are sharded, whole copies that are filled from them.
    An optimizer that averages by itself (schedulefree) is asked for its average, and for no rounding when it goes back.
    """
    whole = trainable(modules)
    sharded = is_sharded(parameters)
    # Batches of other sizes come now, for which nothing need be compiled.
    stance = torch.compiler.set_stance("force_eager")
    training = [module.training for module in modules]
    swaps = ema is not None or hasattr(optimizer.optimizer, "eval")
    raw = [p.detach().clone() for p in whole] if restore and swaps and not sharded else []
    optimizer.eval()
    if sharded:
        fill(whole, parameters if ema is None else ema.values)
    elif ema is not None:
        ema.copy_to(whole)
    for module in modules:
        module.eval()
    with stance:
        yield
    if restore:
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)
        optimizer.train()
        if raw:
            with torch.no_grad():
                torch._foreach_copy_(whole, raw)


@torch.no_grad()
def held_out_loss(
    pipe: ConditionalPipeline, objective: Objective, data: TrainingData, accelerator: Accelerator, batch_size: int
) -> float | None:
    """Mean loss over the held-out images, each at noise and a time of its own that never change; None without any."""
    if not len(data.held_out):
        return None
    device, losses = accelerator.device, []
    start = 0
    parts = [part for part in data.dataset.by_bucket(data.held_out) if len(part)]  # a batch is of one size
    for indices in [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]:
        rows = [data.dataset[0, int(i)] for i in indices]
        pixels = torch.stack([torch.from_numpy(row.pixels.copy()) for row in rows]).permute(0, 3, 1, 2)  # (B, C, H, W)
        x_0 = pipe.encode_images(signed(pixels.to(device)), torch.Generator(device).manual_seed(start))
        positions = torch.arange(start, start + len(indices))
        noise, u, _ = draw_noise(data.dataset.seed + 1, positions, x_0.shape[1:], device)
        noised = objective.sample(x_0, noise, u)
        with accelerator.autocast():
            cond, _ = pipe.encode_condition([row.condition for row in rows])
            prediction = pipe.unet(noised.x_t, noised.t, **cond.unet_kwargs(pipe.unet)).sample
        losses.append(noised.loss(prediction))
        start += len(indices)
    return torch.cat(losses).mean().item()


def grid_conditions(config: TrainingConfig, data: TrainingData, count: int) -> list[Any]:
    """What the sample grids are told: what was asked for, else every class in turn, else conditions of the data."""
    if config.conditioning == "none":
        return [None] * count
    if config.validation_prompts:
        labels = {name: i for i, name in (data.id2label or {}).items()}
        prompts = [labels.get(p, int(p) if p.isdigit() and labels else p) for p in config.validation_prompts]
        if config.conditioning in ("embedding", "custom"):  # numbers, lists, ...: as in YAML
            prompts = [yaml.safe_load(p) for p in prompts]
        return [prompts[i % len(prompts)] for i in range(count)]
    if data.id2label:
        return [i % len(data.id2label) for i in range(count)]
    if data.train is None:
        return [None] * count
    found = data.conditions((data.held_out if len(data.held_out) else data.train)[:count])
    return [found[i % len(found)] for i in range(count)]


@torch.no_grad()
def sample_images(
    pipe: ConditionalPipeline,
    conditions: list[Any],
    accelerator: Accelerator,
    num_inference_steps: int | None = _NUM_STEPS,
    seed: int = 0,
    on_step: Callable[..., dict[str, Any]] | None = None,
) -> list[Image.Image]:
    """One sample for each condition, from noise that never changes, made by all processes together.

    Args:
        num_inference_steps: None: the pipeline's own.
        on_step: the pipeline's `callback_on_step_end`.

    Returns:
        All of them, in every process.
    """
    mine = list(range(accelerator.process_index, len(conditions), accelerator.num_processes))
    made: list[tuple[int, Image.Image]] = []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(mine), 64):
        some = mine[start : start + 64]
        # On the CPU, so that a GPU shows the same.
        generators = [torch.Generator().manual_seed(seed + i) for i in some]
        with accelerator.autocast():
            images = ConditionalPipeline.__call__(
                pipe,
                [conditions[i] for i in some],
                generator=generators,
                num_inference_steps=num_inference_steps,
                output_type="np",
                callback_on_step_end=on_step,
            ).images  # (B, H, W, C)
        made += zip(some, map(visible, images), strict=True)
    pipe.set_progress_bar_config(disable=False)
    return [image for _, image in sorted(gather_object(made), key=lambda pair: pair[0])]


def labelled_grid(
    images: list[Image.Image], conditions: list[Any], id2label: dict[int, str] | None = None
) -> Image.Image:
    """The images, each with the name of what it was told."""
    names = [condition_name(c, id2label) for c in conditions]
    return image_grid(images, captions=names if any(c is not None for c in conditions) else None)
