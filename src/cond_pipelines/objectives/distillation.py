"""Distillation of a pretrained model into jumps, so that a few evaluations of the network draw an image."""

import torch
from torch import Tensor

from .base import Denoise, Draws, Teach, _column, _normal_quantile
from .ddpm import DDPM
from .flow_matching import FlowMatching

_MIN_STEP = 0.01  # of the teacher, in times of 0 to 1
_WEIGHT_FLOOR = 1e-3  # of the mean squared error, in the weight
_BOUNDARY = 0.05  # in timesteps; c_skip and c_out of diffusers' LCMScheduler are made of it


class _Schedule:
    """What both distillations share: the times, and how far the teacher steps.

    Args:
        guidance_scale: of the teacher's steps; None: the teacher's default. A dictionary: scales by name.
        flow_weight: of the loss at r = t; the loss at r = 0 has the weight 1. 0: no such loss.
        num_halvings: of the share of the way that a step of the teacher goes, from a half, during the run.
        end_share: of the images, which start from pure noise, as each sample does.
    """

    uses_teacher = True

    def __init__(
        self,
        guidance_scale: float | dict[str, float] | None,
        flow_weight: float,
        num_halvings: float,
        end_share: float,
    ):
        self.guidance_scale = guidance_scale
        if not flow_weight >= 0:  # written so that nan fails too
            raise ValueError(f"flow_weight {flow_weight} must not be negative")
        if not num_halvings >= 0:
            raise ValueError(f"num_halvings {num_halvings} must not be negative")
        if not 0 <= end_share < 1:
            raise ValueError(f"end_share {end_share} must be at least 0 and less than 1")
        self.flow_weight, self.num_halvings, self.end_share = flow_weight, num_halvings, end_share

    def share(self, fraction_done: float) -> float:
        """Of the way to the image that a step of the teacher goes."""
        return float(0.5 ** (1 + self.num_halvings * fraction_done))

    def both_ends(self, denoise: Denoise, x_t: Tensor, t: Tensor) -> tuple[Tensor | None, Tensor]:
        """The predictions at r = t (None where it has no weight) and at r = 0; one call, so that gradients are synced
        between processes once.

        Args:
            t: (B,) timesteps of the network.
        """
        if not self.flow_weight:
            return None, denoise(x_t, t, torch.zeros_like(t)).float()
        both = denoise(x_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([t, torch.zeros_like(t)])).float()
        at_t, at_0 = both.chunk(2)
        return at_t, at_0

    def total(self, at_t: Tensor | None, taught: Tensor, error: Tensor) -> Tensor:
        """(B,) of the errors at both ends; `taught`: the teacher's prediction without guidance."""
        return _robust(error) if at_t is None else self.flow_weight * _robust(at_t - taught) + _robust(error)


def _taught(denoise: Denoise) -> Teach:
    if denoise.teacher is None:
        raise ValueError("the objective distillation needs a teacher: the pretrained model, in a training run")
    return denoise.teacher


class Distillation(_Schedule, FlowMatching):
    """Jumps of a pretrained flow to its end, learned by consistency (after Song et al. 2023, arXiv 2303.01469).

    u(x, t, r) is the mean velocity of the flow from time t to time r, for two ends: r = t, where it is the teacher's
    velocity v, and r = 0, where x_t - t u(x_t, t, 0) is the image. One network learns both: the first from the teacher,
    without guidance, so that its flow stays the teacher's; the second from itself, at the point that a step of the
    teacher with guidance leads to. The step begins at half of the way and becomes shorter during the run (Geng et al.
    2024, arXiv 2406.14548). A network without the input for r, such as a LoRA's, learns the second only.

    Args:
        logit_mean, logit_std: of logit(t).
        guidance_scale, flow_weight, num_halvings, end_share: see `_Schedule`.
    """

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
        FlowMatching.__init__(self, num_train_timesteps, logit_mean, logit_std)
        _Schedule.__init__(self, guidance_scale, flow_weight, num_halvings, end_share)

    def loss(self, denoise: Denoise, x_0: Tensor, draws: Draws) -> Tensor:
        t = self._times(draws.u)  # (B,) in (0, 1]
        x_t = self.noised_at(x_0.float(), draws.noise.float(), t, torch.ones_like(t)).x_t
        velocity, guided = (v.float() for v in _taught(denoise)(x_t, self.timestep(t)))
        # A step of the teacher along its guided flow, from t to s.
        step = (self.share(denoise.fraction_done) * t).clamp(min=_MIN_STEP).minimum(t)  # (B,)
        s = t - step
        with torch.no_grad():
            x_s = x_t - _column(step) * guided
            jump = denoise(x_s, self.timestep(s), torch.zeros_like(s)).float()  # u(x_s, s, 0)
        # The jump from t ends where that from s does: x_t - t u(x_t, t, 0) = x_s - s u(x_s, s, 0).
        target = torch.lerp(jump, guided, _column(step / t))
        at_t, at_0 = self.both_ends(denoise, x_t, self.timestep(t))
        return self.total(at_t, velocity, at_0 - target)

    def timestep(self, t: Tensor) -> Tensor:
        """The network's timestep of times (B,) in [0, 1]."""
        return t * self.num_train_timesteps

    def _times(self, u: Tensor) -> Tensor:
        """(B,) times from quantiles: logit-normal, and 1 for `end_share` of them."""
        within = (u / (1 - self.end_share)).clamp(max=1.0)
        t = torch.sigmoid(self.logit_mean + self.logit_std * _normal_quantile(within))
        return torch.where(u < 1 - self.end_share, t, torch.ones_like(t))


