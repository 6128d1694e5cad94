"""Two models of two disjoint halves of the data: has it generalised, or memorised? Statistics of distances.

A model that has generalised does not depend on which half it saw, so its sample is as often nearest to an image of the
other half (Kadkhodaie et al. 2024, arXiv 2310.02557). Both models draw from the same noise and conditions. That one
half has more images near the samples of any model cancels out between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import measures as m
from .config import Row
from .questions import row

LEANS, MEMORISES = 0.25, 0.5  # of the samples, attributable to the half that the model saw
UNLIKE = 0.35  # see `unlikeness`; white noise around the mean image, of the best size, has 0.46 on digits of 8 px
_MOST_ROWS, _NO_VARIANCE = 1000, 1e-8
_Z = 1.959964


@dataclass(frozen=True)
class Nearest:
    """For each noise, the distances of both models' samples to the nearest image of each half.

    Args:
        own, other: (N, 2), of the models of the first and of the second half.
    """

    own: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[np.ndarray], halves: Sequence[np.ndarray]) -> "Nearest":
        """Of features: `samples` (N, D) of each model, `halves` (M, D) of the images that each saw."""
        to = [[m.nearest(x, half)[0][:, 0] for half in halves] for x in samples]
        return cls(np.stack([to[0][0], to[1][1]], axis=1), np.stack([to[0][1], to[1][0]], axis=1))

    @property
    def leans(self) -> np.ndarray:
        """(N,) from -1 to 1: 1 where both samples are nearer to the half that their model saw; a tie counts half."""
        own_is_nearer = (self.own < self.other) + 0.5 * (self.own == self.other)  # (N, 2)
        return np.asarray(own_is_nearer.sum(axis=1) - 1)

    @property
    def attributable(self) -> float:
        """The share of samples that are nearer to their model's own half because it saw that half.

        Where a share s of samples are copies and the others are as often nearer to either half, own is nearer for
        s + (1 - s) / 2 of all samples: s is twice the mean over both models, minus 1.
        """
        return float(self.leans.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `attributable` over the choice of noise and conditions (Agresti and Min 2005, section 3).

        A difference of paired shares, with a half of a pair added to each of the four cells: it has a width where all
        samples lean too.
        """
        u, count = self.leans, len(self.leans) + 2
        centre = u.sum() / count
        error = np.sqrt((np.square(u).sum() + 1 - count * centre**2) / count**2)
        value = self.attributable
        return max(-1.0, min(value, float(centre - _Z * error))), min(1.0, max(value, float(centre + _Z * error)))

    @property
    def p_value(self) -> float:
        """One-sided sign test of pairs that lean to their own halves against those that lean to the other ones."""
        from scipy.stats import binomtest

        own, other = int((self.leans > 0).sum()), int((self.leans < 0).sum())
        return float(binomtest(own, own + other, alternative="greater").pvalue) if own + other else 1.0

    @property
    def ratios(self) -> np.ndarray:
        """(N, 2): the distance to the nearest image of the own half, over that to the nearest of the other half."""
        least = np.finfo(np.float32).tiny
        return np.asarray((self.own + least) / (self.other + least))


def agreement(first: np.ndarray, second: np.ndarray, unrelated: np.ndarray) -> np.ndarray:
    """(N,) 1 where the models' samples of the same noise are nearer to each other than those of different noise.

    Args:
        first, second: (N, D) features of both models' samples of the same noise and conditions.
        unrelated: (N, D) of the second model's, of the same conditions and other noise.
    """
    same, other = (np.linalg.norm(first - x, axis=1) for x in (second, unrelated))
    return np.asarray((same < other) + 0.5 * (same == other))


def final_rows(
    near: Nearest,
    samples: Sequence[np.ndarray],
    unrelated: np.ndarray,
    held_out: np.ndarray,
    halves: Sequence[np.ndarray],
) -> list[Row]:
    """The table of a pair of models; arguments are features.

    Args:
        near: `Nearest.of(samples, halves)`.
        samples, unrelated: see `agreement`. held_out: of images that neither model saw.
    """
    question = "generalised?"
    ratios = near.ratios
    both = m.interval_of(lambda a, b: float(np.median([a, b])), ratios[:, 0], ratios[:, 1])
    rows = [
        row(question, "attributable to the half that was seen", near.attributable, near.interval, 0.0, "lower"),
        row(question, "nearest-training ratio, own half to other half", float(np.median(ratios)), both, 1.0, "lower"),
    ]
    for number in range(2):
        mine = ratios[:, number]
        ends = m.interval_of(lambda a: float(np.median(a)), mine)
        name = f"nearest-training ratio of the model of half {number + 1}"
        rows.append(row(question, name, float(np.median(mine)), ends, 1.0, "lower"))
    agrees = agreement(samples[0], samples[1], unrelated)
    ends = m.interval_of_mean((agrees > 0.5).astype(float))
    rows.append(row(question, "agreement against unrelated noise", float((agrees > 0.5).mean()), ends, 0.5))
    same, other = (np.linalg.norm(samples[0] - x, axis=1) for x in (samples[1], unrelated))
    floor = np.finfo(np.float32).tiny
    of_median = float(np.median(same) / max(np.median(other), floor))
    ends = m.interval_of(lambda a, b: float(np.median(a) / max(np.median(b), floor)), same, other)
    rows.append(
        row(question, "distance between both samples, to that of unrelated noise", of_median, ends, 1.0, "lower")
    )
    nearest = np.minimum(near.own, near.other).ravel()
    of_real = np.minimum(*(m.nearest(held_out, half)[0][:, 0] for half in halves))
    value = float(np.median(nearest) / max(np.median(of_real), floor))
    ends = m.interval_of(lambda a: float(np.median(a) / max(np.median(of_real), floor)), nearest)
    rows.append(row("alike?", "distance to the nearest image, to that of held-out images", value, ends, 1.0, "lower"))
    return rows


