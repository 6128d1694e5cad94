"""The scheduler of a pipeline: by a short name, with the options that fit the model, and its steps.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import inspect
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .arguments import shown
from .remote_code import _INSTALLED, PortablePipeline

if TYPE_CHECKING:
    from typing import Self

    from .sampling import Steps

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# fmt: off
# By objective and short name: a class of diffusers and the options that make it sample for that objective.
SCHEDULERS: dict[str, dict[str, tuple[str, dict[str, object]]]] = {
    "flow_matching": {
        "euler": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": False}),
        "heun": ("FlowMatchHeunDiscreteScheduler", {}),
        "dpm++": ("DPMSolverMultistepScheduler", _FLOW),
        "unipc": ("UniPCMultistepScheduler", _FLOW),
        "lcm": ("FlowMatchLCMScheduler", {}),
    },
    "ddpm": {
        "euler": ("EulerDiscreteScheduler", {}),
        "heun": ("HeunDiscreteScheduler", {}),
        "dpm++": ("DPMSolverMultistepScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {}),
        "lcm": ("LCMScheduler", {}),
    },
    "edm": {
        "euler": ("EDMEulerScheduler", {}),
        "dpm++": ("EDMDPMSolverMultistepScheduler", {}),
    },
}
# Of a distilled model "lcm" jumps to the image and back to less noise; the others follow its flow.
SCHEDULERS["distillation"] = SCHEDULERS["flow_matching"] | {
    "lcm": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
}
SCHEDULERS["ddpm_distillation"] = SCHEDULERS["ddpm"]
# Where the noise levels lie, and the option of diffusers' schedulers for it.
SPACINGS: dict[str, dict[str, object]] = {
    "karras": {"use_karras_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "sgm_uniform": {"timestep_spacing": "trailing"},
}
# fmt: on
# Options that a scheduler hands on to the next one. diffusers' from_config leaves out those that have their default
# value, though the next class may have another default, and then samples for another model.
_KEPT = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "sigma_data", "sigma_min", "sigma_max", "sigma_schedule", "clip_sample", "thresholding"),
)


class PipelineWithScheduler(PortablePipeline):
    """A pipeline whose scheduler can be swapped, and is compared with what the network has learned."""

    scheduler: SchedulerMixin

    def use_scheduler(self, name: str, spacing: str | None = None) -> "Self":
        """Sample with another scheduler, with the options that fit this model; returns the pipeline.

        Args:
            name: "euler", "heun", "dpm++", "unipc" or "lcm"; of an EDM model "euler" or "dpm++".
            spacing: "karras", "beta" or "sgm_uniform" noise levels; None: the scheduler's own.

        Raises:
            ValueError: the name or the spacing does not fit the model; the message names those that do.

        Example:
            >>> pipe.use_scheduler("dpm++", spacing="karras")("a red circle", num_inference_steps=12)
        """
        scheduler = named_scheduler(name, spacing, self.config.get("objective"), self.scheduler)
        self._check_scheduler(scheduler)
        self.register_modules(scheduler=scheduler)
        return self

    def set_timesteps(self, num_inference_steps: int, sigmas: "Steps" = None, timesteps: "Steps" = None) -> Tensor:
        """Set the number of steps of the scheduler, or the steps, which its noise depends on; returns its timesteps.

        Raises:
            ValueError: in these steps the scheduler does not sample for the objective, see `objectives.scheduler_fit`.
        """
        scheduler, device = self.scheduler, self._execution_device
        given = {k: list(v) for k, v in {"sigmas": sigmas, "timesteps": timesteps}.items() if v is not None}
        for name in given.keys() - inspect.signature(scheduler.set_timesteps).parameters.keys():
            raise ValueError(f"{type(scheduler).__name__} does not take {name}=: pass num_inference_steps")
        is_flow = is_flow_model(self.config.get("objective"), scheduler)
        for name, values in given.items():
            _check_steps(name, values, is_flow, scheduler.config.get("num_train_timesteps", 1000))
        try:
            result = set_timesteps(scheduler, num_inference_steps, device, is_flow, given)
        except Exception as error:  # of any kind: it is another's code
            self._check_scheduler(scheduler)  # one for other data says so in a line
            why = " ".join(str(error).split())[:200]
            raise ValueError(f"{type(scheduler).__name__} cannot make {num_inference_steps} steps: {why}") from error
        self._check_scheduler(scheduler, "own" if given else "set")
        return result

    def _check_scheduler(self, scheduler: SchedulerMixin, steps: str = "usual") -> None:
        if self.config.get("objective") and _INSTALLED:  # with diffusers alone a swapped scheduler is not checked
            self._installed("objectives.base").check_scheduler(self.config.objective, scheduler, steps)


def objective_name(objective: Mapping[str, object] | None, scheduler: SchedulerMixin) -> str:
    """The name of the saved objective, else of the family of the scheduler."""
    if objective is not None:
        return str(objective["name"])
    if type(scheduler).__name__.startswith("EDM"):
        return "edm"
    is_flow = type(scheduler).__name__.startswith("FlowM")
    return "flow_matching" if is_flow or scheduler.config.get("prediction_type") == "flow_prediction" else "ddpm"


def is_flow_model(objective: Mapping[str, object] | None, scheduler: SchedulerMixin) -> bool:
    """Whether a model is one of flow matching, distilled or not."""
    return objective_name(objective, scheduler) in ("flow_matching", "distillation")


def named_scheduler(
    name: str, spacing: str | None, objective: Mapping[str, object] | None, current: SchedulerMixin
) -> SchedulerMixin:
    """The scheduler of a short name with the options that fit; `current` gives what it must share.

    Raises:
        ValueError: no such name or spacing for this objective.
    """
    of_objective = SCHEDULERS.get(objective_name(objective, current), {})
    if name not in of_objective:
        raise ValueError(f"scheduler {name!r} is not one of {', '.join(of_objective) or 'none'} for this model")
    class_name, options = of_objective[name]
    cls = getattr(diffusers, class_name)
    accepted = inspect.signature(cls.__init__).parameters
    if spacing is not None and spacing not in SPACINGS:
        raise ValueError(f"spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
    spacing_options = {} if spacing is None else SPACINGS[spacing]
    if not set(spacing_options) <= set(accepted) or (spacing_options and options is _FLOW):
        raise ValueError(f"spacing {spacing!r} does not fit {name!r} on this model: leave it out")
    config = current.config
    # What the network has learned counts more than a scheduler that somebody put in place, and that may not fit.
    learned = {**_mapping(objective, "noise_schedule"), "prediction_type": (objective or {}).get("prediction_type")}
    known = {k: config.get(k) if learned.get(k) is None else learned[k] for k in _KEPT}
    kept = {k: v for k, v in known.items() if v is not None and k in accepted}
    shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
    if shift is not None:
        kept |= {k: shift for k in ("shift", "flow_shift") if k in accepted}
    every_spacing = {k: v for other in SPACINGS.values() for k, v in other.items() if k in accepted}
    reset = {k: inspect.signature(cls.__init__).parameters[k].default for k in every_spacing}
    return cls.from_config(config, **reset | kept | dict(options) | dict(spacing_options))


def _mapping(objective: Mapping[str, object] | None, name: str) -> Mapping[str, object]:
    value = (objective or {}).get(name)
    return value if isinstance(value, Mapping) else {}


def set_timesteps(
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    device: torch.device,
    is_flow: bool,
    given: Mapping[str, list[float]],
) -> Tensor:
    """Set the steps of the scheduler, which its noise depends on; returns its timesteps.

    Args:
        is_flow: for a flow-matching model.
        given: {"sigmas": ...} or {"timesteps": ...}, the steps themselves, in place of their number; {} for neither.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    # Evenly spaced from 1 down to 1 / n, as diffusers' flow pipelines do: the schedulers' own default spends a whole
    # step on sigma < 0.001. A property of flow matching, so for every scheduler that can be given it.
    even = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    if given:
        scheduler.set_timesteps(**given, device=device)
    elif is_flow and {"sigmas", "num_inference_steps"} <= set(accepted) and not _has_spacing(scheduler):
        try:
            scheduler.set_timesteps(sigmas=even, device=device)
        except TypeError:  # one that takes a list, and wants the last 0 to be given too
            scheduler.set_timesteps(sigmas=[*even.tolist(), 0.0], device=device)
    elif is_flow and isinstance(getattr(scheduler, "sigma_min", None), float):
        scheduler.sigma_min = float(even[-1])  # FlowMatchHeun makes its steps from these two numbers
        scheduler.set_timesteps(num_inference_steps, device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    result: Tensor = scheduler.timesteps
    if not result.isfinite().all():  # shift_terminal with one step, of diffusers 0.42: 0 / 0
        raise ValueError("its options give timesteps that are no numbers")
    return result


def _check_steps(name: str, values: list[float], is_flow: bool, num_train_timesteps: int) -> None:
    """Raise ValueError for steps that lead away from the image, or that the network has never seen."""
    if any(after >= before for before, after in itertools.pairwise(values)):
        raise ValueError(f"{name} {shown(values)} must go down: from noise to the image")
    high = num_train_timesteps if name == "timesteps" else 1
    if is_flow and not 0 <= values[-1] <= values[0] <= high:
        raise ValueError(f"{name} {shown(values)} must lie between 0 and {high}, as in the training of this model")


def _has_spacing(scheduler: SchedulerMixin) -> bool:
    """Whether its options say where its noise levels lie; UniPC would swap the two ends of levels that are given."""
    spacings = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    return any(scheduler.config.get(name) for name in spacings)


def end_of_step(scheduler: SchedulerMixin, t: Tensor) -> Tensor | None:
    """The `r` of `denoise`: 0 where a distilled network is to predict jumps to the image, None for its flow.

    It is to where the scheduler goes to the image at each step, and then back to less noise.
    """
    is_lcm = type(scheduler).__name__ in ("FlowMatchLCMScheduler", "LCMScheduler")
    return torch.zeros_like(t) if is_lcm or scheduler.config.get("stochastic_sampling") else None


def predicts_variance(scheduler: SchedulerMixin) -> bool:
    """Whether its step reads a variance behind the prediction (Nichol and Dhariwal 2021, arXiv 2102.09672, Eq. 15)."""
    # An attribute of those that do. Others keep the option in their configuration, unread, where they were made from
    # such a scheduler's; and the DPM-Solver family cuts to three channels, whatever the number.
    return vars(scheduler).get("variance_type") in ("learned", "learned_range")
