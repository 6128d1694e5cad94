"""Training objectives: x_0 to a loss, each built from the scheduler that the pipeline saves."""

from .base import OBJECTIVES, Draws, Noised, Objective
from .ddpm import DDPM
from .distillation import Distillation
from .edm import EDM
from .flow_matching import FlowMatching

# The table: the first row that fits a scheduler is its objective. A new objective is one file and one row here, or a
# row that its own package adds: OBJECTIVES["consistency"] = Consistency.
OBJECTIVES |= {"flow_matching": FlowMatching, "edm": EDM, "ddpm": DDPM, "distillation": Distillation}

__all__ = ["DDPM", "EDM", "OBJECTIVES", "Distillation", "Draws", "FlowMatching", "Noised", "Objective"]
