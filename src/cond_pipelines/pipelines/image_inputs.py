"""What a call is given: its arguments checked, its image and mask brought to where the UNet works.

    image --encode--> x_0 --noise of the first timestep--> latents ; mask --> what each step keeps

This file is self-contained on purpose: it travels with a checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .vae import Generators


def image_processors(vae: Any, scale_factor: int) -> tuple[VaeImageProcessor, VaeImageProcessor]:
    """diffusers' own, of images and of masks, for a pipeline with this VAE or with none."""
    # A tensor with as many channels as latents have is taken for latents; where images have as many, for images.
    latent_channels = (
        0 if vae is None or vae.config.latent_channels == vae.config.in_channels else vae.config.latent_channels
    )
    images = VaeImageProcessor(vae_scale_factor=scale_factor, vae_latent_channels=latent_channels)
    of_mask = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    return images, VaeImageProcessor(vae_scale_factor=scale_factor, **of_mask)


def num_channels_latents(pipe: Any) -> int:
    """Of what is denoised. A UNet may see more (a mask and a masked image) or answer more (a learned variance)."""
    if pipe.vae is not None:
        return pipe.vae.config.latent_channels
    config = pipe.unet.config
    return min(config.in_channels, getattr(config, "out_channels", config.in_channels))


def check_call(
    pipe: Any,
    height: int | None,
    width: int | None,
    guidance_interval: tuple[float, float],
    callback_on_step_end_tensor_inputs: list[str] | None,
    output_type: str,
    image: Any,
    mask_image: Any,
    strength: float,
) -> None:
    """Raise ValueError, in one line, for arguments that no setting can use."""
    _check_size(pipe, height or 0, width or 0)
    if output_type == "pil" and pipe.vae is None and num_channels_latents(pipe) not in (1, 3, 4):
        channels = num_channels_latents(pipe)
        raise ValueError(f"{channels} channels make no PIL image: pass output_type='np' or 'pt'")
    low, high = guidance_interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"guidance_interval {guidance_interval} must be two fractions of the steps, 0 <= a <= b <= 1")
    unknown = set(callback_on_step_end_tensor_inputs or ()) - set(pipe._callback_tensor_inputs)
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs {sorted(unknown)} are not among {pipe._callback_tensor_inputs}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} must be between 0 and 1")
    if mask_image is not None and image is None:
        raise ValueError("mask_image says where to paint: pass the image too")
    channels, seen = num_channels_latents(pipe), pipe.unet.config.in_channels
    if seen not in (channels, 2 * channels + 1):
        raise ValueError(
            f"the UNet takes {seen} channels, and this pipeline has {channels} or, for inpainting, {2 * channels + 1}"
        )
    if seen != channels and mask_image is None:
        raise ValueError(f"the UNet takes {seen} channels, it is for inpainting: pass image and mask_image")


def _check_size(pipe: Any, height: int, width: int) -> None:
    multiple = pipe.vae_scale_factor
    if isinstance(pipe.unet, UNet2DModel):  # the other kind copes with any size
        multiple *= 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if height % multiple or width % multiple:
        raise ValueError(f"height {height} and width {width} must be multiples of {multiple}")


@dataclass(frozen=True)
class Edit:
    """A call with an image: where it starts, and what each step keeps of it.

    Args:
        timesteps: those that are left.
        latents: (B, c, h, w) the start.
        beside: (B, 1 + c, h, w) the mask and the image without what is masked, which an inpainting UNet sees beside
            the latents; None: it does not.
        mask: (B, 1, h, w), 1 where to paint; None: everywhere, or an inpainting UNet sees to it.
        x_0, noise: (B, c, h, w) of the image that is kept elsewhere.
    """

    timesteps: Tensor
    latents: Tensor
    beside: Tensor | None = None
    mask: Tensor | None = None
    x_0: Tensor | None = None
    noise: Tensor | None = None

    def keep_unmasked(self, scheduler: Any, latents: Tensor, next_timestep: Tensor) -> Tensor:
        """`latents` where the mask is 1, the image at the noise of `next_timestep` elsewhere; (0,) is none."""
        if self.mask is None:
            return latents
        kept = add_noise(scheduler, self.x_0, self.noise, next_timestep) if len(next_timestep) else self.x_0
        return (1 - self.mask) * kept + self.mask * latents


