"""Samples to measure: one seed an image, in parts that a killed run keeps and that processes share."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..console import say
from ..errors import read_json
from ..files import load_array, own_seal, save_array, write_json
from ..pipelines.conditional import ConditionalPipeline

_PART = 64  # images of a file


def draw_samples(
    pipe: ConditionalPipeline,
    conditions: list[object],
    folder: Path,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    settings: dict[str, object] | None = None,
) -> None:
    """Write an image for each condition into `folder`, as parts of 64; parts that are there are kept.

    Image i comes from the seed `seed * 10**9 + i` and its own condition, so neither the number of processes nor where a
    run was cut off changes it.

    Args:
        settings: of the call: guidance_scale, num_inference_steps, height, ...

    Raises:
        ValueError: `folder` holds samples of another model, seed, settings or conditions.
    """
    settings = settings or {}
    key = {"seed": seed, "settings": settings, "count": len(conditions), "conditions": str(conditions[:1000])}
    key |= {"model": weights_of(pipe), "sampler": sampler_of(pipe, settings)}
    seal = own_seal(key)
    names = [f"{i:05d}.npy" for i in range(-(-len(conditions) // _PART))]
    if accelerator.is_main_process:
        _check_key(folder, key)
        for path in folder.glob("[0-9]*.npy"):
            if path.name not in names:
                path.unlink()  # would be read as one more part
    accelerator.wait_for_everyone()
    missing = [i for i, name in enumerate(names) if not _is_there(folder / name, seal)]
    accelerator.wait_for_everyone()  # all have looked before one writes
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    pipe.set_progress_bar_config(disable=True)
    for part in tqdm(mine, desc=f"Sampling, {_PART} images each", disable=not accelerator.is_local_main_process):
        first = part * _PART
        batch = conditions[first : first + _PART]
        generators = [torch.Generator().manual_seed(seed * 10**9 + first + i) for i in range(len(batch))]
        with torch.no_grad():
            images = pipe.sample(batch, generator=generators, output_type="np", **settings).images
        # (64, H, W, C) in [0, 1]
        save_array(folder / f"{part:05d}.npy", (images * 255).round().astype(np.uint8), seal)
    accelerator.wait_for_everyone()


def _check_key(folder: Path, key: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "key.json"
    before = json.loads(json.dumps(key))
    if path.is_file():
        try:
            before = read_json(path)
        except ValueError as error:  # nothing says whose samples these are
            say(f"warning: {path} is damaged ({error}): the samples are drawn again")
            for part in folder.glob("[0-9]*.npy"):
                part.unlink()
    for name, value in json.loads(json.dumps(key)).items():
        if before.get(name) != value:
            raise ValueError(f"{folder} holds samples of another {name}: delete it, or name another --output_dir")
    write_json(path, key)


def _is_there(path: Path, seal: bytes) -> bool:
    """Whether a part was drawn here with the same weights, scheduler and settings; a damaged one was not."""
    try:
        load_array(path, seal)
    except FileNotFoundError:
        return False
    except ValueError as error:
        say(f"warning: {error}: its samples are drawn again")
        return False
    return True


def weights_of(pipe: ConditionalPipeline) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, module in sorted(pipe.components.items()):
        for key, value in sorted(module.state_dict().items()) if isinstance(module, nn.Module) else []:
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def sampler_of(pipe: ConditionalPipeline, settings: dict[str, object]) -> dict[str, object]:
    """The scheduler, and the pipeline's defaults for what `settings` do not say."""
    of_settings = [f"default_{name}" for name in settings]
    defaults = {k: v for k, v in pipe.config.items() if k.startswith("default_") and k not in of_settings}
    values = defaults | {"scheduler": type(pipe.scheduler).__name__} | dict(pipe.scheduler.config)
    if pipe.guider is not None and "guidance_scale" not in settings:
        values["guider"] = pipe.guider.to_json_string()
    return {name: str(value) for name, value in values.items() if name != "_diffusers_version"}


def read_samples(folder: Path) -> Iterator[Image.Image]:
    """The images, in order."""
    for path in sorted(folder.glob("[0-9]*.npy")):
        for array in load_array(path):
            yield to_image(array)


def to_image(array: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 to an image."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
