"""The one denoising loop, whatever the condition.

    raw condition --adapter--> cond, null ; noise --[unet, guidance, scheduler.step]*--> (vae) --> images

This file is self-contained on purpose: it travels with a checkpoint.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .image_inputs import Edit, check_call, image_processors, num_channels_latents, prepare_edit
from .remote_code import _INSTALLED, PortablePipeline
from .vae import VAE, Generators, vae_encode, vae_scale_factor


class ConditionalPipeline(PortablePipeline):
    """Image generation under any conditioning adapter; the three settings are its subclasses.

    `ConditionalPipeline.from_pretrained(path)` returns the subclass that was saved. Called itself it takes raw
    conditions of whatever kind its adapter understands, which is how a third party's adapter is used.

    Args:
        unet: the denoiser, of pixels or, with a `vae`, of latents.
        scheduler: any diffusers scheduler that fits what the UNet was trained to predict.
        adapter: a ConditioningAdapter built for the UNet's socket.
        vae: AutoencoderKL, AutoencoderTiny, AutoencoderDC or VQModel for latent diffusion; None for pixels.
        text_encoder, tokenizer: for adapters over text.
        default_num_inference_steps, default_guidance_scale: what a call uses when it is not told.
        value_range: {"low", "high"}, what 0 and 1 mean in the files that it learned from; see `to_values`.
        objective: the loss it was trained with, such as {"name": "flow_matching", "logit_mean": 0.0}; None: not known.

    Example:
        >>> pipe = ConditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(condition=["anything its adapter understands"]).images[0]
    """

    conditioning: str | None = None  # the setting of the adapter that a subclass needs; None: any
    model_cpu_offload_seq = "text_encoder->adapter->unet->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = ["latents", "encoder_hidden_states", "negative_encoder_hidden_states"]

    def __init__(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        vae: VAE | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        default_num_inference_steps: int = 30,
        default_guidance_scale: float = 2.5,
        value_range: dict[str, float] | None = None,
        objective: dict[str, object] | None = None,
    ):
        super().__init__()
        self._setup(
            default_num_inference_steps,
            default_guidance_scale,
            value_range,
            objective,
            unet=unet,
            scheduler=scheduler,
            adapter=adapter,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    def _setup(
        self,
        default_num_inference_steps: int,
        default_guidance_scale: float,
        value_range: dict[str, float] | None,
        objective: dict[str, object] | None,
        **modules: Any,
    ) -> None:
        found = getattr(modules["adapter"], "conditioning", None)
        if modules["adapter"] is not None and self.conditioning not in (None, found):
            raise ValueError(
                f"{type(self).__name__} needs an adapter for the setting {self.conditioning!r} and got "
                f"{type(modules['adapter']).__name__} ({found!r}): pass "
                f"adapter={_ADAPTERS[self.conditioning]}.for_unet(unet, ...)"
            )
        for name, value in (
            ("num_inference_steps", default_num_inference_steps),
            ("guidance_scale", default_guidance_scale),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"default_{name} {value!r} is not a number")
        self.register_modules(**modules)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            value_range=value_range,
            objective=objective,
        )
        vae = modules.get("vae")
        self.vae_scale_factor = 1 if vae is None else vae_scale_factor(vae)
        self.image_processor, self.mask_processor = image_processors(vae, self.vae_scale_factor)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "ConditionalPipeline":
        """Another setting on the same UNet: `ClassConditionalPipeline.from_pipe(pipe, adapter=...)`.

        A new adapter starts with no effect, so the new pipeline's images equal its parent's unconditional ones. The
        parent may also be diffusers' own: StableDiffusionPipeline (text or inpainting), DDPMPipeline, DDIMPipeline,
        LDMPipeline; an adapter for the parent's own setting need not be given.

        Raises:
            ValueError: an adapter is missing, or the pipeline is one that cannot be converted.
        """
        if not hasattr(pipeline, "adapter"):
            return cls._installed("networks.pretrained").convert(cls, pipeline, **kwargs)
        if kwargs.get("adapter") is not None:
            kwargs["adapter"].inherit_null(pipeline.adapter)
        # diffusers carries a model over only when its class is the annotated one, and adapters are of many classes.
        kwargs.setdefault("adapter", pipeline.adapter)
        kwargs.setdefault("dtype", pipeline.unet.dtype)
        return super().from_pipe(pipeline, **kwargs)

    # ------------------------------------------------------------ state of a call, under diffusers' names

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0 and not self._null_is_cond

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    # -------------------------------------------------------------------------------- the steps of a call

    def encode_condition(self, condition: list[Any], negative_condition: list[Any] | None = None) -> tuple[Any, Any]:
        """Raw conditions to (cond, null), the two branches of guidance, each with one row an image."""
        cond = self._condition(self._features(condition))
        if negative_condition is None:
            return cond, self.adapter.null_like(cond)
        return cond, self._condition(self._features(negative_condition))

    def _features(self, raw: list[Any]) -> dict[str, Tensor]:
        inputs = self.adapter.preprocess(raw, getattr(self, "tokenizer", None))
        inputs = {name: x.to(self._execution_device) for name, x in inputs.items()}
        return self.adapter.encode(inputs, getattr(self, "text_encoder", None))

    def _condition(self, features: dict[str, Tensor]) -> Any:
        device, dtype = self._execution_device, self.adapter.dtype
        features = {k: x.to(device, dtype if x.is_floating_point() else None) for k, x in features.items()}
        return self.adapter(features).to(dtype=self.unet.dtype)

    def prepare_latents(
        self, batch_size: int, height: int, width: int, generator: Generators = None, latents: Tensor | None = None
    ) -> Tensor:
        """Initial noise (B, C, height / f, width / f), scaled as the scheduler wants it."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents(self), height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"got {len(generator)} generators for {batch_size} images: pass one, or one per image")
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, and {shape} is needed")
        else:
            latents = latents.to(self._execution_device, self.unet.dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def set_timesteps(self, num_inference_steps: int) -> Tensor:
        """Tell the scheduler the number of steps; returns the timesteps it made. Before its noise is asked for."""
        device = self._execution_device
        if self.config.get("objective") and _INSTALLED:  # with diffusers alone a swapped scheduler is not checked
            self._installed("objectives.base").check_scheduler(self.config.objective, self.scheduler)
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            # Evenly spaced from 1 down to 1 / n, as diffusers' flow pipelines do: its own default spends a whole
            # step on sigma < 0.001.
            sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        return self.scheduler.timesteps

    def predict(
        self, latents: Tensor, t: Tensor, cond: Any, null: Any, guided: bool, beside: Tensor | None = None
    ) -> Tensor:
        """The UNet's answer, with guidance where `guided`: (B, C, h, w). `beside` (B, c, h, w): see `Edit`."""
        branches, scales = cond.branches(null, self.guidance_scale) if guided else ([cond], [])
        told = reduce(lambda a, b: a.cat(b), branches)
        x_t = torch.cat([latents] * len(branches))  # (2B or B, C, h, w)
        if hasattr(self.scheduler, "scale_model_input"):
            x_t = self.scheduler.scale_model_input(x_t, t)
        if beside is not None:
            x_t = torch.cat([x_t, torch.cat([beside] * len(branches))], dim=1)
        kwargs = told.unet_kwargs(self.unet)
        if self.cross_attention_kwargs is not None:
            kwargs["cross_attention_kwargs"] = self.cross_attention_kwargs
        noise_pred = self.unet(x_t, t, **kwargs, return_dict=False)[0]
        if not guided:
            return noise_pred
        # Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, Eq. 6, with scale = 1 + w)
        each = noise_pred.chunk(len(branches))
        noise_pred = sum((s * (b - a) for s, a, b in zip(scales, each[:-1], each[1:], strict=True)), each[0])
        if self.guidance_rescale > 0:
            noise_pred = rescale_guided(noise_pred, each[-1], self.guidance_rescale)
        return noise_pred

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cond: Any,
        null: Any,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: Generators = None,
        eta: float = 0.0,
        edit: Edit | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Tensor:
        """Noise to a sample: (B, C, h, w) to (B, C, h, w). The one loop of all settings."""
        accepted = set(inspect.signature(self.scheduler.step).parameters)
        extra_step_kwargs = {k: v for k, v in {"generator": generator, "eta": eta}.items() if k in accepted}
        self._num_timesteps = len(timesteps)
        # Where "no prompt" is a prompt, StableDiffusionPipeline makes both passes, and one row is rounded unlike two.
        self._null_is_cond = null.equal(cond) and self.adapter.config.get("null_prompt") is None
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                in_interval = guidance_interval[0] <= i / len(timesteps) < guidance_interval[1]
                guided = self.do_classifier_free_guidance and in_interval
                noise_pred = self.predict(latents, t, cond, null, guided, edit and edit.beside)
                dtype = latents.dtype
                latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs, return_dict=False)[0].to(
                    dtype
                )
                if edit is not None:
                    latents = edit.keep_unmasked(self.scheduler, latents, timesteps[i + 1 : i + 2])
                if callback_on_step_end is not None:
                    offered = {
                        "latents": latents,
                        "encoder_hidden_states": cond.tokens,
                        "negative_encoder_hidden_states": null.tokens,
                    }
                    wanted = {k: offered[k] for k in callback_on_step_end_tensor_inputs or ["latents"]}
                    given = offered | (callback_on_step_end(self, i, t, wanted) or {})
                    latents = given["latents"]
                    cond = replace(cond, tokens=given["encoder_hidden_states"])
                    null = replace(null, tokens=given["negative_encoder_hidden_states"])
                progress_bar.update()
        return latents

    def encode_images(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to what the UNet denoises: themselves, or the VAE's scaled latents."""
        return images if self.vae is None else vae_encode(self.vae, images, generator)

    def to_values(self, images: Any) -> Any:
        """Samples in [0, 1] (output_type "np" or "pt") to the values of the files that the model learned from."""
        of = self.config.value_range or {"low": 0.0, "high": 255.0}
        return of["low"] + images * (of["high"] - of["low"])

    def decode(self, latents: Tensor) -> Tensor:
        """Samples to images (B, C, H, W), nominally in [-1, 1]."""
        if self.vae is None:
            return latents
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        latents = (latents / config.scaling_factor + shift).to(self.vae.dtype)
        # In the VAE's own dtype, also within autocast: Stable Diffusion's overflows in fp16 (its `force_upcast`).
        with torch.autocast(latents.device.type, enabled=False):
            return self.vae.decode(latents, return_dict=False)[0]

    def generate(
        self,
        cond: Any,
        null: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | dict[str, float] | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """From (cond, null) to images: what every `__call__` does once its condition is encoded.

        Args:
            height, width: in pixels; default: the size it was trained at. They need not be equal.
            num_inference_steps, guidance_scale: default: as the model was saved. 1 turns guidance off; the second
                pass of the UNet is skipped wherever it has no effect.
            guidance_interval: the fraction of the steps with guidance, (0, 1) for all (Kynkaanniemi et al. 2024).
            guidance_rescale: 0 to 1 (Lin et al. 2023, section 3.4).
            generator: one, or a list with one per image, so that an image does not depend on its batch.
            latents: (B, C, height / f, width / f) initial noise, f the VAE's scale factor.
            image: start from it: image-to-image, and with several samples its variations. What diffusers' image
                processor takes (PIL, numpy or tensor); one, one a condition, or latents (n, C, h, w).
            mask_image: paint only where it is white (inpainting), at the model's size unless height and width say else.
            strength: 0 to 1, how much noise the image gets, so what part of the steps is made. Default: 0.8; 1 with a
                mask.
            eta: of DDIM, 0 to 1; other schedulers have none.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W) in [0, 1], or "latent".
        """
        size = self.unet.config.sample_size
        default_height, default_width = size if isinstance(size, tuple | list) else (size, size)
        if image is None or mask_image is not None:
            height = height or default_height * self.vae_scale_factor
            width = width or default_width * self.vae_scale_factor
        if strength is None:
            strength = 0.8 if mask_image is None else 1.0
        checked = (image, mask_image, strength)
        check_call(self, height, width, guidance_interval, callback_on_step_end_tensor_inputs, output_type, *checked)
        self._guidance_scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        num_rows, batch_size = len(cond), len(cond) * num_images_per_prompt
        cond, null = (c.repeat_interleave(num_images_per_prompt) for c in (cond, null))
        steps = num_inference_steps or self.config.default_num_inference_steps
        timesteps, edit = self.set_timesteps(steps), None
        if image is None:
            latents = self.prepare_latents(batch_size, height, width, generator, latents)
        else:
            sizes = (num_rows, batch_size, height, width)
            edit = prepare_edit(self, image, mask_image, strength, steps, *sizes, generator, latents)
            latents, timesteps = edit.latents, edit.timesteps
        latents = self.denoise(
            latents,
            timesteps,
            cond,
            null,
            guidance_interval,
            generator,
            eta,
            edit,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        images = latents if output_type == "latent" else self.decode(latents)
        images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def __call__(
        self, condition: list[Any], negative_condition: list[Any] | None = None, **sampling: Any
    ) -> ImagePipelineOutput | tuple:
        """Sample one image (or `num_images_per_prompt`) for each raw condition; see `generate` for the rest."""
        return self.generate(*self.encode_condition(condition, negative_condition), **sampling)


_ADAPTERS = {"none": "UnconditionalAdapter", "class": "ClassLabelAdapter", "text": "TextAdapter"}


def rescale_guided(noise_pred: Tensor, noise_pred_cond: Tensor, guidance_rescale: float) -> Tensor:
    """Give the guided prediction the standard deviation of the conditional one (Lin et al. 2023, arXiv 2305.08891)."""
    dims = list(range(1, noise_pred.ndim))
    ratio = noise_pred_cond.std(dim=dims, keepdim=True) / noise_pred.std(dim=dims, keepdim=True)  # Eq. 15
    return guidance_rescale * (noise_pred * ratio) + (1 - guidance_rescale) * noise_pred  # Eq. 16
