"""Lines on a data set, for a person."""

from collections import Counter
from typing import Any

import numpy as np

from .labels import all_of

_SHOWN = 200  # characters of a caption


def summary_of_conditions(conditions: list[Any], id2label: dict[int, str] | None = None) -> list[str]:
    """A line on how many there are of each class, or on the captions, for a person; none where there are neither."""
    if id2label:
        counts = Counter(i for c in conditions for i in (c if isinstance(c, tuple) else [c]))
        shown = [f"{name} {counts.get(i, 0):,}" for i, name in list(id2label.items())[:20]]
        more = f", and {len(id2label) - 20} more" if len(id2label) > 20 else ""
        return [f"classes ({len(id2label)}): {', '.join(shown)}{more}; without a label: {counts[None]:,}"]
    texts = [text for text in all_of(conditions) if isinstance(text, str)]
    if not texts:
        return []
    words = np.array([len(t.split()) for t in texts])
    first = texts[0] if len(texts[0]) <= _SHOWN else f"{texts[0][:_SHOWN]}..."
    return [
        f"captions: {len(texts):,} ({len(set(texts)):,} different), {words.min()} to {words.max()} words, "
        f"median {int(np.median(words))}; for example {first!r}"
    ]


def summary_of_skipped(reasons: list[str]) -> list[str]:
    """How many rows were skipped, and why the first ten were; none where no row was."""
    if not reasons:
        return []
    more = [f"  and {len(reasons) - 10:,} more"] if len(reasons) > 10 else []
    return [f"skipped: {len(reasons):,}", *(f"  {reason}" for reason in reasons[:10]), *more]
