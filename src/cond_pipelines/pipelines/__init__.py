"""The pipelines: one denoising loop, and a friendly call for each setting.

These files travel with a checkpoint: they need torch, diffusers, transformers and each other.
"""

from .conditional import ConditionalPipeline
from .settings import ClassConditionalPipeline, TextToImagePipeline, UnconditionalPipeline

__all__ = ["ClassConditionalPipeline", "ConditionalPipeline", "TextToImagePipeline", "UnconditionalPipeline"]
