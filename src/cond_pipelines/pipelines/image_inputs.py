"""The arguments of a call, checked; its image and mask, brought to where the UNet works.

    image --encode--> x_0 --noise of the first timestep--> latents ; mask --> what each step keeps

This file is self-contained on purpose: it travels with a checkpoint.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..adapters.denoiser import size_multiple, unwrapped
from .sampling import Call, Sampling
from .vae import VAE, Generators, image_channels

if TYPE_CHECKING:
    from .conditional import ConditionalPipeline


def image_processors(vae: VAE | None, scale_factor: int) -> tuple[VaeImageProcessor, VaeImageProcessor]:
    """diffusers' own, of images and of masks, for a pipeline with this VAE or with none."""
    # A tensor with as many channels as latents have is taken for latents; where images have as many, for images.
    latent_channels = 0 if vae is None else vae.config.latent_channels
    if vae is not None and latent_channels == image_channels(vae):
        latent_channels = 0
    images = VaeImageProcessor(vae_scale_factor=scale_factor, vae_latent_channels=latent_channels)
    of_mask = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    return images, VaeImageProcessor(vae_scale_factor=scale_factor, **of_mask)


def num_channels_latents(pipe: "ConditionalPipeline") -> int:
    """Of what is denoised. A UNet may see more (a mask and a masked image) or answer more (a learned variance)."""
    if pipe.vae is not None:
        return int(pipe.vae.config.latent_channels)
    config = unwrapped(pipe.unet).config
    return int(min(config.in_channels, getattr(config, "out_channels", config.in_channels)))


def check_call(pipe: "ConditionalPipeline", call: Call) -> None:
    """Raise ValueError, in one line, for arguments that no setting can use."""
    check_size(pipe, call.height or 0, call.width or 0)
    channels, seen = num_channels_latents(pipe), unwrapped(pipe.unet).config.in_channels
    if call.output_type == "pil" and pipe.vae is None and channels not in (1, 3, 4):
        raise ValueError(f"{channels} channels make no PIL image: pass output_type='np' or 'pt'")
    low, high = call.guidance_interval
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"guidance_interval {call.guidance_interval} must be two fractions of the steps, 0 <= a <= b <= 1"
        )
    unknown = set(call.callback_on_step_end_tensor_inputs or ()) - set(pipe._callback_tensor_inputs)
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs {sorted(unknown)} are not among {pipe._callback_tensor_inputs}"
        )
    network = unwrapped(pipe.unet)
    if call.cross_attention_kwargs and "cross_attention_kwargs" not in inspect.signature(network.forward).parameters:
        raise ValueError(f"cross_attention_kwargs: {type(network).__name__} has no cross-attention, leave them out")
    if call.mask_image is not None and call.image is None:
        raise ValueError("mask_image says where to paint: pass the image too")
    if seen not in (channels, 2 * channels + 1):
        raise ValueError(
            f"the UNet takes {seen} channels, and this pipeline has {channels} or, for inpainting, {2 * channels + 1}"
        )
    if seen != channels and call.mask_image is None:
        raise ValueError(f"the UNet takes {seen} channels, it is for inpainting: pass image and mask_image")


def check_size(pipe: "ConditionalPipeline", height: int, width: int) -> None:
    """Raise ValueError for a size in pixels that the VAE or the network cannot take."""
    multiple = pipe.vae_scale_factor * size_multiple(pipe.unet)
    if height % multiple or width % multiple:
        raise ValueError(f"height {height} and width {width} must be multiples of {multiple}")


@dataclass(frozen=True)
class Edit:
    """A call with an image: where it starts, and what each step keeps of the image.

    Args:
        timesteps: those that are left.
        latents: (B, c, h, w) the start.
        extra_channels: (B, 1 + c, h, w) the mask and the image without what is masked, which an inpainting UNet sees
            as channels after the latents; None: it does not.
        mask: (B, 1, h, w), 1 where to paint; None: everywhere, or an inpainting UNet sees to it.
        x_0, noise: (B, c, h, w) of the image that is kept elsewhere.
    """

    timesteps: Tensor
    latents: Tensor
    extra_channels: Tensor | None = None
    mask: Tensor | None = None
    x_0: Tensor | None = None
    noise: Tensor | None = None

    def keep_unmasked(self, scheduler: SchedulerMixin, latents: Tensor, next_timestep: Tensor) -> Tensor:
        """`latents` where the mask is 1, the image at the noise of `next_timestep` elsewhere; (0,) is none."""
        if self.mask is None:
            return latents
        kept = add_noise(scheduler, self.x_0, self.noise, next_timestep) if len(next_timestep) else self.x_0
        return (1 - self.mask) * kept + self.mask * latents


