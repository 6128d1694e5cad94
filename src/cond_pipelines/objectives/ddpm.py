"""Discrete-time diffusion, with the predictions and the weighting of diffusers' DDPM family."""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .base import Arguments, Noised, Objective, _column


class DDPM(Objective):
    """Discrete-time diffusion (Ho et al. 2020, arXiv 2006.11239), uniform times.

    Args:
        alphas_cumprod: (T,) the scheduler's.
        prediction_type: "epsilon", "v_prediction" or "sample".
        snr_gamma: min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), usually 5; None: no weighting.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str = "epsilon", snr_gamma: float | None = None):
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {prediction_type!r} is not one of epsilon, v_prediction, sample")
        if snr_gamma is not None and not snr_gamma > 0:  # written so that nan fails too
            raise ValueError(f"snr_gamma {snr_gamma} must be greater than 0")
        self.alphas_cumprod = alphas_cumprod.float()
        self.prediction_type = prediction_type
        self.snr_gamma = snr_gamma

    @classmethod
    def scheduler_arguments(cls, scheduler: SchedulerMixin) -> Arguments | None:
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if not hasattr(scheduler, "alphas_cumprod") or prediction_type == "flow_prediction":
            return None
        return {"alphas_cumprod": scheduler.alphas_cumprod, "prediction_type": prediction_type}

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        num_timesteps = len(self.alphas_cumprod)
        t = (u * num_timesteps).long().clamp(max=num_timesteps - 1)  # (B,)
        self.alphas_cumprod = self.alphas_cumprod.to(x_0.device)  # once: a copy makes the CPU wait for a GPU
        alpha_bar = self.alphas_cumprod[t]  # (B,)
        return self.noised_at(x_0, noise, t, alpha_bar, self._weight(alpha_bar))

    def noised_at(self, x_0: Tensor, noise: Tensor, t: Tensor, alpha_bar: Tensor, weight: Tensor) -> Noised:
        """Noise `x_0` at timesteps `t`, of which `alpha_bar` is the signal's power: each (B,)."""
        signal, sigma = _column(alpha_bar.sqrt()), _column((1 - alpha_bar).sqrt())
        x_t = signal * x_0 + sigma * noise  # Eq. 4
        target = {
            "epsilon": noise,
            "sample": x_0,
            "v_prediction": signal * noise - sigma * x_0,  # Salimans and Ho 2022, arXiv 2202.00512, section 4
        }[self.prediction_type]
        return Noised(x_t, t, target, weight)

    def _weight(self, alpha_bar: Tensor) -> Tensor:
        if self.snr_gamma is None:
            return torch.ones_like(alpha_bar)
        snr = alpha_bar / (1 - alpha_bar)
        # Section 3.4: min(snr, gamma) is the weight of |x_0 - x_0_hat|^2, and
        # |eps - eps_hat|^2 = snr |x_0 - x_0_hat|^2, |v - v_hat|^2 = (snr + 1) |x_0 - x_0_hat|^2
        return {
            "epsilon": (self.snr_gamma / snr).clamp(max=1),  # written so that snr = 0 gives 1
            "v_prediction": snr.clamp(max=self.snr_gamma) / (snr + 1),
            "sample": snr.clamp(max=self.snr_gamma),
        }[self.prediction_type]
