"""A model as one of diffusers' own pipelines, with the same images to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ..adapters.unconditional import UnconditionalAdapter
from ..networks.pretrained import to_stable_diffusion
from ..networks.surgery import reconfigured
from ..pipelines.schedulers import predicts_variance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..pipelines.conditional import ConditionalPipeline


def to_ddpm(pipe: "ConditionalPipeline") -> DDPMPipeline:
    """diffusers' DDPMPipeline with the same network and images.

    Its `__call__` has a number of steps of its own: pass `num_inference_steps`.

    Raises:
        ValueError: the images would not be the same, or it could not make any.

    Example:
        >>> to_ddpm(UnconditionalPipeline.from_pretrained("google/ddpm-cat-256")).save_pretrained("as_it_was")
    """

    def refuse(why: str) -> None:
        raise ValueError(f"this {type(pipe).__name__} has no equal as a DDPMPipeline: {why}")

    unet, scheduler = pipe.unet, pipe.scheduler
    if not isinstance(pipe.adapter, UnconditionalAdapter):
        refuse("it is conditional, and a DDPMPipeline takes no condition")
    if not isinstance(unet, UNet2DModel):
        refuse(f"that has a UNet2DModel, and this model has a {type(unet).__name__}")
    if pipe.components.get("vae") is not None:
        refuse("that draws pixels, and this model draws latents")
    if not isinstance(scheduler, DDPMScheduler | DDIMScheduler):
        refuse(f"that needs a DDPMScheduler or a DDIMScheduler, and this model has a {type(scheduler).__name__}")
    if unet.config.out_channels != unet.config.in_channels and not predicts_variance(scheduler):
        refuse("its network predicts a variance that its scheduler does not use")
    for name in ("guide", "guider"):
        if pipe.components.get(name) is not None:
            refuse(f"that has no {name}")
    if unet.config.class_embed_type is not None:  # an input for a vector with the time, which is zero here
        unet = reconfigured(unet, class_embed_type=None)
    return DDPMPipeline(unet=unet, scheduler=scheduler)


CONVERSIONS: "dict[str, Callable[[ConditionalPipeline], DiffusionPipeline]]" = {
    "stable-diffusion": to_stable_diffusion,
    "ddpm": to_ddpm,
}


def loading_line(pipe: "ConditionalPipeline", converted: "DiffusionPipeline", folder: Path) -> str:
    """How diffusers alone loads a folder, and the arguments of a call with which it draws the same images."""
    arguments = f"num_inference_steps={pipe.config.default_num_inference_steps}"
    if not isinstance(converted, DDPMPipeline):
        arguments += f", guidance_scale={pipe.config.default_guidance_scale:g}"
    name = type(converted).__name__
    return f"diffusers alone loads it with {name}.from_pretrained({str(folder)!r}); call it with {arguments}"


def export_lines(pipe: "ConditionalPipeline", folder: Path) -> list[str]:
    """Commands that make a model in `folder` one of diffusers' own, where it has an equal there."""
    lines = []
    for target, convert in CONVERSIONS.items():
        try:
            name = type(convert(pipe)).__name__
        except ValueError:
            continue
        lines.append(f"as a {name} for diffusers alone: cond-pipelines export {folder} {folder}-{target} --to {target}")
    return lines
