"""p(x|y): labels, one or several an image.

This file travels with a checkpoint. It needs base.py only.
"""

import difflib
import numbers
from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from cond_pipelines.adapters.base import Conditioning, ConditioningAdapter, Features, RawConditions, zero_init

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ClassLabelAdapter(ConditioningAdapter):
    """p(x|y): a learned vector for each class, added to the time embedding and as one token.

    An image may have several labels, in a list: their vectors are summed.

    Args:
        num_classes: number of classes; from `id2label` where that is given.
        id2label: {0: "cat", 1: "dog"}; saved in the configuration, so that a model knows its classes' names. A
            number without a name is no class. DiT's own works too: {0: "tench, Tinca tinca", ...} is known by either
            name, or by both as they stand.
        embedding_dim: of a class's vector.
        token_dim, pooled_dim: the UNet's socket; see `for_unet`.

    Raises:
        ValueError: for an unknown name, one that several classes have, or an id outside of 0 .. num_classes - 1.

    Example:
        >>> adapter = ClassLabelAdapter.for_unet(unet, id2label={0: "cat", 1: "dog"})
        >>> features = adapter.preprocess(["dog", 0, None])  # by name, by id, no label: unconditional
        >>> features = adapter.preprocess([["dog", "cat"], ["dog"]])  # both, one
        >>> cond = adapter(features)
    """

    conditioning = "class"

    @register_to_config
    def __init__(
        self,
        num_classes: int | None = None,
        id2label: dict[int, str] | None = None,
        embedding_dim: int = 128,
        token_dim: int | None = None,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        # JSON turns the keys into strings.
        self.id2label = {int(i): name for i, name in (id2label or {}).items()}
        self.num_classes = num_classes or max(self.id2label, default=-1) + 1
        if not self.num_classes:
            raise ValueError("ClassLabelAdapter needs num_classes or id2label, and got neither")
        if id2label and not all(0 <= i < self.num_classes for i in self.id2label):
            raise ValueError(f"id2label must number classes 0 .. {self.num_classes - 1}, not {sorted(self.id2label)}")
        self.register_to_config(num_classes=self.num_classes)
        # Standard normal vectors behind a projection that starts at zero. Vectors that start at zero themselves grow by
        # no more than the learning rate a step: too slow for a small network's first minutes.
        self.embedding = nn.Embedding(self.num_classes, embedding_dim)
        if token_dim is not None:
            self.token_proj = zero_init(nn.Linear(embedding_dim, token_dim))
        if pooled_dim is not None:
            self.pooled_proj = zero_init(nn.Linear(embedding_dim, pooled_dim))

    def label_id(self, label: int | str | None) -> int:
        """The id of a label given by id or by name; -1 for None."""
        if label is None:
            return -1
        if isinstance(label, str):
            ids = [i for i, name in self.id2label.items() if name == label] or [
                i for i, name in self.id2label.items() if label in map(str.strip, name.split(","))
            ]
            if len(ids) == 1:
                return ids[0]
            if ids:
                raise ValueError(f"class label {label!r} is the name of {' and '.join(map(str, ids))}: pass the id")
            names = [part.strip() for name in self.id2label.values() for part in name.split(",")]
            near = difflib.get_close_matches(label, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(f"unknown class label {label!r}{hint} (known: {known or 'ids only'})")
        label = label.item() if isinstance(label, torch.Tensor) else label
        if isinstance(label, bool) or not isinstance(label, numbers.Integral):
            raise ValueError(f"class label {str(label)[:60]!r} is neither the name nor the number of a class")
        if not 0 <= int(label) < self.num_classes:
            raise ValueError(f"class label {label} is outside of 0 .. {self.num_classes - 1}; None means no label")
        if self.id2label and int(label) not in self.id2label:
            raise ValueError(f"class label {label} is no class of this model: {self._known_ids()}; None means no label")
        return int(label)

    def _known_ids(self) -> str:
        return ", ".join(map(str, list(self.id2label)[:20])) + (", ..." if len(self.id2label) > 20 else "")

    def preprocess(self, raw: RawConditions, processor: "PreTrainedTokenizerBase | None" = None) -> Features:
        each = [label if isinstance(label, list | tuple) else [label] for label in raw]
        ids = [list(dict.fromkeys(self.label_id(label) for label in labels)) for labels in each]
        length = max((len(row) for row in ids), default=1)
        if length <= 1:
            return {"label": torch.tensor([row[0] if row else -1 for row in ids], dtype=torch.int64)}  # (B,)
        return {"label": torch.tensor([row + [-1] * (length - len(row)) for row in ids])}  # (B, L)

    def forward(self, features: Features) -> Conditioning:
        label = features["label"].reshape(features["label"].shape[0], -1)  # (B, L) int64, -1: no label
        known = (label >= 0)[..., None]  # (B, L, 1)
        vector = (self.embedding(label.clamp(min=0)) * known).sum(dim=1)  # (B, embedding_dim)
        known = known.any(dim=1)  # (B, 1)
        tokens = pooled = None
        if self.config.token_dim is not None:
            tokens = (self.token_proj(vector) * known)[:, None]  # (B, 1, token_dim)
        if self.config.pooled_dim is not None:
            pooled = self.pooled_proj(vector) * known  # (B, pooled_dim)
        return self.to_conditioning(tokens=tokens, pooled=pooled)
