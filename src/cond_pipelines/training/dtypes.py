"""The dtype of every weight in a training run, decided here and nowhere else."""

from itertools import chain

import torch
from torch import nn

from ..pipelines.conditional import ConditionalPipeline

WEIGHTS = torch.float32


def hold_float32(pipe: ConditionalPipeline) -> None:
    """Make every network of `pipe` float32, whatever its files were.

    Trained weights: in bf16 1 + 0.001 is 1, so small steps and moving averages would stand still. Frozen ones: autocast
    casts what it multiplies and nothing else, so a layer in half precision fails where its input is float32; and what
    is saved at the end is of one dtype. `--mixed_precision` decides what is computed in half precision.

    Example:
        >>> pipe = ConditionalPipeline.from_pretrained("a/checkpoint", torch_dtype=torch.float16)
        >>> hold_float32(pipe)
        >>> pipe.dtype
        torch.float32
    """
    for module in pipe.components.values():
        if isinstance(module, nn.Module) and _has_half(module):
            module.to(WEIGHTS)


def _has_half(module: nn.Module) -> bool:
    return any(x.dtype in (torch.float16, torch.bfloat16) for x in chain(module.parameters(), module.buffers()))


def fast_precision(device: torch.device) -> str:
    """bf16 where the device has instructions for it, fp16 on older NVIDIA GPUs, otherwise no mixed precision."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "no"
