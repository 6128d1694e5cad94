"""Part "sampling": images a second and the first image's time, of a class-conditional model of size s at 32 px."""

import time

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from cond_pipelines import ClassConditionalPipeline, ClassLabelAdapter, build_unet
from cond_pipelines.training.dtypes import fast_precision
from gpu_parts.context import Context

_STEPS, _BATCHES, _NUM_CLASSES = (30, 4), (1, 256), 10


def run(context: Context) -> None:
    """Eager first; then compiled by inductor, and for single images with CUDA graphs."""
    folder = context.scratch / "model"
    _model(context).save_pretrained(folder)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[
        fast_precision(torch.device(context.device))
    ]
    if context.tiny:  # a compiler takes a minute on a CPU: what would be compiled runs as it is
        torch.compiler.set_stance("force_eager")
    start = time.perf_counter()
    pipe = ClassConditionalPipeline.from_pretrained(folder, dtype=dtype).to(context.device)
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter() - start
    _sample(pipe, 1, 4)
    context.row(
        "first image", time.perf_counter() - start, "s", note=f"4 steps; {loaded:.2f} s of it to load, no imports"
    )
    _rates(context, pipe, "eager", _BATCHES)
    modes = {"compiled": ("default", _BATCHES), "compiled with CUDA graphs": ("reduce-overhead", (1,))}
    for name, (mode, batches) in modes.items():
        if not context.enough(f"{name}, batch {batches}", 25):
            continue
        pipe = ClassConditionalPipeline.from_pretrained(folder, dtype=dtype).to(context.device)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.compile(mode=mode, dynamic=False)  # each batch size is compiled for itself
        try:
            _rates(context, pipe, name, batches)
        except RuntimeError as error:
            context.row(name, "failed", note=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _rates(context: Context, pipe: ClassConditionalPipeline, name: str, batches: tuple[int, ...]) -> None:
    for batch in (min(batch, 2) if context.tiny else batch for batch in batches):
        start = time.perf_counter()
        for _ in range(2):  # compilation, and graphs, are not counted
            _sample(pipe, batch, 2)
        warmed = time.perf_counter() - start
        for steps in _STEPS:
            steps = min(steps, 2) if context.tiny else steps
            sec, count = [], 0
            while count < 3 or (sum(sec) < 1.5 and count < 20 and not context.tiny):
                start, count = time.perf_counter(), count + 1
                _sample(pipe, batch, steps)  # the images are numpy arrays, so it has waited for the GPU
                sec.append(time.perf_counter() - start)
                if context.tiny:
                    break
            median = sorted(sec)[len(sec) // 2]
            note = f"{1e3 * median:.1f} ms a call; the first two took {warmed:.1f} s"
            context.row(f"{name}, batch {batch}, {steps} steps, guided", batch / median, "images/s", note=note)


def _sample(pipe: ClassConditionalPipeline, batch: int, steps: int) -> None:
    labels = [i % _NUM_CLASSES for i in range(batch)]
    generator = torch.Generator(pipe.device).manual_seed(0)
    pipe(class_labels=labels, num_inference_steps=steps, guidance_scale=2.5, generator=generator, output_type="np")


def _model(context: Context) -> ClassConditionalPipeline:
    """Of random weights. The adapter's too: one that tells nothing would need no second pass for guidance."""
    torch.manual_seed(0)
    unet = build_unet("xxs" if context.tiny else "s", sample_size=8 if context.tiny else 32)
    adapter = ClassLabelAdapter.for_unet(unet, id2label={i: f"class {i}" for i in range(_NUM_CLASSES)})
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return ClassConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter)
