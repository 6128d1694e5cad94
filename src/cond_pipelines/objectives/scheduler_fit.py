"""Whether a scheduler samples for an objective: computed, so that no list of names is needed.

If the data were one image x_0, the exact prediction at any x_t is known. A scheduler that is given it must keep the
network's input at a(t) x_0 + b(t) noise, the objective's marginal at the timestep that it names, and arrive at x_0.
"""

import copy
import inspect
import json
import math
from typing import TYPE_CHECKING

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

if TYPE_CHECKING:
    from .base import Objective

_NUM_STEPS = 24
_X_0 = 0.5  # the value of every pixel of the image
# Measured with 24 steps on every scheduler of diffusers 0.42.1 (benchmarks/results/schedulers.md): those that draw what
# the model learned stay below a third of each, those that draw noise are above twice.
_LARGEST_DRIFT = 0.5
_LARGEST_ERROR = 0.25
_known: dict[str, str | None] = {}


def misfit(objective: "Objective", scheduler: SchedulerMixin) -> str | None:
    """Why a scheduler does not sample for an objective, in a few words; None where it does.

    The scheduler is left as it is. What was computed once is known for the rest of the process.
    """
    if objective.marginal(0.5) is None:
        return None
    configs = [dict(scheduler.config), objective.config]
    key = type(scheduler).__name__ + json.dumps(configs, sort_keys=True, default=str)
    if key not in _known:
        with torch.random.fork_rng(devices=[]):  # some schedulers draw from the global generator
            torch.manual_seed(0)
            _known[key] = _misfit(objective, copy.deepcopy(scheduler))
    return _known[key]


def _misfit(objective: "Objective", scheduler: SchedulerMixin) -> str | None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 64, 64, generator=generator)
    noise = (noise - noise.mean()) / noise.std()
    try:
        drift, at, end = _follow(objective, scheduler, noise, generator)
    except Exception as error:  # of any kind: it is another's code, given another's numbers
        return f"its steps fail: {' '.join(str(error).split())[:100] or type(error).__name__}"
    if not drift <= _LARGEST_DRIFT:  # written so that nan fails too
        return f"its noise at timestep {at:g} is not that of the training"
    if not (end - _X_0).abs().mean() <= _LARGEST_ERROR:
        return "with exact predictions it does not arrive at the image"
    return None


def _follow(
    objective: "Objective", scheduler: SchedulerMixin, noise: Tensor, generator: torch.Generator
) -> tuple[float, float, Tensor]:
    """The largest distance to the marginals on the way, its timestep, and the end of the way."""
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):
        scheduler = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")  # none is exact
    scheduler.set_timesteps(_NUM_STEPS)
    x, x_0 = noise * getattr(scheduler, "init_noise_sigma", 1.0), torch.tensor(_X_0)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    drift, at = 0.0, 0.0
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        distance = _distance(x_t, objective.marginal(float(t)))
        if not distance <= drift:
            drift, at = distance, float(t)
        prediction = objective.exact_prediction(x_t, x_0, float(t))
        x = scheduler.step(prediction, t, x, **options, return_dict=False)[0]
    return drift, at, x


def _distance(x_t: Tensor, marginal: tuple[float, float] | None) -> float:
    """How far mean and spread of x_t are from a x_0 and b, in units of what matters to the network there."""
    signal, sigma = marginal or (0.0, 0.0)
    mean, std = x_t.mean().item() - signal * _X_0, x_t.std().item()
    in_mean = abs(mean) / max(signal * _X_0, 0.3 * sigma, 0.05)
    in_std = abs(math.log(max(std, 1e-9) / sigma)) if sigma > 0.05 else abs(std - sigma) / 0.05
    return max(in_mean, in_std) if math.isfinite(mean + std) else math.inf
