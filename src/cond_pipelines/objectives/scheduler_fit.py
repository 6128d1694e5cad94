"""Whether a scheduler samples for an objective: computed, so that no list of names is needed.

Where the data are a few known images, the exact prediction at any x_t is known. A scheduler that is given it

1. keeps the network's input at a(t) x_0 + b(t) noise, the objective's marginal at the timestep that it names, and
   arrives at x_0, where the data are one image. This is a matter of what it assumes about the network, so it is looked
   at in 24 steps, and with the least noise that it may add;
2. arrives at one of the images, where the data are eight, and at their spread, where they are normal. This shows a grid
   of noise levels that leaves noise, and a method that is unstable, so it is looked at in the very steps of a call.
"""

import copy
import hashlib
import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

if TYPE_CHECKING:
    from .base import Objective

# x_t (N, D), and its signal and noise, to E[x_0 | x_t] (N, D)
PosteriorMean = Callable[[Tensor, float, float], Tensor]
_USUAL_STEPS = 24
_LARGEST_DRIFT = 0.5  # in the units of `_distance`
_LARGEST_ERROR = 0.25
_NEAR = 0.1  # root mean square distance to an image, of values in [-1, 1]: beyond, noise is seen
# The share of samples that must arrive at an image. In two steps the best of methods reach a half, so fewer than four
# are not judged. Both limits are choices, made on the schedulers and options of benchmarks/schedulers.py: with them no
# row there draws noise. A method that passes the first and fails the second draws images that it knows, and may fail on
# those of a trained network.
_ENOUGH = 0.95
_FEWEST_STEPS = 4
_DATA_STD = 0.5  # of the normal data
_LARGEST_SPREAD = 4.0  # of the samples over that of the data
_known: dict[str, str | None] = {}


def misfit(objective: "Objective", scheduler: SchedulerMixin, steps: str = "usual") -> str | None:
    """Why a scheduler does not sample for an objective, in a few words; None where it does.

    The scheduler is left as it is. What was computed once is known for the rest of the process.

    Args:
        steps: "usual": 24 of the scheduler's own. "set": those that it is set to. "own": those that a user chose one by
            one, and may have reasons for; whether they leave noise is not looked at.
    """
    if objective.marginal(0.5) is None:
        return None
    described: list[object] = [type(scheduler).__name__, dict(scheduler.config), objective.config]
    why = _once(_assumes_another, objective, scheduler, described)
    if why is not None or steps == "own":
        return why
    if steps == "set":
        described += [torch.as_tensor(getattr(scheduler, name, ())).tolist() for name in ("timesteps", "sigmas")]
    else:
        scheduler = copy.deepcopy(scheduler)
        scheduler.set_timesteps(_USUAL_STEPS)
    return _once(_leaves_noise, objective, scheduler, described)


