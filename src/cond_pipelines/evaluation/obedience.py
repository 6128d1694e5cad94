"""Do samples show their conditions: rows for labels, several labels an image, captions, vectors, and several of these.

Each compares what was the condition of a sample with what a simple map, fitted on real images, reads in it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from ..adapters.base import ConditioningAdapter
from ..evaluation import measures as m
from ..evaluation import probes
from ..pipelines.conditional import ConditionalPipeline
from .conditions import COMBINATIONS, UNSEEN, ModelCondition
from .config import Report, Row
from .probes import Probe
from .questions import Part, Sets, mean_row, rounded, row

_LEAST = 10  # images of a class, or with and without a label, for a number of its own


def obedience_rows(
    model_conditions: list[ModelCondition], sets: Sets, pipe: ConditionalPipeline
) -> tuple[list[Row], dict[str, Report]]:
    """Rows of every condition, and by the names of the conditions the classes one by one of those that are labels.

    Of a composite, samples that have all conditions come first, then those that have one alone.
    """
    rows: list[Row] = []
    classes: dict[str, Report] = {}
    for each in model_conditions:
        of_condition, of_classes = _rows_of(each, sets.with_conditions(each.read, each.kinds), pipe)
        rows += [one | {"name": each.title(one["name"])} for one in of_condition]
        if of_classes:
            classes[each.name] = of_classes
    return rows, classes


def _rows_of(condition: ModelCondition, sets: Sets, pipe: ConditionalPipeline) -> tuple[list[Row], Report]:
    if condition.has_classes:
        return (several_label_rows if condition.has_several else label_rows)(sets, condition.id2label)
    if condition.has_captions:
        vectors_of = partial(_caption_features, condition.adapter, pipe=pipe)
        return caption_rows(sets, vectors_of, condition.name), {}
    if hasattr(condition.adapter, "vector_of"):
        return vector_rows(sets.with_conditions(condition.adapter.vector_of)), {}
    return [], {}


def classifier_row(
    name: str, condition: ModelCondition, sets: Sets, fake: np.ndarray, held_out: np.ndarray
) -> Row | None:
    """Does it obey y, by a classifier of the user's; its ceiling is what it makes of held-out images.

    Args:
        name: of the classifier.
        fake, held_out: what it reads in the samples and in the held-out images: see `features.load_classifier`.

    Returns:
        None where no label counts, see `several_label_rows`.
    """
    both = ((fake, sets.fake), (held_out, sets.held_out))
    parts = [Part(read, part.conditions).with_conditions(condition.read).known for read, part in both]
    if condition.has_several:
        columns = [dict(zip(condition.id2label, part.features.T, strict=True)) for part in parts]
        row_of = _separated(name, columns[0], parts[0], _aucs(columns[1], parts[1]))
        return None if row_of is None else row_of | {"name": condition.title(row_of["name"])}
    right = [(part.features[:, 0] == np.array(part.conditions)).astype(float) for part in parts]
    ceiling = float(right[1].mean()) if len(right[1]) else None
    return mean_row("obeys y?", condition.title(f"class read right by {name}"), right[0], ceiling)


def _fakes(sets: Sets) -> Iterator[tuple[str, Part]]:
    """(end of a row's name, samples that have a condition), for all kinds of samples."""
    for kind, part in {"": sets.fake, **sets.more}.items():
        if part.known.conditions:
            yield f", {kind}" if kind else "", part.known


# ---------------------------------------------------------------------------------------------------------- labels
def label_rows(sets: Sets, id2label: dict[int, str]) -> tuple[list[Row], Report]:
    """Does it obey y: a linear probe on the features of real images, the probe's own ceiling, and each class by itself.

    Returns:
        Rows, and of the classes in the order of "names": "confusion" (condition, read) as counts, "frechet_distance"
        and "kernel_distance" of the samples of each to its training images, None where there are fewer than ten.
    """
    train, held_out = sets.train.known, sets.held_out.known
    labels, shown = (np.array(part.conditions, dtype=int) for part in (train, held_out))
    if len(set(labels.tolist())) < 2:
        return [], {}
    probe = Probe(train.features, labels)
    read_real = probe(held_out.features) if len(shown) else None
    ceiling = None if read_real is None else float((read_real == shown).mean())
    rows = []
    for end, part in _fakes(sets):
        right = probe(part.features) == np.array(part.conditions, dtype=int)
        rows.append(mean_row("obeys y?", f"class read right by a linear probe{end}", right.astype(float), ceiling))
    fake = sets.fake.known
    if not fake.conditions:
        return rows, {}
    read, num_classes = probe(fake.features), max(id2label) + 1
    frequency = np.bincount(labels, minlength=num_classes) / len(labels)
    interval = m.interval_of(lambda x: probes.imbalance(x, frequency), read, high=1.0)
    floor = None if read_real is None else probes.imbalance(read_real, frequency)
    rows.append(row("all of it?", "class imbalance", probes.imbalance(read, frequency), interval, floor, "lower"))
    return rows, _each_class(fake, train, read, id2label)


def _each_class(fake: Part, train: Part, read: np.ndarray, id2label: dict[int, str]) -> Report:
    """See `label_rows`; `read`: the class that was read in each sample."""
    conditions, labels = (np.array(part.conditions, dtype=int) for part in (fake, train))
    known = list(id2label)  # a number without a name is no class
    classes: Report = {"names": list(id2label.values()), "frechet_distance": [], "kernel_distance": []}
    classes["confusion"] = probes.confusion(conditions, read, max(known) + 1)[np.ix_(known, known)].tolist()
    for label in known:
        mine, real = fake.features[conditions == label], train.features[labels == label]
        enough = min(len(mine), len(real)) >= _LEAST
        frechet = m.frechet_distance(m.Gaussian.of(mine), m.Gaussian.of(real)) if enough else None
        kernel = m.kernel_distance(mine, real, subsets=10).mean() if enough else None
        for key, value in (("frechet_distance", frechet), ("kernel_distance", kernel)):
            classes[key].append(None if value is None else rounded(value))
    return classes


def several_label_rows(sets: Sets, id2label: dict[int, str]) -> tuple[list[Row], Report]:
    """Does it obey several labels an image: the area under the ROC curve of a linear probe of each label.

    0.5: the label leaves no trace in the samples; 1: samples with it as a condition and those without are separated
    without an error. A label counts where ten training images, and ten samples, have it and ten have it not.

    Returns:
        Rows, and of the labels in the order of "names": "samples" that were to have it, "auc" and "auc_real", of
        samples and of held-out images, None where there are too few.
    """
    train, held_out = sets.train.known, sets.held_out.known
    of_label = {}
    for label in id2label:
        has = _has(train, label)
        if min(has.sum(), (~has).sum()) >= _LEAST:
            of_label[label] = Probe(train.features, has.astype(int))

    def read(part: Part) -> dict[int, np.ndarray]:
        return {label: probe.score(part.features) for label, probe in of_label.items()}

    real, rows = _aucs(read(held_out), held_out) if held_out.conditions else {}, []
    for end, part in _fakes(sets):
        separated = _separated("linear probes", read(part), part, real, end)
        rows += [] if separated is None else [separated]
    fake = sets.fake.known
    of_fake = _aucs(read(fake), fake) if fake.conditions else {}
    classes = {
        "names": list(id2label.values()),
        "samples": [int(_has(fake, label).sum()) for label in id2label],
        "auc": [rounded(of_fake[label]) if label in of_fake else None for label in id2label],
        "auc_real": [rounded(real[label]) if label in real else None for label in id2label],
    }
    return rows, classes


def _separated(
    by: str, scores: Mapping[int, np.ndarray], part: Part, real: Mapping[int, float], end: str = ""
) -> Row | None:
    """The row of scores (N,) of each label; None where no label counts. `real`: the AUC of held-out images."""
    counted = list(_aucs(scores, part))
    if not counted:
        return None
    has = np.stack([_has(part, label) for label in counted], axis=1)  # (N, K)
    of_counted = np.stack([scores[label] for label in counted], axis=1)  # (N, K)
    value, by_image = probes.mean_auc(has, of_counted), probes.auc_by(has, of_counted)
    # An area varies at most as a share of the images of its rarer sort does (Birnbaum and Klose 1957).
    rarest = int(np.minimum(has.sum(axis=0), (~has).sum(axis=0)).min())
    known = [real[label] for label in counted if label in real]
    ceiling = float(np.mean(known)) if known else None
    name = f"labels separated by {by}, mean AUC of {len(counted)}{end}"
    return row("obeys y?", name, value, m.interval_of_share(value, by_image, rarest), ceiling)


def _has(part: Part, label: int) -> np.ndarray:
    """(N,) bool: whether each image is to have the label."""
    return np.array([label in (c if isinstance(c, tuple) else (c,)) for c in part.conditions], dtype=bool)


def _aucs(scores: Mapping[int, np.ndarray], part: Part) -> dict[int, float]:
    """Of each label, without those that fewer than ten images have, or fewer than ten have not."""
    has = {label: _has(part, label) for label in scores}
    counted = [label for label in scores if min(has[label].sum(), (~has[label]).sum()) >= _LEAST]
    return {label: probes.mean_auc(has[label][:, None], scores[label][:, None]) for label in counted}


# -------------------------------------------------------------------------------------------------------- captions
def caption_rows(sets: Sets, vectors_of: Callable[[list[str]], np.ndarray], name: str = "") -> list[Row]:
    """Does it obey the text: retrieval of the caption through a map fitted on real pairs, and the CLIP score.

    Args:
        vectors_of: captions to (N, E): the mean of the model's own text encoder over the tokens of each.
        name: of the condition, of which there is a CLIP score.
    """
    parts = {"train": sets.train.known, "held out": sets.held_out.known, "": sets.fake.known}
    parts |= {kind: part.known for kind, part in sets.more.items()}
    if not parts["train"].conditions:
        return []
    captions = sorted({c for part in parts.values() for c in part.conditions})
    vectors = dict(zip(captions, vectors_of(captions), strict=True))

    def texts(part: Part) -> np.ndarray:
        return np.array([vectors[c] for c in part.conditions])

    retrieval = probes.Retrieval(parts["train"].features, texts(parts["train"]))
    pool = np.array(list(vectors.values()))  # the same choices for all, so that the rows can be compared
    choices, seen, rows = min(100, len(pool)), set(parts["train"].conditions), []
    shown = [name for name, part in parts.items() if name != "train" and part.conditions]
    scores = {name: retrieval(parts[name].features, texts(parts[name]), pool) for name in shown}
    unseen = np.array([c not in seen for c in parts["held out"].conditions], dtype=bool)
    titles = {
        "r_at_1": f"R@1 of {choices} captions",
        "r_at_5": f"R@5 of {choices} captions",
        "auc": "matched against shuffled, AUC",
    }
    for end, part in _fakes(sets):
        kind = end.removeprefix(", ")
        real = {UNSEEN: unseen, COMBINATIONS: np.zeros_like(unseen)}.get(kind, np.ones_like(unseen))
        for key, title in titles.items():
            ceiling = scores["held out"][key][real].mean() if real.any() else None
            values = scores[kind][key]
            of_mean = mean_row("obeys the text?", title + end, values, ceiling)
            if key == "auc" and len(values) > 1:  # a share of captions, mostly near 1, where a bootstrap is too narrow
                ends = m.interval_of_share(values.mean(), (values - values.mean()) / (len(values) - 1))
                of_mean["interval"] = [rounded(x) for x in ends]
            rows.append(of_mean)
        if name in part.clip:
            ceiling = parts["held out"].clip[name][real].mean() if real.any() else None
            rows.append(mean_row("obeys the text?", "CLIP score" + end, part.clip[name], ceiling))
    return rows


def _caption_features(adapter: ConditioningAdapter, captions: list[str], pipe: ConditionalPipeline) -> np.ndarray:
    """The mean of the model's own text encoder over each caption's tokens, (N, E)."""
    means: list[np.ndarray] = []
    for start in range(0, len(captions), 256):
        inputs = adapter.preprocess(captions[start : start + 256], pipe.components.get("tokenizer"))
        inputs = {name: x.to(pipe._execution_device) for name, x in inputs.items()}
        features = adapter.encode(inputs, pipe.components.get("text_encoder"))
        mask = features["mask"][..., None].float()  # (B, L, 1)
        mean = (features["hidden_states"].detach().float() * mask).sum(dim=1) / mask.sum(dim=1)  # (B, E)
        means.append(mean.cpu().numpy())
    return np.concatenate(means)


# --------------------------------------------------------------------------------------------------------- vectors
def vector_rows(sets: Sets) -> list[Row]:
    """Does it obey a vector: the correlation of what was the condition with what a ridge map reads in the samples.

    The mean over the vector's numbers that vary, of Pearson's r. The map is fitted on training images.
    """

    def vectors(part: Part) -> np.ndarray:
        return np.stack([np.asarray(c, dtype=np.float64).reshape(-1) for c in part.conditions])  # (N, E)

    train, held_out = sets.train.known, sets.held_out.known
    if len(train.conditions) < _LEAST or not vectors(train).std(axis=0).any():
        return []
    read = probes.ridge(train.features, vectors(train))
    ceiling = None
    if len(held_out.conditions) >= _LEAST:
        ceiling = probes.mean_correlation(vectors(held_out), read(held_out.features))
    rows = []
    for end, part in _fakes(sets):
        values = vectors(part), read(part.features)
        interval = m.interval_of(probes.mean_correlation, *values, low=-1.0, high=1.0)
        name = f"correlation of the vector with what is read{end}"
        rows.append(row("obeys v?", name, probes.mean_correlation(*values), interval, ceiling))
    return rows
