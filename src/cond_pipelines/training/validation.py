"""Validation during training: the loss on held-out images at fixed noise and times, and samples."""

import itertools
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..adapters.base import Conditioning
from ..console import say
from ..data.batches import signed
from ..data.draws import draw
from ..data.labels import condition_name
from ..data.load import TrainingData
from ..networks.denoiser import denoise
from ..objectives.base import Denoise, Objective
from ..pictures import animation, image_grid, visible
from ..pipelines.conditional import ConditionalPipeline
from .config import TrainingConfig
from .run import Run
from .schedule import crossed
from .state import TrainState
from .teacher import Teacher, repeated

Preprocess = Callable[[list[object]], dict[str, Tensor]]  # an adapter's: raw conditions to inputs
_NUM_STEPS = 12  # of a sample grid during training: enough to see, quick
_EARLY_STEPS = (0, 50, 200)
_EARLY_SHARE = 0.05  # of the run, for the grids at these steps together
_SILENCE_SEC = 2.0  # what takes longer gets a progress bar


class Validation:
    """Measures the held-out loss and draws samples, four times in a run or every `validation_steps`.

    Samples are drawn at the steps 0, 50 and 200 too, as many as take a twentieth of the run together: in a short run
    fewer than `num_validation_images`, or none. In a run of so many minutes the four grids are as small, and of one
    sample at least.

    Args:
        run: its data, objective and configuration.
        preprocess: see `grid_conditions`.
        step: where the run starts; pictures of later steps are of another run, and are removed.
    """

    def __init__(self, run: Run, preprocess: Preprocess, step: int):
        self.config, self.data, self.objective, self.accelerator = run.config, run.data, run.objective, run.accelerator
        self.teacher = run.teacher
        self.batch_size, self.images_per_step = run.batch_size, run.images_per_step
        self.conditions = grid_conditions(run.config, run.data, run.config.num_validation_images, preprocess)
        preprocess(self.conditions)  # a bad one of --validation_prompts is an error before the first step
        self._num_early_images: int | None = None  # of an early grid, once it is known
        if run.accelerator.is_main_process:
            (run.output_dir / "samples.gif").unlink(missing_ok=True)
            for of_step, path in _kept_grids(run.output_dir):
                if step == 0 or of_step > step:
                    path.unlink()

    def due(self, state: TrainState) -> bool:
        """Whether it is time, after the last step."""
        if self.config.validation_steps == 0:
            return False
        return state.progress.step in _EARLY_STEPS or self._is_regular(state)

    def _is_regular(self, state: TrainState) -> bool:
        if self.config.validation_steps is None:
            return crossed(4, state.fraction_before, state.fraction_done)
        return state.progress.step > 0 and state.is_multiple_of(self.config.validation_steps)

    def __call__(self, state: TrainState, whole: bool = False) -> tuple[float | None, Image.Image | None]:
        """The held-out loss and a grid of samples; of an early grid no loss, and None where it would take too long.

        Args:
            whole: with the loss and all samples, at whatever step.
        """
        pipe, config, regular = state.eval_pipe, self.config, whole or self._is_regular(state)
        count = len(self.conditions)
        if not regular:
            count = self._num_early(pipe)
        elif config.max_train_minutes and config.validation_steps is None and not whole:  # the time is for training
            count = max(1, self._num_early(pipe))
        if not count:
            return None, None
        loss = None
        if regular:
            loss = held_out_loss(
                pipe, self.objective, self.data, self.accelerator, self.batch_size, teacher=self.teacher
            )
        desc = f"Sampling {count} images after step {state.progress.step:,}"
        shown = self.conditions[:count]
        num_steps = min(_NUM_STEPS, pipe.config.default_num_inference_steps)
        images = sample_images(pipe, shown, self.accelerator, num_steps, desc=desc, batch_size=self.batch_size)
        empty = [None] * (len(self.conditions) - count)  # so that all grids of a run are laid out alike
        return loss, labelled_grid(images + empty, self.conditions, self.data.id2label)

    def _num_early(self, pipe: ConditionalPipeline) -> int:
        """How many images of an early grid the run affords."""
        if self._num_early_images is None:
            self._num_early_images = min(len(self.conditions), self._num_affordable(pipe))
        return self._num_early_images

    def _num_affordable(self, pipe: ConditionalPipeline) -> int:
        config, counts = self.config, []
        if config.max_train_steps:
            # Counted in forward passes of an image, so that a resumed run has the same pictures. A training step takes
            # three of each: the backward pass costs two.
            images = self.images_per_step
            grids = sum(step < config.max_train_steps for step in _EARLY_STEPS)
            guided = pipe.config.default_guidance_scale != 1 and any(c is not None for c in self.conditions)
            passes = _NUM_STEPS * (2 if guided else 1)  # of one sample
            counts.append(int(_EARLY_SHARE * 3 * images * config.max_train_steps / grids / passes))
        if config.max_train_minutes:
            budget_sec = _EARLY_SHARE * 60 * config.max_train_minutes / len(_EARLY_STEPS)
            sec = self._sec_of_a_step(pipe)
            if sec <= budget_sec:  # the first call also sets up what later ones use
                sec = self._sec_of_a_step(pipe)
            counts.append(int(budget_sec / (_NUM_STEPS * sec)))
        return min(counts)

    def _sec_of_a_step(self, pipe: ConditionalPipeline) -> float:
        """One sampling step of one image; the same number in all processes."""
        start = time.perf_counter()
        sample_images(pipe, self.conditions[:1], self.accelerator, num_inference_steps=1)
        sec = torch.tensor([time.perf_counter() - start], device=self.accelerator.device)
        return float(self.accelerator.gather(sec).max().item())


