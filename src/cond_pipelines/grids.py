"""Rows by columns of samples from the same noise, with titles: what a model draws under which condition and setting."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .pictures import image_grid, visible
from .pipelines.vae import vae_decode

if TYPE_CHECKING:
    from .pipelines.conditional import ConditionalPipeline


def sample_grid(
    pipe: "ConditionalPipeline",
    rows: Sequence[object] = (None,),
    columns: dict[str, Sequence[object]] | None = None,
    *,
    num_images: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    **sampling: object,
) -> Image.Image:
    """Draw each condition (a row) under each setting (a column). Images in a column start from the same noise.

    Args:
        rows: conditions, as the model's adapter takes them; None: no condition.
        columns: arguments of the call and their values, such as {"guidance_scale": [1, 2, 4]}. Several arguments give
            every combination.
        num_images: of each condition and setting, side by side; the i-th has the noise of `seed + i`.
        seed: 0 or more.
        batch_size: images sampled together. It does not change the images.
        sampling: arguments of every call, such as num_inference_steps=20.

    Returns:
        An RGB picture. Rows and columns have titles where there are several.

    Raises:
        ValueError: an argument that is given in `columns` and in `sampling`, or a condition the adapter cannot take.

    Example:
        >>> sample_grid(pipe, rows=["circle", "ring"], columns={"guidance_scale": [1, 2, 4]}).save("grid.png")
    """
    columns = columns or {}
    if both := set(columns) & set(sampling):
        raise ValueError(f"{', '.join(sorted(both))}: give it in columns or as an argument, not both")
    if not rows or num_images < 1:
        raise ValueError(f"{len(rows)} rows of {num_images} images: a grid has one image at least")
    settings = [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]
    images: dict[tuple[int, int], list[Image.Image]] = {}
    for column, setting in enumerate(settings):
        drawn = _sample(pipe, rows, num_images, seed, batch_size, sampling | setting)
        images |= {(row, column): drawn[row * num_images : (row + 1) * num_images] for row in range(len(rows))}
    in_order = [image for row in range(len(rows)) for column in range(len(settings)) for image in images[row, column]]
    row_titles = [title_of(condition) for condition in rows] if len(rows) > 1 or rows[0] is not None else []
    column_titles = [", ".join(f"{name} {value}" for name, value in setting.items()) for setting in settings]
    return image_grid(
        in_order,
        columns=len(settings) * num_images,
        row_titles=row_titles,
        column_titles=column_titles if columns else [],
    )


def _sample(
    pipe: "ConditionalPipeline",
    rows: Sequence[object],
    num_images: int,
    seed: int,
    batch_size: int,
    sampling: dict[str, object],
) -> list[Image.Image]:
    conditions = [condition for condition in rows for _ in range(num_images)]
    seeds = [seed + i for _ in rows for i in range(num_images)]
    from .pipelines.autoguidance import scales_by_name

    negative = sampling.pop("negative_condition", None)
    if (guide_scale := sampling.pop("guide_scale", None)) is not None:
        sampling["guidance_scale"] = scales_by_name(
            guide_scale, sampling.get("guidance_scale"), pipe.adapter.conditioning
        )
    images: list[Image.Image] = []
    for start in range(0, len(conditions), batch_size):
        part = slice(start, start + batch_size)
        generator = [torch.Generator().manual_seed(s) for s in seeds[part]]
        negatives = None if negative is None else [negative] * len(conditions[part])
        images += pipe.sample(conditions[part], negatives, generator=generator, **sampling).images
    return images


def sampled(
    pipe: "ConditionalPipeline",
    conditions: Sequence[object],
    seeds: Sequence[int],
    scheduler: str | None = None,
    frames: list[list[Image.Image]] | None = None,
    **sampling: object,
) -> list[Image.Image]:
    """An image for each condition and seed: the same seed is the same noise, whatever else is drawn with it.

    Args:
        scheduler: a short name, see `use_scheduler`; the pipeline has its own again afterwards. None: its own.
        frames: takes the images of each step, from the first one on.
        sampling: arguments of the call.

    Example:
        >>> frames = []
        >>> sampled(pipe, ["circle", "ring"], [0, 0], frames=frames)  # frames[3][1]: "ring" after the fourth step
    """
    if frames is not None:

        def on_step(pipe: "ConditionalPipeline", i: int, t: object, values: dict[str, Any]) -> dict[str, Any]:
            latents = values["latents"]  # (B, C, h, w)
            pixels = latents if pipe.vae is None else vae_decode(pipe.vae, latents)
            arrays = (pixels.clamp(-1, 1) + 1).permute(0, 2, 3, 1).float().cpu().numpy() / 2  # (B, H, W, C)
            frames.append([visible(array) for array in arrays])
            return {}

        sampling["callback_on_step_end"] = on_step
    own = pipe.scheduler
    try:
        if scheduler:
            pipe.use_scheduler(scheduler)
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.no_grad():
            images: list[Image.Image] = pipe.sample(list(conditions), generator=generator, **sampling).images
    finally:
        pipe.register_modules(scheduler=own)
    return images


def interpolation(
    pipe: "ConditionalPipeline", first: object, second: object, num_steps: int = 8, seed: int = 0, **sampling: object
) -> Image.Image:
    """The images of `interpolated` in a row, with the conditions and weights above them.

    Example:
        >>> interpolation(pipe, "circle", "ring").save("between.png")
    """
    images = interpolated(pipe, first, second, num_steps, seed, **sampling)
    weights = torch.linspace(0, 1, num_steps)[1:-1].tolist()
    titles = [title_of(first), *(f"{w:.2f}" for w in weights), title_of(second)]
    return image_grid(images, columns=num_steps, column_titles=titles)


def interpolated(
    pipe: "ConditionalPipeline", first: object, second: object, num_steps: int = 8, seed: int = 0, **sampling: object
) -> list[Image.Image]:
    """Images from the same noise, under conditions between two: e_w = (1 - w) e(first) + w e(second), w from 0 to 1.

    Args:
        first, second: conditions, as the model's adapter takes them.
        num_steps: images, the first and the last under the two conditions themselves; at least 2.
        sampling: arguments of the call. guidance_scale is that of classifier-free guidance.

    Raises:
        ValueError: fewer than two steps, or no guidance_scale for a model whose own is that of its guide.

    Example:
        >>> interpolated(pipe, "circle", "ring")[3].save("nearly_half.png")
    """
    from .pipelines.guidance import Between

    if num_steps < 2:
        raise ValueError(f"{num_steps} steps between two conditions: there are 2 at least, the conditions themselves")
    weights = torch.linspace(0, 1, num_steps)
    scale = sampling.pop("guidance_scale", None)
    if scale is None and pipe.components.get("guide") is not None:
        raise ValueError(
            "between two conditions guidance is classifier-free, and this model's own scale is that of its guide: give "
            "a guidance_scale (1: no guidance)"
        )
    scale = pipe.config.default_guidance_scale if scale is None else scale
    with torch.no_grad():
        cond, other = pipe.encode_condition([second] * num_steps, [first] * num_steps)
        guidance = Between(weights, float(scale), pipe.adapter.null_like(cond))
        generator = [torch.Generator().manual_seed(seed) for _ in range(num_steps)]
        images: list[Image.Image] = pipe.generate(
            cond, other, guidance=guidance, generator=generator, **sampling
        ).images
    return images


def title_of(condition: object) -> str:
    """A condition in a few words."""
    return "no condition" if condition is None else str(condition)
