"""Raw conditions to the adapter's features, encoding each caption once where the encoder is frozen."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..conditional_pipeline import ConditionalPipeline

_REMEMBERED_BYTES = 2**30


class ConditionEncoder:
    """What the adapter's `preprocess` and `encode` need, taken from a pipeline.

    Args:
        pipe: whose adapter, tokenizer and text encoder are used.
        trainable: the encoder is trained, so inputs are passed on and encoded within the trained module.
    """

    def __init__(self, pipe: ConditionalPipeline, trainable: bool):
        self.adapter, self.trainable = pipe.adapter, trainable
        self.tokenizer = pipe.components.get("tokenizer")
        self.encoder = pipe.components.get("text_encoder")
        self._remembered: dict[bytes, dict[str, Tensor]] = {}
        self.stored: Any = {}  # by `keys`; see caching.py
        self._bytes = 0

    def preprocess(self, raw: list[Any]) -> dict[str, Tensor]:
        """Raw conditions of a batch to inputs, on the CPU."""
        return self.adapter.preprocess(raw, self.tokenizer)

    @torch.no_grad()
    def features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs to features, each with B rows."""
        if self.trainable:
            return inputs
        if self.encoder is None or "attention_mask" not in inputs:
            return self.adapter.encode(inputs, self.encoder)
        keys = self.keys(inputs)
        found = {key: self.stored[key] for key in keys if key in self.stored}
        found |= {key: self._remembered[key] for key in keys if key in self._remembered}
        first = {key: row for row, key in enumerate(keys) if key not in found}
        if first:
            for key, features in zip(first, self.encode_each(inputs, list(first.values())), strict=True):
                found[key] = features
                self._remember(key, features)
        return {
            name: pad_sequence([found[key][name] for key in keys], batch_first=True)  # (B, longest here, ...)
            for name in found[keys[0]]
        }

    def keys(self, inputs: dict[str, Tensor]) -> list[bytes]:
        """The token ids of each caption, without padding."""
        mask = inputs["attention_mask"].bool()  # (B, L)
        return [ids[m].cpu().numpy().tobytes() for ids, m in zip(inputs["input_ids"], mask, strict=True)]

    @torch.no_grad()
    def encode_each(self, inputs: dict[str, Tensor], rows: list[int]) -> list[dict[str, Tensor]]:
        """The features of some rows of a batch of captions, each without the padding of the batch."""
        encoded = self.adapter.encode({name: x[rows] for name, x in inputs.items()}, self.encoder)
        lengths = inputs["attention_mask"][rows].sum(dim=1).clamp(min=1).tolist()
        return [{name: x[i, :length].clone() for name, x in encoded.items()} for i, length in enumerate(lengths)]

    def _remember(self, key: bytes, features: dict[str, Tensor]) -> None:
        size = sum(x.nbytes for x in features.values())
        if self._bytes + size <= _REMEMBERED_BYTES:
            self._remembered[key] = features
            self._bytes += size