class DDPMDistillation(_Schedule, DDPM):
    """The same of a model with epsilon, v or sample prediction (Luo et al. 2023, arXiv 2310.04378).

    At r = 0 the network's estimate of the image is the end of the jump. The teacher's step is one of DDIM. Errors are
    those of images. Sampled by diffusers' LCMScheduler.

    Args:
        alphas_cumprod, prediction_type, noise_schedule: see `DDPM`.
        guidance_scale, flow_weight, num_halvings, end_share: see `_Schedule`.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor | None = None,
        prediction_type: str = "epsilon",
        noise_schedule: dict[str, object] | None = None,
        guidance_scale: float | dict[str, float] | None = None,
        flow_weight: float = 1.0,
        num_halvings: float = 6.0,
        end_share: float = 0.1,
    ):
        DDPM.__init__(self, alphas_cumprod, prediction_type, None, noise_schedule)
        _Schedule.__init__(self, guidance_scale, flow_weight, num_halvings, end_share)

    def loss(self, denoise: Denoise, x_0: Tensor, draws: Draws) -> Tensor:
        self.alphas_cumprod = self.alphas_cumprod.to(x_0.device)
        last = len(self.alphas_cumprod) - 1
        u = (draws.u / (1 - self.end_share)).clamp(max=1.0)  # `end_share` of the images start from the last timestep
        t = (u * last).long().clamp(min=1)  # (B,)
        x_t = self.noised_at(x_0.float(), draws.noise.float(), t, self.alphas_cumprod[t], torch.ones_like(u)).x_t
        taught, guided = (p.float() for p in _taught(denoise)(x_t, t))
        step = (self.share(denoise.fraction_done) * t).clamp(min=_MIN_STEP * last).long()  # (B,)
        s = (t - step).clamp(min=0)
        image, noise = self._parts(x_t, guided, t)
        with torch.no_grad():
            x_s = self._noise_level(s, 0) * image + self._noise_level(s, 1) * noise  # DDIM, arXiv 2010.02502, Eq. 12
            target = self._jump(x_s, denoise(x_s, s, torch.zeros_like(s)).float(), s)
        at_t, at_0 = self.both_ends(denoise, x_t, t)
        return self.total(at_t, taught, self._jump(x_t, at_0, t) - target)

    def _noise_level(self, t: Tensor, part: int) -> Tensor:
        """(B, 1, 1, 1) the factor of the image (part 0) or of the noise (part 1) at timesteps (B,)."""
        alpha_bar = self.alphas_cumprod[t]
        return _column((1 - alpha_bar if part else alpha_bar).sqrt())

    def _parts(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the noise that a prediction means, (B, C, H, W) each."""
        signal, sigma = self._noise_level(t, 0), self._noise_level(t, 1)
        if self.prediction_type == "v_prediction":
            return signal * x_t - sigma * prediction, sigma * x_t + signal * prediction
        if self.prediction_type == "sample":
            return prediction, (x_t - signal * prediction) / sigma
        return (x_t - sigma * prediction) / signal, prediction

    def _jump(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The end of the jump from t: x_t itself at t = 0, else nearly the image of the prediction (Eq. 9)."""
        c_skip = _column(_BOUNDARY**2 / (t.float() ** 2 + _BOUNDARY**2))
        c_out = _column(t.float() / (t.float() ** 2 + _BOUNDARY**2).sqrt())
        return c_skip * x_t + c_out * self._parts(x_t, prediction, t)[0]


def _robust(error: Tensor) -> Tensor:
    """(B,) mean squared errors, an image that is far off weighted down (Geng et al. 2025, arXiv 2505.13447, Eq. 22)."""
    square = error.square().flatten(1).mean(dim=1)
    return square / (square.detach() + _WEIGHT_FLOOR).sqrt()
