"""p(x): no condition.

This file travels with a checkpoint. It needs base.py only.
"""

from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from cond_pipelines.adapters.base import Conditioning, ConditioningAdapter, Features, RawConditions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class UnconditionalAdapter(ConditioningAdapter):
    """p(x): no image has a condition.

    Example:
        >>> adapter = UnconditionalAdapter.for_unet(unet)
        >>> adapter(adapter.preprocess([None, None])).pooled.shape
        torch.Size([2, 64])
    """

    conditioning = "none"

    @register_to_config
    def __init__(self, token_dim: int | None = None, pooled_dim: int | None = None):
        super().__init__()
        # A parameter, though nothing is learned: offloading asks a model's first parameter for its device.
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

    def preprocess(self, raw: RawConditions, processor: "PreTrainedTokenizerBase | None" = None) -> Features:
        return {"batch": torch.zeros(len(raw))}

    def forward(self, features: Features) -> Conditioning:
        n = features["batch"].shape[0]
        pooled = None if self.config.pooled_dim is None else self.nothing.new_zeros(n, self.config.pooled_dim)
        tokens = None if self.config.token_dim is None else self.nothing.new_zeros(n, 1, self.config.token_dim)
        return self.to_conditioning(tokens=tokens, pooled=pooled)  # (B, 1, token_dim), (B, pooled_dim)

    def null_like(self, cond: Conditioning) -> Conditioning:
        return cond
