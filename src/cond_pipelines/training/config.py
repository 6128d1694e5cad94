"""All arguments of a training run, grouped; as dataclasses, from the command line, or from YAML.

Where diffusers' train_unconditional.py and train_text_to_image.py have a flag with the same meaning, it has the same
name here. None means "chosen for you": see `defaults.py`; what was chosen is printed and saved.
"""

import difflib
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

OPTIMIZER_NAMES = ("adamw", "adamw8bit", "prodigy", "schedulefree", "muon", "adafactor")


def _arg(default: Any, help: str, **kwargs: Any) -> Any:
    metadata = {"help": help} | kwargs
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    conditioning: str = _arg("none", "What the model is told: none, class, text, embedding, or custom.")
    adapter: str | None = _arg(None, "Your own adapter as module:Class; the default is the setting's.")
    adapter_config: str | None = _arg(
        None, "JSON with arguments of the constructor of your adapter, or of embedding's."
    )
    unet_size: str | None = _arg(None, "xxs, xs, s, m, l, xl or xxl: see cond_pipelines.unet.")
    pretrained_model_name_or_path: str | None = _arg(
        None, "A model of any setting, Stable Diffusion, DDPM, DDIM or LDM to start from: folder or Hub id."
    )
    revision: str | None = _arg(None, "Revision of the pretrained model.")
    variant: str | None = _arg(None, "Variant of the pretrained model's files, such as fp16.")
    text_encoder_name_or_path: str | None = _arg(
        None, "A transformers text encoder and tokenizer. None: both are trained from scratch on your captions."
    )
    train_text_encoder: bool | None = _arg(
        None, "Default: only when it is new, trained from scratch.", nargs="?", const=True
    )
    pretrained_vae_model_name_or_path: str | None = _arg(None, "A VAE, for latent diffusion. None: pixels.")
    scheduler: str | None = _arg(
        None, "Class of diffusers' scheduler to train for and save. Default: FlowMatchEulerDiscreteScheduler."
    )
    prediction_type: str | None = _arg(None, "For DDPM-family and EDM schedulers: epsilon, v_prediction, sample.")
    logit_mean: float | None = _arg(
        None, "Of the times of flow matching, logit-normal. Default: 0. Higher: more noise."
    )
    logit_std: float | None = _arg(None, "Of the times of flow matching, logit-normal. Default: 1.")
    snr_gamma: float | None = _arg(None, "Min-SNR weighting for DDPM-family schedulers; 5.0 is usual.")
    gradient_checkpointing: bool = _arg(False, "Less memory, more time.")
    compile: bool = _arg(False, "torch.compile the UNet: minutes at the start, faster steps on a GPU.")


@dataclass
class DataArguments:
    train_data_dir: str | None = _arg(
        None, "Folder of images (metadata.jsonl/.csv or class sub-folders), of parquet/arrow files, or save_to_disk's."
    )
    with_prior_preservation: bool = _arg(False, "Train on the images of --class_data_dir too (DreamBooth).")
    class_data_dir: str | None = _arg(
        None, "Folder of images of what the model knows already and is to keep, such as samples of its own."
    )
    class_prompt: str | None = _arg(None, "What all class images show: caption or label. Default: as the folder says.")
    prior_loss_weight: float = _arg(1.0, "How often a class image is drawn for each other one.")
    dataset_name: str | None = _arg(None, "Hub id, or module:function that returns a data set.")
    dataset_config_name: str | None = _arg(None, "Configuration of the Hub data set.")
    dataset_split: str = _arg("train", "Split to train on.")
    cache_dir: str | None = _arg(None, "Where `datasets` keeps what it prepared.")
    streaming: bool = _arg(False, "Stream the data set instead of preparing it on disk.")
    image_column: str | None = _arg(None, "Default: the column of type Image.")
    label_column: str | None = _arg(None, "Default: the column of type ClassLabel, or named label.")
    caption_column: str | None = _arg(None, "Default: the column named text or caption. A list: one is drawn a step.")
    condition_column: str | None = _arg(
        None, "For --conditioning custom: the column given to your adapter. embedding: that of the vectors."
    )
    resolution: int | None = _arg(None, "Images are resized to this many pixels a side. Default: the images' own size.")
    channels: int | None = _arg(
        None, "1 gray, 3 RGB, 4 RGBA, up to 16. Default: the pretrained model's; 1 where all images are gray, else 3."
    )
    value_range: list[float] = _arg(
        [], "LOW HIGH: the values that become -1 and 1, for images that are not of 8 bits: 16-bit PNG, TIFF, .npy, ..."
    )
    aspect_buckets: bool = _arg(False, "Keep images wide or tall, of about resolution x resolution pixels.")
    center_crop: bool = _arg(True, "Crop the centre; --no_center_crop: a random place.")
    random_flip: bool = _arg(False, "Flip half of the images left to right.")
    image_interpolation_mode: str = _arg("lanczos", "Of the resize: nearest, box, bilinear, hamming, bicubic, lanczos.")
    on_bad_image: str = _arg("error", "error: stop and name the row. skip: leave it out and count.")
    max_train_samples: int | None = _arg(None, "Use only the first so many rows.")
    validation_fraction: float = _arg(0.03, "Held out for the validation loss (at most 256 images; 0: none).")
    cache_images: bool | None = _arg(
        None,
        "Keep decoded images in a file under --cache_dir. Default: where it is 32 MiB to 2 GiB and takes up to 90 s; "
        "less is kept in memory, more is decoded at every use (--cache_images False: always).",
        nargs="?",
        const=True,
    )
    cache_latents: bool = _arg(False, "Encode each image once, with a VAE, and keep that under --cache_dir.")
    cache_text_embeddings: bool = _arg(False, "Encode each caption once, and keep that under --cache_dir.")
    dataloader_num_workers: int | None = _arg(
        None, "Default: on a CPU none where decoded images are kept, on a GPU two; none where not on Linux."
    )


