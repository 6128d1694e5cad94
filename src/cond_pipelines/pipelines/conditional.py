"""The one denoising loop, whatever the condition.

    raw condition --adapter--> cond, null ; noise --[unet, guidance, scheduler.step]*--> (vae) --> images

This file is self-contained on purpose: it travels with a checkpoint.
"""

import inspect
from typing import TYPE_CHECKING, Optional

import numpy as np
import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters.denoiser import Network, denoise, unwrapped
from .autoguidance import guidance_by_scale
from .call_state import CallState, one_call_at_a_time
from .defaults import PipelineWithDefaults
from .guidance import Guidance, Guider, Step, with_options
from .image_inputs import Edit, check_call, noise_of, num_channels_latents, prepare_edit
from .prompts import encoded_alone
from .sampling import CALLBACK_TENSORS, Call, Sampling, takes_sampling
from .schedulers import PipelineWithScheduler, end_of_step, predicts_variance
from .vae import VAE, Generators, vae_decode, vae_encode

if TYPE_CHECKING:
    from typing import Any, Unpack

    from cond_pipelines.adapters.base import Conditioning

    from .sampling import Images, SamplingArguments

logger = logging.get_logger(__name__)


class ConditionalPipeline(PipelineWithDefaults, PipelineWithScheduler, CallState):
    """Image generation under any conditioning adapter; the three settings are its subclasses.

    `ConditionalPipeline.from_pretrained(path)` returns the subclass that was saved. Called itself it takes raw
    conditions of whatever kind its adapter understands, which is how a third party's adapter is used.

    Args:
        unet: the denoiser, of pixels or, with a `vae`, of latents.
        scheduler: any diffusers scheduler that fits what the UNet was trained to predict.
        adapter: a ConditioningAdapter built for the UNet's socket.
        vae: AutoencoderKL, AutoencoderTiny, AutoencoderDC or VQModel for latent diffusion; None for pixels.
        text_encoder, tokenizer: for adapters over text.
        default_num_inference_steps, default_guidance_scale: of a call that does not give them.
        value_range: {"low", "high"}, what 0 and 1 mean in the files that it learned from; see `to_values`.
        objective: the loss it was trained with, such as {"name": "flow_matching", "logit_mean": 0.0}.
            These four, where None: of the pipeline whose components these are, else `DEFAULTS`.
        guider: one of diffusers' guiders, of a call that gives no guidance of its own; None: classifier-free guidance.
        guide: a weaker network of the same kind: guidance_scale is then that of autoguidance.

    Example:
        >>> pipe = ConditionalPipeline.from_pretrained("path/to/model")
        >>> pipe(condition=["anything its adapter understands"]).images[0]
    """

    model_cpu_offload_seq = "text_encoder->adapter->guide->unet->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer", "guider", "guide"]
    _callback_tensor_inputs = CALLBACK_TENSORS

    def __init__(
        self,
        unet: Network,
        scheduler: SchedulerMixin,
        adapter: ModelMixin,
        vae: Optional[VAE] = None,  # noqa: UP045
        text_encoder: Optional[PreTrainedModel] = None,  # noqa: UP045
        tokenizer: Optional[PreTrainedTokenizerBase] = None,  # noqa: UP045
        default_num_inference_steps: Optional[int] = None,  # noqa: UP045
        default_guidance_scale: Optional[float] = None,  # noqa: UP045
        value_range: Optional[dict[str, float]] = None,  # noqa: UP045
        objective: Optional[dict[str, object]] = None,  # noqa: UP045
        guider: Optional[BaseGuidance] = None,  # noqa: UP045
        guide: Optional[Network] = None,  # noqa: UP045
    ):
        super().__init__()
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
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guider=guider,
            guide=guide,
        )

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: "Any") -> "ConditionalPipeline":
        """Another setting on the same UNet: `ClassConditionalPipeline.from_pipe(pipe, adapter=...)`.

        A new adapter starts with no effect, so the new pipeline's images equal its parent's unconditional ones. The
        parent may also be diffusers' own: StableDiffusionPipeline (text or inpainting), DDPMPipeline, DDIMPipeline,
        LDMPipeline; an adapter for the parent's own setting need not be given.

        Raises:
            ValueError: an adapter is missing, or the pipeline is one that cannot be converted.
        """
        if not hasattr(pipeline, "adapter"):
            pipe: ConditionalPipeline = cls._installed("networks.pretrained").convert(cls, pipeline, **kwargs)
            return pipe
        if kwargs.get("adapter") is not None:
            kwargs["adapter"].inherit_null(pipeline.adapter)
        # diffusers carries a model over only when its class is the annotated one, and adapters are of many classes.
        kwargs.setdefault("adapter", pipeline.adapter)
        kwargs.setdefault("dtype", pipeline.unet.dtype)
        pipe = super().from_pipe(pipeline, **kwargs)
        return pipe

    # -------------------------------------------------------------------------------- the steps of a call

    def encode_condition(
        self, condition: list[object], negative_condition: list[object] | None = None
    ) -> "tuple[Conditioning, Conditioning]":
        """Raw conditions to (cond, null), the two branches of guidance, each with one row an image."""
        cond = self._condition(self._features(condition))
        if negative_condition is None:
            return cond, self.adapter.null_like(cond)
        return cond, self._condition(self._features(negative_condition))

    def _features(self, raw: list[object]) -> dict[str, Tensor]:
        if self.adapter is None:  # a pipeline that only encodes prompts
            return encoded_alone(raw, getattr(self, "tokenizer", None), getattr(self, "text_encoder", None))
        inputs = self.adapter.preprocess(raw, getattr(self, "tokenizer", None))
        inputs = {name: x.to(self._execution_device) for name, x in inputs.items()}
        features: dict[str, Tensor] = self.adapter.encode(inputs, getattr(self, "text_encoder", None))
        return features

    def _condition(self, features: dict[str, Tensor]) -> "Conditioning":
        if self.adapter is None or self.unet is None:
            missing = "adapter" if self.adapter is None else "unet"
            raise ValueError(f"this pipeline has no {missing}, so it makes no images: it can only encode prompts")
        device, dtype = self._execution_device, self.adapter.dtype
        features = {k: x.to(device, dtype if x.is_floating_point() else None) for k, x in features.items()}
        cond: Conditioning = self.adapter(features)
        return cond.to(dtype=unwrapped(self.unet).dtype)

    def _null_prompt(self) -> str | None:
        """The prompt that "no prompt" is, as for Stable Diffusion, which encodes it each time; None: there is none."""
        has_both = self.adapter is not None and getattr(self, "text_encoder", None) is not None
        return self.adapter.config.get("null_prompt") if has_both else None

    def prepare_latents(
        self, batch_size: int, height: int, width: int, generator: Generators = None, latents: Tensor | None = None
    ) -> Tensor:
        """Initial noise (B, C, height / f, width / f), scaled as the scheduler wants it."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents(self), height // factor, width // factor)
        call = Sampling(generator=generator, latents=latents)
        noise = noise_of(call, shape, self._execution_device, unwrapped(self.unet).dtype)
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def predict(
        self,
        latents: Tensor,
        step: Step,
        cond: "Conditioning",
        null: "Conditioning",
        guidance: Guidance,
        extra_channels: Tensor | None = None,
    ) -> Tensor:
        """The guided prediction of a step, (B, C, h, w). `extra_channels` (B, c, h, w): see `Edit`."""
        guidance, x_t = guidance if guidance.is_active(step) else Guidance(), latents
        if hasattr(self.scheduler, "scale_model_input"):
            x_t = self.scheduler.scale_model_input(x_t, step.t)
        if extra_channels is not None:
            x_t = torch.cat([x_t, extra_channels], dim=1)

        def of_network(network: nn.Module | None, cond: "Conditioning") -> Tensor:
            is_own = network is None and self.cross_attention_kwargs is not None
            kwargs = {"cross_attention_kwargs": self.cross_attention_kwargs} if is_own else {}
            rows = torch.cat([x_t] * (len(cond) // len(x_t)))  # (B, ...) for each branch of this network
            return denoise(network or self.unet, rows, step.t, cond, end_of_step(self.scheduler, step.t), **kwargs)

        return guidance.guided(cond, null, step, of_network, unwrapped(self.unet))

    def _guidance_now(self, call: Call, cond: "Conditioning") -> Guidance:
        """Of the next step: a callback may have changed the scale, and the conditions."""
        if call.guider is not None:
            return Guider(call.guider)
        guide = getattr(self, "guide", None) if call.guide is None else call.guide
        guidance = call.guidance or guidance_by_scale(
            self.guidance_scale, cond, self.adapter.conditioning, not self._null_is_cond, guide
        )
        return (
            guidance
            if type(guidance) is Guidance
            else with_options(guidance, call.guidance_interval, self.guidance_rescale)
        )

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        cond: "Conditioning",
        null: "Conditioning",
        call: Call,
        edit: Edit | None = None,
    ) -> Tensor:
        """Noise to a sample: (B, C, h, w) to (B, C, h, w). The one loop of all settings."""
        accepted = set(inspect.signature(self.scheduler.step).parameters)
        extra_step_kwargs = {k: v for k, v in {"generator": call.generator, "eta": call.eta}.items() if k in accepted}
        self._num_timesteps = len(timesteps)
        # Where "no prompt" is a prompt, StableDiffusionPipeline makes both passes, and one row is rounded unlike two.
        self._null_is_cond = null.equal(cond) and self.adapter.config.get("null_prompt") is None
        extra_channels = None if edit is None else edit.extra_channels
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                step, guidance = Step(i, len(timesteps), t), self._guidance_now(call, cond)
                noise_pred = self.predict(latents, step, cond, null, guidance, extra_channels)
                if not predicts_variance(self.scheduler):
                    noise_pred = noise_pred[:, : latents.shape[1]]  # of a UNet that predicts a variance too
                dtype = latents.dtype
                latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs, return_dict=False)[0]
                latents = latents.to(dtype)
                if edit is not None:
                    latents = edit.keep_unmasked(self.scheduler, latents, timesteps[i + 1 : i + 2])
                if call.callback_on_step_end is not None:
                    latents, cond, null = call.call_back(self, step, latents, cond, null)
                progress_bar.update()
        return latents

    def encode_images(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to what the UNet denoises: themselves, or the VAE's scaled latents."""
        return images if self.vae is None else vae_encode(self.vae, images, generator)

    def to_values(self, images: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Samples in [0, 1] (output_type "np" or "pt") to the values of the files that the model learned from."""
        of = self.config.value_range or {"low": 0.0, "high": 255.0}
        return of["low"] + images * (of["high"] - of["low"])

    def decode(self, latents: Tensor) -> Tensor:
        """Samples to images (B, C, H, W), nominally in [-1, 1]."""
        return latents if self.vae is None else vae_decode(self.vae, latents)

    @takes_sampling
    @one_call_at_a_time
    def generate(
        self, cond: "Conditioning", null: "Conditioning", **sampling: "Unpack[SamplingArguments]"
    ) -> "ImagePipelineOutput | Images":
        """From (cond, null) to images: the part that every call shares; see `Sampling`."""
        call = Sampling(**sampling).complete(self)
        check_call(self, call)
        self._guidance_scale, self._guidance_rescale = call.guidance_scale, call.guidance_rescale
        self._cross_attention_kwargs, self._interrupt = call.cross_attention_kwargs, False

        num_conditions = len(cond)
        cond, null = (c.repeat_interleave(call.num_images_per_prompt) for c in (cond, null))
        timesteps, edit = self.set_timesteps(call.num_inference_steps, call.sigmas, call.timesteps), None
        if call.image is None:
            height, width = call.height or 0, call.width or 0  # both are set where there is no image
            latents = self.prepare_latents(len(cond), height, width, call.generator, call.latents)
        else:
            edit = prepare_edit(self, call, num_conditions)
            latents, timesteps = edit.latents, edit.timesteps
        latents = self.denoise(latents, timesteps, cond, null, call, edit)
        images = latents if call.output_type == "latent" else self.decode(latents)
        if call.output_type == "pil" and not images.isfinite().all():
            logger.warning(
                "the model draws values that are no numbers, which a picture shows in black: damaged weights?"
            )
        images = self.image_processor.postprocess(images, output_type=call.output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if call.return_dict else (images,)

    @takes_sampling
    @torch.no_grad()
    def sample(
        self,
        conditions: list[object],
        negative_conditions: list[object] | None = None,
        **sampling: "Unpack[SamplingArguments]",
    ) -> "ImagePipelineOutput | Images":
        """Sample one image (or `num_images_per_prompt`) for each raw condition, whatever the setting.

        Args:
            conditions: what the adapter understands: labels, captions, vectors; None is no condition.
            negative_conditions: what guidance leads away from, one a condition; None: no condition.
            sampling: see `Sampling`.

        Example:
            >>> pipe.sample(["cat", None], num_inference_steps=20).images
        """
        if negative_conditions is None and self._null_prompt() is not None:
            negative_conditions = [self._null_prompt()] * len(conditions)
        if not conditions:
            raise ValueError("there is no condition: pass one at least")
        return self.generate(*self.encode_condition(conditions, negative_conditions), **sampling)

    @takes_sampling
    def __call__(
        self,
        condition: list[object],
        negative_condition: list[object] | None = None,
        **sampling: "Unpack[SamplingArguments]",
    ) -> "ImagePipelineOutput | Images":
        """Sample one image (or `num_images_per_prompt`) for each raw condition; see `Sampling` for the rest."""
        return self.sample(condition, negative_condition, **sampling)
