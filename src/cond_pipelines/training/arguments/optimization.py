"""How it is trained: length, rates, optimizer, averages."""

from dataclasses import dataclass
from typing import Any, Literal

from ...flags import FRACTION, NOT_NEGATIVE, POSITIVE, SEED, check_values, flag

OPTIMIZER_NAMES = ("adamw", "adamw8bit", "prodigy", "schedulefree", "muon", "adafactor")
NEW_TEXT_ENCODER_LR = 3e-4


def _like_learning_rate(config: Any) -> tuple[float | None, ...]:
    return config.learning_rate, NEW_TEXT_ENCODER_LR


@dataclass
class OptimizationArguments:
    """Optimization: length, rates, optimizer, averages of the weights."""

    train: Literal["unet", "adapter", "cross_attention", "lora"] = flag(
        "unet",
        "Which parameters to train: unet (all UNet weights), cross_attention, adapter (UNet frozen) or lora. "
        "The adapter is always trained.",
        resume="model",
    )
    use_lora: bool = flag(False, "Train a LoRA on a pretrained model: the same as --train lora.", resume="model")
    rank: int = flag(
        4,
        "Set the rank of the LoRA's matrices; a higher one learns more, in more memory.",
        resume="model",
        bounds=POSITIVE,
        needs="use_lora",
    )
    lora_alpha: int | None = flag(
        None,
        "Scale the LoRA by lora_alpha / rank. Default: rank, so by 1.",
        resume="model",
        bounds=POSITIVE,
        needs="use_lora",
    )
    lora_target_modules: list[str] = flag(
        ["to_q", "to_k", "to_v", "to_out.0"],
        "Add a LoRA to modules whose names end like this. Default: the attention's projections.",
        resume="model",
        needs="use_lora",
    )
    max_train_steps: int | None = flag(
        None,
        "Stop after this many optimizer steps. Default: 100 epochs, within 3,000 to 100,000 steps.",
        resume="free",
        bounds=POSITIVE,
        common=8,
    )
    num_train_epochs: int | None = flag(
        None,
        "Stop after this many passes over the images, whatever the batch size.",
        resume="free",
        bounds=POSITIVE,
        needs=("!max_train_steps", "!streaming"),
        common=9,
    )
    max_train_minutes: float | None = flag(
        None,
        "Stop after this many minutes; the learning-rate schedule is stretched to fit.",
        resume="free",
        bounds=POSITIVE,
        common=10,
    )
    train_batch_size: int | None = flag(
        None,
        "Set the images of a batch of each process. Default: fits network, resolution and free memory.",
        resume="free",
        bounds=POSITIVE,
        common=11,
    )
    learning_rate: float | None = flag(
        None,
        "Set the peak learning rate. Default: by the UNet's size, from 2e-3 (small) to 1e-4 (large).",
        resume="free",
        bounds=POSITIVE,
        common=12,
    )
    gradient_accumulation_steps: int | None = flag(
        None,
        "Average the gradients of N batches in a step. Default: 1, more where memory is short.",
        resume="free",
        bounds=POSITIVE,
    )
    adapter_lr: float | None = flag(
        None,
        "Set the peak learning rate of the conditioning adapter. Default: learning_rate, at least 1e-4.",
        resume="free",
        bounds=POSITIVE,
        needs="!conditioning=none | adapter",
        like_default=_like_learning_rate,
    )
    text_encoder_lr: float | None = flag(
        None,
        "Set the peak learning rate of a trained text encoder. Default: 3e-4 if new, else learning_rate.",
        resume="free",
        bounds=POSITIVE,
        needs=("conditioning=text", "!train_text_encoder=False"),
        like_default=_like_learning_rate,
    )
    lr_scheduler: Literal["constant", "linear", "cosine", "warmup_stable_decay"] | None = flag(
        None,
        "Shape the learning rate: constant, linear, cosine or warmup_stable_decay. Default: the last.",
        resume="free",
    )
    lr_warmup_steps: int | None = flag(
        None,
        "Raise the learning rate from 0 over N steps. Default: 100, at most a tenth of the run.",
        resume="free",
        bounds=NOT_NEGATIVE,
    )
    lr_decay_fraction: float = flag(
        0.7,
        "Lower the rate to 0 over this last fraction of the run, with warmup_stable_decay.",
        resume="free",
        bounds=FRACTION,
        needs="lr_scheduler=None,warmup_stable_decay",
    )
    optimizer: str | None = flag(
        None,
        "Use adamw, adamw8bit, prodigy, schedulefree, muon, adafactor or module:Class. "
        "Default: muon; of a pretrained UNet adamw.",
        resume="course",
    )
    optimizer_config: str | None = flag(
        None, "Pass more arguments (JSON) to the optimizer's constructor.", resume="course"
    )
    adam_beta1: float = flag(
        0.9,
        "Set beta1 of AdamW, or of another optimizer with betas.",
        resume="free",
        bounds=FRACTION,
        needs="!optimizer=adafactor",
    )
    adam_beta2: float = flag(
        0.99,
        "Set beta2 of AdamW, or of another optimizer with betas.",
        resume="free",
        bounds=FRACTION,
        needs="!optimizer=adafactor",
    )
    adam_weight_decay: float = flag(
        0.0, "Set the weight decay, of an optimizer that has one.", resume="free", bounds=NOT_NEGATIVE
    )
    adam_epsilon: float = flag(
        1e-8,
        "Set epsilon of AdamW, or of another optimizer with one epsilon.",
        resume="free",
        bounds=NOT_NEGATIVE,
        needs="!optimizer=adafactor",
    )
    max_grad_norm: float = flag(
        1.0, "Clip the norm of the gradient to this; 0: no clipping.", resume="free", bounds=NOT_NEGATIVE
    )
    max_skipped_steps: int = flag(
        20,
        "Stop after N skipped steps in a row: steps whose gradient is not finite.",
        resume="free",
        bounds=POSITIVE,
    )
    condition_dropout: float = flag(
        0.1,
        "Drop this fraction of the conditions, to learn p(x) too, which guidance needs.",
        resume="course",
        bounds=FRACTION,
        needs="!conditioning=none",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(
        None, "Compute in fp16, bf16 or neither (no). Default: what the device is fast at.", resume="free"
    )
    allow_tf32: bool = flag(True, "Allow TF32 matrix products on NVIDIA GPUs.", resume="free")
    use_ema: bool = flag(
        True,
        "Keep a moving average of the weights, and save it as the model.",
        resume="course",
        needs="!optimizer=schedulefree",
    )
    ema_max_decay: float | None = flag(
        None,
        "Average weights as diffusers does, with a decay that grows to this. Default: EDM2's average.",
        resume="course",
        bounds=FRACTION,
        needs=("!optimizer=schedulefree", "use_ema"),
    )
    ema_inv_gamma: float = flag(
        1.0,
        "Set g of the decay 1 - (1 + step / g) ** -ema_power, with --ema_max_decay.",
        resume="course",
        bounds=POSITIVE,
        needs="ema_max_decay",
    )
    ema_power: float = flag(
        0.75,
        "Set p of the decay 1 - (1 + step / ema_inv_gamma) ** -p, with --ema_max_decay.",
        resume="course",
        bounds=POSITIVE,
        needs="ema_max_decay",
    )
    ema_lengths: list[float] = flag(
        [],
        "Keep EDM2's averages of these lengths, such as 0.05 0.10, for `cond-pipelines ema`.",
        resume="course",
        needs="!optimizer=schedulefree",
    )
    autoguidance: bool = flag(
        False,
        "Keep the average of an eighth of the run as a weaker network, which guides the finished one.",
        resume="course",
        needs=("train=unet", "!optimizer=schedulefree", "!objective=distillation"),
    )
    seed: int = flag(
        0,
        "Set the seed of weights, data order, noise, times, dropout, crops and flips.",
        resume="course",
        bounds=SEED,
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.use_lora and self.train not in ("unet", "lora"):
            raise ValueError(f"--use_lora means --train lora, and --train {self.train} was given: leave one out")
        self.train = "lora" if self.use_lora else self.train
        self.use_lora = self.train == "lora"
        known = self.optimizer is None or self.optimizer in OPTIMIZER_NAMES or ":" in self.optimizer
        if not known:
            names = ", ".join(OPTIMIZER_NAMES)
            raise ValueError(f"--optimizer {self.optimizer!r} is not one of {names}, nor module:Class")
        if self.optimizer == "prodigy" and {self.adapter_lr, self.text_encoder_lr} - {None, self.learning_rate or 1.0}:
            raise ValueError("--adapter_lr and --text_encoder_lr: prodigy has one rate for all, leave them out")