@dataclass
class OptimizationArguments:
    train: str = _arg(
        "unet",
        "Of the UNet: unet, all; adapter, nothing; cross_attention, its attn2 layers; lora. Each with the adapter.",
    )
    use_lora: bool = _arg(False, "The same as --train lora: small matrices beside the pretrained model's frozen ones.")
    rank: int = _arg(4, "Of the LoRA's matrices.")
    lora_alpha: int | None = _arg(None, "The LoRA is scaled by lora_alpha / rank. Default: rank.")
    lora_target_modules: list[str] = _arg(
        ["to_q", "to_k", "to_v", "to_out.0"], "Ends of the names of the UNet's modules that get a LoRA."
    )
    train_batch_size: int | None = _arg(None, "Images a process and micro-step.")
    max_train_steps: int | None = _arg(None, "Optimizer steps. Wins over num_train_epochs.")
    num_train_epochs: int | None = _arg(None, "Passes over the images.")
    max_train_minutes: float | None = _arg(None, "Stop after this long; the LR schedule fits the time given.")
    gradient_accumulation_steps: int = _arg(1, "Micro-steps an optimizer step.")
    learning_rate: float | None = _arg(None, "Peak learning rate.")
    adapter_lr: float | None = _arg(None, "Peak learning rate of the conditioning adapter. Default: learning_rate.")
    text_encoder_lr: float | None = _arg(None, "Peak learning rate of a text encoder that is trained. Default: 3e-4.")
    lr_scheduler: str | None = _arg(
        None, "constant, linear, cosine, or warmup_stable_decay. Default: the last; constant for schedulefree."
    )
    lr_warmup_steps: int | None = _arg(None, "Optimizer steps of linear warm-up.")
    lr_decay_fraction: float = _arg(0.7, "Of the run, at its end, for warmup_stable_decay.")
    optimizer: str = _arg(
        "adamw", "adamw, adamw8bit, prodigy, schedulefree, muon, adafactor, or any class as module:Class."
    )
    optimizer_config: str | None = _arg(None, "JSON with more arguments of the optimizer's constructor.")
    adam_beta1: float = _arg(0.9, "Of AdamW, and of other optimizers that have betas.")
    adam_beta2: float = _arg(0.99, "Of AdamW, and of other optimizers that have betas.")
    adam_weight_decay: float = _arg(0.0, "Of any optimizer that has a weight_decay.")
    adam_epsilon: float = _arg(1e-8, "Of any optimizer that has an eps.")
    max_skipped_steps: int = _arg(20, "Stop after so many steps in a row with a gradient that is not finite.")
    max_grad_norm: float = _arg(1.0, "Gradient clipping; 0: none.")
    condition_dropout: float = _arg(0.1, "Probability, per example and step, that the model is told nothing.")
    mixed_precision: str | None = _arg(None, "no, fp16 or bf16. Default: what the device is fast at.")
    allow_tf32: bool = _arg(True, "TF32 matrix products on NVIDIA GPUs.")
    use_ema: bool = _arg(True, "Keep and save a moving average of the weights.")
    ema_max_decay: float | None = _arg(
        None,
        "Upper bound of the EMA's decay, 1 - (1 + step / ema_inv_gamma) ** -ema_power. Default: instead of all that, "
        "EDM2's average over a twentieth of the run.",
    )
    ema_inv_gamma: float = _arg(1.0, "See ema_max_decay.")
    ema_power: float = _arg(0.75, "See ema_max_decay.")
    ema_lengths: list[float] = _arg(
        [], "Also keep EDM2's averages of these lengths (such as 0.05 0.10), from which `cond-pipelines ema` makes any."
    )
    seed: int = _arg(0, "Of weights, data order, noise, times, dropout, crops and flips.")


