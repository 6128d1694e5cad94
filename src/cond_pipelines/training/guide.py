"""Autoguidance: an early average of a run's own network, kept as the weaker one that guides the finished one."""

import copy

from torch import nn

from ..pipelines.conditional import ConditionalPipeline
from .ema import DEFAULT_LENGTH, WeightAverage, power_function
from .optimizers import trainable
from .sharding import fill

EARLY = 1 / 8  # of the run: then the average stops
GUIDANCE_SCALE = 1.5  # of a model with such a guide, where nothing is given


class EarlyAverage:
    """The moving average of the UNet as it was an eighth into the run.

    It takes the time of an average for that eighth, and the memory of one copy of the UNet.

    Args:
        unet: as prepared for training; its weights may be sharded.
    """

    def __init__(self, unet: nn.Module):
        self.names = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
        self.parameters = trainable([unet])
        self.average = WeightAverage(self.parameters, power_function(DEFAULT_LENGTH))

    def step(self, fraction_done: float) -> None:
        """After each optimizer step; `fraction_done` of the run before it."""
        if fraction_done < EARLY:
            self.average.step(self.parameters)

    def give_to(self, pipe: ConditionalPipeline) -> None:
        """Make the average the guide of a pipeline that holds the whole network; every process must do it."""
        guide = pipe.components.get("guide")
        if guide is None:
            guide = copy.deepcopy(pipe.unet).requires_grad_(False).eval()
            pipe.register_modules(guide=guide)
        parameters = dict(guide.named_parameters())
        fill([parameters[name] for name in self.names], self.average.values)
