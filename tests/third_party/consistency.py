"""An objective of somebody's own, whose loss calls the network twice: `--objective consistency:Consistency`."""

import torch
from torch import Tensor

from cond_pipelines.objectives import Draws, FlowMatching
from cond_pipelines.objectives.base import Denoise


class Consistency(FlowMatching):
    """Consistency training in flow coordinates (Song et al. 2023, arXiv 2303.01469).

    x_0 as seen from a noisier time t must be x_0 as seen from a less noisy one l, on the same line of noise.

    Args:
        step: l = t * (1 - step * r), r uniform in (0, 1): a row's own number from `Draws.uniform`.
    """

    num_uniforms = 1

    def __init__(
        self, num_train_timesteps: int = 1000, logit_mean: float = 0.0, logit_std: float = 1.0, step: float = 0.5
    ):
        super().__init__(num_train_timesteps, logit_mean, logit_std)
        self.step = step

    def loss(self, denoise: Denoise, x_0: Tensor, draws: Draws) -> Tensor:
        noised = self.sample(x_0, draws.noise, draws.u)
        t = noised.t / self.num_train_timesteps  # (B,)
        earlier = self.noised_at(x_0.float(), draws.noise, t * (1 - self.step * draws.uniform[:, 0]), noised.weight)
        l = earlier.t / self.num_train_timesteps  # noqa: E741 (the paper's letter)
        with torch.no_grad():
            seen_from_l = earlier.x_t - l[:, None, None, None] * denoise(earlier.x_t, earlier.t).float()
        seen_from_t = noised.x_t - t[:, None, None, None] * denoise(noised.x_t, noised.t).float()
        anchor = noised.loss((noised.x_t - seen_from_t) / t[:, None, None, None])  # else a constant is consistent too
        return (seen_from_t - seen_from_l).square().flatten(1).mean(dim=1) + anchor


class Forgetful(FlowMatching):
    """It does not keep its argument, so nobody could build it again from what is saved."""

    def __init__(self, num_train_timesteps: int = 1000, strength: float = 1.0):
        super().__init__(num_train_timesteps)
