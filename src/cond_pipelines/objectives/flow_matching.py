"""Rectified flow."""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .base import Arguments, Noised, Objective, _column, _normal_quantile


class FlowMatching(Objective):
    """Rectified flow with logit-normal times (Esser et al. 2024, arXiv 2403.03206).

    Args:
        num_train_timesteps: the scheduler's; the UNet's timestep is `num_train_timesteps * sigma`.
        logit_mean, logit_std: of logit(sigma).
    """

    def __init__(self, num_train_timesteps: int = 1000, logit_mean: float = 0.0, logit_std: float = 1.0):
        if not logit_std > 0:  # written so that nan fails too
            raise ValueError(f"logit_std {logit_std} must be greater than 0")
        self.num_train_timesteps = num_train_timesteps
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    @classmethod
    def scheduler_arguments(cls, scheduler: SchedulerMixin) -> Arguments | None:
        is_flow = type(scheduler).__name__.startswith("FlowMatch")
        if not is_flow and scheduler.config.get("prediction_type") != "flow_prediction":
            return None
        return {"num_train_timesteps": scheduler.config.num_train_timesteps}

    def marginal(self, t: float) -> tuple[float, float]:
        sigma = t / self.num_train_timesteps
        if not 0 <= sigma <= 1:
            raise ValueError(f"timestep {t:g} is outside of 0 .. {self.num_train_timesteps}")
        return 1 - sigma, sigma  # Eq. 13

    def exact_prediction(self, x_t: Tensor, x_0: Tensor, t: float) -> Tensor:
        return (x_t - x_0) / max(t / self.num_train_timesteps, 1e-6)  # dx/dsigma = noise - x_0 = (x_t - x_0) / sigma

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        # Eq. 19: sigma = sigmoid(m + s * n), n ~ N(0, 1)
        sigma = torch.sigmoid(self.logit_mean + self.logit_std * _normal_quantile(u))  # (B,)
        return self.noised_at(x_0, noise, sigma, torch.ones_like(sigma))

    def noised_at(self, x_0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor) -> Noised:
        """Noise `x_0` at times `sigma` (B,) in [0, 1]."""
        # Eq. 13: x_t = (1 - sigma) x_0 + sigma noise, so dx/dsigma = noise - x_0
        x_t = (1 - _column(sigma)) * x_0 + _column(sigma) * noise
        return Noised(x_t, sigma * self.num_train_timesteps, noise - x_0, weight)
