"""What a run uses where it was not told: chosen from the resolution, the number of images and the device."""

import importlib.util
import math
import os
import sys
from dataclasses import replace

import torch

from .config import TrainingConfig


def fill_defaults(
    config: TrainingConfig,
    *,
    num_images: int | None,
    sample_size: int,
    device: torch.device,
    decoded: bool = True,
    num_parameters: int | None = None,
) -> TrainingConfig:
    """A copy of `config` with every None that has to be decided, decided.

    Args:
        num_images: in the training split; None where it is streamed.
        sample_size: of what the UNet denoises, in pixels or latent pixels.
        decoded: the images are decoded already, so loading needs no worker processes.
        num_parameters: of a pretrained UNet; the larger, the lower the learning rate.
    """
    on_cpu = device.type == "cpu"
    size = config.unet_size or _unet_size(sample_size, on_cpu)
    batch_size = config.train_batch_size or _batch_size(sample_size, on_cpu, num_images)
    fine_tuning = config.pretrained_model_name_or_path is not None
    like = (
        size
        if num_parameters is None
        else min(_NUM_PARAMETERS, key=lambda s: abs(math.log(num_parameters / _NUM_PARAMETERS[s])))
    )
    learning_rate = config.learning_rate or _LEARNING_RATES[like] * (0.5 if fine_tuning else 1.0)
    if config.optimizer == "prodigy":  # which finds the rate; this is a factor of it
        learning_rate = config.learning_rate or 1.0
    averages_itself = config.optimizer == "schedulefree"
    max_train_steps = config.max_train_steps
    if max_train_steps is None and (config.max_train_minutes is None or config.num_train_epochs is not None):
        if num_images is None:
            raise ValueError("a streaming data set has no length: give --max_train_steps (or --max_train_minutes)")
        steps_an_epoch = num_images / (batch_size * config.gradient_accumulation_steps * _world_size())
        epochs = config.num_train_epochs or 100
        max_train_steps = max(1, round(epochs * steps_an_epoch))
        if config.num_train_epochs is None:  # a hundred passes over few images are too few steps
            max_train_steps = min(max(max_train_steps, 3_000), 100_000)
    workers = config.dataloader_num_workers
    if workers is None:
        forks = sys.platform == "linux"  # elsewhere it is not safe, or not to be had
        spare = max(1, min(8, (os.cpu_count() or 2) - 1))
        # One process puts together 50,000 decoded images of 32 px a second: a GPU would wait for it, a CPU does not.
        workers = 0 if not forks else spare if not decoded else 0 if on_cpu else min(2, spare)
    return replace(
        config,
        unet_size=None if fine_tuning else size,
        train_batch_size=batch_size,
        learning_rate=learning_rate,
        adapter_lr=config.adapter_lr or learning_rate,
        text_encoder_lr=config.text_encoder_lr or (learning_rate if config.optimizer == "prodigy" else 3e-4),
        lr_scheduler=config.lr_scheduler or ("constant" if averages_itself else "warmup_stable_decay"),
        use_ema=config.use_ema and not averages_itself,
        lr_warmup_steps=config.lr_warmup_steps if config.lr_warmup_steps is not None else 100,
        max_train_steps=max_train_steps,
        mixed_precision=config.mixed_precision or fast_precision(device),
        dataloader_num_workers=workers,
        report_to=config.report_to or default_tracker(),
        train_text_encoder=_train_text_encoder(config),
    )


def _train_text_encoder(config: TrainingConfig) -> bool:
    if config.train_text_encoder is not None:
        return config.train_text_encoder
    return config.conditioning == "text" and config.text_encoder_name_or_path is None


def default_tracker() -> str:
    """TensorBoard where it is installed."""
    return "tensorboard" if importlib.util.find_spec("tensorboard") else "none"


def fast_precision(device: torch.device) -> str:
    """bf16 where the device has instructions for it, fp16 on older NVIDIA GPUs, otherwise no mixed precision."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "no"


_NUM_PARAMETERS = {
    "xxs": 1e6,
    "xs": 1.7e6,
    "s": 2.8e6,
    "m": 16e6,
    "l": 139e6,
    "xl": 416e6,
    "xxl": 863e6,
}  # of parameters
_LEARNING_RATES = {"xxs": 2e-3, "xs": 2e-3, "s": 2e-3, "m": 8e-4, "l": 2e-4, "xl": 1e-4, "xxl": 1e-4}


def _unet_size(sample_size: int, on_cpu: bool) -> str:
    if sample_size < 12:
        return "xs"
    if on_cpu:
        return "s" if sample_size <= 32 else "m"
    return "s" if sample_size <= 20 else "m" if sample_size <= 48 else "l" if sample_size <= 96 else "xl"


def _batch_size(sample_size: int, on_cpu: bool, num_images: int | None) -> int:
    # A CPU is short of steps rather than of images a step: in equal time at 32 px, half the batch gave two thirds of
    # the held-out loss.
    most = 32 if on_cpu else 256
    batch_size = max(8, min(most, most * 32 * 32 // sample_size**2))
    return min(batch_size, max(1, num_images or batch_size))


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
