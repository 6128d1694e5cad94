"""Part "step": a training step of four sizes against the bare step and diffusers' loop; kernels, memory, waits.

bare: forward, backward, fused AdamW on one batch in memory. ours: `train`. plain: the semantics of diffusers' scripts.
All three with the same network, batch, precision and gradient checkpointing, in one process, from train_throughput.py.
"""

import argparse
import gc
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile
from train_overhead import LOG_EVERY, bare_steps, by_fives
from train_throughput import model_flops, our_steps, plain_steps, write_data

from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.networks.text_encoders import new_text_encoder
from cond_pipelines.training.dtypes import fast_precision
from gpu_parts.context import Context

_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_PROFILED = 3  # steps, between two lines of the log


@dataclass(frozen=True)
class Case:
    """One network. `eager_sec`, `compiled_sec`: about what all its measurements take."""

    unet_size: str
    resolution: int
    train_batch_size: int
    data: str
    eager_sec: float
    compiled_sec: float
    steps: int = 20
    channels: int = 3
    gradient_checkpointing: bool = False
    goal_share_of_peak: float | None = None

    def options(self, tiny: bool) -> argparse.Namespace:
        """As train_throughput.py takes them."""
        size = {"unet_size": self.unet_size, "resolution": self.resolution, "train_batch_size": self.train_batch_size}
        size |= {"steps": self.steps, "warmup": self.steps // 2}
        if tiny:
            size = {"unet_size": "xxs", "resolution": 8, "train_batch_size": 2, "steps": 5, "warmup": 5}
        more = {"data": self.data, "channels": self.channels, "gradient_checkpointing": self.gradient_checkpointing}
        return argparse.Namespace(**size, **more, compile=False, text_encoder_name_or_path="")


_S = Case("s", 32, 256, "png32", eager_sec=30, compiled_sec=50)
_M = Case("m", 64, 128, "jpeg512", eager_sec=40, compiled_sec=45)
_L = Case("l", 64, 128, "text", eager_sec=60, compiled_sec=90, goal_share_of_peak=0.45)
_XXL = Case("xxl", 64, 32, "text", 110, 150, steps=10, channels=4, gradient_checkpointing=True, goal_share_of_peak=0.45)
# In order of value, for the last may not fit into the time.
_ORDER = ((_S, False), (_S, True), (_L, False), (_L, True), (_M, False), (_XXL, False), (_XXL, True), (_M, True))
_TINY_ORDER = ((_S, False), (_XXL, True))


def run(context: Context) -> None:
    """Each size in eager mode before compiled."""
    device = torch.device(context.device)
    precision = fast_precision(device)
    peak = matmul_flops(device)
    if context.tiny:  # a compiler takes a minute on a CPU: what would be compiled runs as it is
        torch.compiler.set_stance("force_eager")
    context.row(
        "bf16 matrix product, 8192 cubed" if device.type == "cuda" else "matrix product", peak / 1e12, "TFLOP/s"
    )
    bare: dict[Case, float] = {}
    for case, compiled in _TINY_ORDER if context.tiny else _ORDER:
        what = f"{case.unet_size}, {case.resolution} px{', compiled' if compiled else ''}"
        if not context.enough(what, case.compiled_sec if compiled else case.eager_sec):
            continue
        try:
            _measure(context, case, compiled, precision, peak, bare)
        except (RuntimeError, ValueError) as error:  # out of memory, or what a compiler cannot do
            context.row(what, "failed", note=" ".join(f"{type(error).__name__}: {error}".split())[:300])
        _free()


def _measure(
    context: Context, case: Case, compiled: bool, precision: str, peak: float, bare: dict[Case, float]
) -> None:
    """All rows of a case, eager or compiled."""
    options, device, folder = case.options(context.tiny), torch.device(context.device), _data(context, case)
    if case.data == "text":
        options.text_encoder_name_or_path = _text_encoder(context)
    name = f"{case.unet_size}, {case.resolution} px, batch {case.train_batch_size}"
    flops, batch = model_flops(options), options.train_batch_size

    def speed(which: str, sec: float) -> None:
        share = flops / sec / peak
        goal = case.goal_share_of_peak if which.startswith("train") else None
        context.row(f"{name}: {which}", batch / sec, "images/s", note=f"{1e3 * sec:.1f} ms a step")
        context.row(f"{name}: {which}, share of peak", share, at_least=goal)

    def median(sec: list[float]) -> float:
        _free()
        return float(np.median(by_fives(sec)))

    if not compiled:
        layouts = {"channels_last": True, "contiguous": False}
        sec_of = {layout: median(bare_steps(options, precision, device, last)) for layout, last in layouts.items()}
        for layout, sec in sec_of.items():
            speed(f"bare step, {layout}", sec)
        limit = bare[case] = min(sec_of.values())
    else:
        start = time.perf_counter()
        limit = median(bare_steps(options, precision, device, change=lambda unet: unet.compile()))
        speed("bare step, compiled", limit)
        if case in bare:
            note = f"compiled in {time.perf_counter() - start:.0f} s, with the steps"
            context.row(f"{name}: compiled over eager, bare", bare[case] / limit, "x", note=note)
    mode = "train, compiled" if compiled else "train"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    options.compile = compiled
    with _Counted(device) as counted:
        counted.first_step = options.steps + options.warmup + 1
        sec, waited = our_steps(options, precision, folder, more_steps=LOG_EVERY)
    ours = float(np.median(sec))
    speed(mode, ours)
    context.row(f"{name}: {mode}, bare step over it", limit / ours, "x", at_least=0.97)
    context.row(f"{name}: {mode}, waits for data", waited, "of the time", at_most=0.02)
    launches, waits = counted.a_step()
    context.row(f"{name}: {mode}, kernel launches a step", launches, note="" if launches else "no kernel was launched")
    context.row(f"{name}: {mode}, synchronisations a step", waits, at_most=0, note=counted.names())
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    context.row(f"{name}: {mode}, peak memory", memory, "GiB", note="" if memory else "only a GPU's is counted")
    _free()
    if not compiled and context.enough(f"{name}: diffusers' loop", case.eager_sec / 4):
        options.steps, options.warmup = max(5, options.steps // 2), 5
        plain = float(np.median(plain_steps(options, precision, folder)[0]))
        speed("diffusers' loop", plain)
        context.row(f"{name}: train over diffusers' loop", plain / ours, "x", at_least=2.0)


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of a large matrix product of random numbers, the peak that this card reaches in practice."""
    n, dtype, count = (8192, torch.bfloat16, 10) if device.type == "cuda" else (256, torch.float32, 3)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    for _ in range(3):
        a @ b
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        a @ b
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2 * n**3 * count / (time.perf_counter() - start)


class _Counted:
    """Within it, a profiler watches `_PROFILED` optimizer steps, from `first_step` on."""

    def __init__(self, device: torch.device):
        self.device, self.first_step, self.done, self.profile = device, 0, 0, None

    def __enter__(self) -> "_Counted":
        self.hook = register_optimizer_step_post_hook(self._after_step)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _after_step(self, *_: object) -> None:
        self.done += 1
        if self.done == self.first_step:
            kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
            self.profile = profile(activities=kinds)
            self.profile.__enter__()
        elif self.done == self.first_step + _PROFILED and self.profile is not None:
            self.profile.__exit__(None, None, None)

    def _counts(self, names: tuple[str, ...]) -> dict[str, int]:
        found = {event.key: event.count for event in self.profile.key_averages()} if self.profile else {}
        return {name: found[name] for name in names if name in found}

    def a_step(self) -> tuple[float | None, float | None]:
        """Kernel launches and waits for the GPU, each a step; None where there is no GPU."""
        if self.device.type != "cuda" or self.profile is None:
            return None, None
        # `profile` itself waits once for the GPU when it ends.
        waits = {**self._counts(_WAITS)}
        own = 1 if waits.get("cudaDeviceSynchronize") else 0
        return sum(self._counts(_LAUNCHES).values()) / _PROFILED, (sum(waits.values()) - own) / _PROFILED

    def names(self) -> str:
        """What was counted as a wait."""
        if self.device.type != "cuda":
            return "only a GPU is waited for"
        return f"in {_PROFILED} steps: " + (", ".join(f"{k} {n}" for k, n in self._counts(_WAITS).items()) or "none")


def _data(context: Context, case: Case) -> Path:
    """Images of a case, made once."""
    folder = context.scratch / f"{case.unet_size}/images"
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    photographs = [Image.open(path).convert("RGB") for path in sorted((context.data / "photographs").glob("*.jpg"))]
    count, size = (24, 16) if context.tiny else (600, case.resolution)
    mode = "RGBA" if case.channels == 4 else "RGB"
    write_data(case.data, folder, count, size, mode, photographs or None)
    return folder


def _text_encoder(context: Context) -> str:
    """Of random weights, of the size of Stable Diffusion's; made once."""
    folder = context.scratch / "text_encoder"
    if not folder.is_dir():
        hidden_size, num_layers = (32, 1) if context.tiny else (768, 12)
        encoder, tokenizer = new_text_encoder(load_shapes(500)["caption"], hidden_size, num_layers, max_length=77)
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def _free() -> None:
    """Give back what the last network had, so that the next one's memory is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
