"""Conditioning adapters: a raw condition (nothing, a label, a caption, a vector) to the UNet's conditioning inputs.

These files travel with a checkpoint: they need torch, diffusers and each other.
"""

from .base import Conditioning, ConditioningAdapter, Features, zero_init
from .class_label import ClassLabelAdapter
from .composite import CompositeAdapter
from .denoiser import denoise, socket
from .embedding import EmbeddingAdapter
from .text import PromptAdapter, TextAdapter
from .unconditional import UnconditionalAdapter

__all__ = [
    "ClassLabelAdapter",
    "CompositeAdapter",
    "Conditioning",
    "ConditioningAdapter",
    "EmbeddingAdapter",
    "Features",
    "PromptAdapter",
    "TextAdapter",
    "UnconditionalAdapter",
    "denoise",
    "socket",
    "zero_init",
]
