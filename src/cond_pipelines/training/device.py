"""What a run takes of its device: processes and precision, layout, attention and compilation of the network."""

import os
from pathlib import Path

import torch
from accelerate.utils import ProjectConfiguration
from diffusers import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from .config import TrainingConfig
from .defaults import default_tracker
from .dtypes import fast_precision
from .sharding import RunAccelerator, run_state
from .teacher import is_distillation

_SMALL_PARAMETERS = 10e6
_CHANNELS_OF_A_GROUP = 32  # as many as a vector of 16-bit numbers holds


def build_accelerator(config: TrainingConfig, output_dir: Path) -> RunAccelerator:
    """The processes of the run, its precision and its tracker."""
    device = run_state().device
    of_launch = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # `accelerate launch` always sets it
    precision = config.mixed_precision or (of_launch if of_launch != "no" else fast_precision(device))
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    tracker = config.report_to or default_tracker()
    return RunAccelerator(
        precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps or 1,  # what is chosen comes later
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(str(output_dir), str(output_dir / config.logging_dir)),
    )


def tune_network(
    network: ModelMixin,
    config: TrainingConfig,
    device: torch.device,
    sharded: bool = False,
    num_processes: int = 1,
) -> None:
    """Give the network the layout, attention and compilation that the device is fast with; results stay the same."""
    if device.type == "cpu":
        # Measured at 32 px, batch 64, two cores: 15 % and 20 % of a step. PyTorch's fused attention is slow there.
        torch.set_flush_denormal(True)
        if hasattr(network, "set_default_attn_processor"):  # a UNet2DModel has none
            network.set_default_attn_processor()
        if num_processes == 1 and not sharded and _norms_suit_channels_last(network):
            network.to(memory_format=torch.channels_last)
            _stay_channels_last(network)
    # Measured on an H100 and an H200: a step of size s is as fast with it as without (0.97 and 1.02 x), of l 0.8 x, of
    # xxl 0.9 x (benchmarks/results/gpu_h100.md and gpu_h200.md). FSDP2 refuses it.
    small = sum(p.numel() for p in network.parameters()) < _SMALL_PARAMETERS
    if device.type == "cuda" and small and not sharded:
        network.to(memory_format=torch.channels_last)
    if config.compile:  # in place: the names of its weights stay
        network.compile(mode="reduce-overhead" if has_cuda_graphs(config, device, num_processes, sharded) else None)


def _norms_suit_channels_last(network: nn.Module) -> bool:
    """Convolutions gain by channels_last on a CPU; a group norm of few channels a group takes 10 x its time there."""
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    return bool(norms) and all(norm.num_channels // norm.num_groups >= _CHANNELS_OF_A_GROUP for norm in norms)


def _stay_channels_last(network: nn.Module) -> None:
    """In training mode diffusers' residual blocks copy their input to the other layout.

    That mode has no other effect on a block without dropout.
    """
    network.register_forward_pre_hook(_leave_training_mode)


def _leave_training_mode(network: nn.Module, _: object) -> None:
    for block in network.modules():
        if isinstance(block, ResnetBlock2D) and block.dropout.p == 0:
            block.training = False


def has_cuda_graphs(
    config: TrainingConfig, device: torch.device, num_processes: int = 1, sharded: bool = False
) -> bool:
    """Whether the compiled network runs as CUDA graphs, which start a step's kernels at once.

    Measured on an H200, size m at 32 px, the bare step: 13,400 images/s, 4,600 only compiled, 4,400 eager
    (benchmarks/results/gpu_h200.md). A graph is of one shape, and the next step overwrites its gradients: so not for
    captions and aspect buckets, whose shapes differ, nor where a step has several backward passes or processes.
    """
    return (
        device.type == "cuda"
        and num_processes == 1
        and not sharded
        and (config.gradient_accumulation_steps or 1) == 1
        and not (config.gradient_checkpointing or config.aspect_buckets or config.setting.has_captions)
        and not is_distillation(config)
    )
