"""What a run uses where nothing was given: chosen from the images, the network, the device and its free memory."""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator

from ..data.load import TrainingData
from ..flags import with_effect
from ..networks.unet_sizes import NetworkSize, build_unet, find_size, nearest_size
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.vae import VAE, vae_scale_factor
from ..processes import available_cores
from .arguments.optimization import NEW_TEXT_ENCODER_LR
from .config import TrainingConfig
from .dtypes import fast_precision
from .guide import GUIDANCE_SCALE as AUTOGUIDANCE_SCALE
from .memory import StepMemory, free_bytes, step_memory
from .schedule import default_warmup_steps
from .sharding import SHARDED
from .teacher import GUIDANCE_SCALE, NUM_STEPS, is_distillation, with_teacher


def decide(
    config: TrainingConfig,
    data: TrainingData,
    vae: VAE | None,
    parent: ConditionalPipeline | None,
    accelerator: Accelerator,
) -> tuple[TrainingConfig, str]:
    """A copy of `config` with all that it leaves open, and why it was chosen so, in one line.

    Args:
        vae: of a latent model. parent: the pretrained model, where there is one.
        accelerator: its device's free memory decides how many images go through the network at a time. The images of
            an optimizer step do not depend on it.
    """
    device, chosen = accelerator.device, []
    scale = 1 if vae is None else vae_scale_factor(vae)
    sample_size = data.dataset.resolution // scale
    num_images = None if data.train is None else len(data.train)
    given, config = config, replace(config, resolution=data.dataset.resolution, channels=data.dataset.channels)
    if config.train_text_encoder is None and parent is not None and parent.components.get("text_encoder") is not None:
        config = replace(config, train_text_encoder=False)  # it is not new
    num_parameters = None if parent is None else sum(p.numel() for p in parent.unet.parameters())
    if config.train_batch_size is None:
        images = _batch_size(sample_size, device.type == "cpu", num_images, num_parameters)
        config, why = fit_memory(
            config,
            images,
            _memory_of(config, data, vae, parent, device, sample_size),
            free=_least(free_bytes(device) // _local_processes(device), accelerator),
            at_least=1 if device.type == "cpu" else _FEWEST_ON_GPU,
        )
        chosen.append(why)
    config = fill_defaults(
        config,
        num_images=num_images,
        sample_size=sample_size,
        device=device,
        decoded=data.dataset.decoded,
        num_parameters=num_parameters,
        sharded=accelerator.distributed_type in SHARDED,
    )
    if given.learning_rate is None:
        what = (
            f"{config.unet_size}, new" if parent is None else f"--train {config.train} of {num_parameters / 1e6:,.0f} M"
        )
        chosen.append(f"learning rate {config.learning_rate:g} ({what})")
    steps, guidance, whose = _sampling_of(config, parent)
    if None in (given.default_num_inference_steps, given.default_guidance_scale):
        config = replace(
            config,
            default_num_inference_steps=given.default_num_inference_steps or steps,
            default_guidance_scale=guidance if given.default_guidance_scale is None else given.default_guidance_scale,
        )
        chosen.append(
            f"{config.default_num_inference_steps} sampling steps, guidance {config.default_guidance_scale:g} ({whose})"
        )
    return config, f"chosen: {'; '.join(chosen)}" if chosen else ""


def _memory_of(
    config: TrainingConfig,
    data: TrainingData,
    vae: VAE | None,
    parent: ConditionalPipeline | None,
    device: torch.device,
    sample_size: int,
) -> Callable[..., StepMemory]:
    """`step_memory` of this run, to be called with `gradient_checkpointing`."""
    on_cpu = device.type == "cpu"
    channels = data.dataset.channels if vae is None else vae.config.latent_channels
    size = config.unet_size or _unet_size(sample_size, on_cpu)
    make = partial(build_unet, size, sample_size=sample_size, channels=channels)
    if parent is not None:
        make = partial(type(parent.unet).from_config, parent.unet.config)
    memory_of = partial(
        step_memory,
        make,
        config,
        sample_size=sample_size,
        on_cpu=on_cpu,
        vae=vae,
        text_encoder=None if parent is None else parent.components.get("text_encoder"),
        train_text_encoder=_train_text_encoder(config),
    )
    return with_teacher(memory_of, parent.unet) if parent is not None and is_distillation(config) else memory_of


def fit_memory(
    config: TrainingConfig, images: int, memory_of: Callable[..., StepMemory], free: int, at_least: int = 1
) -> tuple[TrainingConfig, str]:
    """A copy of `config` whose step of `images` fits into memory, and why it is as it is.

    Images that do not fit at a time go through the network in equal parts, with gradient accumulation; where the number
    of parts is given, it stays, and a step has fewer images. Gradient checkpointing, which takes a third more time,
    comes in where fewer than `at_least` fit without.

    Args:
        memory_of: `step_memory`, to be called with `gradient_checkpointing`.
        free: bytes.
    """
    given = config.gradient_accumulation_steps  # that many batches, however large; None: as many as fit
    for checkpointing in sorted({config.gradient_checkpointing, True}):
        memory = memory_of(gradient_checkpointing=checkpointing)
        batch_size = _most_that_fit(memory, images, given or 1, free)
        if batch_size >= (1 if checkpointing else min(at_least, images)):
            break
    batch_size = max(1, batch_size)
    number = given or images // batch_size
    needed = memory.total(batch_size, number)
    why = f"{batch_size} images at a time" + (f" x {number}" if number > 1 else "")
    why += ", gradient checkpointing" if checkpointing else ""
    fit = "of" if needed <= free else "which may be too much for"
    why += f" ({needed / 2**30:.2g} GiB estimated, {fit} {free / 2**30:.3g} GiB)"
    return replace(
        config,
        train_batch_size=batch_size,
        gradient_accumulation_steps=number,
        gradient_checkpointing=checkpointing,
    ), why


def _most_that_fit(memory: StepMemory, images: int, micro_steps: int, free: int) -> int:
    """The largest equal part of `images` that fits; 0: not even one does."""
    whole = memory.total(images, micro_steps)
    if whole <= free or images == 1:
        return images if whole <= free else 0
    whole, one = memory.total(images, 2), memory.total(1, 2)
    # The peak is the largest of sums that grow with the images, so it is convex: below the straight line.
    affordable = 1 + (free - one) * (images - 1) / (whole - one)
    return max((n for n in range(1, images) if images % n == 0 and n <= affordable), default=0)


def _sampling_of(config: TrainingConfig, parent: ConditionalPipeline | None) -> tuple[int, float, str]:
    """Steps, guidance scale and whose they are; another scheduler than the parent's needs other steps."""
    if config.autoguidance:
        return _num_steps(config), AUTOGUIDANCE_SCALE, "ours, of autoguidance"
    if parent is None:
        return _num_steps(config), _GUIDANCE_SCALE, "ours"
    if is_distillation(config):
        return NUM_STEPS, GUIDANCE_SCALE, "a distilled model's"
    steps = _num_steps(config) if config.scheduler else parent.config.default_num_inference_steps
    return steps, parent.config.default_guidance_scale, "the pretrained model's"


def _num_steps(config: TrainingConfig) -> int:
    """Sampling steps of a new model: our scheduler's, whose times are shifted, or those that suit any other."""
    return 30 if config.scheduler else _NUM_INFERENCE_STEPS


def _least(value: int, accelerator: Accelerator) -> int:
    """The least of all processes, which must choose the same."""
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).min())


