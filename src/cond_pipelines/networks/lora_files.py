"""What the header of a LoRA's file may ask for: numbers of its own layers.

diffusers gives the header to PEFT's LoraConfig as it is. There a name of layers is a regular expression, which may take
for ever, and other fields import modules, open files, or change the weights of the model itself.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..folders import check_length, check_model_folder

_LAYER = re.compile(r"\^?[\w.]+", re.ASCII)  # as diffusers writes the name of one
_OF_A_LAYER = re.compile(r"(.+?)\.lo(ra|kr)(_\w+)?(\.|$)")  # a.lora_A.weight, a.lora.down.weight, a.lokr_w1
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights
_NOT_FOLLOWED = (
    *("megatron_config", "modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication"),
    *("alora_invocation_tokens", "arrow_config", "monteclora_config", "use_qalora"),
)


def checked_place(given: object) -> object:
    """What was given; refuses a folder or a file that is not read, see `folders`. Names on the Hub and weights pass."""
    if isinstance(given, str | os.PathLike) and (path := Path(given)).exists():
        (check_model_folder if path.is_dir() else check_length)(path)
    return given


def with_plain_metadata(loaded: Any, given: object) -> Any:
    """What diffusers' `lora_state_dict` returns, with `plain_lora_metadata` in the place of the header's."""
    if not (isinstance(loaded, tuple) and len(loaded) == 3 and loaded[2] is not None):
        return loaded
    where = str(given) if isinstance(given, str | os.PathLike) else "the LoRA"
    return *loaded[:2], plain_lora_metadata(loaded[2], loaded[0], where)


def plain_lora_metadata(metadata: object, weights: Mapping[str, Tensor], where: str = "the LoRA") -> dict[str, Any]:
    """The numbers of a LoRA's header; its layers are those of which the file holds weights.

    Args:
        metadata: {"unet.r": 4, ...}, as diffusers reads it. weights: of the same file. where: it is.

    Raises:
        UserError: it asks for something else, or for a rank that no tensor has.

    Example:
        >>> plain_lora_metadata({"unet.r": 4, "unet.revision": "x"}, {"unet.a.lora_A.weight": torch.zeros(4, 8)})
        {'unet.r': 4, 'unet.target_modules': ['a']}
    """
    if not isinstance(metadata, dict):
        raise UserError(
            f"{where}: its header's lora_adapter_metadata is a {type(metadata).__name__}, not names and values"
        )
    largest = max((side for tensor in weights.values() for side in tensor.shape), default=0)
    kept: dict[str, Any] = {}
    for name, value in metadata.items():
        part, _, field = str(name).partition(".")
        is_refused = field in _NOT_FOLLOWED and bool(value)
        is_refused |= field == "init_lora_weights" and str(value).lower().startswith(_CHANGES_THE_MODEL)
        if is_refused:
            raise UserError(f"{where}: its header asks for {field} {str(value)[:60]!r}, which is not followed")
        if (is_right := _FIELDS.get(field)) is None or value is None:
            continue
        if not is_right(value, largest):
            raise UserError(f"{where}: its header's {field} {str(value)[:60]!r} is none that its weights can have")
        kept[f"{part}.{field}"] = value
    layers: dict[str, set[str]] = {name.partition(".")[0]: set() for name in kept}
    for name in weights:
        part, _, rest = name.partition(".")
        if part in layers and (match := _OF_A_LAYER.match(rest)):
            layers[part].add(match[1])
    return kept | {f"{part}.target_modules": sorted(names) for part, names in layers.items() if names}


def _is_number(value: object, largest: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= largest


def _is_flag(value: object, largest: int) -> bool:
    return isinstance(value, bool)


def _by_layer(is_right: Callable[[object, int], bool]) -> Callable[[object, int], bool]:
    return lambda values, largest: (
        isinstance(values, dict)
        and all(_LAYER.fullmatch(str(layer)) and is_right(value, largest) for layer, value in values.items())
    )


_FIELDS: dict[str, Callable[[Any, int], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_number,
    "alpha": _is_number,  # of LoKr, as the two below
    "decompose_factor": _is_number,
    "decompose_both": _is_flag,
    "rank_pattern": _by_layer(_is_rank),
    "alpha_pattern": _by_layer(_is_number),
    "use_rslora": _is_flag,
    "use_dora": _is_flag,
    "lora_bias": _is_flag,
}
