"""The arguments that every call of every pipeline takes, with their defaults.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar

from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from ..adapters.denoiser import unwrapped
from .guidance import Guidance, Step
from .vae import Generators

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from cond_pipelines.adapters.base import Conditioning

    from .conditional import ConditionalPipeline

    Images: TypeAlias = tuple[list[Image] | np.ndarray | Tensor]  # of a call with return_dict=False
    # (pipeline, index of the step, timestep, tensors by name) to the tensors that it changes
    StepCallback = Callable[[ConditionalPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampling:
    """The sampling arguments of a call.

    Args:
        height, width: in pixels; default: the size it was trained at. They need not be equal.
        num_inference_steps, guidance_scale: default: as the model was saved. guidance_scale=1 turns guidance off; the
            second pass of the network is skipped wherever it has no effect.
        guidance_interval: the fraction of the steps with guidance, (0, 1) for all (Kynkaanniemi et al. 2024).
        guidance_rescale: 0 to 1 (Lin et al. 2023, section 3.4).
        guidance: a `Guidance` of your own in place of classifier-free guidance, and of guidance_scale.
        num_images_per_prompt: of each condition.
        generator: one, or a list with one per image, so that an image does not depend on its batch.
        latents: (B, C, height / f, width / f) initial noise, f the VAE's scale factor.
        image: start from it: image-to-image, and with several samples its variations. What diffusers' image
            processor takes (PIL, numpy or tensor); one, one a condition, or latents (n, C, h, w).
        mask_image: paint only where it is white (inpainting), at the model's size unless height and width say else.
        strength: 0 to 1, how much noise the image gets, so what part of the steps is made. Default: 0.8; 1 with a
            mask.
        eta: of DDIM, 0 to 1; other schedulers have none.
        output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W) in [0, 1], or "latent".
        return_dict: False: a tuple, (images,).
        cross_attention_kwargs: passed to the attention layers of the pipeline's own network.
        callback_on_step_end, callback_on_step_end_tensor_inputs: as in diffusers.
    """

    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | dict[str, float] | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    guidance: Guidance | None = None
    num_images_per_prompt: int = 1
    generator: Generators = None
    latents: Tensor | None = None
    image: PipelineImageInput | None = None
    mask_image: PipelineImageInput | None = None
    strength: float | None = None
    eta: float = 0.0
    output_type: str = "pil"
    return_dict: bool = True
    cross_attention_kwargs: dict[str, object] | None = None
    callback_on_step_end: "StepCallback | None" = None
    callback_on_step_end_tensor_inputs: list[str] | None = None

    def complete(self, pipe: "ConditionalPipeline") -> "Call":
        """This call with the defaults of the saved model.

        Raises:
            ValueError: it has both a guidance and a guidance_scale.
        """
        if self.guidance is not None and self.guidance_scale is not None:
            raise ValueError(
                f"pass guidance or guidance_scale, not both: {type(self.guidance).__name__} does not use the scale"
            )
        changes: dict[str, Any] = {name: getattr(self, name) for name in SamplingArguments.__annotations__}
        if self.image is None or self.mask_image is not None:
            size = unwrapped(pipe.unet).config.sample_size
            height, width = size if isinstance(size, tuple | list) else (size, size)
            changes["height"] = self.height or height * pipe.vae_scale_factor
            changes["width"] = self.width or width * pipe.vae_scale_factor
        if self.strength is None:
            changes["strength"] = 0.8 if self.mask_image is None else 1.0
        if self.guidance_scale is None:
            changes["guidance_scale"] = pipe.config.default_guidance_scale
        changes["num_inference_steps"] = self.num_inference_steps or pipe.config.default_num_inference_steps
        return Call(**changes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(Sampling):
    """`Sampling` with its defaults filled in. Height and width are None where an image decides them."""

    num_inference_steps: int
    guidance_scale: float | dict[str, float]
    strength: float

    def call_back(
        self,
        pipe: "ConditionalPipeline",
        step: Step,
        latents: Tensor,
        cond: "Conditioning",
        null: "Conditioning",
    ) -> "tuple[Tensor, Conditioning, Conditioning]":
        """Run callback_on_step_end, which may change the latents and the tokens."""
        tensors = {
            "latents": latents,
            "encoder_hidden_states": cond.tokens,
            "negative_encoder_hidden_states": null.tokens,
        }
        wanted = {k: tensors[k] for k in self.callback_on_step_end_tensor_inputs or ["latents"]}
        if self.callback_on_step_end is None:
            return latents, cond, null
        tensors |= self.callback_on_step_end(pipe, step.index, step.t, wanted) or {}
        cond = replace(cond, tokens=tensors["encoder_hidden_states"])
        null = replace(null, tokens=tensors["negative_encoder_hidden_states"])
        return tensors["latents"], cond, null


class SamplingArguments(TypedDict, total=False):
    """The same, for type checkers: `**sampling: Unpack[SamplingArguments]`. A test compares the two."""

    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | dict[str, float] | None
    guidance_interval: tuple[float, float]
    guidance_rescale: float
    guidance: Guidance | None
    num_images_per_prompt: int
    generator: Generators
    latents: Tensor | None
    image: PipelineImageInput | None
    mask_image: PipelineImageInput | None
    strength: float | None
    eta: float
    output_type: str
    return_dict: bool
    cross_attention_kwargs: dict[str, object] | None
    callback_on_step_end: "StepCallback | None"
    callback_on_step_end_tensor_inputs: list[str] | None


Function = TypeVar("Function", bound=Callable[..., object])


def takes_sampling(function: Function) -> Function:
    """Show the fields of `Sampling` in the signature, where the function has **sampling (help, completion, tools)."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    sampling = list(inspect.signature(Sampling).parameters.values())
    vars(function)["__signature__"] = signature.replace(parameters=own + sampling)
    return function
