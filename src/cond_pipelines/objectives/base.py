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
        from . import ddpm, edm, flow_matching  # each of them imports this file

        config, name = scheduler.config, type(scheduler).__name__
        if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
            return flow_matching.FlowMatching(config.num_train_timesteps, **kwargs)
        if name.startswith("EDM"):
            return edm.EDM(config.sigma_data, config.prediction_type, config.sigma_min, config.sigma_max, **kwargs)
        if hasattr(scheduler, "alphas_cumprod"):
            return ddpm.DDPM(scheduler.alphas_cumprod, config.prediction_type, **kwargs)
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
