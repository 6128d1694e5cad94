"""The rows of a report: a question, a measure of the samples, its interval, and the same of held-out real images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..evaluation import kernels
from ..evaluation import measures as m
from .config import Row

_NO_END = float("inf")
# How the names of all rows begin, those of a condition in a composite after "NAME: ", and the values that there can be.
RANGES = {
    **dict.fromkeys(("Frechet distance", "kernel distance", "CMMD", "density"), (0.0, _NO_END)),
    **dict.fromkeys(("precision", "recall", "coverage"), (0.0, 1.0)),
    "Vendi score": (1.0, _NO_END),
    "closer to a training image than 99 % of held-out ones": (0.0, 1.0),
    "bits per dimension": (-_NO_END, _NO_END),
    **dict.fromkeys(("class read right by", "class imbalance", "labels separated by"), (0.0, 1.0)),
    **dict.fromkeys(("held-out images classified right", "calibration error of that"), (0.0, 1.0)),
    **dict.fromkeys(("R@1 of", "R@5 of", "matched against shuffled, AUC"), (0.0, 1.0)),
    "CLIP score": (0.0, 100.0),
    "correlation of the vector with what is read": (-1.0, 1.0),
}
MEASURES = tuple(RANGES)


def is_measure(name: str) -> bool:
    """Whether a report can have a row of this name."""
    return name.startswith(MEASURES) or name.partition(": ")[2].startswith(MEASURES)


def range_of(name: str) -> tuple[float, float]:
    """The values that a row of this name can have; any where it is no row of ours."""
    for part in (name, name.partition(": ")[2]):
        for start, ends in RANGES.items():
            if part.startswith(start):
                return ends
    return -_NO_END, _NO_END


@dataclass
class Part:
    """Images as features (N, D), and the condition of each.

    Args:
        clip: the CLIP score of each, where it is wanted, by the name of the condition that is a caption.
    """

    features: np.ndarray
    conditions: list[object]
    clip: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, keep: np.ndarray) -> "Part":
        """Those rows."""
        conditions = [c for c, k in zip(self.conditions, keep, strict=True) if k]
        return Part(self.features[keep], conditions, {name: scores[keep] for name, scores in self.clip.items()})

    def with_conditions(self, read: Callable[[object], object]) -> "Part":
        """The same images with another reading of their conditions."""
        return Part(self.features, [read(condition) for condition in self.conditions], self.clip)

    @property
    def known(self) -> "Part":
        """Those that have a condition."""
        return self.of(np.array([c is not None and c != "" for c in self.conditions], dtype=bool))


@dataclass
class Sets:
    """What is compared: samples, training images and held-out ones; `more`: samples of conditions of other kinds."""

    fake: Part
    train: Part
    held_out: Part
    more: dict[str, Part] = field(default_factory=dict)

    def with_conditions(self, read: Callable[[object], object], kinds: Mapping[str, str] | None = None) -> "Sets":
        """The same images with another reading of their conditions, and `more` by other names; those without are left.

        Args:
            kinds: new names by the old ones; default: all as they are.
        """
        parts = [part.with_conditions(read) for part in (self.fake, self.train, self.held_out)]
        kinds = {kind: kind for kind in self.more} if kinds is None else kinds
        more = {kinds[kind]: part.with_conditions(read) for kind, part in self.more.items() if kind in kinds}
        return Sets(*parts, more)


def row(
    question: str,
    name: str,
    value: float,
    interval: tuple[float, float] | None = None,
    real: float | None = None,
    better: str = "higher",
) -> Row:
    """One row, its numbers to four digits."""
    return {
        "question": question,
        "name": name,
        "value": rounded(value),
        "better": better,
        "interval": None if interval is None else [rounded(x) for x in interval],
        "real": None if real is None else rounded(real),
    }


def mean_row(question: str, name: str, values: np.ndarray, real: float | None = None, better: str = "higher") -> Row:
    """The mean of one value an image, with its bootstrap interval."""
    return row(question, name, values.mean(), m.interval_of_mean(values), real, better)


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{float(value):.4g}")


def distribution_rows(fake: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> tuple[list[Row], np.ndarray]:
    """Alike, all of it, new: the rows that every setting has, and for each sample its nearest training image."""
    train_stats = m.Gaussian.of(train)
    frechet = m.frechet_distance(m.Gaussian.of(fake), train_stats)
    floor = m.frechet_distance(m.Gaussian.of(held_out), train_stats)
    interval = m.interval_of_frechet(fake, train_stats)
    rows = [row("alike?", "Frechet distance", frechet, interval, floor, "lower")]
    for name, kernel in {"kernel distance": kernels.polynomial, "CMMD": kernels.gaussian}.items():
        of_real = kernels.within_real(train, kernel)
        value, error = kernels.mmd(fake, train, kernel, of_real)
        ends, real = kernels.interval_of_mmd(value, error), kernels.mmd(held_out, train, kernel, of_real)[0]
        rows.append(row("alike?", name, value, ends, real, "lower"))
    radius = m.radius(train)
    values, real = (m.manifolds(train, images, real_radius=radius) for images in (fake, held_out))
    rows += [mean_row("alike?", name, values[name], real[name].mean()) for name in ("precision", "density")]
    for name in ("recall", "coverage"):
        share = values[name].mean()
        ends = m.interval_of_share(share, values[f"{name} by"])
        rows.append(row("all of it?", name, share, ends, real[name].mean()))
    rows.append(_vendi_row(fake, train))
    flags, pairs, _ = m.copies(fake, train, held_out)
    name = "closer to a training image than 99 % of held-out ones"
    rows.append(mean_row("new?", name, flags.astype(float), 0.01, "lower"))
    return rows, pairs


def _vendi_row(fake: np.ndarray, train: np.ndarray, seed: int = 0) -> Row:
    """Of as many samples as training images, since the score grows with their number."""
    count, rng = min(len(fake), len(train)), np.random.default_rng(seed)
    (value, error), (real, _) = (kernels.vendi(x[rng.permutation(len(x))[:count]]) for x in (fake, train))
    ends = (max(1.0, value - 1.96 * error), min(float(count), value + 1.96 * error))
    return row("all of it?", "Vendi score", value, ends, real)
