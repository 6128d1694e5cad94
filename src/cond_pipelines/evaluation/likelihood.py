"""How likely an image is under a model, and which condition explains it best: p(y|x) from p(x|y).

What a denoising model gets wrong, summed over all noise levels, bounds the likelihood of the image (Kingma et al. 2021,
arXiv 2107.00630, Eq. 11 to 15). The condition under which it errs least is the most likely one (Li et al. 2023,
arXiv 2303.16203).
"""

import itertools
import math
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..adapters.base import Conditioning
from ..data.draws import draw
from ..networks.denoiser import denoise, unwrapped
from ..objectives.base import Noised, Objective
from ..objectives.ddpm import DDPM
from ..objectives.edm import EDM
from ..objectives.flow_matching import FlowMatching
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.image_inputs import is_deep, values_to_signed

# Of the noise levels that tell conditions apart: less noise hides nothing, more noise leaves nothing.
_LOG_SNR = (-6.0, 5.0)
# Of the bound: from no signal to noise of half a step of 8 bits. Less noise would cost networks that do not know the
# steps half a nat a unit; at this end the exact model of normal pixels is within 0.01 bits of their density.
_FULL_LOG_SNR = (-11.0, 11.0)


@dataclass
class Classification:
    """The result of `classify`, of N images and K conditions.

    Args:
        log_likelihoods: (N, K) bounds in nats, relative to the best of each image (0).
        probabilities: (N, K), every condition as likely beforehand.
        best: (N,) numbers of the best conditions.
        num_evaluations: (N, K) of the network.
    """

    log_likelihoods: Tensor
    probabilities: Tensor
    best: Tensor
    num_evaluations: Tensor


