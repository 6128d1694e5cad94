"""Training objectives: x_0 to a loss, each built from the scheduler that the pipeline saves."""

from .base import Noised, Objective
from .ddpm import DDPM
from .edm import EDM
from .flow_matching import FlowMatching

__all__ = ["DDPM", "EDM", "FlowMatching", "Noised", "Objective"]
