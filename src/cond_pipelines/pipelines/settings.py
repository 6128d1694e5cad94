"""The three settings, p(x), p(x|y) and p(x|text): `ConditionalPipeline` with a friendly `__call__` each.

This file travels with a checkpoint, with those that it imports.
"""

from typing import TYPE_CHECKING, Optional

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from torch import Tensor

from ..adapters.denoiser import Network
from .arguments import integer, listed, shown
from .conditional import ConditionalPipeline
from .sampling import takes_sampling
from .vae import VAE

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from typing import Unpack

    from .sampling import Images, SamplingArguments


class UnconditionalPipeline(ConditionalPipeline):
    """p(x).

    Example:
        >>> pipe = UnconditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images[0].save("sample.png")
    """

    conditioning = "none"
    model_cpu_offload_seq = "adapter->guide->unet->vae"
    _optional_components = ["vae", "guider", "guide"]

    def __init__(
        self,
        unet: Network,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        vae: Optional[VAE] = None,  # noqa: UP045
        default_num_inference_steps: Optional[int] = None,  # noqa: UP045
        default_guidance_scale: Optional[float] = None,  # noqa: UP045
        value_range: Optional[dict[str, float]] = None,  # noqa: UP045
        objective: Optional[dict[str, object]] = None,  # noqa: UP045
        guider: Optional[BaseGuidance] = None,  # noqa: UP045
        guide: Optional[Network] = None,  # noqa: UP045
    ):
        DiffusionPipeline.__init__(self)
        self._setup(
            {
                "default_num_inference_steps": default_num_inference_steps,
                "default_guidance_scale": default_guidance_scale,
                "value_range": value_range,
                "objective": objective,
            },
            unet=unet,
            scheduler=scheduler,
            adapter=adapter,
            vae=vae,
            guider=guider,
            guide=guide,
        )

    @takes_sampling
    @torch.no_grad()
    def __call__(self, batch_size: int = 1, **sampling: "Unpack[SamplingArguments]") -> "ImagePipelineOutput | Images":
        """Sample `batch_size` images; see `Sampling` for the other arguments."""
        return self.sample([None] * integer(batch_size, "batch_size"), **sampling)


class ClassConditionalPipeline(UnconditionalPipeline):
    """p(x|y).

    Example:
        >>> pipe = ClassConditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(class_labels=["cat", 1, None]).images  # by name, by id, no label
    """

    conditioning = "class"

    @takes_sampling
    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str | list[int | str] | None],
        negative_class_labels: int | str | list[int | str | None] | None = None,
        **sampling: "Unpack[SamplingArguments]",
    ) -> "ImagePipelineOutput | Images":
        """Sample an image for each label, given by name or by id; None is no label. See `Sampling` for the rest.

        A list in the list, [["red", "round"], ["blue"], None], is several labels of one image.
        """
        labels = _as_list(class_labels, name="class_labels")
        negative = _optional_list(negative_class_labels, len(labels), "negative_class_labels")
        return self.sample(labels, negative, **sampling)

    @property
    def id2label(self) -> dict[int, str]:
        """The classes' names, {0: "cat", ...}."""
        id2label: dict[int, str] = self.adapter.id2label
        return id2label


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
            prompt_embeds, prompt_attention_mask = self._hidden_states(_as_prompts(prompt, None, "prompt"))
        if prompt_embeds is None:
            raise ValueError("pass either prompt or prompt_embeds")
        if negative_prompt is None and negative_prompt_embeds is None:
            negative_prompt = self._null_prompt()
        if negative_prompt_embeds is not None and len(negative_prompt_embeds) != len(prompt_embeds):
            raise ValueError(
                f"negative_prompt_embeds has {len(negative_prompt_embeds)} entries for {len(prompt_embeds)} images: "
                "pass one per image"
            )
        if negative_prompt is not None:
            negative = _as_prompts(negative_prompt, len(prompt_embeds), "negative_prompt")
            negative_prompt_embeds, negative_prompt_attention_mask = self._hidden_states(negative)
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def _warn_of_lost_words(self, prompts: list[object]) -> None:
        """Say, once a call, what of the prompts the model does not see."""
        if self.tokenizer is not None and hasattr(self.adapter, "lost_words"):
            for line in self.adapter.lost_words(prompts, self.tokenizer):
                logger.warning("%s", line)

    def _hidden_states(self, prompts: list[object]) -> tuple[Tensor, Tensor]:
        """(B, L, D) and the mask (B, L) of prompts."""
        features = self._features(prompts)
        if set(features) != {"hidden_states", "mask"}:
            raise ValueError(
                f"{type(self.adapter).__name__} encodes a prompt as {sorted(features)}, which prompt_embeds and "
                "prompt_attention_mask do not hold: pass the prompts themselves to the pipeline"
            )
        return features["hidden_states"], features["mask"]

    @takes_sampling
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str | None] | None = None,
        negative_prompt: str | list[str | None] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        **sampling: "Unpack[SamplingArguments]",
    ) -> "ImagePipelineOutput | Images":
        """Sample an image for each prompt, or for each row of `prompt_embeds` (see `encode_prompt`).

        None or "" as a prompt is no condition. See `Sampling` for the other arguments.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("pass either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("pass either negative_prompt or negative_prompt_embeds, not both")
        if prompt_embeds is None and negative_prompt_embeds is None:
            prompts = _as_prompts(prompt, None, "prompt")
            self._warn_of_lost_words(prompts)
            negative = None
            if negative_prompt is not None:
                negative = _as_prompts(negative_prompt, len(prompts), "negative_prompt")
            return self.sample(prompts, negative, **sampling)
        embeds, negative_embeds, mask, negative_mask = self.encode_prompt(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        for name, x in {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}.items():
            if x is not None and self.adapter is not None:
                _check_embeds(x, name, self.adapter.config.get("hidden_size"))
        cond = self._condition(_text_features(embeds, mask))
        if negative_embeds is None:
            return self.generate(cond, self.adapter.null_like(cond), **sampling)
        return self.generate(cond, self._condition(_text_features(negative_embeds, negative_mask)), **sampling)


def _optional_list(value: object, length: int, name: str) -> list[object] | None:
    """None for None; otherwise as `_as_list`."""
    return None if value is None else _as_list(value, length, name)


def _as_list(value: object, length: int | None = None, name: str = "") -> list[object]:
    """One value or a list to a list, repeated to `length` where it is one value."""
    value = listed(value)  # an array or a tensor
    values = list(value) if isinstance(value, list | tuple) else [value] * (length or 1)
    if not values:
        raise ValueError(f"{name} is empty: pass one at least")
    if length is not None and len(values) != length:
        raise ValueError(f"{name} has {len(values)} entries for {length} images: pass one, or one per image")
    return values


def _as_prompts(value: object, length: int | None, name: str) -> list[object]:
    """As `_as_list`, of strings and None. Raises ValueError for anything else."""
    prompts = _as_list(value, length, name)
    for prompt in prompts:
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"{name} {shown(prompt)} is not a string")
    return prompts


def _check_embeds(embeds: object, name: str, width: int | None) -> None:
    """Raise ValueError where they are not a tensor (B, tokens, width); None: a width that is not known."""
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or width not in (None, embeds.shape[2]):
        what = f"of the shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else shown(embeds)
        raise ValueError(f"{name} {what} is not a tensor of the shape (images, tokens, {width or 'features'})")


def _text_features(hidden_states: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    mask = hidden_states.new_ones(hidden_states.shape[:2]) if mask is None else mask
    return {"hidden_states": hidden_states, "mask": mask.bool()}
