"""The scheduler of a call: its timesteps.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor


def set_timesteps(scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device) -> Tensor:
    """Set the number of steps, which a scheduler's noise depends on; returns its timesteps."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        # Evenly spaced from 1 down to 1 / n, as diffusers' flow pipelines do: its own default spends a whole
        # step on sigma < 0.001.
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    timesteps: Tensor = scheduler.timesteps
    return timesteps
