"""One UNet, three settings: p(x), p(x|y) and p(x|text) as pipelines for diffusers.

Names are imported on first use, so that `import cond_pipelines` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "ClassConditionalPipeline": "pipelines",
    "ClassLabelAdapter": "adapters",
    "CompositeAdapter": "composite_adapter",
    "ConditionalPipeline": "pipelines",
    "Conditioning": "adapters",
    "ConditioningAdapter": "adapters",
    "EmbeddingAdapter": "embedding_adapter",
    "Noised": "objectives",
    "Objective": "objectives",
    "PromptAdapter": "text_adapters",
    "TextAdapter": "text_adapters",
    "TextToImagePipeline": "pipelines",
    "TrainingConfig": "training.config",
    "UNET_SIZES": "unet",
    "UnconditionalAdapter": "adapters",
    "UnconditionalPipeline": "pipelines",
    "build_unet": "unet",
    "train": "training.loop",
}

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from .adapters import ClassLabelAdapter, Conditioning, ConditioningAdapter, UnconditionalAdapter
    from .composite_adapter import CompositeAdapter
    from .embedding_adapter import EmbeddingAdapter
    from .objectives import Noised, Objective
    from .pipelines import ClassConditionalPipeline, ConditionalPipeline, TextToImagePipeline, UnconditionalPipeline
    from .text_adapters import PromptAdapter, TextAdapter
    from .training.config import TrainingConfig
    from .training.loop import train
    from .unet import UNET_SIZES, build_unet

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
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
