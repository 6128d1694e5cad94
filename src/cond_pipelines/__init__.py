"""One UNet, three settings: p(x), p(x|y) and p(x|text) as pipelines for diffusers.

Names are imported on first use, so that `import cond_pipelines` costs nothing.
"""

import importlib
from typing import Any

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

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
