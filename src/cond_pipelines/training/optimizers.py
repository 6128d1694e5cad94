"""What is trained, at which rates, and by which optimizer."""

import importlib.util
import inspect
from collections.abc import Iterable

import torch
from torch import nn

from ..errors import arguments_of, reading
from ..pipelines.conditional import ConditionalPipeline
from ..user_code import load_object
from .arguments import OptimizationArguments
from .config import TrainingConfig
from .lora import add_lora
from .trackers import check_tracker

# module:Class, its package on PyPI, and the arguments that are not its defaults.
OPTIMIZERS: dict[str, tuple[str, str, dict[str, object]]] = {
    "adamw": ("torch.optim:AdamW", "torch", {"fused": True}),
    "adamw8bit": ("bitsandbytes.optim:AdamW8bit", "bitsandbytes", {}),
    "prodigy": ("prodigyopt:Prodigy", "prodigyopt", {"use_bias_correction": True, "safeguard_warmup": True}),
    "schedulefree": ("schedulefree:AdamWScheduleFree", "schedulefree", {}),
    "muon": ("cond_pipelines.training.muon:MuonAndAdamW", "torch", {}),
    # The rate is the one given, instead of one relative to the weights' size, which starves those that begin at zero.
    "adafactor": ("transformers:Adafactor", "transformers", {"scale_parameter": False, "relative_step": False}),
}
_ADAM = {
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_weight_decay": "weight_decay",
    "adam_epsilon": "eps",
}  # the optimizer's argument that each flag sets
_PARTS = ("unet", "adapter", "text_encoder")


def make_trainable(
    pipe: ConditionalPipeline, config: TrainingConfig, parent: ConditionalPipeline | None = None
) -> list[nn.Module]:
    """Freeze what stays as it is; returns the modules of which something is trained.

    Raises:
        ValueError: nothing is left to train.
    """
    # What a trained module freezes itself stays frozen.
    unfrozen = [pipe.adapter] if config.train != "unet" else [pipe.unet, pipe.adapter]
    if config.setting.has_captions and config.train_text_encoder:
        unfrozen.append(pipe.text_encoder)
        if config.condition_dropout and "null_prompt" in pipe.adapter.config:
            # "No prompt" is what it is in this training: null_tokens, though the encoder moves away from them.
            pipe.adapter.register_to_config(null_prompt=None)
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    for module in modules:
        if not any(module is m for m in unfrozen):
            module.requires_grad_(False)
    if config.train == "lora":
        add_lora(pipe.unet, config, config.lora_target_modules)
        if (
            pipe.adapter is not unfrozen[-1]
            and parent is not None
            and unfrozen[-1] is parent.components.get("text_encoder")
        ):
            add_lora(pipe.text_encoder, config)
    if config.train == "cross_attention":
        for name, parameter in pipe.unet.named_parameters():
            parameter.requires_grad_(trains_parameter(config, name))
    trained = [module for module in modules if any(p.requires_grad for p in module.parameters())]
    if not trained or (config.train == "cross_attention" and pipe.unet not in trained):
        what = "the UNet has no cross-attention" if config.train == "cross_attention" else "the adapter learns nothing"
        raise ValueError(f"--train {config.train}: {what}, so nothing is left to train; --train unet trains all of it")
    for module in modules:
        module.train(module in trained)
    return trained


def trains_parameter(config: TrainingConfig, name: str) -> bool:
    """Whether --train trains the UNet's parameter of this name; for a LoRA, whether it trains matrices for it."""
    if config.train == "lora":
        module = name.rpartition(".")[0]
        return any(module == target or module.endswith(f".{target}") for target in config.lora_target_modules)
    return config.train == "unet" or (config.train == "cross_attention" and ".attn2." in name)


def trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters that are trained, in order."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def count_trained(pipe: ConditionalPipeline) -> str:
    """How much of each part is trained, in words: "unet 0.12 of 0.95 M, adapter 0.03 of 0.03 M"."""
    counts = []
    for part in _PARTS:
        if (module := pipe.components.get(part)) is not None:
            sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
            trained, total = sum(n for n, is_trained in sizes if is_trained), sum(n for n, _ in sizes)
            counts.append(f"{part} {trained / 1e6:.2f} of {total / 1e6:.2f} M")
    return ", ".join(counts)


def parameter_groups(pipe: ConditionalPipeline, config: TrainingConfig) -> list[dict[str, object]]:
    """The trained parameters of each part, each with the peak rate of its own: UNet, adapter, text encoder.

    A new text encoder breaks at the rate that suits a small UNet: it learned the commonest word and no other.
    """
    rates = {"unet": config.learning_rate, "adapter": config.adapter_lr or config.learning_rate}
    rates["text_encoder"] = config.text_encoder_lr or config.learning_rate
    groups: list[dict[str, object]] = []
    for part in _PARTS:
        module = pipe.components.get(part)
        if module is None or not (parameters := trainable([module])):
            continue
        groups.append({"params": parameters, "lr": rates[part], "initial_lr": rates[part]})
        if config.optimizer == "muon":
            # A row of an embedding is a word's or a class's own: an orthogonal step moves those of absent ones too.
            tables = (m for m in module.modules() if isinstance(m, nn.Embedding))
            groups[-1]["embeddings"] = [p for m in tables for p in m.parameters()]
    return groups


def check_packages(config: TrainingConfig) -> None:
    """Raise ValueError, with the command that installs it, for a package or tracker that is missing."""
    check_tracker(config.report_to)
    wanted = {}
    if config.optimizer in OPTIMIZERS:
        path, package, _ = OPTIMIZERS[config.optimizer]
        wanted[f"--optimizer {config.optimizer}"] = (path.split(".")[0].split(":")[0], package)
    if config.train == "lora":
        wanted["--train lora"] = ("peft", "peft")
    for flag, (module, package) in wanted.items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{flag} needs the package {package}: pip install {package}")


def build_optimizer(config: TrainingConfig, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """The optimizer of --optimizer, by name or as module:Class; it gets the --adam_* arguments that it knows.

    Raises:
        ValueError: there is no such class, or it does not take an argument of --optimizer_config.
    """
    which = config.optimizer or "adamw"
    path, _, arguments = OPTIMIZERS.get(which, (which, "", {}))
    cls = load_object(path, torch.optim.Optimizer)
    known = inspect.signature(cls).parameters
    shared = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    # Adafactor's eps is a pair, of another meaning.
    taken = {k for k in shared if k in known and not (k == "eps" and isinstance(known[k].default, tuple))}
    for name, argument in _ADAM.items():
        if argument not in taken and getattr(config, name) != getattr(OptimizationArguments, name):
            raise ValueError(
                f"--{name} {getattr(config, name)} has no effect: --optimizer {which} has no {argument}; "
                "leave it out, or see --optimizer_config"
            )
    shared = {k: v for k, v in shared.items() if k in taken}
    more = arguments_of("--optimizer_config", config.optimizer_config)
    if "lr" in more:  # each part has a rate of its own
        raise ValueError("--optimizer_config: lr has no effect there: give it as --learning_rate")
    for name, argument in _ADAM.items():
        if argument in more and getattr(config, name) != getattr(OptimizationArguments, name):
            raise ValueError(f"--optimizer_config: {argument} is given by --{name} too: leave one of them out")
    with reading(f"--optimizer {which} {config.optimizer_config or ''}".strip()):
        return cls(groups, **shared | arguments | more)
