"""Raw conditions to the adapter's features, encoding each caption once where the encoder is frozen."""

from typing import Protocol

import torch
from torch import Tensor

from ..data.labels import all_of
from ..data.load import TrainingData
from ..pipelines.conditional import ConditionalPipeline

_REMEMBERED_BYTES = 2**30


class Stored(Protocol):
    """Features of captions by their token ids, as a dictionary or on disk."""

    def __contains__(self, key: bytes, /) -> bool: ...

    def __getitem__(self, key: bytes, /) -> dict[str, Tensor]: ...


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
        self.stored: Stored = {}  # by `keys`; see caching.py
        self._bytes = 0

    def preprocess(self, raw: list[object]) -> dict[str, Tensor]:
        """Raw conditions of a batch to inputs, on the CPU."""
        inputs: dict[str, Tensor] = self.adapter.preprocess(raw, self.tokenizer)
        return inputs

    def lost_words(self, data: TrainingData) -> list[str]:
        """Lines on what of the captions the model does not see; see `adapters.text.lost_words`."""
        if self.tokenizer is None or not hasattr(self.adapter, "lost_words"):
            return []
        captions = [c for c in all_of(data.dataset.conditions()) if isinstance(c, str)]
        lines: list[str] = self.adapter.lost_words(captions, self.tokenizer)
        return lines

    @torch.no_grad()
    def features(self, inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Inputs, on the CPU, to features on a device, each with B rows; without waiting for a GPU."""
        if self.trainable:
            return _on(device, inputs)
        if self.encoder is None or "attention_mask" not in inputs:
            encoded: dict[str, Tensor] = self.adapter.encode(_on(device, inputs), self.encoder)
            return encoded
        keys = self.keys(inputs)
        if all(key in self.stored for key in keys):
            return _on(device, _padded([self.stored[key] for key in keys]))
        known = {key: self._remembered[key] for key in keys if key in self._remembered}
        first = {key: row for row, key in enumerate(keys) if key not in known}
        if first:
            for key, features in zip(first, self.encode_each(inputs, list(first.values()), device), strict=True):
                known[key] = features
                self._remember(key, features)
        return _padded([known[key] for key in keys])

    def keys(self, inputs: dict[str, Tensor]) -> list[bytes]:
        """The token ids of each caption, without padding; of inputs on the CPU."""
        mask = inputs["attention_mask"].bool()  # (B, L)
        return [ids[m].numpy().tobytes() for ids, m in zip(inputs["input_ids"], mask, strict=True)]

    @torch.no_grad()
    def encode_each(self, inputs: dict[str, Tensor], rows: list[int], device: torch.device) -> list[dict[str, Tensor]]:
        """The features of these rows of a batch of captions, each without the padding of the batch."""
        inputs = {name: x[rows] for name, x in inputs.items()}
        encoded = self.adapter.encode(_on(device, inputs), self.encoder)
        lengths = inputs["attention_mask"].sum(dim=1).clamp(min=1).tolist()
        return [{name: x[i, :length].clone() for name, x in encoded.items()} for i, length in enumerate(lengths)]

    def _remember(self, key: bytes, features: dict[str, Tensor]) -> None:
        size = sum(x.nbytes for x in features.values())
        if self._bytes + size <= _REMEMBERED_BYTES:
            self._remembered[key] = features
            self._bytes += size


def _on(device: torch.device, values: dict[str, Tensor]) -> dict[str, Tensor]:
    pinned = values if device.type != "cuda" else {name: x.pin_memory() for name, x in values.items()}
    return {name: x.to(device, non_blocking=True) for name, x in pinned.items()}


def _padded(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Those of each caption as those of a batch: (B, longest here, ...), zeros behind the shorter ones.

    As `pad_sequence`, which writes caption by caption: on a GPU that is B kernels, here it is three.
    """
    lengths = torch.tensor([len(next(iter(one.values()))) for one in features])  # (B,)
    places = torch.arange(int(lengths.max()))  # (L,)
    real = places < lengths[:, None]  # (B, L)
    # Row 0 is of zeros; the captions' rows follow, one after the other.
    index = torch.where(real, 1 + places + (lengths.cumsum(0) - lengths)[:, None], 0)  # (B, L)
    index = _on(next(iter(features[0].values())).device, {"index": index})["index"]
    padded = {}
    for name, first in features[0].items():
        rows = torch.cat([first.new_zeros(1, *first.shape[1:]), *(one[name] for one in features)])  # (1 + sum, ...)
        padded[name] = rows[index]
    return padded
