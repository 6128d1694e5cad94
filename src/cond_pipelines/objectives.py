"""Training objectives, built from the scheduler that the pipeline saves, so training and sampling cannot disagree."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """What one training step needs, all in float32.

    Args:
        x_t: (B, C, H, W) the UNet's input.
        t: (B,) the UNet's `timestep`.
        target: (B, C, H, W) what the UNet should answer.
        weight: (B,) of each example's mean squared error.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor

    def loss(self, prediction: Tensor) -> Tensor:
        """Weighted mean squared error of each example: (B,) float32."""
        return self.weight * (prediction.float() - self.target).square().flatten(1).mean(dim=1)


class Objective(ABC):
    """x_0 -> Noised. `Objective.from_scheduler(scheduler)` gives the one that belongs to a scheduler.

    Example:
        >>> objective = Objective.from_scheduler(FlowMatchEulerDiscreteScheduler())
        >>> noised = objective.sample(x_0)
        >>> loss = noised.loss(unet(noised.x_t, noised.t, **cond.unet_kwargs(unet)).sample).mean()
    """

    @staticmethod
    def from_scheduler(scheduler: Any, **kwargs: Any) -> "Objective":
        """The objective whose minimiser the scheduler expects.

        Args:
            scheduler: a diffusers scheduler of the flow-matching, EDM or DDPM family (alphas_cumprod).
            kwargs: of the objective found, such as `snr_gamma=5.0` for DDPM.

        Raises:
            ValueError: a scheduler of no known family, or an unknown prediction_type.
        """
        config, name = scheduler.config, type(scheduler).__name__
        if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
            return FlowMatching(config.num_train_timesteps, **kwargs)
        if name.startswith("EDM"):
            return EDM(config.sigma_data, config.prediction_type, config.sigma_min, config.sigma_max, **kwargs)
        if hasattr(scheduler, "alphas_cumprod"):
            return DDPM(scheduler.alphas_cumprod, config.prediction_type, **kwargs)
        raise ValueError(f"no objective for {name}: use a flow-matching, EDM or DDPM-family scheduler")

    def sample(
        self,
        x_0: Tensor,
        noise: Tensor | None = None,
        u: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Noised:
        """Noise a batch at random times.

        Args:
            x_0: (B, C, H, W) in [-1, 1], or scaled latents. Computed in float32 whatever its dtype: in bf16 a
                thousand noise levels collapse to 190.
            noise: (B, C, H, W) standard normal; drawn where None.
            u: (B,) uniform in (0, 1), the quantile of each example's time; drawn where None.
        """
        x_0 = x_0.float()
        if noise is None:
            noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
        if u is None:
            u = torch.rand(len(x_0), generator=generator, device=x_0.device)
        return self.noised(x_0, noise.float(), u.float())

    @abstractmethod
    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """Noise `x_0` at the times of quantile `u`."""

    @abstractmethod
    def at(self, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
        """Noise `x_0` to signal-to-noise ratios, weighted such that the loss is that of the noise.

        Args:
            log_snr: (B,) natural logarithm of signal power over noise power, for images of power 1.
        """


def _column(x: Tensor) -> Tensor:
    return x[:, None, None, None]  # (B,) -> (B, 1, 1, 1)


def _normal_quantile(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))


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
        self.alphas_cumprod = alphas_cumprod.float()
        self.prediction_type = prediction_type
        self.snr_gamma = snr_gamma

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        num_timesteps = len(self.alphas_cumprod)
        t = (u * num_timesteps).long().clamp(max=num_timesteps - 1)  # (B,)
        self.alphas_cumprod = self.alphas_cumprod.to(x_0.device)  # once: a copy makes the CPU wait for a GPU
        alpha_bar = self.alphas_cumprod[t]  # (B,)
        return self._at(x_0, noise, t, alpha_bar, self._weight(alpha_bar))

    def at(self, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
        alphas = self.alphas_cumprod.to(x_0.device)
        t = (alphas.logit()[None] - log_snr[:, None]).abs().argmin(dim=1)  # (B,): the nearest there is
        alpha_bar = alphas[t]
        weight = {  # |eps - eps_hat|^2 over that of the target
            "epsilon": torch.ones_like(alpha_bar),
            "sample": alpha_bar / (1 - alpha_bar),
            "v_prediction": alpha_bar,
        }[self.prediction_type]
        return self._at(x_0, noise, t, alpha_bar, weight)

    def _at(self, x_0: Tensor, noise: Tensor, t: Tensor, alpha_bar: Tensor, weight: Tensor) -> Noised:
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
        self.sigma_data = sigma_data
        self.sign = 1.0 if prediction_type == "epsilon" else -1.0
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.P_mean, self.P_std = P_mean, P_std

    def noised(self, x_0: Tensor, noise: Tensor, u: Tensor) -> Noised:
        sigma = torch.exp(self.P_mean + self.P_std * _normal_quantile(u)).clamp(self.sigma_min, self.sigma_max)  # (B,)
        return self._at(x_0, noise, sigma, torch.ones_like(sigma))

    def at(self, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
        sigma = torch.exp(-log_snr / 2).clamp(self.sigma_min, self.sigma_max)
        weight = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)  # noise = (x - D) / sigma: (c_out / sigma)^2
        return self._at(x_0, noise, sigma, weight)

    def _at(self, x_0: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor) -> Noised:
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = self.sign * sigma * self.sigma_data / total.sqrt()
        c_in = total.rsqrt()
        c_noise = sigma.log() / 4
        x = x_0 + _column(sigma) * noise
        target = (x_0 - _column(c_skip) * x) / _column(c_out)  # Eq. 8
        return Noised(_column(c_in) * x, c_noise, target, weight)
