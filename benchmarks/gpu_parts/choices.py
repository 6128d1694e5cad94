"""Part "choices": what a bare training step gains or loses by each choice that a GPU decides.

Layout, dtype of the weights, attention back end, batch, compilation and optimizer, each against the same eager step,
which is measured first and again last: the two differ by what the machine's noise is.
"""

import argparse
import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_overhead import bare_steps, by_fives

from cond_pipelines import build_unet
from cond_pipelines.training.dtypes import fast_precision
from cond_pipelines.training.muon import MuonAndAdamW
from gpu_parts.context import Context


@dataclass(frozen=True)
class Choice:
    """One way to make a step.

    Args:
        change: what is done to the network. batch: times the case's. backend: of attention.
        sec: about what it takes, with its compilation.
    """

    name: str
    change: Callable[[nn.Module], object] | None = None
    channels_last: bool = False
    batch: float = 1
    backend: SDPBackend | None = None
    sec: float = 6


def _compile_residual_blocks(unet: nn.Module) -> None:
    torch._dynamo.config.recompile_limit = 64  # each level has its own shapes
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.compile()


_EAGER = (
    Choice("eager"),
    Choice("channels_last", channels_last=True),
    Choice("weights in bfloat16", change=lambda unet: unet.to(torch.bfloat16)),
    Choice("a quarter of the batch", batch=0.25),
    Choice("four times the batch", batch=4),
    *(
        Choice(f"attention: {name}", backend=backend)
        for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
            ("cuDNN", SDPBackend.CUDNN_ATTENTION),
            ("plain", SDPBackend.MATH),
        )
    ),
)
_COMPILED = (
    Choice("compiled with CUDA graphs", change=lambda unet: unet.compile(mode="reduce-overhead"), sec=60),
    Choice("compiled", change=lambda unet: unet.compile(), sec=50),
    Choice("compiled, channels_last", change=lambda unet: unet.compile(), channels_last=True, sec=50),
    Choice("residual blocks compiled, norms fused with SiLU", change=_compile_residual_blocks, sec=60),
)


@dataclass(frozen=True)
class Case:
    """A network, its batch, and the choices that are tried on it."""

    unet_size: str
    resolution: int
    train_batch_size: int
    choices: tuple[Choice, ...]


# In order of value. m at 32 px and 256 images is what `train` chooses there.
_CASES = (
    Case("m", 32, 256, (*_EAGER, *_COMPILED[:2], _EAGER[0])),
    Case("l", 64, 64, (*_EAGER, _EAGER[0])),
    Case("m", 32, 256, (_EAGER[0], *_COMPILED[2:])),
)
_TINY_CASES = (Case("xxs", 8, 4, (*_EAGER[:2], _EAGER[5], _COMPILED[0])),)


def run(context: Context) -> None:
    """Each case's choices in turn; one that a card or a compiler refuses leaves its line."""
    device = torch.device(context.device)
    if context.tiny:  # a compiler takes a minute on a CPU: what would be compiled runs as it is
        torch.compiler.set_stance("force_eager")
    for case in _TINY_CASES if context.tiny else _CASES:
        _optimizers(context, case, device)
        baseline = 0.0
        for choice in case.choices:
            name = f"{case.unet_size}, {case.resolution} px, {round(case.train_batch_size * choice.batch)} images"
            if not context.enough(f"{name}: {choice.name}", choice.sec):
                continue
            try:
                start = time.perf_counter()
                images_per_sec = _speed(case, choice, device)
            except (RuntimeError, ValueError, AttributeError) as error:  # out of memory, or not for this card
                context.row(f"{name}: {choice.name}", "failed", note=" ".join(f"{error}".split())[:200])
                continue
            finally:
                _free()
            baseline = baseline or images_per_sec
            note = f"{images_per_sec / baseline:.2f} x eager; {time.perf_counter() - start:.0f} s in all"
            context.row(f"{name}: {choice.name}", images_per_sec, "images/s", note=note)


def _speed(case: Case, choice: Choice, device: torch.device) -> float:
    """Images a second, of the median of four times five steps."""
    batch = max(1, round(case.train_batch_size * choice.batch))
    options = argparse.Namespace(unet_size=case.unet_size, resolution=case.resolution, train_batch_size=batch)
    options.steps, options.warmup = 20, 10
    backend = sdpa_kernel(choice.backend) if choice.backend else contextlib.nullcontext()
    with backend:
        sec = bare_steps(options, fast_precision(device), device, choice.channels_last, change=choice.change)
    return batch / float(np.median(by_fives(sec)))


def _optimizers(context: Context, case: Case, device: torch.device) -> None:
    """Milliseconds of an update alone, of the optimizers that `train` chooses from."""
    with torch.device(device):
        unet = build_unet(case.unet_size, sample_size=case.resolution)
    for p in unet.parameters():
        p.grad = torch.randn_like(p)
    made = {
        "AdamW": torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True),
        "Muon": MuonAndAdamW([{"params": list(unet.parameters())}], lr=1e-4),
    }
    for name, optimizer in made.items():
        sec = []
        for _ in range(2 if context.tiny else 20):
            start = time.perf_counter()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            sec.append(time.perf_counter() - start)
        context.row(f"{case.unet_size}: an update by {name}", 1e3 * float(np.median(sec)), "ms")


def _free() -> None:
    """Give back what the last network had."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
