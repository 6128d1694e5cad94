"""How a network is called. The code lies with the adapters, because it travels with a checkpoint."""

from ..adapters.denoiser import conditioning_inputs, denoise, size_multiple, socket, unwrapped

__all__ = ["conditioning_inputs", "denoise", "size_multiple", "socket", "unwrapped"]
