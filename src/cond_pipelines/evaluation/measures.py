"""What is measured, as functions of features: (N, D) float32 arrays, one row an image.

    alike?      frechet_distance, kernel_distance, precision, density
    all of it?  recall, coverage
    new?        nearest

No matrix of all pairs is ever in memory: distances are made in blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

NUM_NEIGHBOURS = 5  # of an image, which reach as far as it is taken to be covered
_BLOCK = 2048  # rows of a block of distances


@dataclass
class Gaussian:
    """Count, sum and sum of outer products of features: additive, so that parts can be put together.

    Args:
        n: rows; total: (D,) float64; outer: (D, D) float64.
    """

    n: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: np.ndarray) -> "Gaussian":
        """Of (N, D) features, in blocks."""
        dim = features.shape[1]
        total = cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))
        for start in range(0, len(features), _BLOCK):
            x = torch.from_numpy(np.ascontiguousarray(features[start : start + _BLOCK])).double()  # (b, D)
            total = total + cls(len(x), x.sum(dim=0), x.T @ x)
        return total

    def __add__(self, other: "Gaussian") -> "Gaussian":
        return Gaussian(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """Unbiased."""
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Distance of two Gaussians (Dowson and Landau 1982, Eq. 16); FID's when the features are Inception's.

    Raises:
        ValueError: fewer than two rows.
    """
    if min(a.n, b.n) < 2:
        raise ValueError(f"a Frechet distance needs two images at least, and there are {min(a.n, b.n)}")
    # Tr (A B)^(1/2) through B^(1/2) A B^(1/2), which is symmetric: exact zeros stay zeros.
    cross = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return distance.item()


def kernel_distance(a: np.ndarray, b: np.ndarray, subsets: int = 50, size: int = 1000, seed: int = 0) -> np.ndarray:
    """Unbiased MMD^2, kernel (x y / D + 1)^3, of random subsets (KID; Binkowski et al. 2018, Eq. 4): (subsets,)."""
    rng, size = np.random.default_rng(seed), min(size, len(a), len(b))

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    distances = []
    for _ in range(subsets):
        x, y = (torch.from_numpy(f[rng.choice(len(f), size, replace=False)]).double() for f in (a, b))
        xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        distances.append((within - 2 * xy.mean()).item())
    return np.array(distances)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int, Tensor]]:
    """Distances of blocks of rows: (start in a, start in b, (rows, rows))."""
    for i in range(0, len(a), _BLOCK):
        x = torch.from_numpy(np.ascontiguousarray(a[i : i + _BLOCK]))
        for j in range(0, len(b), _BLOCK):
            yield i, j, torch.cdist(x, torch.from_numpy(np.ascontiguousarray(b[j : j + _BLOCK])))


