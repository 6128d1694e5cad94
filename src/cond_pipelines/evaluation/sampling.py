"""Samples to measure: one seed an image, in parts that a killed run keeps and that processes share."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..console import say
from ..data.load import TrainingData
from ..errors import UserError
from ..files import load_array, own_seal, save_array, write_json
from ..networks.denoiser import unwrapped
from ..pipelines.conditional import ConditionalPipeline
from .config import BATCH_SIZE


@dataclass(frozen=True)
class Plan:
    """What is drawn: sample i has the condition and the size of row i modulo their number, for any i.

    Args:
        conditions: at least one.
        count: of samples.
        sizes: (height, width) in px of each condition's image; None: the model's own size.
        batch_size: samples of a file, which are drawn at once. A batch is always full: a sample is rounded alike
            however many are wanted.
    """

    conditions: list[object]
    count: int
    sizes: list[tuple[int, int]] | None = None
    batch_size: int = BATCH_SIZE

    def condition(self, i: int) -> object:
        """Of sample i."""
        return self.conditions[i % len(self.conditions)]

    @property
    def drawn(self) -> list[object]:
        """The conditions of the samples, in order."""
        return [self.condition(i) for i in range(self.count)]

    def size(self, i: int) -> tuple[int, int] | None:
        """Of sample i."""
        return None if self.sizes is None else self.sizes[i % len(self.conditions)]

    @property
    def by_size(self) -> dict[tuple[int, int] | None, np.ndarray]:
        """The rows of each size, in order."""
        sizes = [self.size(i) for i in range(len(self.conditions))]
        return {size: np.array([i for i, s in enumerate(sizes) if s == size]) for size in dict.fromkeys(sizes)}


def plan_of(data: TrainingData, rows: np.ndarray, count: int, batch_size: int = BATCH_SIZE) -> Plan:
    """Conditions and sizes as often as in the data: those of `rows`, over and over."""
    sizes = None
    if data.dataset.buckets is not None:
        of_rows = (data.dataset.size_of(int(data.dataset.usable[row])) for row in rows)
        sizes = [size if isinstance(size, tuple) else (size, size) for size in of_rows]
    return Plan(data.conditions(rows), count, sizes, batch_size)


@dataclass(frozen=True)
class _Batch:
    """One file: samples of one size."""

    name: str
    size: tuple[int, int] | None
    samples: list[int]  # their numbers


def _batches(plan: Plan) -> list[_Batch]:
    """All files of a plan. The last of a size is full too, with samples beyond `plan.count`."""
    batches, cycle, part = [], len(plan.conditions), plan.batch_size
    for size, rows in plan.by_size.items():
        whole, rest = divmod(plan.count, cycle)
        count = whole * len(rows) + int((rows < rest).sum())
        for start in range(0, count, part):
            samples = [int(rows[j % len(rows)]) + j // len(rows) * cycle for j in range(start, start + part)]
            batches.append(_Batch(_file_name(size, start // part), size, samples))
    return batches


def _file_name(size: tuple[int, int] | None, number: int) -> str:
    return ("" if size is None else f"{size[0]}x{size[1]}-") + f"{number:05d}.npy"


def draw_samples(
    pipe: ConditionalPipeline,
    plan: Plan,
    folder: Path,
    accelerator: Accelerator,
    key: dict[str, object],
    settings: dict[str, object] | None = None,
) -> int:
    """Write the samples of `plan` into `folder`, a file for each batch; those that are there are kept.

    Image i comes from the seed `key["seed"] * 10**9 + i` and its own condition and size, so neither the number of
    processes nor where a run was cut off changes it, nor how many images are drawn.

    Args:
        folder: see `sample_folder`.
        key: see `sample_key`; files of another key are drawn again.
        settings: of the call: guidance_scale, num_inference_steps, ...

    Returns:
        How many were drawn, by all processes: 0 where all were there.

    Raises:
        UserError: an image has values that are no numbers.
    """
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "key.json", key)
    accelerator.wait_for_everyone()
    missing = [b for b in _batches(plan) if not _is_there(folder / b.name, own_seal(key | {"file": b.name}))]
    accelerator.wait_for_everyone()  # all have looked before one writes
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    pipe.set_progress_bar_config(disable=True)
    top, dtype = (65535, np.uint16) if pipe.config.value_range else (255, np.uint8)
    for batch in tqdm(
        mine, desc=f"Sampling, {plan.batch_size} images each", disable=not accelerator.is_local_main_process
    ):
        generators = [torch.Generator().manual_seed(int(str(key["seed"])) * 10**9 + i) for i in batch.samples]
        size = {} if batch.size is None else {"height": batch.size[0], "width": batch.size[1]}
        conditions = [plan.condition(i) for i in batch.samples]
        images = pipe.sample(conditions, generator=generators, output_type="np", **size, **(settings or {})).images
        # (B, H, W, C) in [0, 1]
        if not np.isfinite(images).all():  # as numbers of 8 bits they would be black images
            raise UserError(
                f"the model draws values that are no numbers (seed {key['seed']}, samples from {batch.samples[0]} on): "
                "its weights are damaged, or its dtype is too small for it"
            )
        save_array(folder / batch.name, (images * top).round().astype(dtype), own_seal(key | {"file": batch.name}))
    accelerator.wait_for_everyone()
    return len(missing) * plan.batch_size


def sample_folder(folder: Path, kind: str, key: dict[str, object]) -> Path:
    """Where the samples of a key are kept: another model or another setting gets another folder, and loses nothing."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return folder / "-".join(["samples", *kind.split()]) / digest