def _once(
    question: Callable[["Objective", SchedulerMixin], str | None],
    objective: "Objective",
    scheduler: SchedulerMixin,
    described: list[object],
) -> str | None:
    text = question.__name__ + json.dumps(described, sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _known:
        with torch.random.fork_rng(devices=[]):  # some schedulers draw from the global generator
            torch.manual_seed(0)
            try:
                _known[key] = question(objective, _on_cpu(scheduler))
            except Exception as error:  # of any kind: it is another's code, given another's numbers
                _known[key] = f"its steps fail: {' '.join(str(error).split())[:100] or type(error).__name__}"
    return _known[key]


def _on_cpu(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A copy whose tensors are on the CPU: one that is set to steps has them on the pipeline's device."""
    scheduler = copy.deepcopy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor):
            setattr(scheduler, name, value.cpu())
    return scheduler


def _assumes_another(objective: "Objective", scheduler: SchedulerMixin) -> str | None:
    """Whether it takes the network's input or prediction for something else."""
    if scheduler.config.get("variance_type") not in (None, "fixed_small"):  # a large one needs many steps
        scheduler = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
    scheduler.set_timesteps(_USUAL_STEPS)
    image = torch.full((1, 768), 0.5)
    drift, at, end = _follow(objective, scheduler, partial(_posterior_mean, images=image), mean=0.5)
    if not drift <= _LARGEST_DRIFT:  # written so that nan fails too
        return f"its noise at timestep {at:g} is not that of the training"
    if not (end - 0.5).abs().mean() <= _LARGEST_ERROR:
        return "with exact predictions it does not arrive at the image"
    return None


def _leaves_noise(objective: "Objective", scheduler: SchedulerMixin) -> str | None:
    """Whether samples end away from the images, in the steps that the scheduler is set to."""
    num_steps = len(scheduler.timesteps)
    if num_steps < _FEWEST_STEPS:
        return None
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):  # there is no exact variance
        scheduler = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
        scheduler.set_timesteps(num_steps)
    images = torch.randint(0, 2, (8, 768), generator=torch.Generator().manual_seed(1)) - 0.5  # (K, D)
    _, _, spread = _follow(objective, copy.deepcopy(scheduler), _normal_posterior_mean)
    _, _, end = _follow(objective, scheduler, partial(_posterior_mean, images=images))
    distance = torch.cdist(end.flatten(1), images).min(dim=1).values / images.shape[1] ** 0.5  # (N,)
    arrive, is_stable = (distance <= _NEAR).float().mean() >= _ENOUGH, spread.std() <= _LARGEST_SPREAD * _DATA_STD
    if not (arrive and is_stable):
        return f"in {num_steps} steps it leaves noise: its options do not go together, or need more steps"
    return None


def _follow(
    objective: "Objective", scheduler: SchedulerMixin, posterior_mean: PosteriorMean, mean: float | None = None
) -> tuple[float, float, Tensor]:
    """The largest distance to the marginals on the way, its timestep, and the end of the way, (N, 3, h, w).

    Args:
        posterior_mean: E[x_0 | x_t] of the data. mean: of the one image that they are; None: no distance.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 3, 16, 16, generator=generator)
    noise = (noise - noise.mean()) / noise.std()
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    drift, at = 0.0, 0.0
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        signal, sigma = objective.marginal(float(t)) or (0.0, 0.0)
        distance = 0.0 if mean is None else _distance(x_t, signal * mean, sigma)
        if not distance <= drift:
            drift, at = distance, float(t)
        x_0 = posterior_mean(x_t.flatten(1), signal, sigma).view_as(x_t)
        prediction = objective.exact_prediction(x_t, x_0, float(t))
        x = scheduler.step(prediction, t, x, **options, return_dict=False)[0]
    return drift, at, x


def _normal_posterior_mean(x_t: Tensor, signal: float, sigma: float) -> Tensor:
    """E[x_0 | x_t], (N, D), where x_0 is normal with mean 0 and _DATA_STD."""
    return x_t * (signal * _DATA_STD**2 / (signal**2 * _DATA_STD**2 + sigma**2))


def _posterior_mean(x_t: Tensor, signal: float, sigma: float, images: Tensor) -> Tensor:
    """E[x_0 | x_t], (N, D), where x_0 is each of the images (K, D) equally often and x_t = signal x_0 + sigma noise."""
    squared = torch.cdist(x_t.double(), signal * images.double()).square()  # (N, K)
    return (-squared / (2 * max(sigma, 1e-4) ** 2)).softmax(dim=1).to(images) @ images


def _distance(x_t: Tensor, signal: float, sigma: float) -> float:
    """How far mean and spread of x_t are from a x_0 and b, in units of what matters to the network there."""
    mean, std = x_t.mean().item() - signal, x_t.std().item()
    in_mean = abs(mean) / max(signal, 0.3 * sigma, 0.05)
    in_std = abs(math.log(max(std, 1e-9) / sigma)) if sigma > 0.05 else abs(std - sigma) / 0.05
    return max(in_mean, in_std) if math.isfinite(mean + std) else math.inf
