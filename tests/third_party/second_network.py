"""A guidance of somebody's own in one file, with a second network: `pipe(..., guidance=AutoGuidance(weaker, 1.5))`."""

from torch import Tensor, nn

from cond_pipelines.adapters import Conditioning
from cond_pipelines.pipelines.guidance import Branch, Guidance, Step


class AutoGuidance(Guidance):
    """Away from what a weaker network predicts (Karras et al. 2024, arXiv 2406.02507).

    Args:
        weaker: smaller, or trained for a shorter time.
        scale: 1 is no guidance.
    """

    def __init__(self, weaker: nn.Module, scale: float):
        self.weaker, self.scale = weaker, scale

    def branches(self, cond: Conditioning, null: Conditioning) -> list[Branch]:
        return [(self.weaker, cond), (None, cond)]

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        weak, main = predictions  # (B, C, h, w) each
        return weak + self.scale * (main - weak)  # Eq. 3
