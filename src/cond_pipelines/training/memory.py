"""How much memory a training step takes, estimated without taking it: the step is run on fake tensors.

A fake tensor has a shape, a dtype and a device, and no data. So the numbers below come from the network's own forward
and backward pass, with autocast, attention and gradient checkpointing as they are, for Stable Diffusion in seconds.
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..networks.denoiser import socket
from .config import TrainingConfig
from .optimizers import trains_parameter

# Bytes of optimizer state for each trained parameter, where it is not AdamW's two moments in float32.
_STATE_BYTES = {"adamw8bit": 2, "prodigy": 16, "adafactor": 1, "muon": 5}
_GRAPH_BYTES = 4  # more, where Muon runs as a CUDA graph: it keeps the matrices it reads and writes
_NUM_TOKENS = 77  # of a caption
_USABLE = 0.8  # of what is free: the rest is for workspaces of kernels, fragments and what else the process does


@dataclass(frozen=True)
class StepMemory:
    """The bytes that a run holds.

    Args:
        fixed: whatever the batch: weights, optimizer state, averages.
        gradients: of the trained parameters.
        peak: of one micro-step of a batch of so many images, beyond `fixed`: activations and gradients.

    Example:
        >>> memory = StepMemory(fixed=4_000, gradients=1_000, peak=lambda batch_size: 1_000 + 500 * batch_size)
        >>> memory.total(4), memory.total(4, micro_steps=2)
        (7000, 8000)
    """

    fixed: int
    gradients: int
    peak: Callable[[int], int]

    def total(self, batch_size: int, micro_steps: int = 1) -> int:
        """Of a step; gradients of the micro-steps before are held during the forward pass."""
        return self.fixed + self.peak(batch_size) + (self.gradients if micro_steps > 1 else 0)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, fake or real, until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given:  # neither a view nor in place
                self._note(x.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def gone(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.now -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def step_memory(
    unet: Callable[[], nn.Module],
    config: TrainingConfig,
    *,
    sample_size: int,
    on_cpu: bool,
    vae: nn.Module | None = None,
    text_encoder: nn.Module | None = None,
    train_text_encoder: bool = False,
    gradient_checkpointing: bool = False,
) -> StepMemory:
    """The memory of a training step of a network that need not exist yet.

    Args:
        unet: makes the network; it is called on fake tensors.
        sample_size: of what it denoises, in pixels or latent pixels.
        vae, text_encoder: the networks that will be there too.

    Example:
        >>> step_memory(lambda: build_unet("xxl", sample_size=64, channels=4), config, sample_size=64, ...).total(4)
    """
    fakes, precision = FakeTensorMode(), config.mixed_precision or "no"  # weights are float32 whatever it is
    with fakes:
        net = unet().train()
        if gradient_checkpointing:
            net.enable_gradient_checkpointing()
        if on_cpu and hasattr(net, "set_default_attn_processor"):  # as the training loop does
            net.set_default_attn_processor()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(trains_parameter(config, name))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if config.train == "lora":
        trained = _num_lora_parameters(net, config.rank)
    held = [net, *(module for module in (vae, text_encoder) if module is not None)]
    text = 0
    if text_encoder is not None and train_text_encoder:
        trained += sum(p.numel() for p in text_encoder.parameters())
        text = _text_encoder_bytes(text_encoder, precision)
    averages = config.use_ema + len(config.ema_lengths)
    fixed = 4 * sum(p.numel() for module in held for p in module.parameters())
    state = _STATE_BYTES.get(config.optimizer or "", 8)
    state += _GRAPH_BYTES if config.optimizer == "muon" and not on_cpu else 0
    fixed += trained * (state + 4 * averages)

    of_vae = 0  # of an image; it is linear in the images
    if vae is not None:
        with fakes:
            of_vae = _vae_bytes(type(vae).from_config(vae.config), sample_size, precision, config.cache_latents)

    @functools.cache
    def peak(batch_size: int) -> int:
        with fakes:
            return max(_unet_bytes(net, batch_size, sample_size, precision) + batch_size * text, batch_size * of_vae)

    return StepMemory(fixed, 4 * trained, peak)


def _autocast(precision: str) -> torch.autocast:
    # The fakes are tensors of a CPU: another device's can be had only where there is such a device.
    return torch.autocast("cpu", torch.bfloat16, enabled=precision != "no")


def _unet_bytes(net: nn.Module, batch_size: int, sample_size: int, precision: str) -> int:
    """The peak of a forward and a backward pass, its gradients among it."""
    config = net.config
    x_t = torch.empty(batch_size, config.in_channels, sample_size, sample_size)  # (B, C, h, w)
    token_dim, pooled_dim = socket(net)
    inputs: dict[str, Tensor] = {}
    if token_dim is not None:
        token_dim = token_dim[0] if isinstance(token_dim, list | tuple) else token_dim
        inputs["encoder_hidden_states"] = torch.empty(batch_size, _NUM_TOKENS, token_dim, requires_grad=True)
    if pooled_dim is not None and config.get("class_embed_type", "of its own") is not None:
        inputs["class_labels"] = torch.empty(batch_size, pooled_dim, requires_grad=True)
    with LiveBytes() as live:
        with _autocast(precision):
            prediction = net(x_t, torch.empty(batch_size), **inputs, return_dict=False)[0]
        loss = prediction.float().square().mean()
        del prediction
        loss.backward()
    for parameter in net.parameters():
        parameter.grad = None
    return int(live.peak)


@torch.no_grad()
def _vae_bytes(vae: nn.Module, sample_size: int, precision: str, cached: bool) -> int:
    """The peak of decoding a sample, and of encoding an image, in float32, unless latents are `cached`."""
    with LiveBytes() as live:
        latents = torch.empty(1, vae.config.latent_channels, sample_size, sample_size)
        with _autocast(precision):
            images = vae.decode(latents, return_dict=False)[0]
        if not cached:
            vae.encode(images.float())
    return int(live.peak)


def _text_encoder_bytes(encoder: nn.Module, precision: str) -> int:
    """Activations of a caption, kept for the backward pass: Korthikanti et al. 2022 (arXiv 2205.05198), Eq. 1."""
    config = encoder.config.get_text_config()
    length, width, heads = _NUM_TOKENS, config.hidden_size, config.num_attention_heads
    of_layer = length * width * (34 + 5 * heads * length / width)  # bytes, in half precision
    num_bytes: int = round(config.num_hidden_layers * of_layer * (2 if precision == "no" else 1))
    return num_bytes


def _num_lora_parameters(net: nn.Module, rank: int) -> int:
    """Two matrices, (rank, in) and (out, rank), for each weight that gets a LoRA."""
    weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    return int(sum(rank * (w.shape[0] + w[0].numel()) for w in weights))


def free_bytes(device: torch.device) -> int:
    """What a run may take of the device's memory, or of the machine's where it computes on a CPU."""
    memory_of = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    if device.type != "cpu" and memory_of is not None:
        return int(_USABLE * memory_of(device)[0])
    return int(_USABLE * psutil.virtual_memory().available)