def _local_processes(device: torch.device) -> int:
    """How many processes share the memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1


def fill_defaults(
    config: TrainingConfig,
    *,
    num_images: int | None,
    sample_size: int,
    device: torch.device,
    decoded: bool = True,
    num_parameters: int | None = None,
    sharded: bool = False,
) -> TrainingConfig:
    """A copy of `config` with every None that has to be decided, decided.

    Args:
        num_images: in the training split; None where it is streamed.
        sample_size: of what the UNet denoises, in pixels or latent pixels.
        decoded: the images are decoded already, so loading needs no worker processes.
        num_parameters: of a pretrained UNet; the larger, the lower the learning rate and the batch.
        sharded: each process holds a part of each weight.
    """
    on_cpu = device.type == "cpu"
    size = config.unet_size or _unet_size(sample_size, on_cpu)
    batch_size = config.train_batch_size or _batch_size(sample_size, on_cpu, num_images, num_parameters)
    fine_tuning = config.pretrained_model_name_or_path is not None
    like = find_size(size) if num_parameters is None else nearest_size(num_parameters)
    optimizer = config.optimizer or _optimizer(config, fine_tuning, sharded)
    averages_itself = optimizer == "schedulefree"
    accumulation = config.gradient_accumulation_steps or 1
    batch_of_all = batch_size * accumulation * _world_size()
    max_train_steps, num_train_epochs = _length(config, num_images, batch_of_all)
    num_steps = max_train_steps or -(-(num_train_epochs or 0) * (num_images or 0) // batch_of_all) or None
    chosen = {
        "unet_size": None if fine_tuning else size,
        "train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "optimizer": optimizer,
        "lr_scheduler": config.lr_scheduler or ("constant" if averages_itself else "warmup_stable_decay"),
        "use_ema": config.use_ema and not averages_itself,
        "lr_warmup_steps": default_warmup_steps(num_steps)
        if config.lr_warmup_steps is None
        else config.lr_warmup_steps,
        "max_train_steps": max_train_steps,
        "num_train_epochs": num_train_epochs,
        "mixed_precision": config.mixed_precision or fast_precision(device),
        "dataloader_num_workers": _num_workers(config, on_cpu, decoded),
        "report_to": config.report_to or default_tracker(),
        "train_text_encoder": _train_text_encoder(config),
        "default_num_inference_steps": config.default_num_inference_steps or _num_steps(config),
        "default_guidance_scale": _GUIDANCE_SCALE
        if config.default_guidance_scale is None
        else config.default_guidance_scale,
    }
    chosen |= _rates(config, like, fine_tuning)
    # What has no effect in this run stays open.
    has_effect = with_effect(TrainingConfig, config.to_dict() | chosen)
    return replace(config, **{name: value for name, value in chosen.items() if name in has_effect})


def _num_workers(config: TrainingConfig, on_cpu: bool, decoded: bool) -> int:
    """Processes that load images."""
    if config.dataloader_num_workers is not None:
        return config.dataloader_num_workers
    if sys.platform != "linux":  # forking is not safe there, or not to be had
        return 0
    spare = max(1, min(8, available_cores() - 1))
    if not decoded:
        return spare
    # One process puts together 50,000 decoded images of 32 px a second: a GPU would wait for it, a CPU does not.
    return 0 if on_cpu else min(2, spare)


def _length(config: TrainingConfig, num_images: int | None, batch_size: int) -> tuple[int | None, int | None]:
    """(optimizer steps, epochs), one of them None, or both where only minutes are given."""
    if config.max_train_steps is not None or config.num_train_epochs is not None:
        return config.max_train_steps, config.num_train_epochs
    if config.max_train_minutes is not None:
        return None, None
    if num_images is None:
        raise ValueError("a streaming data set has no length: give --max_train_steps (or --max_train_minutes)")
    # A hundred passes over few images are too few steps.
    steps = round(100 * num_images / batch_size)
    return (None, 100) if 3_000 <= steps <= 100_000 else (min(max(steps, 3_000), 100_000), None)


def _train_text_encoder(config: TrainingConfig) -> bool:
    if config.train_text_encoder is not None:
        return config.train_text_encoder
    return config.setting.has_captions and config.text_encoder_name_or_path is None


def default_tracker() -> str:
    """TensorBoard where it is installed."""
    return "tensorboard" if importlib.util.find_spec("tensorboard") else "none"


# Of Stable Diffusion and the like, by what is trained: as diffusers' train_text_to_image.py and
# train_text_to_image_lora.py; between them where only the cross-attention is trained.
_LARGE_PARENT = {"unet": 1e-5, "cross_attention": 5e-5, "lora": 1e-4, "adapter": 1e-4}
_LARGE_MILLIONS = 300  # of parameters, from which on a pretrained network counts as large
_LARGE_PARENT_IMAGES = 16  # of a step, as in diffusers' train_text_to_image.py
_FEWEST_ON_GPU = 4  # images that make it worth its while without gradient checkpointing
_NUM_INFERENCE_STEPS, _GUIDANCE_SCALE = 20, 3.5  # of our own models: benchmarks/results/ablations.md


def _is_large(size: NetworkSize) -> bool:
    """Of Stable Diffusion's scale."""
    return size.millions > _LARGE_MILLIONS


