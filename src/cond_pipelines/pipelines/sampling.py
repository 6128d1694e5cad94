"""The arguments that every call of every pipeline takes, with their defaults.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, cast

from diffusers.image_processor import PipelineImageInput
from torch import Tensor, nn

from ..adapters.denoiser import unwrapped
from .arguments import (
    generators,
    image_input,
    integer,
    listed,
    mask_input,
    number,
    numbers_of,
    output_type,
    shown,
    takes,
    unknown_argument,
)
from .call_state import Function
from .guidance import Guidance, Step
from .vae import Generators

if TYPE_CHECKING:
    import numpy as np
    from diffusers.guiders.guider_utils import BaseGuidance
    from PIL.Image import Image

    from cond_pipelines.adapters.base import Conditioning

    from .conditional import ConditionalPipeline

    Steps: TypeAlias = Sequence[float] | None
    Images: TypeAlias = tuple[list[Image] | np.ndarray | Tensor]  # of a call with return_dict=False
    # (pipeline, index of the step, timestep, tensors by name) to the tensors that it changes
    StepCallback = Callable[[ConditionalPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


# What a callback may take and change; the last two are diffusers' names of the two before them.
CALLBACK_TENSORS = [
    *("latents", "encoder_hidden_states", "negative_encoder_hidden_states"),
    *("prompt_embeds", "negative_prompt_embeds"),
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampling:
    """The sampling arguments of a call.

    Args:
        height, width: in pixels; default: the size it was trained at. They need not be equal.
        sigmas, timesteps: the steps themselves, in place of their number, for a scheduler that takes them.
        num_inference_steps, guidance_scale: default: as the model was saved. guidance_scale=1 turns guidance off; the
            second pass of the network is skipped wherever it has no effect. A list of scales: one an image.
        guidance_interval: the fraction of the steps with guidance, (0, 1) for all (Kynkaanniemi et al. 2024).
        guidance_rescale: 0 to 1 (Lin et al. 2023, section 3.4).
        guidance: a `Guidance` of your own in place of classifier-free guidance, and of guidance_scale.
        guider: one of diffusers' guiders, in place of both.
        guide: a weaker network, in place of the pipeline's own: guidance_scale is then that of autoguidance.
        num_images_per_prompt: of each condition.
        generator: one, or a list with one per image, so that an image does not depend on its batch; an int is a seed.
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
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    guidance_scale: float | list[float] | dict[str, float] | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    guidance: Guidance | None = None
    guider: "BaseGuidance | None" = None
    guide: nn.Module | None = None
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
        """This call checked, with the defaults of the saved model.

        Raises:
            ValueError: a value that is not of its kind, or two that exclude each other; in one line that names them.
        """
        changes: dict[str, Any] = {name: getattr(self, name) for name in SamplingArguments.__annotations__}
        changes["guider"] = self._guider(pipe)
        changes |= self._steps(pipe) | self._size(pipe)
        default = pipe.config.default_guidance_scale
        changes["guidance_scale"] = _scale(default if self.guidance_scale is None else self.guidance_scale)
        changes["guidance_rescale"] = number(self.guidance_rescale, "guidance_rescale", 0, 1)
        if self.strength is None:
            changes["strength"] = 0.8 if self.mask_image is None else 1.0
        else:
            changes["strength"] = number(self.strength, "strength", 0, 1)
            if self.image is None:
                raise ValueError(
                    f"strength {self.strength} has no effect without image: pass one, or leave strength out"
                )
        changes["eta"] = number(self.eta, "eta", 0, 1)
        changes["num_images_per_prompt"] = integer(self.num_images_per_prompt, "num_images_per_prompt")
        changes["generator"] = generators(self.generator)
        changes["output_type"] = output_type(self.output_type)
        changes["image"], changes["mask_image"] = image_input(self.image), mask_input(self.mask_image)
        interval = numbers_of(self.guidance_interval, "guidance_interval") or []
        if len(interval) != 2:
            raise ValueError(f"guidance_interval {shown(self.guidance_interval)} is not two fractions of the steps")
        changes["guidance_interval"] = tuple(interval)
        self._check_kinds()
        call = Call(**changes)
        if call.guider is not None and (call.guidance_interval != (0.0, 1.0) or call.guidance_rescale):
            replaced = "" if self.guider is not None else ", or pass guidance_scale too, which replaces it"
            raise ValueError(
                f"guidance_interval and guidance_rescale have no effect with the guider {type(call.guider).__name__}: "
                f"give it options of its own{replaced}"
            )
        return call

    def _guider(self, pipe: "ConditionalPipeline") -> "BaseGuidance | None":
        """The call's guider; the pipeline's own where the call gives no guidance.

        Raises:
            ValueError: two kinds of guidance.
        """
        own = self.guidance if self.guider is None else self.guider
        if own is not None and self.guidance_scale is not None:
            name = "guidance" if self.guider is None else "guider"
            raise ValueError(f"pass {name} or guidance_scale, not both: {type(own).__name__} does not use the scale")
        if self.guider is not None and self.guidance is not None:
            raise ValueError("pass guidance or guider, not both")
        if own is not None and self.guide is not None:
            name = "guidance" if self.guider is None else "guider"
            raise ValueError(f"pass guide or {name}, not both: AutoGuidance(guide, scale) is a guidance")
        saved: BaseGuidance | None = getattr(pipe, "guider", None)
        has_own = any(x is not None for x in (own, self.guidance_scale, self.guide))
        return self.guider if has_own else saved

    def _check_kinds(self) -> None:
        names = self.callback_on_step_end_tensor_inputs
        kinds = {
            "latents": (self.latents, isinstance(self.latents, Tensor), "a tensor"),
            "guidance": (self.guidance, _has(self.guidance, "is_active"), "a Guidance"),
            "guide": (self.guide, isinstance(self.guide, nn.Module), "a network"),
            "guider": (self.guider, _has(self.guider, "prepare_inputs"), "one of diffusers' guiders"),
            "return_dict": (self.return_dict, isinstance(self.return_dict, bool), "True or False"),
            "cross_attention_kwargs": (
                self.cross_attention_kwargs,
                isinstance(self.cross_attention_kwargs, dict),
                "a dict",
            ),
            "callback_on_step_end": (self.callback_on_step_end, callable(self.callback_on_step_end), "a function"),
            "callback_on_step_end_tensor_inputs": (names, isinstance(names, list | tuple), "a list of names"),
        }
        for name, (value, is_right, kind) in kinds.items():
            if value is not None and not is_right:
                raise ValueError(f"{name} {shown(value)} is not {kind}")
        if self.callback_on_step_end is not None and not takes(self.callback_on_step_end, 4):
            raise ValueError("callback_on_step_end must take (pipeline, step_index, timestep, callback_kwargs)")

    def _steps(self, pipe: "ConditionalPipeline") -> dict[str, object]:
        given = [x is not None for x in (self.num_inference_steps, self.sigmas, self.timesteps)]
        if sum(given) > 1:
            raise ValueError("pass one of num_inference_steps, sigmas and timesteps")
        steps = {"sigmas": numbers_of(self.sigmas, "sigmas"), "timesteps": numbers_of(self.timesteps, "timesteps")}
        number_of_steps: object = pipe.config.default_num_inference_steps
        for values in (steps["sigmas"], steps["timesteps"]):
            number_of_steps = number_of_steps if values is None else len(values)
        if self.num_inference_steps is not None:
            number_of_steps = self.num_inference_steps
        return {**steps, "num_inference_steps": integer(number_of_steps, "num_inference_steps")}

    def _size(self, pipe: "ConditionalPipeline") -> dict[str, int]:
        """Height and width; none where an image alone decides them."""
        sides: dict[str, object] = {"height": self.height, "width": self.width}
        if self.image is None or self.mask_image is not None:
            size = unwrapped(pipe.unet).config.sample_size
            trained = size if isinstance(size, tuple | list) else (size, size)
            for name, side in zip(sides, trained, strict=True):
                sides[name] = side * pipe.vae_scale_factor if sides[name] is None else sides[name]
        return {name: integer(side, name) for name, side in sides.items() if side is not None}


