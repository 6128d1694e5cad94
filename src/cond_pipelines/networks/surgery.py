"""A pretrained UNet with another socket or another number of channels, that computes what it did.

The new UNet shares the weights that stay as they are with the old one, which is left alone.
"""

from typing import TypeAlias

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .denoiser import END_TIME_DIM, takes_end_time

UNet: TypeAlias = UNet2DConditionModel | UNet2DModel


def reconfigured(unet: UNet, weights: dict[str, Tensor] | None = None, **changes: object) -> UNet:
    """The same UNet with `changes` to its configuration, and `weights` in place of those of their names."""
    with torch.device("meta"):
        new: UNet = type(unet).from_config(unet.config, **changes)
    kept = {name: x for name, x in unet.state_dict().items() if name in new.state_dict()}
    new.load_state_dict(kept | (weights or {}), assign=True)
    new.train(unet.training)
    return new


def with_socket(unet: UNet) -> UNet:
    """A UNet2DModel that takes a vector with the time: no new weight; for zeros its output is as before.

    Its socket is (None, time_embed_dim). A UNet that has one already is returned as it is.

    Raises:
        ValueError: it has another conditioning input already, such as a class number.

    Example:
        >>> unet = with_socket(DDPMPipeline.from_pretrained("google/ddpm-cat-256").unet)
        >>> adapter = ClassLabelAdapter.for_unet(unet, id2label={0: "cat", 1: "dog"})
    """
    if not isinstance(unet, UNet2DModel) or unet.config.class_embed_type == "identity":
        return unet
    if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
        raise ValueError(
            f"this UNet2DModel has a class embedding of its own (class_embed_type={unet.config.class_embed_type!r}, "
            f"num_class_embeds={unet.config.num_class_embeds}), which no adapter fits"
        )
    return reconfigured(unet, class_embed_type="identity")


def with_end_time(unet: UNet) -> UNet:
    """The same UNet with an input for the end of a jump, `r` of `denoise`: one weight more, zero at first.

    Raises:
        ValueError: a UNet2DModel, which has no place for it, or a UNet that has another input there already.
    """
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError(f"a {type(unet).__name__} has no input for the end of a jump: a UNet2DConditionModel has")
    if unet.config.time_cond_proj_dim is not None:
        raise ValueError(
            f"this UNet has an input of another meaning (time_cond_proj_dim {unet.config.time_cond_proj_dim})"
        )
    name = "time_embedding.cond_proj.weight"
    num_out = unet.time_embedding.linear_1.in_features
    zeros = torch.zeros(num_out, END_TIME_DIM, device=unet.device, dtype=unet.dtype)
    return reconfigured(unet, {name: zeros}, time_cond_proj_dim=END_TIME_DIM)


def without_end_time(unet: UNet) -> UNet:
    """The same UNet without that input: its flow, as if every jump ended where it starts."""
    return reconfigured(unet, time_cond_proj_dim=None) if takes_end_time(unet) else unet


def without_variance(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler for a UNet whose outputs for a learned variance were cut off (see `with_channels`)."""
    if scheduler.config.get("variance_type") not in ("learned", "learned_range"):
        return scheduler
    fixed = None if "algorithm_type" in scheduler.config else "fixed_small"  # DPM-Solver has None
    new: SchedulerMixin = type(scheduler).from_config(scheduler.config, variance_type=fixed)
    return new


def with_channels(unet: UNet, in_channels: int, out_channels: int | None = None) -> UNet:
    """The same UNet for another number of channels, which keeps its function on the channels that exist.

    - More channels (RGBA, multispectral, a mask and an image with the latents): the first are those it had. The
      weights of the others are zero: whatever they hold, the old outputs stay, bit for bit; new outputs are zero.
    - Fewer: the first stay. The UNet answers as if the others were zero.
    - To one channel from three or four (gray from RGB, alpha left out): weights are summed over the three inputs, so a
      gray image gives what it gave as an RGB image with three equal channels, and the three outputs are averaged.
    - From one channel to three or more: the reverse. Each of the first three inputs has a third of the weight, each of
      the first three outputs is the old one: an image with three equal channels gives what the gray one gave.

    Args:
        unet: a UNet2DConditionModel or a UNet2DModel.
        in_channels: of what it sees. out_channels: of what it answers; None: as many as it sees.

    Raises:
        ValueError: channels reach other layers than the first and the last, as in the Skip blocks of score_sde.

    Example:
        >>> gray = with_channels(unet, 1)
        >>> inpainting = with_channels(unet, 9, out_channels=4)  # latents, mask, masked image
    """
    config = unet.config
    out_channels = in_channels if out_channels is None else out_channels
    if any("Skip" in kind for kind in (*config.down_block_types, *config.up_block_types)):
        raise ValueError("a UNet with Skip blocks keeps its number of channels: they see the image at every level")
    if (in_channels, out_channels) == (config.in_channels, config.out_channels):
        return unet
    weights = {
        "conv_in.weight": _inputs(unet.conv_in.weight, in_channels),
        "conv_out.weight": _outputs(unet.conv_out.weight, out_channels),
        "conv_out.bias": _outputs(unet.conv_out.bias, out_channels),
    }
    weights = {name: x.detach().clone() for name, x in weights.items()}
    return reconfigured(unet, weights, in_channels=in_channels, out_channels=out_channels)


def _inputs(weight: Tensor, channels: int) -> Tensor:
    """(out, in, k, k) to (out, channels, k, k)."""
    old = weight.shape[1]
    if channels == 1 and old in (3, 4):
        return weight[:, :3].sum(dim=1, keepdim=True)
    if old == 1 and channels >= 3:
        weight = weight.expand(-1, 3, -1, -1) / 3
    new = weight.new_zeros(len(weight), channels, *weight.shape[2:])
    kept = min(channels, weight.shape[1])
    new[:, :kept] = weight[:, :kept]
    return new


def _outputs(x: Tensor, channels: int) -> Tensor:
    """(out, ...) to (channels, ...)."""
    old = len(x)
    if channels == 1 and old in (3, 4):
        return x[:3].mean(dim=0, keepdim=True)
    if old == 1 and channels >= 3:
        x = x.expand(3, *x.shape[1:])
    new = x.new_zeros(channels, *x.shape[1:])
    kept = min(channels, len(x))
    new[:kept] = x[:kept]
    return new