@torch.no_grad()
def held_out_loss(
    pipe: ConditionalPipeline,
    objective: Objective,
    data: TrainingData,
    accelerator: Accelerator,
    batch_size: int,
    teacher: Teacher | None = None,
) -> float | None:
    """Mean loss over the held-out images, each at noise and a time of its own that never change; None without any."""
    if not len(data.held_out):
        return None
    device, losses = accelerator.device, []
    start = 0
    parts = [part for part in data.dataset.by_bucket(data.held_out) if len(part)]  # a batch is of one size
    batches = [part[i : i + batch_size] for part in parts for i in range(0, len(part), batch_size)]
    for indices in tqdm(batches, **_bar(accelerator, f"Held-out loss of {len(data.held_out)} images", "batch")):
        rows = [data.dataset[0, int(i)] for i in indices]
        pixels = torch.stack([torch.from_numpy(row.pixels.copy()) for row in rows]).permute(0, 3, 1, 2)  # (B, C, H, W)
        x_0 = pipe.encode_images(signed(pixels.to(device)), torch.Generator(device).manual_seed(start))
        positions = torch.arange(start, start + len(indices))
        draws = draw(data.dataset.seed + 1, positions, x_0.shape[1:], device, num_uniforms=objective.num_uniforms)
        with accelerator.autocast():
            cond, _ = pipe.encode_condition([row.condition for row in rows])
        predict = partial(_denoise, accelerator, pipe.unet, cond)
        teach = None if teacher is None else teacher.under(teacher.pipe._features([row.condition for row in rows]))
        losses.append(objective.loss(Denoise(predict, teach), x_0, draws))
        start += len(indices)
    return float(torch.cat(losses).mean().item())


def _denoise(
    accelerator: Accelerator, unet: nn.Module, cond: Conditioning, x_t: Tensor, t: Tensor, r: Tensor | None = None
) -> Tensor:
    with accelerator.autocast():
        return denoise(unet, x_t, t, repeated(cond, x_t), r)  # (B, C, h, w)


def grid_conditions(config: TrainingConfig, data: TrainingData, count: int, preprocess: Preprocess) -> list[object]:
    """Conditions of a sample grid: the validation prompts, else every class in turn, else conditions of the data.

    Args:
        preprocess: the adapter's. What it does not take is left to the training, which names the row.
    """
    if config.column is None:
        return [None] * count
    if config.validation_prompts:
        prompts = [config.setting.read_prompt(prompt, data.id2label) for prompt in config.validation_prompts]
        return [prompts[i % len(prompts)] for i in range(count)]
    if data.id2label:
        return list(itertools.islice(itertools.cycle(data.id2label), count))
    if data.train is None:
        return [None] * count
    rows = (data.held_out if len(data.held_out) else data.train)[:count]
    usable = [condition for condition in data.conditions(rows) if _is_taken(condition, preprocess)] or [None]
    return [usable[i % len(usable)] for i in range(count)]