def sample_key(
    pipe: ConditionalPipeline, plan: Plan, seed: int = 0, settings: dict[str, object] | None = None, weights: str = ""
) -> dict[str, object]:
    """All that decides what sample i is. It does not depend on how many there are.

    Args:
        weights: `weights_of(pipe)`, where it is known.
    """
    conditions = json.dumps([plan.conditions, plan.sizes], default=lambda x: np.asarray(x).tolist())
    batch: dict[str, object] = {} if plan.batch_size == BATCH_SIZE else {"batch_size": plan.batch_size}
    return batch | {
        "seed": seed,
        "weights": weights or weights_of(pipe),
        "sampler": sampler_of(pipe, settings or {}),
        "conditions": hashlib.sha256(conditions.encode("utf-8", "backslashreplace")).hexdigest()[:16],
    }


def _is_there(path: Path, seal: bytes) -> bool:
    """Whether a file was drawn here with the same weights, scheduler and settings; a damaged one was not."""
    try:
        load_array(path, seal)
    except FileNotFoundError:
        return False
    except ValueError as error:
        say(f"warning: {error}: its samples are drawn again")
        return False
    return True


def weights_of(pipe: ConditionalPipeline) -> str:
    """A hash of every weight and every configuration of what draws: networks, adapter, text encoder, VAE, guide."""
    digest = hashlib.sha256()
    for name, module in sorted(pipe.components.items()):
        if not isinstance(module, nn.Module):
            continue
        digest.update(f"{name} {_config_of(module)}\n".encode("utf-8", "backslashreplace"))
        for key, value in sorted(module.state_dict().items()):
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _config_of(module: nn.Module) -> str:
    """Without what depends on where the model lies or which version read it."""
    config = getattr(unwrapped(module), "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    left = ("_diffusers_version", "_name_or_path", "transformers_version")
    return json.dumps({k: v for k, v in config.items() if k not in left}, sort_keys=True, default=str)


def sampler_of(pipe: ConditionalPipeline, settings: dict[str, object]) -> dict[str, object]:
    """What a call with `settings` resolves to: steps, guidance, scheduler, objective, type of the numbers."""
    config = {k: v for k, v in pipe.scheduler.config.items() if k != "_diffusers_version"}
    resolved = {
        name: pipe.config[f"default_{name}"] if settings.get(name) is None else settings[name]
        for name in ("num_inference_steps", "guidance_scale")
    }
    if pipe.guider is not None and settings.get("guidance_scale") is None:
        resolved["guidance_scale"] = pipe.guider.to_json_string()
    resolved |= {name: value for name, value in settings.items() if value is not None and name not in resolved}
    resolved |= {"scheduler": {"class": type(pipe.scheduler).__name__} | config}
    resolved |= {"objective": pipe.config.objective, "dtype": unwrapped(pipe.unet).dtype}
    values: dict[str, object] = json.loads(json.dumps(resolved, default=str, sort_keys=True))
    return values


def read_samples(folder: Path, plan: Plan) -> Iterator[np.ndarray]:
    """The samples of a plan in order, (H, W, C) uint8, or uint16 of a model with a range of values of its own."""
    of_size = {size: _of_size(folder, size) for size in plan.by_size}
    for i in range(plan.count):
        yield next(of_size[plan.size(i)])


def _of_size(folder: Path, size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    number = 0
    while True:
        yield from load_array(folder / _file_name(size, number))
        number += 1


def num_views(channels: int) -> int:
    """Pictures that show all channels: one of gray, RGB and RGBA; otherwise each has three channels."""
    return 1 if channels in (1, 3, 4) else -(-channels // 3)


def to_image(array: np.ndarray, view: int = 0) -> Image.Image:
    """Pixels (H, W, C) to a picture of 8 bits.

    Args:
        array: uint8; uint16, all of its range; or float32 in [-1, 1].
        view: of images that are neither gray nor RGB nor RGBA, which three channels: see `num_views`. The last channel
            is repeated where there are fewer.
    """
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        array = ((array + 1) * 127.5).round().astype(np.uint8)
    channels = array.shape[-1]
    if channels not in (1, 3, 4):
        array = array[..., [min(3 * view + i, channels - 1) for i in range(3)]]
    return Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))