@dataclass
class OutputArguments:
    output_dir: str = _arg("output", "The finished pipeline, its pictures and its checkpoints go here.")
    report_to: str | None = _arg(None, "tensorboard, wandb, ..., or none. Default: tensorboard where installed.")
    logging_dir: str = _arg("logs", "Of the tracker, inside output_dir.")
    tracker_project_name: str = _arg("cond_pipelines", "For trackers that have projects.")
    logging_steps: int = _arg(50, "Optimizer steps between two lines of the log.")
    validation_steps: int | None = _arg(None, "Steps between validations. Default: four in the run. 0: none.")
    validation_prompts: list[str] = _arg([], "Captions, or labels, of the sample grids. Default: from the data.")
    num_validation_images: int = _arg(16, "Images in a sample grid during training.")
    evaluation_steps: int | None = _arg(None, "Steps between small evaluations of samples. Default: none.")
    num_evaluation_samples: int = _arg(256, "Samples of a small evaluation.")
    feature_extractor: str = _arg("pixels", "Of evaluations: a transformers vision model, module:callable, or pixels.")
    checkpointing_steps: int | None = _arg(None, "Steps between checkpoints to resume from. Default: none.")
    checkpoints_total_limit: int | None = _arg(None, "Keep only so many checkpoints.")
    resume_from_checkpoint: str | None = _arg(None, "A checkpoint folder, or latest.")
    default_num_inference_steps: int = _arg(30, "Saved as the pipeline's default.")
    default_guidance_scale: float = _arg(2.5, "Saved as the pipeline's default.")
    push_to_hub: bool = _arg(False, "Upload the finished pipeline.")
    hub_model_id: str | None = _arg(None, "Default: the name of output_dir.")
    hub_token: str | None = _arg(None, "Default: the one you are logged in with.")
    hub_private_repo: bool = _arg(False, "Make a new repository private.")
    hub_strategy: str = _arg("end", "Push at the end, or at every_save: at each checkpoint too, in the background.")


