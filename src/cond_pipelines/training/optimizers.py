"""What is trained, at which rates, and by which optimizer."""

import importlib.util
import inspect
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..conditional_pipeline import ConditionalPipeline
from ..data.loading import load_object
from .config import TrainingConfig
from .lora import add_lora

# module:Class, its package on PyPI, and the arguments that are not its defaults.
OPTIMIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adamw": ("torch.optim:AdamW", "torch", {"fused": True}),
    "adamw8bit": ("bitsandbytes.optim:AdamW8bit", "bitsandbytes", {}),
    "prodigy": ("prodigyopt:Prodigy", "prodigyopt", {"use_bias_correction": True, "safeguard_warmup": True}),
    "schedulefree": ("schedulefree:AdamWScheduleFree", "schedulefree", {}),
    "muon": ("cond_pipelines.training.optimizers:MuonAndAdamW", "torch", {}),
    # The rate is the one given, instead of one relative to the weights' size, which starves those that begin at zero.
    "adafactor": ("transformers:Adafactor", "transformers", {"scale_parameter": False, "relative_step": False}),
}
_PARTS = ("unet", "adapter", "text_encoder")


def make_trainable(
    pipe: ConditionalPipeline, config: TrainingConfig, parent: ConditionalPipeline | None = None
) -> list[nn.Module]:
    """Freeze what stays as it is; returns the modules of which something is trained.

    Raises:
        ValueError: nothing is left to train.
    """
    # What a trained module freezes itself stays frozen.
    whole = [pipe.adapter] if config.train != "unet" else [pipe.unet, pipe.adapter]
    if config.conditioning == "text" and config.train_text_encoder:
        whole.append(pipe.text_encoder)
        if config.condition_dropout and "null_prompt" in pipe.adapter.config:
            # "No prompt" is what it is in this training: null_tokens, though the encoder moves away from them.
            pipe.adapter.register_to_config(null_prompt=None)
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    for module in modules:
        if not any(module is m for m in whole):
            module.requires_grad_(False)
    if config.train == "lora":
        add_lora(pipe.unet, config, config.lora_target_modules)
        if pipe.adapter is not whole[-1] and whole[-1] is parent.components.get("text_encoder"):
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
            trained, whole = sum(n for n, some in sizes if some), sum(n for n, _ in sizes)
            counts.append(f"{part} {trained / 1e6:.2f} of {whole / 1e6:.2f} M")
    return ", ".join(counts)


def parameter_groups(pipe: ConditionalPipeline, config: TrainingConfig) -> list[dict[str, Any]]:
    """The trained parameters of each part, each with the peak rate of its own: UNet, adapter, text encoder.

    A new text encoder breaks at the rate that suits a small UNet: it learned the commonest word and no other.
    """
    rates = dict(zip(_PARTS, (config.learning_rate, config.adapter_lr, config.text_encoder_lr), strict=True))
    found = {part: trainable([pipe.components[part]]) for part in _PARTS if pipe.components.get(part) is not None}
    return [
        {"params": parameters, "lr": rates[part], "initial_lr": rates[part]}
        for part, parameters in found.items()
        if parameters
    ]


def check_packages(config: TrainingConfig) -> None:
    """Raise ValueError, with the command that installs it, where a package is missing that was asked for by name."""
    wanted = {}
    if config.optimizer in OPTIMIZERS:
        path, package, _ = OPTIMIZERS[config.optimizer]
        wanted[f"--optimizer {config.optimizer}"] = (path.split(".")[0].split(":")[0], package)
    if config.train == "lora":
        wanted["--train lora"] = ("peft", "peft")
    for flag, (module, package) in wanted.items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{flag} needs the package {package}: pip install {package}")
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"--optimizer muon needs torch 2.9 or newer, this is {torch.__version__}: pip install -U torch"
        )


def build_optimizer(config: TrainingConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer asked for, by name or as module:Class; it gets the --adam_* arguments that it knows.

    Raises:
        ValueError: there is no such class, or it does not take an argument of --optimizer_config.
    """
    path, _, arguments = OPTIMIZERS.get(config.optimizer, (config.optimizer, "", {}))
    cls = load_object(path)
    known = inspect.signature(cls).parameters
    shared = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    # Adafactor's eps is a pair, of another meaning.
    shared = {
        k: v for k, v in shared.items() if k in known and not (k == "eps" and isinstance(known[k].default, tuple))
    }
    try:
        return cls(groups, **shared | arguments | json.loads(config.optimizer_config or "{}"))
    except (TypeError, ValueError) as error:  # a JSONDecodeError is a ValueError
        raise ValueError(f"--optimizer {config.optimizer} {config.optimizer_config or ''}: {error}") from error


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices, AdamW for all other parameters.

    Muon's step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one rate suits both.

    Args:
        groups: parameter groups. What has two dimensions goes to Muon; convolutions, norms and biases to AdamW.
        momentum, ns_steps: Muon's. betas, eps: AdamW's.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ):
        parts = {
            matrices: [
                group | {"params": some}
                for group in groups
                if (some := [p for p in group["params"] if (p.ndim == 2) == matrices])
            ]
            for matrices in (True, False)
        }
        muon = {"momentum": momentum, "ns_steps": ns_steps, "adjust_lr_fn": "match_rms_adamw"}
        self.both: dict[str, torch.optim.Optimizer] = {}
        if parts[True]:
            self.both["muon"] = torch.optim.Muon(parts[True], lr=lr, weight_decay=weight_decay, **muon)
        if parts[False]:
            self.both["adamw"] = torch.optim.AdamW(parts[False], lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)
        self.defaults = {"lr": lr}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.both.values() for group in optimizer.param_groups]

    @property
    def state(self) -> dict[nn.Parameter, Any]:
        return {p: state for optimizer in self.both.values() for p, state in optimizer.state.items()}

    def step(self, closure: None = None) -> None:
        for optimizer in self.both.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.both.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.both.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, optimizer in self.both.items():
            optimizer.load_state_dict(state_dict[name])
