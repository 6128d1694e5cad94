"""Prior preservation: images of what the model knows already, together with the few that it is to learn.

DreamBooth (Ruiz et al. 2022, arXiv 2208.12242, Eq. 2) adds their loss, times a weight. Here they are rows of the data
set that are drawn as often as the weight says: the same gradient in expectation, in the one loop.
"""

from typing import Any

import datasets
import numpy as np

from .config import ConditionColumn
from .loading import Columns, as_files, find_columns, load_source


def with_prior(
    rows: datasets.Dataset,
    columns: Columns,
    column: ConditionColumn | None,
    class_data_dir: str,
    class_prompt: str | None = None,
) -> tuple[datasets.Dataset, Columns]:
    """The rows of a data set, then those of `class_data_dir`, with no more than an image and a condition.

    Args:
        columns: of `rows`.
        column: how the conditions of `class_data_dir` are found.
        class_prompt: the caption, or the label's name, of all class images; None: as the folder says.

    Raises:
        ValueError: there are no such images, or nothing says what they show.
    """
    prior = load_source(class_data_dir)
    theirs = find_columns(prior.features, column if class_prompt is None else None)
    parts = [_image_and_condition(rows, columns), _image_and_condition(prior, theirs)]
    if columns.condition is not None:
        said = [_names(rows, columns.condition)]
        said.append([class_prompt] * len(prior) if theirs.condition is None else _names(prior, theirs.condition))
        if any(isinstance(value, list) for values in said for value in values):  # several captions
            said = [[v if isinstance(v, list) or v is None else [v] for v in values] for values in said]
        joined = datasets.Dataset.from_dict({"condition": said[0] + said[1]})
        both = datasets.concatenate_datasets([datasets.concatenate_datasets(parts), joined], axis=1)
        return both, Columns("image", "condition")
    return datasets.concatenate_datasets(parts), Columns("image")


def balanced(train: np.ndarray, held_out: np.ndarray, is_prior: np.ndarray, weight: float) -> tuple[Any, Any]:
    """Indices to train on, of which class images are `weight` times as many as others; none of them is held out.

    Args:
        is_prior: (N,) bool, by index.

    Example:
        >>> balanced(np.arange(5), np.arange(0), np.array([0, 0, 1, 1, 1], dtype=bool), weight=1.0)
        (array([0, 1, 0, 2, 3, 4]), array([], dtype=int64))
    """
    own, prior = train[~is_prior[train]], np.concatenate([train[is_prior[train]], held_out[is_prior[held_out]]])
    own = np.resize(own, max(len(own), round(len(prior) / weight)))
    return np.concatenate([own, np.resize(prior, round(weight * len(own)))]), held_out[~is_prior[held_out]]


def _image_and_condition(rows: datasets.Dataset, columns: Columns) -> datasets.Dataset:
    images = as_files(rows.select_columns([columns.image]), columns.image)
    return images if columns.image == "image" else images.rename_column(columns.image, "image")


def _names(rows: datasets.Dataset, column: str) -> list[Any]:
    """Captions, or the names of labels."""
    names = getattr(rows.features[column], "names", None)
    values = rows.select_columns([column])[column][:]
    if names is None:
        return [str(v) if isinstance(v, int) else v for v in values]
    return [None if v is None or v < 0 else names[v] for v in values]