def _is_taken(condition: object, preprocess: Preprocess) -> bool:
    try:
        preprocess([condition])
    except Exception:  # an adapter may raise anything
        return False
    return True


@torch.no_grad()
def sample_images(
    pipe: ConditionalPipeline,
    conditions: Sequence[object],
    accelerator: Accelerator,
    num_inference_steps: int | None = _NUM_STEPS,
    seed: int = 0,
    desc: str = "Sampling",
    batch_size: int = 64,
    on_step: Callable[..., dict[str, object]] | None = None,
) -> list[Image.Image]:
    """One sample for each condition, from noise that never changes, made by all processes together.

    Args:
        num_inference_steps: None: the pipeline's own.
        desc: of the progress bar, shown where it takes more than two seconds.
        batch_size: images at a time, at most 64: what was trained in one batch can be sampled in one. Small images are
            sampled in larger batches, of the pixels of one image of 128 px.
        on_step: the pipeline's `callback_on_step_end`.

    Returns:
        All of them, in every process.
    """
    mine = list(range(accelerator.process_index, len(conditions), accelerator.num_processes))
    made: list[tuple[int, Image.Image]] = []
    size = pipe.unet.config.sample_size or 128  # an int, or height and width
    num_pixels = size**2 if isinstance(size, int) else math.prod(size)
    batch_size, bar = min(64, max(batch_size, 128**2 // num_pixels)), getattr(pipe, "_progress_bar_config", {})
    # What an adapter draws is not to move the random numbers of the training.
    with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            part = f" ({start + 1} to {start + len(batch)})" if len(mine) > batch_size else ""
            pipe.set_progress_bar_config(**_bar(accelerator, desc + part, "step"))
            # On the CPU, so that a GPU shows the same.
            generators = [torch.Generator().manual_seed(seed + i) for i in batch]
            with accelerator.autocast():
                images = pipe.sample(
                    [conditions[i] for i in batch],
                    generator=generators,
                    num_inference_steps=num_inference_steps,
                    output_type="np",
                    callback_on_step_end=on_step,
                ).images  # (B, H, W, C)
            made += zip(batch, map(visible, images), strict=True)
    pipe.set_progress_bar_config(**bar)
    return [image for _, image in sorted(gather_object(made), key=lambda pair: pair[0])]


def _bar(accelerator: Accelerator, desc: str, unit: str) -> dict[str, object]:
    """Arguments of a tqdm that says what is going on where it takes a while, and goes away."""
    silent = not accelerator.is_local_main_process
    return {"desc": desc, "unit": unit, "delay": _SILENCE_SEC, "leave": False, "disable": silent, "dynamic_ncols": True}


def _kept_grids(folder: Path) -> list[tuple[int, Path]]:
    """The step and the file of each grid in samples/, in order."""
    paths = [path for path in (folder / "samples").glob("*.png") if re.fullmatch(r"\d{6,}", path.stem)]
    return sorted((int(path.stem), path) for path in paths)


def write_animation(folder: Path) -> None:
    """Make samples.gif of the grids in samples/, where there are two or more of one size."""
    frames = []
    for step, path in _kept_grids(folder):
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                frames.append((f"step {step:,}", picture.convert("RGB")))
        except OSError as error:  # as a power cut leaves it
            say(f"samples.gif is made without {path}: {' '.join(str(error).split())}")
    frames = [frame for frame in frames if frame[1].size == frames[-1][1].size]
    if len(frames) > 1:
        animation(frames, folder / "samples.gif")


def labelled_grid(
    images: list[Image.Image | None], conditions: Sequence[object], id2label: dict[int, str] | None = None
) -> Image.Image:
    """The images, each with the name of its condition."""
    names = [condition_name(c, id2label) for c in conditions]
    return image_grid(images, captions=names if any(c is not None for c in conditions) else None)
