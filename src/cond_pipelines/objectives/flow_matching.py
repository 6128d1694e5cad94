"""Rectified flow."""

import torch
from torch import Tensor

from .base import Noised, Objective, _column, _normal_quantile


class FlowMatching(Objective):
    """Rectified flow with logit-normal times (Esser et al. 2024, arXiv 2403.03206).

    Args:
        num_train_timesteps: the scheduler's; the UNet's timestep is `num_train_timesteps * sigma`.
        logit_mean, logit_std: of logit(sigma).
    """

    def __init__(self, num_train_timesteps: int = 1000, logit_mean: float = 0.0, logit_std: float = 1.0):
        self.num_train_timesteps = num_train_timesteps
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        # Eq. 19: sigma = sigmoid(m + s * n), n ~ N(0, 1)
        sigma = torch.sigmoid(self.logit_mean + self.logit_std * _normal_quantile(u))  # (B,)
        return self._at(x_0, noise, sigma, torch.ones_like(sigma))

    def at(self, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
        sigma = torch.sigmoid(-log_snr / 2)  # snr = ((1 - sigma) / sigma)^2
        return self._at(x_0, noise, sigma, (1 - sigma).square())  # noise = x_t + (1 - sigma) v

    def _at(self, x_0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor) -> Noised:
        # Eq. 13: x_t = (1 - sigma) x_0 + sigma noise, so dx/dsigma = noise - x_0
        x_t = (1 - _column(sigma)) * x_0 + _column(sigma) * noise
        return Noised(x_t, sigma * self.num_train_timesteps, noise - x_0, weight)
