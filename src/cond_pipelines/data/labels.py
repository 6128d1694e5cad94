"""Values of a label or caption column to raw conditions."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np


class Choices(tuple):
    """Several conditions of one image, such as captions; one is drawn each time."""


def label_parser(values: Any, feature: Any) -> tuple[dict[int, str], Callable[[Any], Any]]:
    """Class names and a parser for a column of labels, or of lists of labels.

    Args:
        values: all values of the column.
        feature: its `datasets` feature.

    Returns:
        id2label, and a function from a value to its id, or to a tuple of ids (None: no label), that raises ValueError
        for a bad one.
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
    else:
        values = list(values)
        if not isinstance(feature, datasets.Value):
            raise ValueError(f"the label column holds no labels but {feature}: name another with --label_column")
        known = sorted({v for v in values if v is not None and v != "" and v != -1})
        if not known:
            raise ValueError("the label column holds no label")
        if all(isinstance(v, int) for v in known):
            if max(known) > 100 * len(known) + 1000:
                raise ValueError(f"labels up to {max(known)}, only {len(known)} different: number them 0, 1, 2, ...")
            id2label = {i: str(i) for i in range(max(known) + 1)}
        else:
            id2label = dict(enumerate(str(v) for v in known))
    ids = {name: i for i, name in id2label.items()}
    numeric = isinstance(feature, datasets.ClassLabel) or all(isinstance(v, int) for v in values if v is not None)

    def parse(value: Any) -> int | None:
        if value is None or value == "" or value == -1:
            return None
        if numeric:
            if value not in id2label:
                raise ValueError(f"label {value} is outside of 0 .. {len(id2label) - 1}")
            return int(value)
        return ids[str(value)]

    return id2label, parse


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
    """What an image was told, for a person."""
    if isinstance(condition, dict):
        return ", ".join(f"{k} {condition_name(v)}" for k, v in condition.items() if v is not None) or "nothing"
    if isinstance(condition, tuple):
        return ", ".join(condition_name(c, id2label) for c in condition)
    if isinstance(condition, list | np.ndarray):
        shown = ", ".join(f"{x:.3g}" if isinstance(x, float | np.floating) else str(x) for x in condition[:4])
        return f"[{shown}{', ...' if len(condition) > 4 else ''}]"
    return str((id2label or {}).get(condition, condition))


def parse_caption(value: Any) -> str | Choices:
    """One caption or several; raises ValueError where nothing is said."""
    captions = [c for c in (value if isinstance(value, list | tuple) else [value]) if c is not None]
    if not all(isinstance(c, str) for c in captions):
        raise ValueError(f"caption {value!r} is not text (another column may be: --caption_column)")
    captions = [c for c in captions if c.strip()]
    if not captions:
        raise ValueError(f"empty caption {value!r}")
    return Choices(captions) if isinstance(value, list | tuple) else captions[0]
