"""The rows of a report: a question, a measure of the samples, its interval, and the same of held-out real images."""

from dataclasses import dataclass, field

import numpy as np

from ..evaluation import measures as m
from ..pipelines.conditional import ConditionalPipeline
from .config import Report, Row

# Beside "the captions of training": those of held-out images that training never saw, and those of a file.
UNSEEN, COMBINATIONS = "captions unseen in training", "unseen combinations"


@dataclass
class Part:
    """Images as features (N, D), and the condition of each; `clip`: the CLIP score of each, where it is wanted."""

    features: np.ndarray
    conditions: list[object]
    clip: np.ndarray | None = None

    def of(self, keep: np.ndarray) -> "Part":
        """Those rows."""
        conditions = [c for c, k in zip(self.conditions, keep, strict=True) if k]
        return Part(self.features[keep], conditions, None if self.clip is None else self.clip[keep])

    @property
    def known(self) -> "Part":
        """Those that have a condition."""
        return self.of(np.array([c is not None and c != "" for c in self.conditions], dtype=bool))


@dataclass
class Sets:
    """What is compared: samples, training images and held-out ones; `unseen`: samples of captions of other kinds."""

    fake: Part
    train: Part
    held_out: Part
    unseen: dict[str, Part] = field(default_factory=dict)


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
        "value": _round(value),
        "better": better,
        "interval": None if interval is None else [_round(x) for x in interval],
        "real": None if real is None else _round(real),
    }


def mean_row(question: str, name: str, values: np.ndarray, real: float | None = None, better: str = "higher") -> Row:
    """The mean of one value an image, with its bootstrap interval."""
    return row(question, name, values.mean(), m.interval_of_mean(values), real, better)


def _round(value: float) -> float:
    return float(f"{float(value):.4g}")


