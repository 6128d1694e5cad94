"""How it is trained: length, rates, optimizer, averages."""

from dataclasses import dataclass
from typing import Any, Literal

from ...flags import flag

OPTIMIZER_NAMES = ("adamw", "adamw8bit", "prodigy", "schedulefree", "muon", "adafactor")
NEW_TEXT_ENCODER_LR = 3e-4


def _like_learning_rate(config: Any) -> tuple[float | None, ...]:
    return config.learning_rate, NEW_TEXT_ENCODER_LR


@dataclass
class OptimizationArguments:
    """Optimization: length, rates, optimizer, averages of the weights."""

    train: Literal["unet", "adapter", "cross_attention", "lora"] = flag(
        "unet",
        "Train unet (all of it), cross_attention, lora, or the adapter only.",
        resume="model",
    )
    use_lora: bool = flag(False, "Train a LoRA on a pretrained model: the same as --train lora.", resume="model")
    rank: int = flag(
        4, "Give the LoRA's matrices this rank: higher learns more.", resume="model", above=0, needs="use_lora"
    )
    lora_alpha: int | None = flag(
        None, "Scale the LoRA by lora_alpha / rank. Default: rank.", resume="model", above=0, needs="use_lora"
    )
    lora_target_modules: list[str] = flag(
        ["to_q", "to_k", "to_v", "to_out.0"],
        "Put a LoRA on modules whose names end like this. Default: attention.",
        resume="model",
        needs="use_lora",
    )
    max_train_steps: int | None = flag(
        None, "Stop after this many optimizer steps. Default: 100 passes.", resume="free", above=0, common=8
    )
    num_train_epochs: int | None = flag(
        None,
        "Stop after this many passes over the images, whatever the batch.",
        resume="free",
        above=0,
        needs=("!max_train_steps", "!streaming"),
        common=9,
    )
    max_train_minutes: float | None = flag(
        None, "Stop after this many minutes; the learning-rate schedule fits them.", resume="free", above=0, common=10
    )
    train_batch_size: int | None = flag(
        None,
        "Use this many images a step and process. Default: fits the network, resolution and free memory.",
        resume="free",
        above=0,
        common=11,
    )
    learning_rate: float | None = flag(
        None, "Set the peak learning rate. Default: suits the UNet's size.", resume="free", above=0, common=12
    )
    gradient_accumulation_steps: int | None = flag(
        None,
        "Add up the gradients of N batches before a step. Default: 1; chosen where no batch size is given.",
        resume="free",
        above=0,
    )
    adapter_lr: float | None = flag(
        None,
        "Set the peak learning rate of the conditioning adapter. Default: learning_rate, at least 1e-4.",
        resume="free",
        above=0,
        needs="!conditioning=none | adapter",
        like_default=_like_learning_rate,
    )
    text_encoder_lr: float | None = flag(
        None,
        "Set the peak learning rate of a trained text encoder. Default: 3e-4; pretrained: learning_rate.",
        resume="free",
        above=0,
        needs=("conditioning=text", "!train_text_encoder=False"),
        like_default=_like_learning_rate,
    )
    lr_scheduler: Literal["constant", "linear", "cosine", "warmup_stable_decay"] | None = flag(
        None,
        "Shape the rate: constant, linear, cosine or warmup_stable_decay. Default: the last.",
        resume="free",
    )
    lr_warmup_steps: int | None = flag(
        None,
        "Raise the rate over N optimizer steps. Default: 100, at most a tenth of the run.",
        resume="free",
        at_least=0,
    )
    lr_decay_fraction: float = flag(
        0.7,
        "Lower the rate over this last fraction of the run, with warmup_stable_decay.",
        resume="free",
        at_least=0,
        below=1,
        needs="lr_scheduler=None,warmup_stable_decay",
    )
    optimizer: str = flag(
        "adamw",
        "Use adamw, adamw8bit, prodigy, schedulefree, muon, adafactor, or module:Class.",
        resume="course",
    )
    optimizer_config: str | None = flag(
        None, "Pass more arguments (JSON) to the optimizer's constructor.", resume="course"
    )
    adam_beta1: float = flag(
        0.9, "Set beta1 of AdamW, and of others that have betas.", resume="free", needs="!optimizer=adafactor"
    )
    adam_beta2: float = flag(
        0.99, "Set beta2 of AdamW, and of others that have betas.", resume="free", needs="!optimizer=adafactor"
    )
    adam_weight_decay: float = flag(
        0.0, "Set the weight decay of any optimizer that has one.", resume="free", at_least=0
    )
    adam_epsilon: float = flag(
        1e-8, "Set eps of AdamW, and of others that have one number.", resume="free", needs="!optimizer=adafactor"
    )
    max_grad_norm: float = flag(1.0, "Clip the gradient to this norm; 0: no clipping.", resume="free", at_least=0)
    max_skipped_steps: int = flag(
        20, "Stop after N steps in a row whose gradient is not finite.", resume="free", above=0
    )
    condition_dropout: float = flag(
        0.1,
        "Hide this fraction of the conditions in training, for guidance and p(x).",
        resume="course",
        at_least=0,
        below=1,
        needs="!conditioning=none",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        None, "Compute in fp16, bf16 or neither (no). Default: what the device is fast at.", resume="free"
    )
    allow_tf32: bool = flag(True, "Allow TF32 matrix products on NVIDIA GPUs.", resume="free")
    use_ema: bool = flag(
        True,
        "Keep a moving average of the weights, and save that.",
        resume="course",
        needs="!optimizer=schedulefree",
    )
    ema_max_decay: float | None = flag(
        None,
        "Use diffusers' average, whose decay grows up to this. Default: EDM2's, over 5 % of the run.",
        resume="course",
        needs=("!optimizer=schedulefree", "use_ema"),
    )
    ema_inv_gamma: float = flag(
        1.0, "Set g in the decay 1 - (1 + step / g) ** -ema_power.", resume="course", above=0, needs="ema_max_decay"
    )
    ema_power: float = flag(
        0.75, "Set p in the decay 1 - (1 + step / ema_inv_gamma) ** -p.", resume="course", needs="ema_max_decay"
    )
    ema_lengths: list[float] = flag(
        [],
        "Keep EDM2's averages of these lengths too (0.05 0.10); `cond-pipelines ema` makes any of them.",
        resume="course",
        needs="!optimizer=schedulefree",
    )
    seed: int = flag(0, "Set the seed of weights, data order, noise, times, dropout, crops and flips.", resume="course")