@dataclass
class TrainingConfig(OutputArguments, OptimizationArguments, DataArguments, ModelArguments):
    """Everything that decides a training run.

    Raises:
        ValueError: a value that no run can use; the message names the flag.

    Example:
        >>> config = TrainingConfig(conditioning="class", train_data_dir="flowers", resolution=64)
        >>> config.save("recipe.yaml")
        >>> folder = train(config)
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainingConfig).items():
            if isinstance(getattr(self, name), Path):
                setattr(self, name, str(getattr(self, name)))
            if not _is_a(getattr(self, name), hint):
                wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
                raise ValueError(f"--{name} {getattr(self, name)!r} is not of type {wanted}")
        choices = {
            "conditioning": ("none", "class", "text", "embedding", "custom"),
            "unet_size": (None, "xxs", "xs", "s", "m", "l", "xl", "xxl"),
            "on_bad_image": ("error", "skip"),
            "mixed_precision": (None, "no", "fp16", "bf16"),
            "prediction_type": (None, "epsilon", "v_prediction", "sample"),
            "train": ("unet", "adapter", "cross_attention", "lora"),
            "lr_scheduler": (None, "constant", "linear", "cosine", "warmup_stable_decay"),
            "image_interpolation_mode": ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
            "channels": (None, *range(1, 17)),
            "hub_strategy": ("end", "every_save"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(str(a) for a in allowed if a is not None)
                raise ValueError(f"--{name} {getattr(self, name)!r} is not one of {names}")
        if self.use_lora and self.train not in ("unet", "lora"):
            raise ValueError(f"--use_lora means --train lora, and --train {self.train} was given: leave one out")
        self.train = "lora" if self.use_lora else self.train
        self.use_lora = self.train == "lora"
        if self.use_lora and not self.pretrained_model_name_or_path:
            raise ValueError("--train lora needs --pretrained_model_name_or_path: the model whose weights stay")
        for name in ("condition_dropout", "validation_fraction", "lr_decay_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 0 and less than 1")
        for name in (
            *("train_batch_size", "max_train_steps", "num_train_epochs", "max_train_minutes", "resolution"),
            *(
                "gradient_accumulation_steps",
                "learning_rate",
                "adapter_lr",
                "text_encoder_lr",
                "checkpointing_steps",
                "checkpoints_total_limit",
            ),
            *(
                "prior_loss_weight",
                "rank",
                "lora_alpha",
                "max_skipped_steps",
                "logging_steps",
                "max_train_samples",
                "default_num_inference_steps",
                "num_validation_images",
                "evaluation_steps",
                "num_evaluation_samples",
            ),
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"--{name} {getattr(self, name)} must be greater than 0")
        for name in ("lr_warmup_steps", "validation_steps", "dataloader_num_workers", "max_grad_norm"):
            if getattr(self, name) is not None and not getattr(self, name) >= 0:
                raise ValueError(f"--{name} {getattr(self, name)} must not be negative")
        if self.conditioning == "custom" and not (self.adapter and self.condition_column):
            raise ValueError("--conditioning custom needs --adapter module:Class and --condition_column")
        if self.optimizer not in OPTIMIZER_NAMES and ":" not in self.optimizer:
            names = ", ".join(OPTIMIZER_NAMES)
            raise ValueError(f"--optimizer {self.optimizer!r} is not one of {names}, nor module:Class")
        if self.optimizer == "prodigy" and {self.adapter_lr, self.text_encoder_lr} - {None, self.learning_rate or 1.0}:
            raise ValueError("--adapter_lr and --text_encoder_lr: prodigy has one rate for all, leave them out")
        if self.optimizer == "schedulefree" and self.ema_lengths:
            raise ValueError("--ema_lengths: schedulefree averages the weights itself, leave it out")
        if self.pretrained_model_name_or_path and self.unet_size:
            raise ValueError("--unet_size has no meaning with --pretrained_model_name_or_path: leave it out")
        if self.pretrained_model_name_or_path and self.pretrained_vae_model_name_or_path:
            raise ValueError("--pretrained_vae_model_name_or_path: the pretrained model keeps its own, leave this out")
        if self.value_range and not (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]):
            raise ValueError(f"--value_range {self.value_range} must be two numbers, the lower one first")
        if self.channels not in (None, 1, 3, 4) and not self.value_range:
            raise ValueError(f"--channels {self.channels} needs --value_range: 8-bit images have 1, 3 or 4")
        if self.with_prior_preservation != bool(self.class_data_dir):
            raise ValueError("--with_prior_preservation and --class_data_dir need each other")
        if self.with_prior_preservation and self.conditioning not in ("none", "class", "text"):
            raise ValueError(f"--with_prior_preservation has no meaning for --conditioning {self.conditioning}")
        if self.train_data_dir and self.dataset_name:
            raise ValueError("give either --train_data_dir or --dataset_name, not both")

    def save(self, path: str | Path) -> None:
        """Write as YAML, readable again with `--config`; the Hub token is left out."""
        values = {k: v for k, v in asdict(self).items() if k != "hub_token"}
        Path(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def parse_args(args: list[str] | None = None, **defaults: Any) -> TrainingConfig:
    """The command line to a TrainingConfig; `--config recipe.yaml` is read first, and the command line wins.

    Args:
        args: default: sys.argv[1:].
        defaults: lower than both, such as a script's `conditioning="class"`.

    Raises:
        SystemExit: with one line, for an unknown flag or key (naming the nearest one) or a bad value.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:  # one line, without the usage of all flags
            self.exit(2, f"error: {message}\n")

    parser = Parser(TrainingConfig, allow_abbrev=False, description="Train p(x), p(x|y) or p(x|text).")
    parser.add_argument("--config", help="YAML file with any of these arguments; the command line wins.")
    args = sys.argv[1:] if args is None else args
    known = [f.name for f in fields(TrainingConfig)]
    try:
        path = parser.parse_known_args(args)[0].config
        recipe = read_recipe(path) if path else {}
        parser.set_defaults(**defaults | recipe)
        config, _, unknown = parser.parse_args_into_dataclasses(
            args, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            raise ValueError(_unknown(unknown[0].split("=")[0].lstrip("-"), known, "argument --"))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    return config


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A YAML recipe as a dictionary. Raises ValueError for an unknown key, naming the nearest one."""
    try:
        recipe = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} must be `key: value` lines, not a {type(recipe).__name__}")
    known = [f.name for f in fields(TrainingConfig)]
    for key in recipe:
        if key not in known:
            raise ValueError(_unknown(str(key), known, f"key in {path}: "))
    if recipe.get("mixed_precision") is False:  # `no` is a boolean in YAML
        recipe["mixed_precision"] = "no"
    if isinstance(recipe.get("validation_prompts"), list):  # class labels may be numbers
        recipe["validation_prompts"] = [str(prompt) for prompt in recipe["validation_prompts"]]
    return recipe


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_a(v, get_args(hint)[0]) for v in value)
    types = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (float in types and isinstance(value, int))


def _unknown(name: str, known: list[str], what: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown {what}{name}" + (f"; did you mean {near[0]}?" if near else "")