def frechet_of_rows(a: np.ndarray, b: np.ndarray) -> float:
    """`measures.frechet_distance` of (N, D) and (M, D) features, from N x M products: D may be large."""
    centred = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a.astype(np.float64), b.astype(np.float64))]
    # The covariances are A^T A and B^T B; the root of their product has the trace of the singular values of A B^T.
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    mean = np.square(a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)).sum()
    return float(mean + sum(np.square(x).sum() for x in centred) - 2 * cross)


def unlikeness(samples: Sequence[np.ndarray], halves: Sequence[np.ndarray]) -> float | None:
    """How far the samples of both models are from the images, by the Frechet distance.

    0: as far as the halves are from each other. 1: as far as a model is that always draws the mean of the images, which
    has learned nothing. Noise is mostly farther, and so is a model that is hardly trained. Of few images the halves
    are far from each other; then half of the distance of the mean image takes the place of what lies between. None:
    there is one image or sample, or all images are the same.

    Args:
        samples, halves: (N, D) features, of each model and of the images that it saw.
    """
    # Of all classes: rows of a folder are sorted by them.
    first, second = (np.random.default_rng(0).permutation(half)[:_MOST_ROWS].astype(np.float64) for half in halves)
    few = min(len(samples[0]), len(first), len(second))  # a distance of fewer rows is larger
    if few < 2:
        return None
    floor = (frechet_of_rows(first[:few], second) + frechet_of_rows(second[:few], first)) / 2
    mean_image = float(first.var(axis=0, ddof=1).sum() + second.var(axis=0, ddof=1).sum()) / 2
    if mean_image < _NO_VARIANCE:
        return None
    # Of each model to the images that it did not see: whether it copies is not the question here.
    apart = [frechet_of_rows(x[:_MOST_ROWS], half) for x, half in zip(samples, (second, first), strict=True)]
    return float((np.mean(apart) - floor) / max(mean_image - floor, mean_image / 2))


def verdict(
    interval: tuple[float, float], agrees: tuple[float, float], in_both: float = 0.0, unlike: float | None = None
) -> str:
    """ "memorised", "leans", "generalised", "hardly trained" or "undecided".

    Args:
        interval: of the share of samples attributable to the half that was seen.
        agrees: of the agreement of both models against unrelated noise.
        in_both: the share of images with a near-duplicate in the other half. Copies of them are as near to either half,
            so as many samples may be copies that `interval` does not see.
        unlike: `unlikeness`. Two models that turn noise into nearly the same noise depend on neither half.

    Example:
        >>> verdict((0.9, 1.0), (0.7, 0.8)), verdict((0.1, 0.2), (0.9, 1.0))
        ('memorised', 'generalised')
    """
    if interval[0] > MEMORISES:
        return "memorised"
    if interval[0] > LEANS:
        return "leans"
    if interval[1] + in_both >= MEMORISES or agrees[0] <= 0.5:
        return "undecided"
    return "hardly trained" if unlike is not None and unlike > UNLIKE else "generalised"


def from_step(steps: Sequence[int], lows: Sequence[float], threshold: float) -> int | None:
    """The first step from which on the lower end of the interval lies above a threshold; None: not at the end.

    It must hold at all later steps too, so looking at many steps finds nothing where the last one does not.
    """
    first = None
    for step, low in zip(reversed(steps), reversed(lows), strict=True):
        if low <= threshold:
            break
        first = step
    return first


def where_to_stop(steps: Sequence[int], lows: Sequence[float], losses: Sequence[float]) -> dict[str, int | bool | None]:
    """When samples begin to lean, what the held-out loss says then, and the last step before.

    Args:
        steps, lows, losses: of each step the lower end of the interval, and the held-out loss.
    """
    leans = from_step(steps, lows, LEANS)
    best = steps[int(np.argmin(losses))]
    earlier = [step for step in steps if leans is not None and step < leans]
    return {
        "leans_from_step": leans,
        "memorises_from_step": from_step(steps, lows, MEMORISES),
        "lowest_held_out_loss_at_step": best,
        "loss_still_falls_when_it_leans": leans is not None and best > leans,
        "stop_at_step": (earlier[-1] if earlier else None) if leans is not None else steps[-1],
    }
