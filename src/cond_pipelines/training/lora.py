"""LoRA through PEFT (Hu et al. 2021, arXiv 2106.09685): small trained matrices added to frozen ones.

What the parent has gets a LoRA (its UNet, and its text encoder where that is trained); what it lacks is trained whole
(the conditioning adapter, a new text encoder).
"""

import inspect
from pathlib import Path
from typing import Any

from diffusers.utils import convert_state_dict_to_diffusers
from torch import nn

from ..pipelines.conditional import ConditionalPipeline
from .config import TrainingConfig

# The attention of CLIP and Llama, BERT, T5, GPT-2.
_TEXT_ENCODER_MODULES = ["q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "c_attn"]


def add_lora(module: nn.Module, config: TrainingConfig, target_modules: list[str] | None = None) -> None:
    """Freeze a UNet or a text encoder, and add a LoRA that starts with no effect to the matrices of `target_modules`.

    Args:
        target_modules: ends of their names; default: the attention of a text encoder.

    Raises:
        ValueError: no module has such a name, or this kind of UNet (UNet2DModel) takes none.
    """
    from peft import LoraConfig

    if not hasattr(module, "add_adapter"):
        raise ValueError(
            f"--train lora: diffusers gives no LoRA to a {type(module).__name__}; --train unet trains all of it"
        )
    module.requires_grad_(False)
    targets = target_modules or _TEXT_ENCODER_MODULES
    alpha = config.lora_alpha or config.rank
    try:
        module.add_adapter(
            LoraConfig(r=config.rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets)
        )
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        names = sorted({name.split(".")[-1] for name, m in module.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(
            f"--lora_target_modules {' '.join(targets)}: {type(module).__name__} has none, but {', '.join(names)}"
        ) from error


def has_lora(module: nn.Module | None) -> bool:
    return bool(getattr(module, "peft_config", None))


def save_model(pipe: ConditionalPipeline, folder: str | Path, parent: ConditionalPipeline | None = None) -> None:
    """Write the complete pipeline; of a LoRA run what its parent lacks.

    pytorch_lora_weights.safetensors   diffusers' format, for any pipeline with the parent's UNet
    adapter/, model_index.json, ...    the pipeline without the parent's networks, which are passed when it is loaded
    """
    if not has_lora(pipe.unet):
        return pipe.save_pretrained(folder)
    from peft import get_peft_model_state_dict

    layers: dict[str, object] = {}
    for part in ("unet", "text_encoder"):
        module = getattr(pipe, part, None)
        if module is not None and has_lora(module):
            # A file has one layout, and convolutions may have been trained in another.
            state = {name: weight.contiguous() for name, weight in get_peft_model_state_dict(module).items()}
            # This gives attention the names of diffusers' own scripts, and leaves other layers as they are. A file with
            # both kinds of names loses the attention when it is loaded: then all keep PEFT's names.
            named = convert_state_dict_to_diffusers(state)
            layers[f"{part}_lora_layers"] = state if any(".lora_A." in name for name in named) else named
            layers[f"{part}_lora_adapter_metadata"] = _plain(module.peft_config["default"].to_dict())
    type(pipe).save_lora_weights(folder, **layers)
    of_parent = {} if parent is None else parent.components
    theirs = [m for k, m in of_parent.items() if isinstance(m, nn.Module) and k != "adapter"]
    components: dict[str, Any] = {k: None if any(c is m for m in theirs) else c for k, c in pipe.components.items()}
    accepted = inspect.signature(type(pipe).__init__).parameters
    settings: dict[str, Any] = {k: pipe.config[k] for k in accepted if k in pipe.config and k not in components}
    rest = type(pipe)(**components, **settings)
    rest._optional_components = [
        *components,
        *type(pipe)._optional_components,
    ]  # or diffusers warns of those that are left out
    rest.save_pretrained(folder)
    pipe.unet.save_config(Path(folder) / "unet")  # for the card


def how_to_load(pipe: ConditionalPipeline, folder: str | Path) -> str:
    """The line of code that loads what `save_model` wrote."""
    if not has_lora(pipe.unet):
        return f"ConditionalPipeline.from_pretrained({str(folder)!r})"
    return f"ConditionalPipeline.from_pretrained({str(folder)!r}, unet=parent.unet, ...), pipe.load_lora_weights(...)"


def _plain(config: dict[str, object]) -> dict[str, object]:
    """As JSON takes it."""
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