def add_noise(scheduler: SchedulerMixin, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`x_0` at the noise of timestep `t`; flow-matching schedulers have another name for it."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(x_0, t, noise)
    return scheduler.add_noise(x_0, noise, t)


def last_timesteps(scheduler: SchedulerMixin, num_inference_steps: int, strength: float) -> Tensor:
    """The last `strength` of the timesteps that the scheduler was set to.

    Raises:
        ValueError: none is left.
    """
    left = min(int(num_inference_steps * strength), num_inference_steps)
    if not left:
        raise ValueError(f"strength {strength} leaves none of {num_inference_steps} steps: raise one of them")
    start = (num_inference_steps - left) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


@dataclass(frozen=True)
class _Rows:
    """How many conditions and samples a call has, and where its tensors are to be."""

    num_conditions: int
    num_samples: int
    device: torch.device
    dtype: torch.dtype

    def each(self, x: Tensor, name: str) -> Tensor:
        """One row, one a condition or one a sample, to one a sample."""
        if len(x) not in (1, self.num_conditions, self.num_samples):
            raise ValueError(f"{name}: {len(x)} for {self.num_conditions} conditions: pass one, or one for each")
        # `cat` leaves the layout in memory as theirs is; a convolution rounds differently in another.
        return torch.cat([x[i : i + 1] for i in (n * len(x) // self.num_samples for n in range(self.num_samples))])


def prepare_edit(pipe: "ConditionalPipeline", call: Call, num_conditions: int) -> Edit:
    """From an image, and a mask, to the start of the denoising loop; the scheduler's timesteps are set.

    Draws from the generator what StableDiffusionImg2ImgPipeline or StableDiffusionInpaintPipeline draws, in that order.

    Args:
        call: its image and mask_image are one, one a condition, or one a sample; steps and strength are set.
    """
    rows = _Rows(
        num_conditions, num_conditions * call.num_images_per_prompt, pipe._execution_device, unwrapped(pipe.unet).dtype
    )
    timesteps = last_timesteps(pipe.scheduler, call.num_inference_steps, call.strength)
    check_generators(call.generator, rows.num_samples)
    images = pipe.image_processor.preprocess(_in_mode(pipe, call.image), height=call.height, width=call.width)
    channels = num_channels_latents(pipe)  # images: (n, C, H, W)
    is_latent = _is_latent(pipe, images)
    needed = channels if is_latent else image_channels(pipe.vae)
    if images.shape[1] != needed:
        raise ValueError(f"image has {images.shape[1]} channels, and the model {needed}")
    factor = 1 if is_latent else pipe.vae_scale_factor
    check_size(pipe, *(side * pipe.vae_scale_factor // factor for side in images.shape[2:]))
    shape = (rows.num_samples, channels, images.shape[2] // factor, images.shape[3] // factor)
    if call.mask_image is not None:
        return _inpainting(pipe, call, rows, timesteps, images, shape)
    if isinstance(call.generator, list):
        images = rows.each(images, "image")  # so that a sample does not depend on its batch
    x_0 = rows.each(_encode(pipe, images, rows, call.generator), "image")
    noise = noise_of(call, shape, rows.device, rows.dtype)
    return Edit(timesteps, add_noise(pipe.scheduler, x_0, noise, timesteps[:1].repeat(rows.num_samples)))


def _inpainting(
    pipe: "ConditionalPipeline",
    call: Call,
    rows: _Rows,
    timesteps: Tensor,
    images: Tensor,  # (n, C, H, W), or latents (n, c, h, w)
    shape: tuple[int, int, int, int],
) -> Edit:
    """For a UNet for inpainting, which sees the mask; or for any other, whose every step keeps what is not masked."""
    is_for_inpainting = unwrapped(pipe.unet).config.in_channels != shape[1]
    x_0 = None
    if not (is_for_inpainting and call.strength == 1):
        x_0 = rows.each(_encode(pipe, images, rows, call.generator), "image").contiguous()
    noise = noise_of(call, shape, rows.device, rows.dtype)
    if call.strength == 1:
        start = noise * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    else:
        start = add_noise(pipe.scheduler, x_0, noise, timesteps[:1].repeat(rows.num_samples))
    mask = pipe.mask_processor.preprocess(call.mask_image, height=call.height, width=call.width)  # (m, 1, H, W)
    small = F.interpolate(mask, size=shape[2:])  # (m, 1, h, w), nearest
    masked = images * ((small if _is_latent(pipe, images) else mask) < 0.5)
    # Encoded also where the UNet does not see it: the generator must move on as theirs does.
    seen = rows.each(_encode(pipe, masked, rows, call.generator), "image")
    mask = rows.each(small.to(rows.device, rows.dtype), "mask_image")
    if is_for_inpainting:
        return Edit(timesteps, start, extra_channels=torch.cat([mask, seen], dim=1))
    return Edit(timesteps, start, mask=mask, x_0=x_0, noise=noise)


def _is_latent(pipe: "ConditionalPipeline", images: Tensor) -> bool:
    """Whether they are what the network denoises already."""
    return pipe.vae is None or images.shape[1] == pipe.image_processor.config.vae_latent_channels


def _encode(pipe: "ConditionalPipeline", images: Tensor, rows: _Rows, generator: Generators) -> Tensor:
    """Images (n, C, H, W) to latents (n, c, h, w); latents, and images without a VAE, stay what they are."""
    images = images.to(rows.device, rows.dtype)
    if _is_latent(pipe, images):
        return images
    if not isinstance(generator, list):
        return pipe.encode_images(images, generator)
    return torch.cat([pipe.encode_images(images[i : i + 1], generator[i]) for i in range(len(images))])


def noise_of(call: Sampling, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The call's `latents`, or standard normal noise of its generator. Raises ValueError where they do not fit."""
    check_generators(call.generator, shape[0])
    if call.latents is not None and tuple(call.latents.shape) != shape:
        raise ValueError(f"latents have the shape {tuple(call.latents.shape)}, and {shape} is needed")
    if call.latents is not None and not call.latents.is_floating_point():
        raise ValueError(f"latents are {call.latents.dtype}, and numbers with a fraction are needed, such as float32")
    if call.latents is not None:
        return call.latents.to(device, dtype)
    return randn_tensor(shape, generator=call.generator, device=device, dtype=dtype)


def check_generators(generator: Generators, num_samples: int) -> None:
    """Raise ValueError for a list of another length than the number of samples."""
    if isinstance(generator, list) and len(generator) != num_samples:
        raise ValueError(f"got {len(generator)} generators for {num_samples} images: pass one, or one per image")


def _in_mode(pipe: "ConditionalPipeline", image: PipelineImageInput) -> PipelineImageInput:
    """Images, one or a list, as the model's channels and range of values ask for: PIL of 8 bits, or (n, C, H, W)."""
    images = image if isinstance(image, list) else [image]
    if any(map(is_deep, images)):
        return values_to_signed(pipe, images)
    for each in images:
        if (
            isinstance(each, np.ndarray) and each.size and not each.max() < 2
        ):  # above 1 only as rounding can be; not nan
            raise ValueError(
                f"image has values up to {each.max():g}: numbers with a fraction are from 0 to 1, others uint8"
            )
    channels = num_channels_latents(pipe) if pipe.vae is None else image_channels(pipe.vae)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None or not all(hasattr(x, "convert") for x in images):
        return image
    return [x.convert(mode) for x in images]


def is_deep(image: Any) -> bool:
    """Whether an image has more than 8 bits a value: PIL's modes I, I;16 and F, and arrays of whole numbers."""
    if isinstance(image, np.ndarray):
        return image.dtype.kind in "iu" and image.dtype != np.uint8
    return getattr(image, "mode", "") in ("I", "I;16", "I;16L", "I;16B", "F")


def values_to_signed(pipe: "ConditionalPipeline", images: list[Any]) -> Tensor:
    """Images of the model's own `value_range`, PIL or arrays (H, W), (H, W, C), to (n, C, H, W) in [-1, 1].

    Raises:
        ValueError: the model has no such range, or a value is outside of it.
    """
    of = pipe.config.value_range
    if not of:
        raise ValueError("images of more than 8 bits need a model that was trained with --value_range: scale them to 8")
    arrays = [np.asarray(image, dtype=np.float32) for image in images]
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    if not (low >= of["low"] and high <= of["high"]):
        raise ValueError(f"image has values from {low:g} to {high:g}, outside of {of['low']:g} to {of['high']:g}")
    pixels = np.stack([a[..., None] if a.ndim == 2 else a for a in arrays])  # (n, H, W, C)
    signed = (pixels - of["low"]) / (of["high"] - of["low"]) * 2 - 1
    return torch.from_numpy(signed).permute(0, 3, 1, 2)
