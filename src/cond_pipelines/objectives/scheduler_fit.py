"""Whether a scheduler samples for an objective: computed, so that no list of names is needed.

If the data were one image x_0, the exact prediction at any x_t is known. A scheduler that is given it must keep the
network's input at a(t) x_0 + b(t) noise, the objective's marginal at the timestep that it names, and arrive at x_0. For
normal data the exact prediction is known too: a scheduler that is unstable on it draws noise.
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
_DATA_STD = 0.5  # of the normal data
_LARGEST_SPREAD = 4.0  # of the samples over that of the data: 3.5 where images are right still, 32 where they are noise
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
        _, _, normal = _follow(objective, scheduler, noise, generator, data_std=_DATA_STD)
    except Exception as error:  # of any kind: it is another's code, given another's numbers
        return f"its steps fail: {' '.join(str(error).split())[:100] or type(error).__name__}"
    if not drift <= _LARGEST_DRIFT:  # written so that nan fails too
        return f"its noise at timestep {at:g} is not that of the training"
    if not (end - _X_0).abs().mean() <= _LARGEST_ERROR:
        return "with exact predictions it does not arrive at the image"
    if not normal.std() <= _LARGEST_SPREAD * _DATA_STD:
        return "it is unstable: its options do not go together"
    return None


def _follow(
    objective: "Objective",
    scheduler: SchedulerMixin,
    noise: Tensor,
    generator: torch.Generator,
    data_std: float = 0.0,
) -> tuple[float, float, Tensor]:
    """The largest distance to the marginals on the way, its timestep, and the end of the way.

    Args:
        data_std: 0: the data are one image; else they are normal with mean 0.
    """
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):
        scheduler = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")  # none is exact
    scheduler.set_timesteps(_NUM_STEPS)
    x, x_0 = noise * getattr(scheduler, "init_noise_sigma", 1.0), torch.tensor(_X_0)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    drift, at = 0.0, 0.0
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        signal, sigma = objective.marginal(float(t)) or (0.0, 0.0)
        distance = 0.0 if data_std else _distance(x_t, signal, sigma)
        if not distance <= drift:
            drift, at = distance, float(t)
        if data_std:  # E[x_0 | x_t]
            x_0 = x_t * (signal * data_std**2 / (signal**2 * data_std**2 + sigma**2))
        prediction = objective.exact_prediction(x_t, x_0, float(t))
        x = scheduler.step(prediction, t, x, **options, return_dict=False)[0]
    return drift, at, x


def _distance(x_t: Tensor, signal: float, sigma: float) -> float:
    """How far mean and spread of x_t are from a x_0 and b, in units of what matters to the network there."""
    mean, std = x_t.mean().item() - signal * _X_0, x_t.std().item()
    in_mean = abs(mean) / max(signal * _X_0, 0.3 * sigma, 0.05)
    in_std = abs(math.log(max(std, 1e-9) / sigma)) if sigma > 0.05 else abs(std - sigma) / 0.05
    return max(in_mean, in_std) if math.isfinite(mean + std) else math.inf