def _has(value: object, method: str) -> bool:
    """Whether it has the method, and is not a class."""
    return hasattr(value, method) and not isinstance(value, type)


def _scale(scale: object) -> object:
    if isinstance(scale, dict):
        return {name: number(value, f"guidance_scale[{name!r}]") for name, value in scale.items()}
    scale = listed(scale)
    if isinstance(scale, list | tuple):
        return numbers_of(scale, "guidance_scale")
    return number(scale, "guidance_scale")


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(Sampling):
    """`Sampling` with its defaults filled in. Height and width are None where an image decides them."""

    num_inference_steps: int
    guidance_scale: float | list[float] | dict[str, float]
    strength: float

    def call_back(
        self,
        pipe: "ConditionalPipeline",
        step: Step,
        latents: Tensor,
        cond: "Conditioning",
        null: "Conditioning",
    ) -> "tuple[Tensor, Conditioning, Conditioning]":
        """Run callback_on_step_end, which may change the latents and the tokens, and turn guidance off."""
        if self.callback_on_step_end is None:
            return latents, cond, null
        values = (latents, cond.tokens, null.tokens, cond.tokens, null.tokens)
        tensors = dict(zip(CALLBACK_TENSORS, values, strict=True))
        # diffusers' own callbacks name what they take.
        names = getattr(self.callback_on_step_end, "tensor_inputs", None) or self.callback_on_step_end_tensor_inputs
        wanted = {k: tensors[k] for k in names or ["latents"]}
        changed = self.callback_on_step_end(pipe, step.index, step.t, dict(wanted))
        changed = {} if changed is None else changed
        if not isinstance(changed, dict):
            raise ValueError(f"callback_on_step_end returned {shown(changed)}: return a dictionary, or None")
        if unknown := changed.keys() - set(CALLBACK_TENSORS):
            raise ValueError(f"callback_on_step_end returned {sorted(unknown)}, not among {CALLBACK_TENSORS}")
        new_latents = changed.get("latents", latents)
        if not isinstance(new_latents, Tensor) or new_latents.shape != latents.shape:
            raise ValueError(f"callback_on_step_end returned latents that are not of the shape {tuple(latents.shape)}")
        if self.guidance_scale != 0 and pipe._guidance_scale == 0:
            pipe._guidance_scale = 1.0  # diffusers' SDCFGCutoffCallback means no guidance, not no condition
        new = {"cond": cond.tokens, "null": null.tokens}
        for name, which in zip(CALLBACK_TENSORS[1:], ("cond", "null") * 2, strict=True):
            tokens = changed.get(name)
            # That callback keeps one row of two; rows of another number than the images are not theirs.
            if tokens is not None and tokens is not wanted.get(name) and len(tokens) == len(cond):
                new[which] = tokens
        cond, null = replace(cond, tokens=new["cond"]), replace(null, tokens=new["null"])
        return new_latents.to(latents), cond, null


