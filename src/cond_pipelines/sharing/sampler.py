"""With what images are drawn, in words: by the defaults of a model, and in an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class SamplerFacts:
    """What decides how an image is drawn.

    Args:
        guidance_scale: of a model with a guide that guide's, if no guide_scale is given; None: p(x) has no guidance.
        guide_scale: of autoguidance; guidance_scale is then of classifier-free guidance.
        guider: the class of one of diffusers' guiders, in place of both scales.
        scheduler: its class; None: a report of an earlier version does not say.

    Example:
        >>> print(SamplerFacts(30, 2.5, scheduler="DDIMScheduler"))
        30 steps of DDIMScheduler and a guidance scale of 2.5
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guide_scale: float | None = None
    guider: str | None = None
    scheduler: str | None = None

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> "SamplerFacts":
        """What a report says of it."""
        return cls(**{each.name: report.get(each.name) for each in fields(cls)}).in_effect()

    def in_effect(self) -> "SamplerFacts":
        """Without the numbers that had no effect, and a guide's scale under one name."""
        if self.guider is not None:
            return replace(self, guidance_scale=None, guide_scale=None)
        if self.guide_scale is not None and self.guidance_scale in (None, 1):
            return replace(self, guidance_scale=self.guide_scale, guide_scale=None)
        return self

    def differs_from(self, other: "SamplerFacts") -> bool:
        """Whether the images are others, as far as is known."""
        return replace(self, scheduler=self.scheduler or other.scheduler) != other

    def __str__(self) -> str:
        plural = "" if self.num_inference_steps == 1 else "s"
        words = [f"{self.num_inference_steps} step{plural}{f' of {self.scheduler}' if self.scheduler else ''}"]
        words += [f"an autoguidance scale of {self.guide_scale}"] if self.guide_scale is not None else []
        words += [f"a guidance scale of {self.guidance_scale}"] if self.guidance_scale is not None else []
        words += [f"guidance by {self.guider}"] if self.guider is not None else []
        return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
