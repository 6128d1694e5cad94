"""The settings of a training run, in groups: each field declares its help, its range, what it needs to have an effect,
and what it is when a run is resumed.

Where diffusers' scripts have a flag with the same meaning, it has the same name here. None means "chosen for you": see
`training.defaults`; what was chosen is printed and saved.
"""

from ...data.config import DataArguments
from .model import ModelArguments
from .optimization import OPTIMIZER_NAMES, OptimizationArguments
from .output import OutputArguments

__all__ = ["OPTIMIZER_NAMES", "DataArguments", "ModelArguments", "OptimizationArguments", "OutputArguments"]
