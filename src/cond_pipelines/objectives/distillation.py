"""Distillation of a flow into jumps, so that a few evaluations of the network draw an image."""

import torch
from torch import Tensor

from .base import Denoise, Draws, _column, _normal_quantile
from .flow_matching import FlowMatching

_MIN_STEP = 0.01  # of the teacher, in times of 0 to 1
_WEIGHT_FLOOR = 1e-3  # of the mean squared error, in the weight


class Distillation(FlowMatching):
    """Jumps of a pretrained flow to its end, learned by consistency (after Song et al. 2023, arXiv 2303.01469).

    u(x, t, r) is the mean velocity of the flow from time t to time r, for two ends: r = t, where it is the teacher's
    velocity v, and r = 0, where x_t - t u(x_t, t, 0) is the image. One network learns both: the first from the teacher,
    without guidance, so that its flow stays the teacher's; the second from itself, at the point that a step of the
    teacher with guidance leads to. The step begins at half of the way and becomes shorter during the run (Geng et al.
    2024, arXiv 2406.14548).

    Args:
        guidance_scale: of the teacher's steps; None: the teacher's default. A dictionary: scales by name.
        logit_mean, logit_std: of logit(t).
        flow_weight: of the loss at r = t; the loss at r = 0 has the weight 1.
        num_halvings: of the share of the way that a step of the teacher goes, from a half, during the run.
        end_share: of the images, which start from pure noise, t = 1, as each sample does.
    """

    uses_teacher = True

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        logit_mean: float = 0.5,
        logit_std: float = 1.2,
        guidance_scale: float | dict[str, float] | None = None,
        flow_weight: float = 1.0,
        num_halvings: float = 6.0,
        end_share: float = 0.1,
    ):
        super().__init__(num_train_timesteps, logit_mean, logit_std)
        self.guidance_scale = guidance_scale
        if not flow_weight >= 0:  # written so that nan fails too
            raise ValueError(f"flow_weight {flow_weight} must not be negative")
        if not num_halvings >= 0:
            raise ValueError(f"num_halvings {num_halvings} must not be negative")
        if not 0 <= end_share < 1:
            raise ValueError(f"end_share {end_share} must be at least 0 and less than 1")
        self.flow_weight, self.num_halvings, self.end_share = flow_weight, num_halvings, end_share

    def loss(self, denoise: Denoise, x_0: Tensor, draws: Draws) -> Tensor:
        if denoise.teacher is None:
            raise ValueError("the objective distillation needs a teacher: the pretrained model, in a training run")
        t = self._times(draws.u)  # (B,) in (0, 1]
        x_t = self.noised_at(x_0.float(), draws.noise.float(), t, torch.ones_like(t)).x_t
        velocity, guided = (v.float() for v in denoise.teacher(x_t, self.timestep(t)))
        # A step of the teacher along its guided flow, from t to s.
        share = 0.5 ** (1 + self.num_halvings * denoise.fraction_done)
        step = (share * t).clamp(min=_MIN_STEP).minimum(t)  # (B,)
        s = t - step
        with torch.no_grad():
            x_s = x_t - _column(step) * guided
            jump = denoise(x_s, self.timestep(s), torch.zeros_like(s)).float()  # u(x_s, s, 0)
        # The jump from t ends where that from s does: x_t - t u(x_t, t, 0) = x_s - s u(x_s, s, 0).
        target = torch.lerp(jump, guided, _column(step / t))
        # Both ends in one call, so that gradients are synced between processes once.
        both = denoise(x_t.repeat(2, 1, 1, 1), self.timestep(t).repeat(2), self.timestep(torch.cat([t, 0 * t]))).float()
        at_t, at_0 = both.chunk(2)
        return self.flow_weight * _robust(at_t - velocity) + _robust(at_0 - target)

    def timestep(self, t: Tensor) -> Tensor:
        """The network's timestep of times (B,) in [0, 1]."""
        return t * self.num_train_timesteps

    def _times(self, u: Tensor) -> Tensor:
        """(B,) times from quantiles: logit-normal, and 1 for `end_share` of them."""
        within = (u / (1 - self.end_share)).clamp(max=1.0)
        t = torch.sigmoid(self.logit_mean + self.logit_std * _normal_quantile(within))
        return torch.where(u < 1 - self.end_share, t, torch.ones_like(t))


def _robust(error: Tensor) -> Tensor:
    """(B,) mean squared errors, an image that is far off weighted down (Geng et al. 2025, arXiv 2505.13447, Eq. 22)."""
    square = error.square().flatten(1).mean(dim=1)
    return square / (square.detach() + _WEIGHT_FLOOR).sqrt()