def nearest(a: np.ndarray, b: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the `k` nearest rows of `b` for each of `a`: (N, k) each, nearest first."""
    distances, indices = torch.full((len(a), k), float("inf")), torch.zeros((len(a), k), dtype=torch.int64)
    for i, j, block in _blocks(a, b):
        here = slice(i, i + block.shape[0])
        nearer = block.topk(min(k, block.shape[1]), dim=1, largest=False)
        values = torch.cat([distances[here], nearer.values], dim=1)
        best = values.topk(k, dim=1, largest=False)
        distances[here] = best.values
        indices[here] = torch.cat([indices[here], nearer.indices + j], dim=1).gather(1, best.indices)
    return distances.numpy(), indices.numpy()


def neighbours(features: np.ndarray, k: int = NUM_NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Distances and indices of the `k` nearest other rows of each row: (N, k) each, nearest first."""
    count = len(features)
    distances, indices = torch.full((count, k), float("inf")), torch.zeros((count, k), dtype=torch.int64)

    def merge(rows: int, columns: int, block: Tensor) -> None:
        here = slice(rows, rows + block.shape[0])
        nearer = block.topk(min(k, block.shape[1]), dim=1, largest=False)
        best = torch.cat([distances[here], nearer.values], dim=1).topk(k, dim=1, largest=False)
        distances[here] = best.values
        indices[here] = torch.cat([indices[here], nearer.indices + columns], dim=1).gather(1, best.indices)

    for i in range(0, count, _BLOCK):  # each pair of blocks once: distances are symmetric
        x = torch.from_numpy(np.ascontiguousarray(features[i : i + _BLOCK]))
        for j in range(i, count, _BLOCK):
            block = torch.cdist(x, torch.from_numpy(np.ascontiguousarray(features[j : j + _BLOCK])))
            if i == j:
                merge(i, i, block.fill_diagonal_(float("inf")))
            else:
                merge(i, j, block)
                merge(j, i, block.T)
    return distances, indices


def radius(features: np.ndarray, k: int = NUM_NEIGHBOURS) -> Tensor:
    """The distance of each row to its `k`-th nearest other row: (N,)."""
    return neighbours(features, k)[0][:, -1]


@dataclass
class _Covered:
    """By how many samples each real image is covered, and the sum of their numbers: where it is one, its number."""

    count: Tensor  # (R,) int64
    numbers: Tensor  # (R,) int64

    @classmethod
    def none(cls, num_real: int) -> "_Covered":
        return cls(torch.zeros(num_real, dtype=torch.int64), torch.zeros(num_real, dtype=torch.int64))

    def add(self, rows: slice, covers: Tensor, first: int) -> None:
        """`covers` (rows, columns) bool, of samples from number `first` on; at most 5,000 columns."""
        of_block = torch.arange(covers.shape[1], dtype=torch.float32)
        # One product gives both sums. They are exact: whole numbers below 2^24.
        count, numbers = (
            (covers.float() @ torch.stack([torch.ones_like(of_block), of_block], dim=1)).long().unbind(dim=1)
        )
        self.count[rows] += count
        self.numbers[rows] += numbers + first * count

    def alone(self, num_fake: int) -> Tensor:
        """The share of real images that each sample covers and no other does: (F,)."""
        return torch.bincount(self.numbers[self.count == 1], minlength=num_fake).double() / len(self.count)

    def again(self, shells: list[Tensor], near: Tensor) -> Tensor:
        """The share of real images that count without a sample because balls of others grow then: (F,).

        Args:
            shells: (2, M) pairs of a real image and a sample, whose ball holds it with the next radius, and not yet.
            near: (F, k) the neighbours of each sample, without any of which it has the next radius.
        """
        from scipy.sparse import csr_array

        count, (num_fake, k) = self.count.numpy(), near.shape
        real, fake = torch.cat(shells, dim=1).numpy()
        grown = csr_array((np.ones(len(real)), (real, fake)), shape=(len(count), num_fake))
        needs = csr_array((np.ones(near.numel()), near.flatten().numpy(), np.arange(0, near.numel() + 1, k)))
        needs.resize(num_fake, num_fake)
        real, without = (grown @ needs).nonzero()  # this real image is in a ball that grows without that sample
        is_new = (count[real] == 0) | ((count[real] == 1) & (self.numbers.numpy()[real] == without))
        return torch.from_numpy(np.bincount(without[is_new], minlength=num_fake) / len(count))


def manifolds(
    real: np.ndarray, fake: np.ndarray, k: int = NUM_NEIGHBOURS, real_radius: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Precision and recall (Kynkaanniemi et al. 2019, Eq. 1), density and coverage (Naeem et al. 2020, Eq. 3 and 4).

    Args:
        real_radius: `radius(real, k)`, where it is known already.

    Returns:
        For each name one value an image: of `fake` for precision and density, of `real` for recall and coverage. Their
        means are the measures. "recall by" and "coverage by": of each of `fake`, by how much the share would fall
        without it; see `interval_of_share`.

    Raises:
        ValueError: no more than `k` images in one of the sets.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"precision and recall need more than {k} images, and there are {min(len(real), len(fake))}")
    real_radius = radius(real, k) if real_radius is None else real_radius  # (R,)
    distances, near = neighbours(fake, k + 1)
    fake_radius, next_radius = distances[:, k - 1], distances[:, k]  # (F,), and without one of the neighbours
    inside, shells = torch.zeros(len(fake)), []  # balls of real images that a fake one lies in
    recall, coverage = _Covered.none(len(real)), _Covered.none(len(real))
    for i, j, block in _blocks(real, fake):
        rows, columns = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
        in_real = block <= real_radius[rows, None]
        inside[columns] += in_real.sum(dim=0)
        coverage.add(rows, in_real, j)
        in_fake = block <= fake_radius[None, columns]
        recall.add(rows, in_fake, j)
        # What two samples cover counts without any one of them: with wide samples these are nearly all pairs.
        in_shell = (block <= next_radius[None, columns]) & ~in_fake & (recall.count[rows] < 2)[:, None]
        shells.append(in_shell.nonzero().T + torch.tensor([[i], [j]]))
    values = {
        "precision": inside > 0,
        "density": inside / k,
        "recall": recall.count > 0,
        "coverage": coverage.count > 0,
    }
    of_recall = recall.alone(len(fake)) - recall.again(shells, near[:, :k])
    values |= {"recall by": of_recall, "coverage by": coverage.alone(len(fake))}
    return {name: value.double().numpy() for name, value in values.items()}


def copies(fake: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Which samples lie closer to a training image than 99 % of held-out images do.

    Returns:
        flags (F,) bool, the nearest training image of each (F,), and the distance below which a sample is flagged. Of
        new images about one in a hundred is flagged.
    """
    threshold = float(np.quantile(nearest(held_out, train)[0][:, 0], 0.01))
    distances, indices = nearest(fake, train)
    return distances[:, 0] < threshold, indices[:, 0], threshold


# ----------------------------------------------------------------------------------------------------- how sure
def interval_of_mean(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of one value an image: Wilson's (1927) of 0 and 1, else a bootstrap's (Efron 1979).

    The bootstrap of a share near 0 or 1 is too narrow, and of none or all it has no width.
    """
    from scipy.stats import binomtest, bootstrap

    if np.isin(values, (0, 1)).all():
        ends = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)
    if len(values) == 1:  # scipy refuses it
        return float(values[0]), float(values[0])
    options = {"n_resamples": resamples, "batch": max(1, 10**6 // len(values)), "rng": np.random.default_rng(seed)}
    low, high = bootstrap((values,), np.mean, method="percentile", **options).confidence_interval
    return float(low), float(high)


def interval_of(
    statistic: Callable[..., float],
    *values: np.ndarray,
    resamples: int = 300,
    seed: int = 0,
    low: float = 0.0,
    high: float = np.inf,
) -> tuple[float, float]:
    """95 % bootstrap interval of any statistic of values an image, within its range from `low` to `high`.

    Its spread is the bootstrap's, its centre the statistic itself, since distances grow when values are drawn twice:
    scipy.stats.bootstrap has no such interval.
    """
    rng, count = np.random.default_rng(seed), len(values[0])
    drawn = (rng.integers(count, size=count) for _ in range(resamples))
    resampled = np.array([statistic(*(v[rows] for v in values)) for rows in drawn])
    ends = np.nanquantile(resampled - np.nanmean(resampled) + statistic(*values), [0.025, 0.975])
    first, last = np.clip(ends, low, high).tolist()
    return first, last


def wilson(share: float, reach: float) -> tuple[float, float]:
    """Ends of the interval of a share that would be share -+ reach were it not for 0 and 1 (Wilson 1927).

    His interval for the number of images whose share has that reach (Korn and Graubard 1998).
    """
    s = reach**2 / (share * (1 - share))  # z^2 / n
    centre, half = (share + s / 2) / (1 + s), (reach**2 + s * s / 4) ** 0.5 / (1 + s)
    return float(centre - half), float(centre + half)


def interval_of_share(share: float, without: np.ndarray, count: int | None = None) -> tuple[float, float]:
    """95 % interval of a share that each sample moves by another amount: of real images covered, of pairs in order.

    The variance is the jackknife's over samples (Tukey 1958). Where few samples move much it rests on these few, so
    Student's t has one degree of freedom more than their effective number, N / kurtosis (Kish 1965, section 11.2).

    Args:
        without: (N,), by how much the share falls without each sample.
        count: images of which the share is taken to be one where no sample moves it: it is not known exactly even then;
            default: N.
    """
    from scipy.stats import binomtest, kurtosis, t

    if np.ptp(without) == 0 or not 0 < share < 1:
        count = len(without) if count is None else count
        ends = binomtest(round(share * count), count).proportion_ci(method="wilson")
        return min(share, float(ends.low)), max(share, float(ends.high))
    freedom = 1 + len(without) / kurtosis(without, fisher=False)
    return wilson(share, float(t.ppf(0.975, freedom) * (len(without) * without.var()) ** 0.5))


def interval_of_frechet(fake: np.ndarray, real: Gaussian) -> tuple[float, float]:
    """95 % interval of a Frechet distance: the bootstrap of its linear part.

    A bootstrap of the distance itself is far too wide where there are few samples for the number of dimensions, since
    fewer different samples are further away. So each sample's influence on the distance is resampled (the
    infinitesimal jackknife; Efron 1982, chapter 6), whose mean is 0. In simulations the standard error was 1.0 to 1.5
    times the true one.
    """
    a = Gaussian.of(fake)
    x = torch.from_numpy(fake).double() - a.mean  # (N, D)
    # With M = B^(1/2) A B^(1/2), the derivative of 2 tr M^(1/2) with respect to A is B^(1/2) M^(-1/2) B^(1/2).
    values, vectors = torch.linalg.eigh(real.root @ a.covariance @ real.root)
    kept = values > 1e-12 * values.max()
    z = (x @ real.root @ vectors)[:, kept]  # (N, rank)
    cross = (z.square() / values[kept].sqrt()).sum(dim=1)  # (N,)
    influence = 2 * x @ (a.mean - real.mean) + x.square().sum(dim=1) - cross  # (N,)
    low, high = interval_of_mean((influence - influence.mean()).numpy())
    distance = frechet_distance(a, real)
    return max(0.0, distance + low), distance + high