def distribution_rows(fake: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> tuple[list[Row], np.ndarray]:
    """Alike, all of it, new: the rows that every setting has, and for each sample its nearest training image."""
    train_stats = m.Gaussian.of(train)
    frechet = m.frechet_distance(m.Gaussian.of(fake), train_stats)
    floor = m.frechet_distance(m.Gaussian.of(held_out), train_stats)
    interval = m.interval_of_frechet(fake, train_stats)
    rows = [row("alike?", "Frechet distance", frechet, interval, floor, "lower")]
    kernel, kernel_real = m.kernel_distance(fake, train), m.kernel_distance(held_out, train)
    mean, spread = kernel.mean(), 1.96 * kernel.std(ddof=1)
    rows.append(row("alike?", "kernel distance", mean, (mean - spread, mean + spread), kernel_real.mean(), "lower"))
    radius = m.radius(train)
    values, real = (m.manifolds(train, images, real_radius=radius) for images in (fake, held_out))
    questions = {"precision": "alike?", "density": "alike?", "recall": "all of it?", "coverage": "all of it?"}
    rows += [mean_row(question, name, values[name], real[name].mean()) for name, question in questions.items()]
    flags, pairs, _ = m.copies(fake, train, held_out)
    name = "closer to a training image than 99 % of held-out ones"
    rows.append(mean_row("new?", name, flags.astype(float), 0.01, "lower"))
    return rows, pairs


def label_rows(sets: Sets, id2label: dict[int, str]) -> tuple[list[Row], Report]:
    """Does it obey y: a linear probe on the features of real images, the probe's own ceiling, and each class by itself.

    Returns:
        Rows, and of the classes in the order of "names": "confusion" (condition, read) as counts, "frechet_distance"
        and "kernel_distance" of the samples of each to its training images, None where there are fewer than ten.
    """
    train, fake, held_out = sets.train.known, sets.fake.known, sets.held_out.known
    labels, conditions, shown = (np.array(part.conditions, dtype=int) for part in (train, fake, held_out))
    if len(set(labels.tolist())) < 2:
        return [], {}
    probe = m.Probe(train.features, labels)
    read, ceiling = probe(fake.features), None
    num_classes, known = max(id2label) + 1, list(id2label)  # a number without a name is no class
    frequency = np.bincount(labels, minlength=num_classes) / len(labels)
    if len(shown):
        read_real = probe(held_out.features)
        ceiling = float((read_real == shown).mean())
    rows = [mean_row("obeys y?", "class read right by a linear probe", (read == conditions).astype(float), ceiling)]
    interval = m.interval_of(lambda x: m.imbalance(x, frequency), read)
    floor = m.imbalance(read_real, frequency) if len(shown) else None
    rows.append(row("all of it?", "class imbalance", m.imbalance(read, frequency), interval, floor, "lower"))
    classes: Report = {"names": list(id2label.values()), "frechet_distance": [], "kernel_distance": []}
    classes["confusion"] = m.confusion(conditions, read, num_classes)[np.ix_(known, known)].tolist()
    for label in id2label:
        mine, real = fake.features[conditions == label], train.features[labels == label]
        enough = min(len(mine), len(real)) >= 10
        frechet = m.frechet_distance(m.Gaussian.of(mine), m.Gaussian.of(real)) if enough else None
        kernel = m.kernel_distance(mine, real, subsets=10).mean() if enough else None
        for key, value in (("frechet_distance", frechet), ("kernel_distance", kernel)):
            classes[key].append(None if value is None else _round(value))
    return rows, classes


def caption_rows(sets: Sets, pipe: ConditionalPipeline) -> list[Row]:
    """Does it obey the text: retrieval of the caption through a map fitted on real pairs, and the CLIP score."""
    parts = {"train": sets.train.known, "held out": sets.held_out.known, "": sets.fake.known} | sets.unseen
    vectors = _text_vectors(pipe, sorted({c for part in parts.values() for c in part.conditions}))

    def texts(part: Part) -> np.ndarray:
        return np.array([vectors[c] for c in part.conditions])

    retrieval = m.Retrieval(parts["train"].features, texts(parts["train"]))
    pool = np.array(list(vectors.values()))  # the same choices for all, so that the rows can be compared
    choices, seen, rows = min(100, len(pool)), set(parts["train"].conditions), []
    scores = {name: retrieval(part.features, texts(part), pool) for name, part in parts.items() if name != "train"}
    unseen = np.array([c not in seen for c in parts["held out"].conditions], dtype=bool)
    titles = {
        "r_at_1": f"R@1 of {choices} captions",
        "r_at_5": f"R@5 of {choices} captions",
        "auc": "matched against shuffled, AUC",
    }
    for kind in ("", *sets.unseen):
        if not len(parts[kind].conditions):
            continue
        suffix = f", {kind}" if kind else ""
        real = {"": np.ones_like(unseen), UNSEEN: unseen}.get(kind, np.zeros_like(unseen))
        for key, title in titles.items():
            ceiling = scores["held out"][key][real].mean() if real.any() else None
            rows.append(mean_row("obeys the text?", title + suffix, scores[kind][key], ceiling))
        if parts[kind].clip is not None:
            ceiling = parts["held out"].clip[real].mean() if real.any() else None
            rows.append(mean_row("obeys the text?", "CLIP score" + suffix, parts[kind].clip, ceiling))
    return rows


def _text_vectors(pipe: ConditionalPipeline, captions: list[str]) -> dict[str, np.ndarray]:
    """The mean of the model's own text encoder over each caption's tokens."""
    vectors: list[np.ndarray] = []
    for start in range(0, len(captions), 256):
        features = pipe._features(captions[start : start + 256])
        mask = features["mask"][..., None].float()  # (B, L, 1)
        mean = (features["hidden_states"].detach().float() * mask).sum(dim=1) / mask.sum(dim=1)  # (B, E)
        vectors.append(mean.cpu().numpy())
    return dict(zip(captions, np.concatenate(vectors), strict=True))
