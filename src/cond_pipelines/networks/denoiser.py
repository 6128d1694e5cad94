"""How a network is called. The code lies with the adapters, because it travels with a checkpoint."""

from ..adapters.denoiser import (
    END_TIME_DIM,
    conditioning_inputs,
    denoise,
    size_multiple,
    socket,
    takes_end_time,
    unwrapped,
)

__all__ = [
    "END_TIME_DIM",
    "conditioning_inputs",
    "denoise",
    "size_multiple",
    "socket",
    "takes_end_time",
    "unwrapped",
]
