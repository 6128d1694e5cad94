"""Discrete-time diffusion, with the predictions and the weighting of diffusers' DDPM family."""

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .base import Arguments, Noised, Objective, _column


class DDPM(Objective):
    """Discrete-time diffusion (Ho et al. 2020, arXiv 2006.11239), uniform times.

    Args:
        alphas_cumprod: (T,) the scheduler's; None: those of `noise_schedule`.
        prediction_type: "epsilon", "v_prediction" or "sample".
        snr_gamma: min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), usually 5; None: no weighting.
        noise_schedule: the scheduler's arguments that decide `alphas_cumprod`, saved with the model so that a scheduler
            with other ones is refused.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor | None = None,
        prediction_type: str = "epsilon",
        snr_gamma: float | None = None,
        noise_schedule: dict[str, object] | None = None,
    ):
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type {prediction_type!r} is not one of epsilon, v_prediction, sample")
        if snr_gamma is not None and not snr_gamma > 0:  # written so that nan fails too
            raise ValueError(f"snr_gamma {snr_gamma} must be greater than 0")
        if noise_schedule is not None:
            alphas_cumprod = DDPMScheduler(**noise_schedule).alphas_cumprod
        if alphas_cumprod is None:
            raise TypeError("DDPM needs alphas_cumprod or a noise_schedule")
        self.alphas_cumprod = alphas_cumprod.float()
        self.noise_schedule = noise_schedule
        self.prediction_type = prediction_type
        self.snr_gamma = snr_gamma

    @classmethod
    def scheduler_arguments(cls, scheduler: SchedulerMixin) -> Arguments | None:
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if not hasattr(scheduler, "alphas_cumprod") or prediction_type == "flow_prediction":
            return None
        arguments = {"alphas_cumprod": scheduler.alphas_cumprod, "prediction_type": prediction_type}
        return arguments | {"noise_schedule": _noise_schedule(scheduler)}

    def marginal(self, t: float) -> tuple[float, float]:
        if not 0 <= t <= len(self.alphas_cumprod):
            raise ValueError(f"timestep {t:g} is outside of 0 .. {len(self.alphas_cumprod)}")
        alpha_bar = self.alphas_cumprod.double().cpu().clamp(min=1e-12)
        sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()  # (T,) between two timesteps as diffusers' schedulers have it
        sigma = float(np.interp(t, np.arange(len(sigmas)), sigmas.numpy()))
        signal = (1 + sigma**2) ** -0.5
        return signal, signal * sigma

    def exact_prediction(self, x_t: Tensor, x_0: Tensor, t: float) -> Tensor:
        signal, sigma = self.marginal(t)
        noise = (x_t - signal * x_0) / sigma
        return {"epsilon": noise, "sample": x_0.expand_as(x_t), "v_prediction": signal * noise - sigma * x_0}[
            self.prediction_type
        ]

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


def _noise_schedule(scheduler: SchedulerMixin) -> Arguments | None:
    """A scheduler's arguments that decide its alphas_cumprod; None where they do not, as of alphas of one's own."""
    names = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    schedule = {name: scheduler.config[name] for name in names if scheduler.config.get(name) is not None}
    try:
        same = torch.allclose(DDPMScheduler(**schedule).alphas_cumprod, scheduler.alphas_cumprod.cpu(), atol=1e-6)
    except (NotImplementedError, TypeError, ValueError, RuntimeError):  # a schedule that DDPMScheduler does not have
        return None
    return schedule if same else None