class SamplingArguments(TypedDict, total=False):
    """The same, for type checkers: `**sampling: Unpack[SamplingArguments]`. A test compares the two."""

    height: int | None
    width: int | None
    num_inference_steps: int | None
    sigmas: Sequence[float] | None
    timesteps: Sequence[float] | None
    guidance_scale: float | list[float] | dict[str, float] | None
    guidance_interval: tuple[float, float]
    guidance_rescale: float
    guidance: Guidance | None
    guider: "BaseGuidance | None"
    guide: nn.Module | None
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


def takes_sampling(function: Function) -> Function:
    """Show the fields of `Sampling` in the signature, where the function has **sampling (help, completion, tools).

    An argument that it does not have is a TypeError that names the right one.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    names = [p.name for p in own if p.name != "self"]
    sampling = list(inspect.signature(Sampling).parameters.values())

    @functools.wraps(function)
    def checked(pipe: "ConditionalPipeline", *args: object, **kwargs: object) -> object:
        for name in kwargs:
            if name not in names and name not in Sampling.__dataclass_fields__:
                raise TypeError(unknown_argument(type(pipe).__name__, name, names, list(Sampling.__dataclass_fields__)))
        return function(pipe, *args, **kwargs)

    vars(checked)["__signature__"] = signature.replace(parameters=own + sampling)
    return cast("Function", checked)
