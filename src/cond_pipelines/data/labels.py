"""Values of a label or caption column to raw conditions."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
import numpy as np

from .classes import class_name, in_order

ParseLabel = Callable[[Any], Any]


class Captions(tuple[str, ...]):
    """All captions of one image. Training draws one of them each time.

    Example:
        >>> captions = Captions(["a cat", "one cat"])
        >>> captions.first, captions.draw(np.random.default_rng(0))
        ('a cat', 'one cat')
    """

    @property
    def first(self) -> str:
        """The one that stands for the image where it is shown or evaluated."""
        return self[0]

    def draw(self, rng: np.random.Generator) -> str:
        """One of them, each as likely."""
        return self[rng.integers(len(self))]


Choices = Captions  # the name of before


def first(condition: Any) -> Any:
    """The one condition that stands for an image: its first caption, or the condition itself."""
    return condition.first if isinstance(condition, Captions) else condition


def draw(condition: Any, rng: np.random.Generator) -> Any:
    """The condition of one training step: one of several captions, or the condition itself."""
    return condition.draw(rng) if isinstance(condition, Captions) else condition


def all_of(conditions: Iterable[Any]) -> Iterator[Any]:
    """Every condition, each caption of an image by itself."""
    for condition in conditions:
        yield from condition if isinstance(condition, Captions) else [condition]


# ---------------------------------------------------------------------------------------------------------- labels
def label_parser(values: Iterable[Any], feature: Any) -> tuple[dict[int, str], ParseLabel]:
    """Class names and a parser for a column of labels, or of lists of labels.

    Whole numbers are ids of classes, also where they are stored as floats, and a number that no image has is no class.
    Booleans and text are names, which are sorted; those that are all whole numbers are sorted as numbers.

    Args:
        values: all values of the column.
        feature: its `datasets` feature.

    Returns:
        id2label, and a function from a value to its id, or to a tuple of ids (None: no label), that raises ValueError
        for a bad one.

    Raises:
        ValueError: no value is a label.
    """
    of_one = getattr(feature, "feature", None)
    if isinstance(of_one, datasets.ClassLabel | datasets.Value):
        id2label, parse_one = label_parser((v for several in values for v in several or ()), of_one)

        def parse_several(value: Any) -> tuple[int, ...] | None:
            ids = dict.fromkeys(map(parse_one, value or ()))
            return tuple(i for i in ids if i is not None) or None

        return id2label, parse_several
    if isinstance(feature, datasets.ClassLabel):
        id2label = dict(enumerate(feature.names))
        given = list(values)
        if given and all(_as_label(value) is None for value in given):
            raise ValueError("the label column holds no label")
        ids: dict[int | str, int] = {i: i for i in id2label}
    elif isinstance(feature, datasets.Value):
        id2label, ids = _classes_of({label for value in values if (label := _as_label(value)) is not None})
    else:
        raise ValueError(f"the label column holds no labels but {feature}: name another with --label_column")

    def parse(value: Any) -> int | None:
        label = _as_label(value)
        if label is None:
            return None
        if label not in ids:
            known = list(id2label)
            of_all = f"{known[0]} .. {known[-1]}" if isinstance(label, int) else ", ".join(list(id2label.values())[:20])
            raise ValueError(f"label {value} is outside of {of_all}")
        return ids[label]

    return id2label, parse


def _as_label(value: Any) -> int | str | None:
    """A number or a name; None for what means that there is none: None, "", -1 and not-a-number."""
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer()):
        return None if value == -1 else int(value)
    return class_name(str(value)) or None


def _classes_of(labels: set[int | str]) -> tuple[dict[int, str], dict[int | str, int]]:
    """(class names by id, ids by label). Raises ValueError where there is none, or ids are far apart."""
    if not labels:
        raise ValueError("the label column holds no label")
    numbers = sorted(label for label in labels if isinstance(label, int) and label >= 0)
    if all(isinstance(label, int) for label in labels):
        if not numbers:
            raise ValueError("the label column holds no label that is 0 or more")
        if numbers[-1] > 100 * len(numbers) + 1000:
            raise ValueError(f"labels up to {numbers[-1]}, only {len(numbers)} different: number them 0, 1, 2, ...")
        return {i: str(i) for i in numbers}, {i: i for i in numbers}
    id2label = dict(enumerate(in_order({str(label) for label in labels})))
    ids = {name: i for i, name in id2label.items()}
    return id2label, {label: ids[str(label)] for label in labels}


def vector_parser() -> Callable[[Any], np.ndarray | None]:
    """A function from a value to a vector (D,) float32, None for None; it raises ValueError for a bad one."""
    lengths: list[int] = []

    def parse(value: Any) -> np.ndarray | None:
        if value is None:
            return None
        try:
            vector = np.asarray(value, dtype=np.float32).reshape(-1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{str(value)[:40]!r} is no vector (another column may be: --condition_column)") from error
        if len(vector) != (lengths or [len(vector)])[0]:
            raise ValueError(f"a vector of {len(vector)} numbers, and the first has {lengths[0]}")
        lengths[:] = [len(vector)]
        if not np.isfinite(vector).all():
            raise ValueError("a vector with a number that is not finite (none at all means: no condition)")
        return vector

    return parse


def condition_name(condition: Any, id2label: dict[int, str] | None = None) -> str:
    """A condition in words; "no condition" of an image that has none."""
    if condition is None:
        return "no condition"
    if isinstance(condition, dict):
        shown = [f"{name} {condition_name(value)}" for name, value in condition.items() if value is not None]
        return ", ".join(shown) or condition_name(None)
    if isinstance(condition, tuple):
        return ", ".join(condition_name(c, id2label) for c in condition)
    if isinstance(condition, list | np.ndarray):
        shown = ", ".join(f"{x:.3g}" if isinstance(x, float | np.floating) else str(x) for x in condition[:4])
        return f"[{shown}{', ...' if len(condition) > 4 else ''}]"
    return str((id2label or {}).get(condition, condition))


def parse_caption(value: Any) -> str | Captions:
    """One caption or several; raises ValueError where nothing is said."""
    captions = [c for c in (value if isinstance(value, list | tuple) else [value]) if c is not None]
    if not all(isinstance(c, str) for c in captions):
        raise ValueError(f"caption {value!r} is not text (another column may be: --caption_column)")
    captions = [c for c in captions if c.strip()]
    if not captions:
        raise ValueError("the caption is empty" if value is not None else "there is no caption")
    return Captions(captions) if isinstance(value, list | tuple) else captions[0]
