"""Stable Diffusion 1.x and 2.x in one .safetensors file, as it was published, by diffusers' `from_single_file`."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors import SafetensorError, safe_open

from ..folders import check_length
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.settings import TextToImagePipeline
from .pretrained import OWN_ARGUMENTS, convert

_CLASSES = {
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "inpainting_v2": "StableDiffusionInpaintPipeline",
}
_UNET = "model.diffusion_model."  # before the names of the weights of its UNet


def load_single_file(cls: type[ConditionalPipeline], path: Path, **kwargs: Any) -> ConditionalPipeline:
    """The file as a TextToImagePipeline. Without `config`, diffusers takes the configurations from the Hub.

    Args:
        kwargs: those of diffusers' `from_single_file`, such as `config`, a folder in diffusers' layout; and those of
            the pipeline's constructor.

    Raises:
        ValueError: the file holds another kind of model, or diffusers cannot read it; in one line.

    Example:
        >>> pipe = TextToImagePipeline.from_pretrained("v1-5-pruned-emaonly.safetensors")
    """
    if not issubclass(TextToImagePipeline, cls):
        raise ValueError(f"{path} is one file: use TextToImagePipeline.from_pretrained, then {cls.__name__}.from_pipe")
    check_length(path)
    kind = _kind(path)
    if kind not in _CLASSES:
        raise ValueError(f"{path} is {kind}: one file of Stable Diffusion 1.x or 2.x can be read, and no other model")
    given = {name: kwargs.pop(name) for name in OWN_ARGUMENTS if name in kwargs}
    parent_class = getattr(diffusers, _CLASSES[kind])
    try:
        parent = parent_class.from_single_file(str(path), safety_checker=None, requires_safety_checker=False, **kwargs)
    except Exception as error:  # of many kinds: it looks for configurations, and for weights by their names
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as Stable Diffusion 1.x or 2.x: {why}") from error
    return convert(TextToImagePipeline, parent, **given)


def _kind(path: Path) -> str:
    """diffusers' name of the model's kind, from the names and shapes of its weights."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not any(name.startswith(_UNET) for name in shapes):
        named = ", ".join(sorted(shapes)[:2]) or "nothing"
        return f"not in the layout of Stable Diffusion (its weights are {named}, ...)"
    return str(infer_diffusers_model_type(shapes))
