"""Training objectives: x_0 to a loss, each built from the scheduler that the pipeline saves."""

from .base import OBJECTIVES, Draws, Noised, Objective
from .ddpm import DDPM
from .distillation import DDPMDistillation, Distillation
from .edm import EDM
from .flow_matching import FlowMatching

# The table: the first row that fits a scheduler is its objective. A new objective is one file and one row here, or a
# row that its own package adds: OBJECTIVES["consistency"] = Consistency.
OBJECTIVES |= {"flow_matching": FlowMatching, "edm": EDM, "ddpm": DDPM}
OBJECTIVES |= {"distillation": Distillation, "ddpm_distillation": DDPMDistillation}

__all__ = [
    "DDPM",
    "EDM",
    "OBJECTIVES",
    "DDPMDistillation",
    "Distillation",
    "Draws",
    "FlowMatching",
    "Noised",
    "Objective",
]
