"""Preconditioned diffusion."""

import math

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .base import Arguments, Noised, Objective, _column, _normal_quantile


class EDM(Objective):
    """Preconditioned diffusion (Karras et al. 2022, arXiv 2206.00364, table 1, right column).

    The network answers F with D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), and lambda(sigma) = 1 / c_out^2
    makes the loss on F unweighted.

    Args:
        sigma_data: the scheduler's: standard deviation of the data, in units of [-1, 1].
        prediction_type: "epsilon", or "v_prediction" (F with the other sign), as diffusers' EDM schedulers name them.
        sigma_min, sigma_max: the scheduler's; sigma is clamped to them.
        P_mean, P_std: of ln(sigma).
    """

    def __init__(
        self,
        sigma_data: float = 0.5,
        prediction_type: str = "epsilon",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        P_mean: float = -1.2,
        P_std: float = 1.2,
    ):
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {prediction_type!r} is not one of epsilon, v_prediction for EDM")
        if not P_std > 0:  # written so that nan fails too
            raise ValueError(f"P_std {P_std} must be greater than 0")
        self.sigma_data = sigma_data
        self.prediction_type = prediction_type
        self.sign = 1.0 if prediction_type == "epsilon" else -1.0
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.P_mean, self.P_std = P_mean, P_std

    @classmethod
    def scheduler_arguments(cls, scheduler: SchedulerMixin) -> Arguments | None:
        if not type(scheduler).__name__.startswith("EDM"):
            return None
        return {k: scheduler.config[k] for k in ("sigma_data", "prediction_type", "sigma_min", "sigma_max")}

    def marginal(self, t: float) -> tuple[float, float]:
        if abs(t) > 10:  # c_noise = ln(sigma) / 4: far outside of any noise level, and of what a float holds
            raise ValueError(f"timestep {t:g} is no ln(sigma) / 4")
        sigma = math.exp(4 * t)
        c_in = (sigma**2 + self.sigma_data**2) ** -0.5
        return c_in, c_in * sigma

    def exact_prediction(self, x_t: Tensor, x_0: Tensor, t: float) -> Tensor:
        sigma = math.exp(4 * t)
        total = sigma**2 + self.sigma_data**2
        x = x_t * total**0.5
        c_out = self.sign * sigma * self.sigma_data / total**0.5
        return (x_0 - self.sigma_data**2 / total * x) / c_out  # Eq. 8

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        sigma = torch.exp(self.P_mean + self.P_std * _normal_quantile(u)).clamp(self.sigma_min, self.sigma_max)  # (B,)
        return self.noised_at(x_0, noise, sigma, torch.ones_like(sigma))

    def noised_at(self, x_0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor) -> Noised:
        """Noise `x_0` to standard deviations `sigma` (B,)."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = self.sign * sigma * self.sigma_data / total.sqrt()
        c_in = total.rsqrt()
        c_noise = sigma.log() / 4
        x = x_0 + _column(sigma) * noise
        target = (x_0 - _column(c_skip) * x) / _column(c_out)  # Eq. 8
        return Noised(_column(c_in) * x, c_noise, target, weight)
