"""How a network is called: the one place that knows diffusers' UNet2DConditionModel from its UNet2DModel.

Both may be wrapped (`torch.compile`, DistributedDataParallel, FSDP). Any other network is called as
UNet2DConditionModel is. It needs `config.in_channels`, `config.sample_size`, and the two dimensions of its socket under
that class's names, `cross_attention_dim` and `projection_class_embeddings_input_dim`.

This file is self-contained on purpose: it travels with a checkpoint, both with its adapter and with its pipeline.
"""

from typing import TYPE_CHECKING, Union

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

if TYPE_CHECKING:
    from cond_pipelines.adapters.base import Conditioning

# Not A | B: in a constructor's annotation diffusers 0.35 cannot read that.
# ModelMixin is a backbone of your own; diffusers compares the very classes, so all three are named.
Network = Union[UNet2DConditionModel, UNet2DModel, ModelMixin]  # noqa: UP007

END_TIME_DIM, _LONGEST_JUMP = 64, 1000  # numbers that say where a jump ends; timesteps of the longest one


def unwrapped(net: nn.Module) -> nn.Module:
    """The network within its wrappers, which has the `config` and the `dtype`; it may be `net` itself.

    Example:
        >>> unwrapped(torch.compile(unet)) is unet
        True
    """
    while not isinstance(net, ModelMixin):
        inner = getattr(net, "_orig_mod", None)  # of torch.compile
        inner = getattr(net, "module", None) if inner is None else inner  # of DDP, FSDP, DataParallel
        if not isinstance(inner, nn.Module):
            break
        net = inner
    return net


def conditioning_inputs(net: nn.Module | None, cond: "Conditioning") -> dict[str, Tensor | None]:
    """`cond` under the argument names of the network's `forward`; None: those of UNet2DConditionModel."""
    if net is not None and isinstance(unwrapped(net), UNet2DModel):
        return {"class_labels": cond.pooled}  # (B, pooled_dim)
    return {
        "encoder_hidden_states": cond.tokens,  # (B, L, token_dim)
        "encoder_attention_mask": cond.mask,  # (B, L)
        "class_labels": cond.pooled,  # (B, pooled_dim)
    }


def denoise(
    net: nn.Module, x_t: Tensor, t: Tensor, cond: "Conditioning", r: Tensor | None = None, **kwargs: object
) -> Tensor:
    """The network's prediction for noised images: (B, C, h, w) to (B, C, h, w).

    Args:
        x_t: (B, C, h, w), with any extra channels that the network takes.
        t: (B,) or (), the timestep.
        cond: one row an image.
        r: (B,) or (), the timestep at which a jump ends; None: t itself, so no jump. Ignored by a network without
            this input: `takes_end_time`.
        kwargs: other arguments of the network's `forward`, such as cross_attention_kwargs.

    Example:
        >>> prediction = denoise(unet, x_t, t, adapter(features))
    """
    if r is not None and takes_end_time(net):
        kwargs["timestep_cond"] = end_time_embedding(t, r).to(x_t.dtype)
    return net(x_t, t, **conditioning_inputs(net, cond), **kwargs, return_dict=False)[0]


def end_time_embedding(t: Tensor, r: Tensor) -> Tensor:
    """The length of a jump from timestep t to r, each (B,) or (), as numbers for the network: (B, END_TIME_DIM).

    Zeros where r is t: a network with this input then computes what it computed without it.
    """
    w = torch.logspace(0, 2, END_TIME_DIM // 2, device=t.device)  # (END_TIME_DIM / 2,) radians, 1 to 100
    phase = (t.float() - r.float()).reshape(-1, 1) / _LONGEST_JUMP * w  # (B, END_TIME_DIM / 2)
    return torch.cat([phase.sin(), phase.cos() - 1], dim=1)


def takes_end_time(net: nn.Module) -> bool:
    """Whether the network has the input for `r` (see `networks.surgery.with_end_time`)."""
    return bool(unwrapped(net).config.get("time_cond_proj_dim") == END_TIME_DIM)


def socket(net: nn.Module) -> tuple[int | None, int | None]:
    """(token_dim, pooled_dim), the sizes of the network's two conditioning inputs; None where it has no such input."""
    net = unwrapped(net)
    config = net.config
    if isinstance(net, UNet2DModel):
        return None, config.time_embedding_dim or 4 * config.block_out_channels[0]
    return config.cross_attention_dim, config.projection_class_embeddings_input_dim


def size_multiple(net: nn.Module) -> int:
    """Height and width of x_t must be multiples of this. A network of your own says so in its `size_multiple`."""
    net = unwrapped(net)
    if isinstance(net, UNet2DModel):
        return int(2 ** (len(net.config.block_out_channels) - 1))
    return int(getattr(net, "size_multiple", 1))  # UNet2DConditionModel takes any size
