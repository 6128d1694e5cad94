"""What is measured, as functions of features: (N, D) float32 arrays, one row an image.

    alike?      frechet_distance, kernel_distance, precision, density
    all of it?  recall, coverage
    new?        nearest
    obeys?      Probe (labels), retrieval (captions)

No matrix of all pairs is ever in memory: distances are made in blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

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


def radius(features: np.ndarray, k: int = 5) -> Tensor:
    """The distance of each row to its `k`-th nearest other row: (N,)."""
    distances = torch.full((len(features), k), float("inf"))

    def merge(start: int, block: Tensor) -> None:
        here = slice(start, start + block.shape[0])
        nearer = block.topk(min(k, block.shape[1]), dim=1, largest=False).values
        distances[here] = torch.cat([distances[here], nearer], dim=1).topk(k, dim=1, largest=False).values

    for i in range(0, len(features), _BLOCK):  # each pair of blocks once: distances are symmetric
        x = torch.from_numpy(np.ascontiguousarray(features[i : i + _BLOCK]))
        for j in range(i, len(features), _BLOCK):
            block = torch.cdist(x, torch.from_numpy(np.ascontiguousarray(features[j : j + _BLOCK])))
            if i == j:
                merge(i, block.fill_diagonal_(float("inf")))
            else:
                merge(i, block)
                merge(j, block.T)
    return distances[:, -1]


def manifolds(
    real: np.ndarray, fake: np.ndarray, k: int = 5, real_radius: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Precision and recall (Kynkaanniemi et al. 2019, Eq. 1), density and coverage (Naeem et al. 2020, Eq. 3 and 4).

    Args:
        real_radius: `radius(real, k)`, where it is known already.

    Returns:
        For each name one value an image: of `fake` for precision and density, of `real` for recall and coverage. Their
        means are the measures.

    Raises:
        ValueError: no more than `k` images in one of the sets.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"precision and recall need more than {k} images, and there are {min(len(real), len(fake))}")
    real_radius = radius(real, k) if real_radius is None else real_radius  # (R,)
    fake_radius = radius(fake, k)  # (F,)
    inside = torch.zeros(len(fake))  # balls of real images that a fake one lies in
    recall, coverage = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for i, j, block in _blocks(real, fake):
        rows, columns = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
        in_real = block <= real_radius[rows, None]
        inside[columns] += in_real.sum(dim=0)
        coverage[rows] |= in_real.any(dim=1)
        recall[rows] |= (block <= fake_radius[None, columns]).any(dim=1)
    values = {"precision": inside > 0, "density": inside / k, "recall": recall, "coverage": coverage}
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


class Probe:
    """A linear classifier on features: logistic regression by scikit-learn.

    Example:
        >>> probe = Probe(train_features, train_labels)
        >>> probe(fake_features) == labels
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, most: int = 20_000, seed: int = 0):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rows = np.random.default_rng(seed).permutation(len(features))[:most]
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        self.model.fit(features[rows], labels[rows])

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Labels (N,)."""
        return self.model.predict(features)


def confusion(conditions: np.ndarray, read: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class was the condition (rows) and was read in the sample (columns): (K, K) int."""
    from sklearn.metrics import confusion_matrix

    counts: np.ndarray = confusion_matrix(conditions, read, labels=range(num_classes))
    return counts


def imbalance(read: np.ndarray, frequency: np.ndarray) -> float:
    """Total variation distance between the classes read in samples (N,) and their `frequency` (K,) in the data.

    0: as often as in the data; 0.1: one sample in ten would have to be of another class.
    """
    shares = np.bincount(read, minlength=len(frequency)) / len(read)
    return float(np.abs(shares - frequency).sum() / 2)


class Retrieval:
    """How well images go with their captions, through a ridge map from image features to text embeddings.

    Args:
        images, texts: (N, D) and (N, E) features of real pairs.

    Example:
        >>> retrieval = Retrieval(train_images, train_texts)
        >>> retrieval(fake_images, their_texts)["r_at_1"]
    """

    def __init__(self, images: np.ndarray, texts: np.ndarray):
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.centre = texts.mean(axis=0)
        self.model = make_pipeline(StandardScaler(), RidgeCV(alphas=(1e-1, 1e1, 1e3)))
        self.model.fit(images, texts - self.centre)

    def __call__(
        self, images: np.ndarray, texts: np.ndarray, pool: np.ndarray | None = None, choices: int = 100, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """One value an image: r_at_1, r_at_5 among `choices` different captions; auc, matched against shuffled.

        Args:
            pool: (P, E) captions from which the other choices are drawn; default: `texts`.
        """
        mapped = _unit(self.model.predict(images))  # (N, E)
        own_texts = _unit(texts - self.centre)  # (N, E)
        others = own_texts if pool is None else _unit(pool - self.centre)  # (P, E)
        known, which = np.unique(np.concatenate([own_texts, others]).round(5), axis=0, return_inverse=True)  # (K, E)
        which, rng = which.reshape(-1)[: len(own_texts)], np.random.default_rng(seed)
        own = (mapped * own_texts).sum(axis=1)  # (N,)
        ranks, wins = np.zeros(len(images)), np.zeros(len(images))
        for i in range(len(images)):
            wrong = np.flatnonzero(np.arange(len(known)) != which[i])
            wrong = rng.permutation(wrong)[: choices - 1]
            similar = known[wrong] @ mapped[i]  # (choices - 1,)
            ranks[i] = (similar > own[i] + 1e-6).sum()
            wins[i] = (similar < own[i] - 1e-6).mean() if len(wrong) else 0.5
        return {"r_at_1": (ranks < 1).astype(float), "r_at_5": (ranks < 5).astype(float), "auc": wins}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)


# ----------------------------------------------------------------------------------------------------- how sure
def interval_of_mean(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of one value an image (Efron 1979)."""
    from scipy.stats import bootstrap

    if len(values) == 1:  # scipy refuses it
        return float(values[0]), float(values[0])
    options = {"n_resamples": resamples, "batch": max(1, 10**6 // len(values)), "rng": np.random.default_rng(seed)}
    low, high = bootstrap((values,), np.mean, method="percentile", **options).confidence_interval
    return float(low), float(high)


def interval_of(
    statistic: Callable[..., float], *values: np.ndarray, resamples: int = 300, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of any statistic of values an image, none below 0.

    Its spread is the bootstrap's, its centre the statistic itself, since distances grow when values are drawn twice:
    scipy.stats.bootstrap has no such interval.
    """
    rng, count = np.random.default_rng(seed), len(values[0])
    drawn = (rng.integers(count, size=count) for _ in range(resamples))
    resampled = np.array([statistic(*(v[rows] for v in values)) for rows in drawn])
    low, high = np.quantile(resampled - resampled.mean() + statistic(*values), [0.025, 0.975])
    return max(0.0, float(low)), float(high)


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


def calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, Eq. 3).

    0 where answers of confidence 0.8 are right in 80 % of the cases.

    torchmetrics' BinaryCalibrationError gives the same number (a test compares); three lines are no reason to need it.

    Args:
        confidence: (N,) probabilities of the chosen class. correct: (N,) 1 where it was right, otherwise 0.
    """
    part = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = [abs(correct[part == b].sum() - confidence[part == b].sum()) for b in range(num_bins)]
    return float(sum(gaps) / len(confidence))
