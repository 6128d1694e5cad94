"""p(x | several conditions), any of them left out.

This file travels with a checkpoint, after adapters/base.py and the files of its parts, and needs nothing else.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cond_pipelines.adapters.base import Conditioning, ConditioningAdapter, Features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Conditions(Conditioning):
    """Several conditions of each image. What the UNet is told: their tokens one after the other, their pooled summed.

    What an image is not told has no part in attention: else it would depend on the longest caption of its batch, of
    whose length "no caption" is.

    Args:
        parts: each by itself, {"label": Conditioning, ...}.
        told: (B, K) bool, which of them each image is told.
    """

    parts: dict[str, Conditioning] = field(default_factory=dict)
    told: Tensor | None = None

    @classmethod
    def of(cls, parts: dict[str, Conditioning], told: Tensor) -> "_Conditions":
        """Join conditions of the same images."""
        pooled = [part.pooled for part in parts.values() if part.pooled is not None]
        pooled = sum(pooled[1:], pooled[0]) if pooled else None  # (B, pooled_dim)
        with_tokens = [
            (part, k) for part, k in zip(parts.values(), told.unbind(dim=1), strict=True) if part.tokens is not None
        ]
        if not with_tokens:
            return cls(None, None, pooled, parts, told)
        tokens = torch.cat([part.tokens for part, _ in with_tokens], dim=1)  # (B, L1 + L2 + ..., token_dim)
        if len(with_tokens) == 1:
            return cls(tokens, with_tokens[0][0].mask, pooled, parts, told)
        masks = [told.new_ones(p.tokens.shape[:2]) if p.mask is None else p.mask for p, _ in with_tokens]
        of_all = torch.cat(masks, dim=1)  # (B, L1 + L2 + ...)
        of_told = torch.cat([mask & k[:, None] for mask, (_, k) in zip(masks, with_tokens, strict=True)], dim=1)
        any_told = torch.stack([k for _, k in with_tokens], dim=1).any(dim=1, keepdim=True)  # (B, 1)
        mask = torch.where(any_told, of_told, of_all)  # attention needs a token, of zeros then
        return cls(tokens, mask, pooled, parts, told)

    def map(self, function: Callable[[Tensor], Tensor]) -> "_Conditions":
        return self.of({name: part.map(function) for name, part in self.parts.items()}, function(self.told))

    def where(self, keep: Tensor, other: "_Conditions") -> "_Conditions":
        """`keep` is (B,) for all conditions of an image, or (B, K) for each of them, in their order."""
        keep = keep.reshape(len(keep), -1).expand(-1, len(self.parts))  # (B, K)
        pairs = zip(self.parts.items(), keep.unbind(dim=1), strict=True)
        parts = {name: part.where(k, other.parts[name]) for (name, part), k in pairs}
        return self.of(parts, torch.where(keep, self.told, other.told))


class CompositeAdapter(ConditioningAdapter):
    """p(x | several conditions): an adapter for each, told together.

    A raw condition is a dictionary, such as {"label": "cat", "text": "a cat on a mat"}; what is not in it, or None, is
    left out. None leaves out all of them.

    Guidance may have a scale for each, `guidance_scale={"text": 5, "label": 2}` (1 for those not named). Written for
    conditions c_1, c_2 in their order, after InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800, Eq. 3):

        e(0, 0) + s_1 (e(c_1, 0) - e(0, 0)) + s_2 (e(c_1, c_2) - e(c_1, 0))

    It does not assume that the conditions have nothing to do with each other. It costs one pass of the UNet more than
    there are different scales; equal scales are ordinary guidance by all conditions together, and so is one condition.

    Args:
        adapters: by name, in the order of guidance, built for the same UNet; or a list, as the configuration holds it.
        dropout: the probability, in training, that a condition is left out, by name; default 0.1 each. Beside it
            `--condition_dropout` leaves out all at once.

    Raises:
        ValueError: a raw condition, `dropout` or `guidance_scale` names a condition that there is not.

    Example:
        >>> label = ClassLabelAdapter.for_unet(unet, id2label={0: "cat", 1: "dog"})
        >>> size = EmbeddingAdapter.for_unet(unet, embedding_dim=1)
        >>> pipe = ConditionalPipeline(unet, scheduler, CompositeAdapter({"label": label, "size": size}))
        >>> pipe([{"label": "cat", "size": 3.5}, {"size": 1}, None], guidance_scale={"label": 5, "size": 2}).images
    """

    conditioning = "composite"

    @register_to_config
    def __init__(
        self,
        adapters: dict[str, ConditioningAdapter] | list[dict[str, Any]],
        dropout: dict[str, float] | None = None,
        token_dim: int | None = None,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        if not adapters:
            raise ValueError("CompositeAdapter needs at least one adapter by name")
        # A list, for diffusers sorts the keys of a configuration.
        parts = adapters if isinstance(adapters, dict) else {spec["name"]: _build(spec) for spec in adapters}
        sockets = {(part.config.token_dim, part.config.pooled_dim) for part in parts.values()}
        if len(sockets) > 1:
            raise ValueError(f"the adapters are for different UNets, of sockets {sorted(sockets, key=str)}")
        if unknown := set(dropout or {}) - set(parts):
            raise ValueError(f"dropout names {sorted(unknown)}, and the conditions are {list(parts)}")
        self.parts = nn.ModuleDict(parts)
        self.dropout = [(dropout or {}).get(name, 0.1) for name in parts]
        self.num_coins = 1 + len(parts)
        ((token_dim, pooled_dim),) = sockets
        self.register_to_config(token_dim=token_dim, pooled_dim=pooled_dim)
        self._register_parts()

    def _register_parts(self) -> None:
        self.register_to_config(adapters=[{"name": name} | _spec(part) for name, part in self.parts.items()])

    @classmethod
    def for_unet(
        cls, unet: nn.Module, adapters: dict[str, Any], dropout: dict[str, float] | None = None, **kwargs: Any
    ):
        """Build one for the socket of `unet`; `kwargs`, such as text_encoder, go to the parts that know them.

        Args:
            adapters: by name, built for this UNet or to be built: {"class": "ClassLabelAdapter", "num_classes": 2}.
        """
        parts = {}
        for name, given in adapters.items():
            if isinstance(given, dict):
                part = _class_of({"name": name} | given)
                known = inspect.signature(part.for_unet).parameters
                more = {k: v for k, v in kwargs.items() if k in known}
                given = part.for_unet(unet, **more, **_arguments(given))
            parts[name] = given
        return cls(parts, dropout)

    def inherit_null(self, parent: nn.Module | None) -> None:
        for part in self.parts.values():
            part.inherit_null(parent)
        self._register_parts()

    def preprocess(
        self, raw: list[dict[str, Any] | None], processor: "PreTrainedTokenizerBase | None" = None
    ) -> Features:
        for condition in raw:
            if condition is not None and not isinstance(condition, dict):
                raise ValueError(
                    f"condition {condition!r} is not a dictionary with any of {list(self.parts)}, nor None"
                )
            if unknown := set(condition or {}) - set(self.parts):
                raise ValueError(
                    f"condition {condition!r} has {sorted(unknown)}, and the conditions are {list(self.parts)}"
                )
        told = [[(condition or {}).get(name) is not None for name in self.parts] for condition in raw]
        found = {"told": torch.tensor(told)}  # (B, K)
        for name, part in self.parts.items():
            inputs = part.preprocess([(condition or {}).get(name) for condition in raw], processor)
            found |= {f"{name}.{key}": x for key, x in inputs.items()}
        return found

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        each = {name: part.encode(_of_part(inputs, name), encoder) for name, part in self.parts.items()}
        found = {f"{name}.{key}": x for name, features in each.items() for key, x in features.items()}
        return {"told": inputs["told"]} | found

    def forward(self, features: Features) -> _Conditions:
        parts = {name: part(_of_part(features, name)) for name, part in self.parts.items()}
        return _Conditions.of(parts, features["told"])

    def null_like(self, cond: _Conditions) -> _Conditions:
        parts = {name: part.null_like(cond.parts[name]) for name, part in self.parts.items()}
        return _Conditions.of(parts, torch.zeros_like(cond.told))

    def keep(self, coins: Tensor, probability: float) -> Tensor:
        """(B, 1 + K) to (B, K) bool: the first coin is for all, the others for each."""
        return (coins[:, :1] >= probability) & (coins[:, 1:] >= coins.new_tensor(self.dropout))


def _of_part(features: Features, name: str) -> Features:
    return {key.removeprefix(f"{name}."): x for key, x in features.items() if key.startswith(f"{name}.")}


def _spec(part: ConditioningAdapter) -> dict[str, Any]:
    """A part as the configuration holds it."""
    arguments = {k: v for k, v in part.config.items() if not k.startswith("_")}
    return {"class": type(part).__name__, "from": type(part).__module__, **arguments}


def _arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """Those of the constructor."""
    return {k: v for k, v in spec.items() if k not in ("name", "class", "from")}


def _build(spec: dict[str, Any]) -> ConditioningAdapter:
    return _class_of(spec).from_config(_arguments(spec))


def _class_of(spec: dict[str, Any]) -> type[ConditioningAdapter]:
    """The class that a part's configuration names, of those that are imported."""
    known, home = [ConditioningAdapter], spec.get("from")
    for cls in known:  # grows while it is walked
        known += cls.__subclasses__()
    found = [cls for cls in known if cls.__name__ == spec.get("class")]
    found = [cls for cls in found if cls.__module__ == home] or found
    if not found:
        package = f", of the package {home.split('.')[0]!r}: install and import it" if home else ""
        raise ValueError(f"the condition {spec['name']!r} has an unknown adapter class {spec.get('class')!r}{package}")
    return found[0]
