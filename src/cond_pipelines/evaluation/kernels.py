"""Measures of all pairs of features (N, D): maximum mean discrepancies and the Vendi score, with their standard errors.

No matrix of all pairs is ever in memory: kernels are summed in blocks.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2048  # rows of a block of pairs
_MOST = 10_000  # images of a set: all pairs of more take minutes and change the third digit

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, D), (m, D) -> (n, m)


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x y / D + 1)^3, of KID (Binkowski et al. 2018, Eq. 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """1000 exp(-|x - y|^2 / (2 10^2)) of features of length 1, of CMMD (Jayasumana et al. 2024, arXiv 2401.09603)."""
    x, y = (z / z.norm(dim=1, keepdim=True).clamp(min=1e-12) for z in (x, y))
    return 1000 * torch.exp((x @ y.T - 1) / 100)  # |x - y|^2 = 2 - 2 x y


def within_real(real: np.ndarray, kernel: Kernel, seed: int = 0) -> float:
    """The part of `mmd` that depends on the real images alone: the mean kernel of two different ones."""
    y = _some(real, seed)
    return (_row_sums(y, y, kernel, without_self=True) / (len(y) - 1)).mean().item()


def mmd(
    fake: np.ndarray, real: np.ndarray, kernel: Kernel, of_real: float | None = None, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3), and its standard error.

    Of at most 10,000 images of each set, drawn at random. The error is that of the choice of samples: the real images
    are what they are.

    Args:
        of_real: `within_real(real, kernel)`, where it is known already.

    Raises:
        ValueError: fewer than two images in one of the sets.
    """
    if min(len(fake), len(real)) < 2:
        raise ValueError(f"an MMD needs two images at least, and there are {min(len(fake), len(real))}")
    x, y = (_some(features, seed) for features in (fake, real))
    within = _row_sums(x, x, kernel, without_self=True) / (len(x) - 1)  # (n,)
    across = _row_sums(x, y, kernel) / len(y)  # (n,)
    of_real = within_real(real, kernel, seed) if of_real is None else of_real
    influence = 2 * (within - across)  # of each sample, but for a constant
    value = (within.mean() - 2 * across.mean() + of_real).item()
    return value, (influence.std(correction=1) / len(x) ** 0.5).item()


def interval_of_mmd(value: float, error: float) -> tuple[float, float]:
    """95 % interval of a distance, which is at least 0, around an estimate without bias, which may be below 0.

    It holds 0 where the interval of the estimate lies below 0, and the estimate itself.
    """
    return min(value, max(0.0, value - 1.96 * error)), max(0.0, value + 1.96 * error)


def _some(features: np.ndarray, seed: int) -> Tensor:
    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:_MOST])
    return torch.from_numpy(np.ascontiguousarray(features[rows]))


def _row_sums(x: Tensor, y: Tensor, kernel: Kernel, without_self: bool = False) -> Tensor:
    """sum_j k(x_i, y_j), (n,) float64; `without_self`: x and y are the same, and i = j is passed over."""
    sums = torch.zeros(len(x), dtype=torch.float64)
    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(y), _BLOCK):
            block = kernel(x[i : i + _BLOCK], y[j : j + _BLOCK])
            if without_self and i == j:
                block.fill_diagonal_(0)
            sums[i : i + _BLOCK] += block.sum(dim=1, dtype=torch.float64)
    return sums


def vendi(features: np.ndarray) -> tuple[float, float]:
    """The Vendi score, the effective number of different images (Friedman and Dieng 2023, Eq. 2), and its error.

    exp(-sum_i l_i log l_i), with the eigenvalues l_i of K / N and cosines as K. The second moment of features of length
    1 has the same eigenvalues, but for zeros. It grows with N: compare sets of as many images.
    """
    x = torch.from_numpy(np.ascontiguousarray(features)).double()
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)  # (N, D)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-12
    logs, vectors = values[kept].log(), vectors[:, kept]
    score = (-(values[kept] * logs).sum()).exp()
    influence = -((x @ vectors).square() * logs).sum(dim=1)  # of each image on the entropy, but for a constant
    return score.item(), (score * influence.std(correction=1) / len(x) ** 0.5).item()