def add_noise(scheduler: Any, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`x_0` at the noise of timestep `t`; flow-matching schedulers have another name for it."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(x_0, t, noise)
    return scheduler.add_noise(x_0, noise, t)


def last_timesteps(scheduler: Any, num_inference_steps: int, strength: float) -> Tensor:
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


def prepare_edit(
    pipe: Any,
    image: Any,
    mask_image: Any,
    strength: float,
    num_inference_steps: int,
    num_rows: int,
    batch_size: int,
    height: int | None,
    width: int | None,
    generator: Generators,
    latents: Tensor | None,
) -> Edit:
    """From an image, and a mask, to the start of the denoising loop; the scheduler's timesteps are set.

    Draws from `generator` what StableDiffusionImg2ImgPipeline or StableDiffusionInpaintPipeline draws, in that order.

    Args:
        image, mask_image: whatever diffusers' image processor takes: one, one a row, or one a sample.
        num_rows, batch_size: of conditions, and of samples.
        latents: (B, c, h, w) the noise; None: drawn.
    """
    device, dtype = pipe._execution_device, pipe.unet.dtype
    timesteps = last_timesteps(pipe.scheduler, num_inference_steps, strength)

    def each(x: Tensor, name: str) -> Tensor:
        if len(x) not in (1, num_rows, batch_size):
            raise ValueError(f"{name}: {len(x)} for {num_rows} conditions: pass one, or one for each")
        # `cat` leaves the layout in memory as theirs is; a convolution rounds differently in another.
        return torch.cat([x[i : i + 1] for i in (n * len(x) // batch_size for n in range(batch_size))])

    def encode(images: Tensor) -> Tensor:
        images = images.to(device, dtype)
        if is_latent:
            return images
        if not isinstance(generator, list):
            return pipe.encode_images(images, generator)
        return torch.cat([pipe.encode_images(images[i : i + 1], generator[i]) for i in range(len(images))])

    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for {batch_size} images: pass one, or one per image")
    images = pipe.image_processor.preprocess(_in_mode(pipe, image), height=height, width=width)  # (n, C, H, W)
    channels = num_channels_latents(pipe)
    is_latent = pipe.vae is None or images.shape[1] == pipe.image_processor.config.vae_latent_channels
    needed = channels if is_latent else pipe.vae.config.in_channels
    if images.shape[1] != needed:
        raise ValueError(f"image has {images.shape[1]} channels, and the model {needed}")
    factor = 1 if is_latent else pipe.vae_scale_factor
    _check_size(pipe, *(side * pipe.vae_scale_factor // factor for side in images.shape[2:]))
    shape = (batch_size, channels, images.shape[2] // factor, images.shape[3] // factor)
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents have the shape {tuple(latents.shape)}, and {shape} is needed")

    def draw() -> Tensor:
        given = latents is not None
        return (
            latents.to(device, dtype) if given else randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        )

    first = timesteps[:1].repeat(batch_size)
    if mask_image is None:
        if isinstance(generator, list):
            images = each(images, "image")  # so that a sample does not depend on its batch
        x_0 = each(encode(images), "image")
        return Edit(timesteps, add_noise(pipe.scheduler, x_0, draw(), first))

    is_for_inpainting = pipe.unet.config.in_channels != channels
    x_0 = None if is_for_inpainting and strength == 1 else each(encode(images), "image").contiguous()
    noise = draw()
    sigma = getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    start = noise * sigma if strength == 1 else add_noise(pipe.scheduler, x_0, noise, first)
    mask = pipe.mask_processor.preprocess(mask_image, height=height, width=width)  # (m, 1, H, W)
    small = F.interpolate(mask, size=shape[2:])  # (m, 1, h, w), nearest
    masked = images * ((small if is_latent else mask) < 0.5)
    seen = each(encode(masked), "image")  # also where the UNet does not see it: the generator is to move on as theirs
    mask = each(small.to(device, dtype), "mask_image")
    if is_for_inpainting:
        return Edit(timesteps, start, beside=torch.cat([mask, seen], dim=1))
    return Edit(timesteps, start, mask=mask, x_0=x_0, noise=noise)


def _in_mode(pipe: Any, image: Any) -> Any:
    """PIL images, one or a list, in the mode that the model's number of channels asks for."""
    channels = num_channels_latents(pipe) if pipe.vae is None else pipe.vae.config.in_channels
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    images = image if isinstance(image, list) else [image]
    if mode is None or not all(hasattr(x, "convert") for x in images):
        return image
    return [x.convert(mode) for x in images]
