"""Images to latents, for any of diffusers' autoencoders."""

from typing import TypeAlias, Union

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
# Not A | B, as in adapters/denoiser.py.
VAE: TypeAlias = Union[AutoencoderKL, AutoencoderTiny, AutoencoderDC, VQModel]  # noqa: UP007


def vae_scale_factor(vae: VAE) -> int:
    """Image pixels per latent pixel along a side."""
    blocks = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]  # ConsistencyDecoderVAE
    return int(getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(blocks) - 1))


def image_channels(vae: VAE) -> int:
    """Channels of the images that it encodes."""
    return int(vae.config.get("in_channels") or vae.config["encoder_in_channels"])  # ConsistencyDecoderVAE


def vae_encode(vae: VAE, images: Tensor, generator: Generators = None) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] to scaled latents (B, c, H / f, W / f)."""
    return sample_posterior(vae, vae_posterior(vae, images), generator)


def vae_posterior(vae: VAE, images: Tensor) -> Tensor:
    """The deterministic part of `vae_encode`.

    Of AutoencoderKL mean and log variance (B, 2c, h, w), of others the latents (B, c, h, w).
    """
    encoded = vae.encode(images.to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.parameters
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent  # Tiny and VQModel; AutoencoderDC


def sample_posterior(vae: VAE, posterior: Tensor, generator: Generators = None) -> Tensor:
    """The output of `vae_posterior` to scaled latents (B, c, h, w)."""
    latents = posterior.to(vae.dtype)
    if posterior.shape[1] == 2 * vae.config.latent_channels:
        latents = DiagonalGaussianDistribution(latents).sample(generator)
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def vae_decode(vae: VAE, latents: Tensor) -> Tensor:
    """Scaled latents (B, c, h, w) to images (B, C, H, W), nominally in [-1, 1]."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = (latents / vae.config.scaling_factor + shift).to(vae.dtype)
    # In the VAE's own dtype, also within autocast: Stable Diffusion's overflows in fp16 (its `force_upcast`).
    with torch.autocast(latents.device.type, enabled=False):
        images: Tensor = vae.decode(latents, return_dict=False)[0]
        if vae.dtype != torch.float16 or images.isfinite().all():
            return images
        vae.to(dtype=torch.float32)  # it overflows in half precision: black images
        try:
            images = vae.decode(latents.float(), return_dict=False)[0]
        finally:
            vae.to(dtype=torch.float16)
        return images
