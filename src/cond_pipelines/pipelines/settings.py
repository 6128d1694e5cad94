"""The three settings, p(x), p(x|y) and p(x|text): `ConditionalPipeline` with a friendly `__call__` each.

This file travels with a checkpoint, together with the one it imports.
"""

import inspect
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .conditional import VAE, ConditionalPipeline


class UnconditionalPipeline(ConditionalPipeline):
    """p(x).

    Example:
        >>> pipe = UnconditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images[0].save("sample.png")
    """

    conditioning = "none"
    model_cpu_offload_seq = "adapter->unet->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        vae: VAE | None = None,
        default_num_inference_steps: int = 30,
        default_guidance_scale: float = 2.5,
        value_range: dict[str, float] | None = None,
        objective: dict[str, object] | None = None,
    ):
        DiffusionPipeline.__init__(self)
        self._setup(
            default_num_inference_steps,
            default_guidance_scale,
            value_range,
            objective,
            unet=unet,
            scheduler=scheduler,
            adapter=adapter,
            vae=vae,
        )

    @torch.no_grad()
    def __call__(self, batch_size: int = 1, **sampling: Any) -> ImagePipelineOutput | tuple:
        """Sample `batch_size` images; see `generate` for the other arguments."""
        return self.generate(*self.encode_condition([None] * batch_size), **sampling)


class ClassConditionalPipeline(UnconditionalPipeline):
    """p(x|y).

    Example:
        >>> pipe = ClassConditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(class_labels=["cat", 1, None]).images  # by name, by id, no label
    """

    conditioning = "class"

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str | list[int | str] | None],
        negative_class_labels: int | str | list[int | str | None] | None = None,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple:
        """Sample an image for each label, given by name or by id; None is no label. See `generate` for the rest.

        A list in the list, [["red", "round"], ["blue"], None], is several labels of one image.
        """
        labels = _as_list(class_labels)
        negative = _as_list(negative_class_labels, len(labels), "negative_class_labels")
        return self.generate(*self.encode_condition(labels, negative), **sampling)

    @property
    def id2label(self) -> dict[int, str]:
        """The classes' names, {0: "cat", ...}."""
        return self.adapter.id2label


class TextToImagePipeline(ConditionalPipeline):
    """p(x|text).

    Example:
        >>> pipe = TextToImagePipeline.from_pretrained("path/to/model")
        >>> pipe("a red circle on white", guidance_scale=3.0).images[0]
    """

    conditioning = "text"

    def encode_prompt(
        self,
        prompt: str | list[str | None] | None,
        negative_prompt: str | list[str | None] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Text to the encoder's last hidden states and masks; needs neither the UNet nor the VAE.

        Returns:
            prompt_embeds (B, L, D), negative_prompt_embeds (B, L', D) or None for "no condition",
            prompt_attention_mask (B, L) bool, negative_prompt_attention_mask (B, L') bool or None.
        """
        if prompt is not None:
            prompt_embeds, prompt_attention_mask = self._features(_as_list(prompt)).values()
        if negative_prompt is None and negative_prompt_embeds is None and self.text_encoder is not None:
            # "No prompt" may itself be a prompt, as it is for Stable Diffusion, which encodes it each time.
            negative_prompt = self.adapter.config.get("null_prompt")
        if negative_prompt is not None:
            negative = _as_list(negative_prompt, len(prompt_embeds), "negative_prompt")
            negative_prompt_embeds, negative_prompt_attention_mask = self._features(negative).values()
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str | None] | None = None,
        negative_prompt: str | list[str | None] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple:
        """Sample an image for each prompt, or for each row of `prompt_embeds` (see `encode_prompt`).

        None as a prompt in a list is no condition. See `generate` for the other arguments.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("pass either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("pass either negative_prompt or negative_prompt_embeds, not both")
        embeds, negative_embeds, mask, negative_mask = self.encode_prompt(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        cond = self._condition(_text_features(embeds, mask))
        if negative_embeds is None:
            return self.generate(cond, self.adapter.null_like(cond), **sampling)
        return self.generate(cond, self._condition(_text_features(negative_embeds, negative_mask)), **sampling)


def _as_list(value: Any, length: int | None = None, name: str = "") -> list[Any] | None:
    """One value or a list to a list, repeated to `length` where it is one value."""
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value] * (length or 1)
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} entries for {length} images: pass one, or one per image")
    return values


def _text_features(hidden_states: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    mask = hidden_states.new_ones(hidden_states.shape[:2]) if mask is None else mask
    return {"hidden_states": hidden_states, "mask": mask.bool()}


def _show_sampling_arguments(*classes: type[ConditionalPipeline]) -> None:
    """`__call__` hands **sampling to `generate`; show those arguments in its signature (help, completion, tools)."""
    common = [
        p for p in inspect.signature(ConditionalPipeline.generate).parameters.values() if p.kind == p.KEYWORD_ONLY
    ]
    for cls in classes:
        signature = inspect.signature(cls.__call__)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        cls.__call__.__signature__ = signature.replace(parameters=own + common)


_show_sampling_arguments(ConditionalPipeline, UnconditionalPipeline, ClassConditionalPipeline, TextToImagePipeline)
