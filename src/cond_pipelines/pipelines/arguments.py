"""The arguments of a call, checked: each wrong one is an error in one line that names it.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

# Names of other libraries, and of other pipelines of this one, for what a call has under another name.
_OTHER_NAMES = {
    "seed": "generator=42 (a whole number is a seed)",
    **dict.fromkeys(("steps", "num_steps", "sampling_steps", "n_steps"), "num_inference_steps"),
    **dict.fromkeys(("cfg", "cfg_scale", "scale", "w"), "guidance_scale"),
    **dict.fromkeys(("num_images", "num_samples", "n_samples"), "num_images_per_prompt"),
    **dict.fromkeys(("size", "resolution", "image_size"), "height and width"),
    **dict.fromkeys(("callback", "callback_steps"), "callback_on_step_end"),
    **dict.fromkeys(("init_image", "input_image"), "image"),
    **dict.fromkeys(("mask", "mask_images"), "mask_image"),
    **dict.fromkeys(("eta_noise", "ddim_eta"), "eta"),
}
_CONDITIONS = {"prompt", "prompts", "text", "caption", "captions", "label", "labels", "y", "classes", "class_labels"}
_CONDITIONS |= {"class_label", "class_ids", "batch_size", "condition", "conditions"}
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def integer(value: object, name: str, least: int = 1) -> int:
    """A whole number of at least `least`; NumPy's too. Raises ValueError, also for a bool."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} {shown(value)} is not a whole number of at least {least}")
    return int(value)


def number(value: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`. Raises ValueError, also for a bool."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} {shown(value)} is not a number")
    if not low <= float(value) <= high:
        raise ValueError(f"{name} {shown(value)} must be between {low:g} and {high:g}")
    return float(value)


def numbers_of(values: object, name: str) -> list[float] | None:
    """A sequence, array or tensor of numbers to a list; None for None. Raises ValueError."""
    if values is None:
        return None
    values = listed(values)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{name} {shown(values)} is not a list of numbers")
    return [number(value, f"{name}[{i}]") for i, value in enumerate(values)]


def listed(values: object) -> object:
    """Arrays and tensors to lists of Python's own numbers and strings; anything else as it is."""
    return values.tolist() if isinstance(values, np.ndarray | Tensor) else values


def generators(generator: object) -> "torch.Generator | list[torch.Generator] | None":
    """A generator, an int (its seed), or a list of either. Raises ValueError."""
    if isinstance(generator, list | tuple):
        return [_generator(each, f"generator[{i}]") for i, each in enumerate(generator)]
    return None if generator is None else _generator(generator, "generator")


def _generator(value: object, name: str) -> torch.Generator:
    if isinstance(value, torch.Generator):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) < 2**63:
        raise ValueError(f"{name} {shown(value)} is neither a torch.Generator nor a seed (a whole number, 0 or more)")
    return torch.Generator().manual_seed(int(value))


def output_type(value: object) -> str:
    """One of diffusers' kinds of output. Raises ValueError."""
    if value not in _OUTPUT_TYPES or not isinstance(value, str):
        raise ValueError(f"output_type {shown(value)} is not one of {', '.join(_OUTPUT_TYPES)}")
    return value


def image_input(image: PipelineImageInput | None) -> PipelineImageInput | None:
    """What diffusers' image processor takes; arrays of 8 bits, or of bool, become floats in [0, 1]."""
    if isinstance(image, list | tuple):
        if not image:
            raise ValueError("image is an empty list")
        return [image_input(each) for each in image]
    if isinstance(image, np.ndarray | Tensor):
        if image.dtype in (np.uint8, torch.uint8):
            return image / 255.0 if isinstance(image, Tensor) else image.astype(np.float32) / 255.0
        if image.dtype in (np.bool_, torch.bool):
            return image.float() if isinstance(image, Tensor) else image.astype(np.float32)
    elif image is not None and not hasattr(image, "convert"):
        raise ValueError(f"image {shown(image)} is no PIL image, array or tensor")
    return image


def mask_input(mask: PipelineImageInput | None) -> PipelineImageInput | None:
    """A mask as `image_input`, where integers of 0 and 1 only are a mask too, and an RGBA image is its colours."""
    if isinstance(mask, list | tuple):
        return [mask_input(each) for each in mask]
    if isinstance(mask, np.ndarray | Tensor) and mask.dtype not in (np.bool_, torch.bool):
        is_integer = not (mask.is_floating_point() if isinstance(mask, Tensor) else mask.dtype.kind == "f")
        if is_integer:
            scale = 255.0 if mask.max() > 1 else 1.0
            return mask.float() / scale if isinstance(mask, Tensor) else mask.astype(np.float32) / scale
    mask = image_input(mask)
    if mask is not None and getattr(mask, "mode", "") in ("RGBA", "LA", "P", "PA"):
        return mask.convert("RGB")
    return mask


def takes(function: Callable[..., object], num_arguments: int) -> bool:
    """Whether a function can be called with so many arguments; True where that is not known."""
    try:
        inspect.signature(function).bind(*[None] * num_arguments)
    except TypeError:
        return False
    except ValueError:  # of C
        return True
    return True


def shown(value: object) -> str:
    """The value in an error message, in one short line."""
    return " ".join(repr(value).split())[:60]


def unknown_argument(pipeline: str, name: str, own: Sequence[str], sampling: Sequence[str]) -> str:
    """The error of a call with an argument that it does not have: what to pass instead.

    Args:
        own: names of the call's arguments that say what is drawn, the condition first.
        sampling: names of those that every call has.
    """
    remedy = _OTHER_NAMES.get(name)
    if name.removeprefix("negative_") in _CONDITIONS:
        wanted = [other for other in own if other.startswith("negative_") == name.startswith("negative_")]
        remedy = wanted[0] if wanted else None
    near = difflib.get_close_matches(name, [*own, *sampling], n=1)
    if remedy is None and near:
        remedy = near[0]
    if remedy is None:
        return f"{pipeline} has no argument {name!r}: it has {', '.join([*own, *sampling])}"
    return f"{pipeline} has no argument {name!r}: use {remedy}"


_ADAPTERS = {"none": "UnconditionalAdapter", "class": "ClassLabelAdapter", "text": "TextAdapter"}


def check_adapter(pipeline: str, conditioning: str | None, adapter: object) -> None:
    """Raise ValueError where a pipeline of one setting, by its class's name, gets an adapter of another."""
    setting = getattr(adapter, "conditioning", None)
    if adapter is not None and conditioning not in (None, setting):
        raise ValueError(
            f"{pipeline} needs an adapter for the setting {conditioning!r} and got {type(adapter).__name__} "
            f"({setting!r}): pass adapter={_ADAPTERS[str(conditioning)]}.for_unet(unet, ...)"
        )
