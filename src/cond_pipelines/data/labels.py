"""Values of a label or caption column to raw conditions."""

from collections.abc import Callable
from typing import Any

import datasets


class Choices(tuple):
    """Several conditions of one image, such as captions; one is drawn each time."""


def label_parser(values: Any, feature: Any) -> tuple[dict[int, str], Callable[[Any], int | None]]:
    """Class names and a parser for a column of labels.

    Args:
        values: all values of the column.
        feature: its `datasets` feature.

    Returns:
        id2label, and a function from a value to its id (None: no label) that raises ValueError for a bad one.
    """
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


def parse_caption(value: Any) -> str | Choices:
    """One caption or several; raises ValueError where nothing is said."""
    captions = [c for c in (value if isinstance(value, list | tuple) else [value]) if c is not None]
    if not all(isinstance(c, str) for c in captions):
        raise ValueError(f"caption {value!r} is not text (another column may be: --caption_column)")
    captions = [c for c in captions if c.strip()]
    if not captions:
        raise ValueError(f"empty caption {value!r}")
    return Choices(captions) if isinstance(value, list | tuple) else captions[0]