@torch.no_grad()
def classify(
    pipe: ConditionalPipeline,
    images: Tensor | list[Image.Image],
    conditions: list[object],
    num_noise: int = 32,
    batch_size: int = 128,
    seed: int = 0,
) -> Classification:
    """Which of K conditions each image was most likely drawn under.

    All conditions of an image are tried with the same noise at the same times. After a quarter and a half of
    `num_noise` those that are hopeless, by the spread of the differences seen, are tried no more.

    Args:
        images: (N, C, H, W) in [-1, 1], or PIL images, of the model's size.
        conditions: K class labels or prompts.
        num_noise: at most so many evaluations of the network for an image and condition.
        batch_size: of the network.

    Raises:
        ValueError: fewer than two conditions, or images of another shape than the model's.

    Example:
        >>> result = pipe.classify(images, ["circle", "ring"])
        >>> result.best, result.probabilities
    """
    if len(conditions) < 2:
        raise ValueError(f"{len(conditions)} condition(s): there is nothing to choose between")
    x_0 = _x_0(pipe, images, seed)
    num_images, num_classes = len(x_0), len(conditions)
    cond, _ = pipe.encode_condition(conditions)
    errors = torch.full((num_images, num_classes, num_noise), torch.nan)  # nats a unit of log SNR
    alive = torch.ones(num_images, num_classes, dtype=torch.bool)
    stages = sorted({max(1, num_noise // 4), max(1, num_noise // 2), num_noise})
    for first, last in zip([0, *stages[:-1]], stages, strict=True):
        tasks = [(i, k, j) for i, k in alive.nonzero().tolist() for j in range(first, last)]
        for start in range(0, len(tasks), batch_size):
            i, k, j = torch.tensor(tasks[start : start + batch_size]).T
            noise = draw(seed, i * num_noise + j, x_0.shape[1:], x_0.device).noise
            rows = cond.map(lambda x, k=k: x[k])
            errors[i, k, j] = _noise_errors(pipe, x_0[i], noise, _level(j, i, seed, _LOG_SNR), rows).cpu()
        alive &= ~_hopeless(errors[:, :, :last])
    span = _LOG_SNR[1] - _LOG_SNR[0]
    counts = errors.isfinite().sum(dim=2)
    # Those given up are compared with the best over the noises that both have seen, and get no nearer to it.
    bounds = torch.stack([_paired(errors, k) for k in range(num_classes)], dim=1)  # (N, K), difference to the best
    bounds = -0.5 * span * bounds
    bounds = bounds - bounds.max(dim=1, keepdim=True).values
    return Classification(bounds, bounds.softmax(dim=1), bounds.argmax(dim=1), counts)


def _paired(errors: Tensor, k: int) -> Tensor:
    """Mean difference of condition k's errors to the best one's, over the noises that both have seen: (N,)."""
    best = _best(errors)  # (N,)
    reference = errors[torch.arange(len(errors)), best]  # (N, J)
    return (errors[:, k] - reference).nanmean(dim=1)


def _best(errors: Tensor) -> Tensor:
    """Of those that have seen the most noises, the one with the least mean error: (N,)."""
    counts = errors.isfinite().sum(dim=2)
    means = errors.nanmean(dim=2)
    means[counts < counts.max(dim=1, keepdim=True).values] = torch.inf
    return means.argmin(dim=1)


def _hopeless(seen: Tensor, z: float = 3.0) -> Tensor:
    """(N, K): whose mean difference to the best is more than `z` standard errors above zero."""
    if seen.shape[2] < 4:
        return torch.zeros(seen.shape[:2], dtype=torch.bool)
    reference = seen[torch.arange(len(seen)), _best(seen)]  # (N, J)
    difference = seen - reference[:, None]  # (N, K, J)
    count = difference.isfinite().sum(dim=2)
    mean = difference.nanmean(dim=2)
    spread = (difference - mean[..., None]).square().nanmean(dim=2).sqrt() / count.clamp(min=1).sqrt()
    return (mean > z * spread) & (mean > 0)


@torch.no_grad()
def bits_per_dim(
    pipe: ConditionalPipeline,
    images: Tensor | list[Image.Image],
    conditions: list[object] | None = None,
    num_noise: int = 64,
    batch_size: int = 128,
    seed: int = 0,
) -> Tensor:
    """The variational bound on -log2 p(image) a pixel value, of images of 8 bits: less is better.

    Prior, diffusion and reconstruction terms of arXiv 2107.00630, Eq. 11, in terms of the signal-to-noise ratio alone.

    Args:
        images: (N, C, H, W) in [-1, 1], or PIL images.
        conditions: of each image; None: no condition.
        num_noise: noise levels tried of each image; the error falls with it.

    Returns:
        (N,) bits.

    Raises:
        ValueError: a model with a VAE, which has a likelihood of latents only.
    """
    if pipe.vae is not None:
        raise ValueError("bits_per_dim of a model with a VAE would be of its latents, not of images")
    x_0 = _x_0(pipe, images, seed)
    cond, _ = pipe.encode_condition(conditions if conditions is not None else [None] * len(x_0))
    low, high = _FULL_LOG_SNR
    total = 0.5 * math.exp(low) * x_0.square().flatten(1).sum(dim=1)  # (N,): what the noisiest image still tells
    total = total + _reconstruction(x_0, high, seed)
    diffusion = torch.zeros(len(x_0), device=x_0.device)
    tasks = [(i, j) for i in range(len(x_0)) for j in range(num_noise)]
    for start in range(0, len(tasks), batch_size):
        i, j = torch.tensor(tasks[start : start + batch_size]).T
        noise = draw(seed, i * num_noise + j, x_0.shape[1:], x_0.device).noise
        rows = cond.map(lambda x, i=i: x[i])
        error = _noise_errors(pipe, x_0[i], noise, _level(j, i, seed, (low, high)), rows)
        diffusion.index_add_(0, i.to(x_0.device), error / num_noise)
    total = total + 0.5 * (high - low) * diffusion  # Eq. 15
    return (total / (x_0[0].numel() * math.log(2))).cpu()


def _reconstruction(x_0: Tensor, log_snr: float, seed: int) -> Tensor:
    """-log p(8-bit values | least noisy image), (N,) nats."""
    noise = draw(seed + 1, torch.arange(len(x_0)), x_0.shape[1:], x_0.device).noise
    values = torch.arange(256, device=x_0.device) / 127.5 - 1
    seen = x_0 + math.exp(-log_snr / 2) * noise
    nats = []
    for image, target in zip(seen, x_0, strict=True):  # 256 numbers a pixel value: one image at a time
        logits = -0.5 * math.exp(log_snr) * (image.flatten()[:, None] - values).square()  # (d, 256)
        level = ((target.flatten() + 1) * 127.5).round().long()
        nats.append(-logits.log_softmax(dim=1).gather(1, level[:, None]).sum())
    return torch.stack(nats)


def flow_bits_per_dim(
    pipe: ConditionalPipeline,
    images: Tensor | list[Image.Image],
    conditions: list[object] | None = None,
    num_inference_steps: int = 50,
    num_probes: int = 1,
    seed: int = 0,
) -> Tensor:
    """-log2 p(image) a pixel value by the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, Eq. 39).

    For flow-matching models. 8-bit values are spread evenly over their steps; the divergence is Hutchinson's estimate.

    Args:
        num_inference_steps: of Heun's method, from the image to noise. num_probes: of the divergence.

    Returns:
        (N,) bits.

    Raises:
        ValueError: a model with a VAE, or of another objective than flow matching.
    """
    objective = Objective.from_pipeline(pipe)
    if pipe.vae is not None or not isinstance(objective, FlowMatching):
        raise ValueError("flow_bits_per_dim needs a flow-matching model of pixels")
    x = _x_0(pipe, images, seed)
    cond, _ = pipe.encode_condition(conditions if conditions is not None else [None] * len(x))
    cond = cond.map(lambda tensor: tensor.detach())
    generator = torch.Generator().manual_seed(seed)
    x = x + (torch.rand(x.shape, generator=generator).to(x.device) - 0.5) / 127.5
    probes = [torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1 for _ in range(num_probes)]

    def field(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """dx/dsigma and its divergence, (N,)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            t = torch.full((len(x),), sigma * objective.num_train_timesteps, device=x.device)
            v = denoise(pipe.unet, x, t, cond)
            divergences = [
                (torch.autograd.grad((v * probe).sum(), x, retain_graph=True)[0] * probe).flatten(1).sum(dim=1)
                for probe in probes
            ]
        return v.detach(), torch.stack(divergences).mean(dim=0)

    log_det = torch.zeros(len(x), device=x.device)
    # Steps are small where the image takes shape, at either end: a half cosine.
    sigmas = [(1 - math.cos(math.pi * i / num_inference_steps)) / 2 for i in range(num_inference_steps + 1)]
    for a, b in itertools.pairwise(sigmas):
        v_a, div_a = field(x, a)
        v_b, div_b = field(x + (b - a) * v_a, b)
        x = x + (b - a) / 2 * (v_a + v_b)
        log_det = log_det + (b - a) / 2 * (div_a + div_b)
    size = x[0].numel()
    log_p = -0.5 * (x.square().flatten(1).sum(dim=1) + size * math.log(2 * math.pi)) + log_det
    return (-log_p / (size * math.log(2)) + math.log2(127.5)).cpu()


# ------------------------------------------------------------------------------------------------------- details
def _x_0(pipe: ConditionalPipeline, images: Tensor | list[Image.Image], seed: int) -> Tensor:
    """Images, or the VAE's latents of them, as the UNet takes them: (N, C, h, w) float32 on its device."""
    if not isinstance(images, Tensor) and any(map(is_deep, images)):
        images = values_to_signed(pipe, list(images))
    elif not isinstance(images, Tensor):
        pixels = np.stack([np.asarray(image).reshape(image.height, image.width, -1) for image in images])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    x_0 = pipe.encode_images(images.to(pipe._execution_device), torch.Generator().manual_seed(seed)).float()
    if x_0.ndim != 4 or x_0.shape[1] != pipe.unet.config.in_channels:
        raise ValueError(
            f"images of shape {tuple(images.shape)}: the model has {pipe.unet.config.in_channels} channels"
        )
    return x_0


def _level(j: Tensor, i: Tensor, seed: int, span: tuple[float, float]) -> Tensor:
    """log SNR of noise j of image i: any first few of an image's cover the span evenly, and all do it finely."""
    start = torch.rand(int(i.max()) + 1, generator=torch.Generator().manual_seed(seed))[i]
    u = (start + j * 0.6180339887498949) % 1.0
    return span[0] + (span[1] - span[0]) * u


def _noise_errors(pipe: ConditionalPipeline, x_0: Tensor, noise: Tensor, log_snr: Tensor, cond: Conditioning) -> Tensor:
    """Squared error of the noise that the model sees in each image, summed over it: (B,) float32."""
    noised = noised_at_snr(Objective.from_pipeline(pipe), x_0, noise, log_snr.to(x_0.device))
    prediction = denoise(pipe.unet, noised.x_t.to(unwrapped(pipe.unet).dtype), noised.t, cond)
    return noised.loss(prediction) * x_0[0].numel()


@singledispatch
def noised_at_snr(objective: Objective, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
    """Noise `x_0` to signal-to-noise ratios, weighted such that the loss is that of the noise.

    Args:
        log_snr: (B,) natural logarithm of signal power over noise power, for images of power 1.

    Raises:
        ValueError: an objective that is none of flow matching, EDM and DDPM, nor a subclass of one.
    """
    raise ValueError(f"no likelihood of a model trained with {type(objective).__name__}: it has no noise levels")


@noised_at_snr.register
def _(objective: FlowMatching, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
    sigma = torch.sigmoid(-log_snr / 2)  # snr = ((1 - sigma) / sigma)^2
    return objective.noised_at(x_0, noise, sigma, (1 - sigma).square())  # noise = x_t + (1 - sigma) v


@noised_at_snr.register
def _(objective: EDM, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
    sigma = torch.exp(-log_snr / 2).clamp(objective.sigma_min, objective.sigma_max)
    weight = objective.sigma_data**2 / (
        sigma**2 + objective.sigma_data**2
    )  # noise = (x - D) / sigma: (c_out / sigma)^2
    return objective.noised_at(x_0, noise, sigma, weight)


@noised_at_snr.register
def _(objective: DDPM, x_0: Tensor, noise: Tensor, log_snr: Tensor) -> Noised:
    alphas = objective.alphas_cumprod.to(x_0.device)
    t = (alphas.logit()[None] - log_snr[:, None]).abs().argmin(dim=1)  # (B,): the nearest there is
    alpha_bar = alphas[t]
    weight = {  # |eps - eps_hat|^2 over that of the target
        "epsilon": torch.ones_like(alpha_bar),
        "sample": alpha_bar / (1 - alpha_bar),
        "v_prediction": alpha_bar,
    }[objective.prediction_type]
    return objective.noised_at(x_0, noise, t, alpha_bar, weight)