def _optimizer(config: TrainingConfig, fine_tuning: bool, sharded: bool) -> str:
    """Muon for a new network: benchmarks/results/ablations.md. It needs whole matrices."""
    if fine_tuning or sharded or config.optimizer_config is not None:  # whose arguments are AdamW's
        return "adamw"
    return "muon"


def _rates(config: TrainingConfig, size: NetworkSize, fine_tuning: bool) -> dict[str, float]:
    """The peak rates of the UNet, the adapter and the text encoder."""
    learning_rate = config.learning_rate or _learning_rate(config, size, fine_tuning)
    adapter_lr, text_encoder_lr = learning_rate, NEW_TEXT_ENCODER_LR
    if config.learning_rate is None:  # an adapter may be new where the UNet is not
        adapter_lr = max(learning_rate, _LARGE_PARENT["adapter"])
    if fine_tuning:  # so is the text encoder, where it is the parent's
        text_encoder_lr = min(text_encoder_lr, learning_rate)
    if config.optimizer == "prodigy":
        text_encoder_lr = learning_rate
    return {
        "learning_rate": learning_rate,
        "adapter_lr": config.adapter_lr or adapter_lr,
        "text_encoder_lr": config.text_encoder_lr or text_encoder_lr,
    }


def _learning_rate(config: TrainingConfig, size: NetworkSize, fine_tuning: bool) -> float:
    if config.optimizer == "prodigy":  # which finds the rate; this is a factor of it
        return 1.0
    if not fine_tuning:
        return size.learning_rate
    return _LARGE_PARENT[config.train] if _is_large(size) else 0.5 * size.learning_rate


def _unet_size(sample_size: int, on_cpu: bool) -> str:
    if sample_size < 12:
        return "xs"
    if on_cpu:
        return "s" if sample_size <= 20 else "s32" if sample_size <= 40 else "m"
    return "s" if sample_size <= 20 else "m" if sample_size <= 48 else "l" if sample_size <= 96 else "xl"


def _batch_size(sample_size: int, on_cpu: bool, num_images: int | None, num_parameters: int | None = None) -> int:
    """Images of an optimizer step in each process; `num_parameters` of a pretrained network."""
    # A CPU is short of steps rather than of images a step: in equal time at 32 px, half the batch gave two thirds of
    # the held-out loss.
    most = 32 if on_cpu else 256
    batch_size = max(8, min(most, most * 32 * 32 // sample_size**2))
    if num_parameters is not None and _is_large(nearest_size(num_parameters)):
        batch_size = min(batch_size, _LARGE_PARENT_IMAGES)
    return min(batch_size, max(1, num_images or batch_size))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
