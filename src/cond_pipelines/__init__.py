"""One UNet, three settings: p(x), p(x|y) and p(x|text) as pipelines for diffusers.

Names are imported on first use, so that `import cond_pipelines` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _moved  # noqa: F401 (imports by old names)

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "ClassConditionalPipeline": "pipelines",
    "ClassLabelAdapter": "adapters",
    "CompositeAdapter": "adapters",
    "ConditionalPipeline": "pipelines",
    "Conditioning": "adapters",
    "ConditioningAdapter": "adapters",
    "EmbeddingAdapter": "adapters",
    "Noised": "objectives",
    "Objective": "objectives",
    "PromptAdapter": "adapters",
    "TextAdapter": "adapters",
    "TextToImagePipeline": "pipelines",
    "TrainingConfig": "training.config",
    "UNET_SIZES": "networks.unet_sizes",
    "UnconditionalAdapter": "adapters",
    "UnconditionalPipeline": "pipelines",
    "build_unet": "networks.unet_sizes",
    "builtin_model": "builtin",
    "image_grid": "pictures",
    "sample_grid": "grids",
    "train": "training.loop",
}

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from .adapters import (
        ClassLabelAdapter,
        CompositeAdapter,
        Conditioning,
        ConditioningAdapter,
        EmbeddingAdapter,
        PromptAdapter,
        TextAdapter,
        UnconditionalAdapter,
    )
    from .builtin import builtin_model
    from .grids import sample_grid
    from .networks.unet_sizes import UNET_SIZES, build_unet
    from .objectives import Noised, Objective
    from .pictures import image_grid
    from .pipelines import ClassConditionalPipeline, ConditionalPipeline, TextToImagePipeline, UnconditionalPipeline
    from .training.config import TrainingConfig
    from .training.loop import train

__all__ = [
    "UNET_SIZES",
    "ClassConditionalPipeline",
    "ClassLabelAdapter",
    "CompositeAdapter",
    "ConditionalPipeline",
    "Conditioning",
    "ConditioningAdapter",
    "EmbeddingAdapter",
    "Noised",
    "Objective",
    "PromptAdapter",
    "TextAdapter",
    "TextToImagePipeline",
    "TrainingConfig",
    "UnconditionalAdapter",
    "UnconditionalPipeline",
    "build_unet",
    "builtin_model",
    "image_grid",
    "sample_grid",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
