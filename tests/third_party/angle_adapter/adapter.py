import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from cond_pipelines import Conditioning, ConditioningAdapter


class AngleAdapter(ConditioningAdapter):
    """p(x | angle): a direction in degrees, or None."""

    conditioning = "angle"

    @register_to_config
    def __init__(self, num_waves: int = 2, token_dim: int | None = None, pooled_dim: int | None = None):
        super().__init__()
        self.proj = nn.Linear(2 * num_waves, pooled_dim, bias=False)
        nn.init.zeros_(self.proj.weight)  # a converted model starts as its parent

    def preprocess(self, raw: list[float | None], processor=None) -> dict[str, torch.Tensor]:
        known = torch.tensor([angle is not None for angle in raw])  # (B,)
        angle = torch.tensor([math.radians(angle or 0.0) for angle in raw])  # (B,)
        return {"angle": angle, "known": known}

    def forward(self, features: dict[str, torch.Tensor]) -> Conditioning:
        wave = torch.arange(1, self.config.num_waves + 1, device=features["angle"].device)
        phase = features["angle"][:, None] * wave  # (B, num_waves)
        waves = torch.cat([phase.sin(), phase.cos()], dim=1)  # (B, 2 * num_waves)
        return self.to_conditioning(pooled=self.proj(waves) * features["known"][:, None])  # (B, pooled_dim)
