"""Do samples show their conditions: rows for labels, several labels an image, captions, vectors, and several of these.

Each compares what was the condition of a sample with what a simple map, fitted on real images, reads in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..adapters.base import ConditioningAdapter
from ..evaluation import measures as m
from ..evaluation import probes
from ..pipelines.conditional import ConditionalPipeline
from ..settings import SETTINGS, Setting
from .config import Report, Row
from .probes import Probe
from .questions import Part, Sets, mean_row, rounded, row

# Apart from the captions of training: those of held-out images that training never saw, and those of a file.
UNSEEN, COMBINATIONS = "captions unseen in training", "unseen combinations"
_LEAST = 10  # images of a class, or with and without a label, for a number of its own


@dataclass(frozen=True)
class ModelCondition:
    """One of the conditions of a model.

    Args:
        name: of a part of a composite; "" where there is one condition.
        adapter: of this condition.
        setting: its row; None: a third party's, that has none.
        id2label: class names by id, where it is a label.
    """

    name: str
    adapter: ConditioningAdapter
    setting: Setting | None
    id2label: dict[int, str]

    def read(self, raw: object) -> object:
        """This one of a raw condition: an id, a tuple of ids, a caption, a vector; None: the image has none."""
        value = raw.get(self.name) if self.name and isinstance(raw, dict) else raw
        if value is None or not self.name:
            return value
        if self.setting is not None and self.setting.has_classes:
            several = isinstance(value, list | tuple)
            return tuple(map(self.adapter.label_id, value)) if several else self.adapter.label_id(value)
        return value

    @property
    def alone(self) -> str:
        """The kind of samples that have this condition only."""
        return f"{self.name} alone"


def conditions_of_model(
    adapter: ConditioningAdapter, setting: Setting, id2label: dict[int, str] | None
) -> list[ModelCondition]:
    """The conditions of a model, those of a composite one by one.

    Args:
        id2label: class names of the data, for a model of labels.
    """
    parts = getattr(adapter, "parts", None)
    if parts is None:
        return [ModelCondition("", adapter, setting, id2label or {})]
    conditions = []
    for name, part in parts.items():
        names = {i: str(i) for i in range(getattr(part, "num_classes", 0))} | getattr(part, "id2label", {})
        conditions.append(ModelCondition(name, part, SETTINGS.get(part.conditioning), names))
    return conditions


def obedience_rows(
    model_conditions: list[ModelCondition], sets: Sets, pipe: ConditionalPipeline
) -> tuple[list[Row], Report]:
    """Rows of every condition, and the classes one by one of a model of labels.

    Of a composite, samples that have all conditions come first, then those that have one alone.
    """
    rows: list[Row] = []
    classes: Report = {}
    for each in model_conditions:
        mine = sets.with_conditions(each.read, (each.alone,) if each.name else tuple(sets.more))
        of_condition, of_classes = _rows_of(each, mine, pipe)
        rows += [one | {"name": f"{each.name}: {one['name']}"} if each.name else one for one in of_condition]
        classes = classes if each.name else of_classes
    return rows, classes


def _rows_of(condition: ModelCondition, sets: Sets, pipe: ConditionalPipeline) -> tuple[list[Row], Report]:
    setting = condition.setting
    if setting is not None and setting.has_classes:
        several = any(isinstance(raw, tuple) for raw in sets.train.conditions)
        return (several_label_rows if several else label_rows)(sets, condition.id2label)
    if setting is not None and setting.has_captions:
        return caption_rows(sets, lambda captions: _caption_features(condition.adapter, captions, pipe)), {}
    if hasattr(condition.adapter, "vector_of"):
        return vector_rows(sets.with_conditions(condition.adapter.vector_of, tuple(sets.more))), {}
    return [], {}


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
    real = {label: _auc(of_label[label], held_out, label) for label in of_label}
    rows, of_fake = [], {}
    for end, part in _fakes(sets):
        auc = {label: _auc(of_label[label], part, label) for label in of_label}
        counted = [label for label in auc if auc[label] is not None]
        of_fake = of_fake or auc
        if not counted:
            continue
        has = np.stack([_has(part, label) for label in counted], axis=1)  # (N, K)
        scores = np.stack([of_label[label].score(part.features) for label in counted], axis=1)  # (N, K)
        value, by_image = probes.mean_auc(has, scores), probes.auc_by(has, scores)
        # An area varies at most as a share of the images of its rarer sort does (Birnbaum and Klose 1957).
        rarest = int(np.minimum(has.sum(axis=0), (~has).sum(axis=0)).min())
        known = [x for label in counted if (x := real[label]) is not None]
        ceiling = float(np.mean(known)) if known else None
        name = f"labels separated by linear probes, mean AUC of {len(counted)}{end}"
        rows.append(row("obeys y?", name, value, m.interval_of_share(value, by_image, rarest), ceiling))
    fake = sets.fake.known
    classes = {
        "names": list(id2label.values()),
        "samples": [int(_has(fake, label).sum()) for label in id2label],
        "auc": [None if of_fake.get(label) is None else rounded(of_fake[label]) for label in id2label],
        "auc_real": [None if real.get(label) is None else rounded(real[label]) for label in id2label],
    }
    return rows, classes


def _has(part: Part, label: int) -> np.ndarray:
    """(N,) bool: whether each image is to have the label."""
    return np.array([label in (c if isinstance(c, tuple) else (c,)) for c in part.conditions], dtype=bool)


def _auc(probe: Probe, part: Part, label: int) -> float | None:
    """None where fewer than ten images have the label, or fewer than ten have not."""
    has = _has(part, label)
    if min(has.sum(), (~has).sum()) < _LEAST:
        return None
    return probes.mean_auc(has[:, None], probe.score(part.features)[:, None])


# -------------------------------------------------------------------------------------------------------- captions
def caption_rows(sets: Sets, vectors_of: Callable[[list[str]], np.ndarray]) -> list[Row]:
    """Does it obey the text: retrieval of the caption through a map fitted on real pairs, and the CLIP score.

    Args:
        vectors_of: captions to (N, E): the mean of the model's own text encoder over the tokens of each.
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
            found = scores[kind][key]
            of_mean = mean_row("obeys the text?", title + end, found, ceiling)
            if key == "auc" and len(found) > 1:  # a share of captions, mostly near 1, where a bootstrap is too narrow
                ends = m.interval_of_share(found.mean(), (found - found.mean()) / (len(found) - 1))
                of_mean["interval"] = [rounded(x) for x in ends]
            rows.append(of_mean)
        if part.clip is not None:
            ceiling = parts["held out"].clip[real].mean() if real.any() else None
            rows.append(mean_row("obeys the text?", "CLIP score" + end, part.clip, ceiling))
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
