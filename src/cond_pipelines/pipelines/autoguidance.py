"""Guidance away from what a weaker network of the same kind predicts: the only guidance that p(x) has.

This file is self-contained on purpose: it travels with a checkpoint.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .guidance import Branch, Guidance, Step, guidance_of_scale

if TYPE_CHECKING:
    from cond_pipelines.adapters.base import Conditioning

    Scale = float | list[float] | dict[str, float]


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507), on top of another guidance or of none.

    diffusers' guider of this name is something else: it leaves out layers of the one network.

    Args:
        weaker: a network of the same kind, under the same condition: smaller, or trained for a shorter time.
        scale: one, or (B, 1, 1, 1). 1 is the other guidance alone, 0 the weaker network's prediction.
        other: the guidance of the pipeline's network.

    Example:
        >>> pipe("cat", guidance=AutoGuidance(earlier_unet, 1.5)).images[0]
    """

    weaker: nn.Module
    scale: float | Tensor
    other: Guidance = Guidance()

    def branches(self, cond: "Conditioning", null: "Conditioning") -> list[Branch]:
        return [(self.weaker, cond), *self.other.branches(cond, null)]

    def combine(self, predictions: list[Tensor], step: Step) -> Tensor:
        weak, *others = predictions
        main = others[-1]
        scale = self.scale.to(main) if isinstance(self.scale, Tensor) else self.scale
        guided = weak + scale * (main - weak)  # Eq. 3
        return guided if len(others) == 1 else guided + (self.other.combine(others, step) - main)


def guidance_by_scale(
    scale: "Scale", cond: "Conditioning", setting: str | None, has_null: bool, guide: nn.Module | None
) -> Guidance:
    """The guidance that `guidance_scale` means.

    Args:
        scale: of the guide, where there is one, else of classifier-free guidance. By name: "auto" of the guide, and the
            setting's name, such as "class", of classifier-free guidance; or the names of several conditions.
        setting: of the adapter. has_null: whether the condition is another than none. guide: the weaker network.

    Raises:
        ValueError: a name that means nothing here, or another number of scales than of images.
    """
    if guide is not None and not isinstance(scale, dict):
        return Guidance() if scale == 1 else AutoGuidance(guide, _by_image(scale, cond))
    auto, rest = 1.0, scale
    if isinstance(scale, dict):
        auto, rest = scale.get("auto", 1.0), {name: value for name, value in scale.items() if name != "auto"}
        if "auto" in scale and guide is None:
            raise ValueError(f"guidance_scale {scale}: the model has no guide, so 'auto' means nothing: pass guide=")
        if guide is not None and (not rest or (getattr(cond, "parts", None) is None and set(rest) == {setting})):
            rest = rest.get(str(setting), 1.0)
    other = Guidance() if rest == 1 or not has_null else guidance_of_scale(rest, cond)
    return other if guide is None or auto == 1 else AutoGuidance(guide, auto, other)


def scales_by_name(
    guide_scale: float | None, guidance_scale: float | None, setting: str
) -> float | dict[str, float] | None:
    """The `guidance_scale` of a call with these two scales, of the guide and of classifier-free guidance."""
    if guide_scale is None:
        return guidance_scale
    return {"auto": guide_scale} | ({} if guidance_scale is None else {setting: guidance_scale})


def _by_image(scale: float | list[float], cond: "Conditioning") -> float | Tensor:
    if not isinstance(scale, list):
        return scale
    if len(scale) != len(cond):
        raise ValueError(f"guidance_scale has {len(scale)} entries for {len(cond)} images: pass one, or one per image")
    return torch.tensor(scale, device=cond.device)[:, None, None, None]  # (B, 1, 1, 1)
