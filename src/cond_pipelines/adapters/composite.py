"""p(x | several conditions), each of them optional.

This file travels with a checkpoint. It needs adapters/base.py and the files of its parts only.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cond_pipelines.adapters.base import Conditioning, ConditioningAdapter, Features

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedTokenizerBase

Spec = dict[str, object]  # a part as the configuration holds it: name, class, from, and its constructor's arguments


@dataclass(frozen=True)
class _Conditions(Conditioning):
    """Several conditions of each image: their tokens one after the other, their pooled vectors summed.

    A condition that an image does not have takes no part in attention: otherwise the image would depend on the longest
    caption of its batch, since "no caption" is as long.

    Args:
        parts: each by itself, {"label": Conditioning, ...}.
        present: (B, K) bool, which of them each image has.
    """

    parts: dict[str, Conditioning] = field(default_factory=dict)
    present: Tensor | None = None

    @classmethod
    def of(cls, parts: dict[str, Conditioning], present: Tensor) -> "_Conditions":
        """Join conditions of the same images."""
        vectors = [part.pooled for part in parts.values() if part.pooled is not None]
        pooled = sum(vectors[1:], vectors[0]) if vectors else None  # (B, pooled_dim)
        sequences, masks, is_present = [], [], []
        for part, k in zip(parts.values(), present.unbind(dim=1), strict=True):
            if part.tokens is None:
                continue
            sequences.append(part.tokens)
            masks.append(part.mask)
            is_present.append(k)  # (B,)
        if not sequences:
            return cls(None, None, pooled, parts, present)
        tokens = torch.cat(sequences, dim=1)  # (B, L1 + L2 + ..., token_dim)
        if len(sequences) == 1:
            return cls(tokens, masks[0], pooled, parts, present)
        full = [present.new_ones(x.shape[:2]) if m is None else m for x, m in zip(sequences, masks, strict=True)]
        of_all = torch.cat(full, dim=1)  # (B, L1 + L2 + ...)
        of_present = torch.cat([m & k[:, None] for m, k in zip(full, is_present, strict=True)], dim=1)
        any_present = torch.stack(is_present, dim=1).any(dim=1, keepdim=True)  # (B, 1)
        mask = (any_present & of_present) | (~any_present & of_all)  # attention needs a token, of zeros then
        return cls(tokens, mask, pooled, parts, present)

    def map(self, function: Callable[[Tensor], Tensor]) -> "_Conditions":
        present = function(cast(Tensor, self.present))
        return self.of({name: part.map(function) for name, part in self.parts.items()}, present)

    def where(self, keep: Tensor, other: Conditioning) -> "_Conditions":
        """`keep` is (B,) for all conditions of an image, or (B, K) for each of them, in their order."""
        other = cast(_Conditions, other)
        keep = keep.reshape(keep.shape[0], -1).expand(-1, len(self.parts))  # (B, K)
        pairs = zip(self.parts.items(), keep.unbind(dim=1), strict=True)
        parts = {name: part.where(k, other.parts[name]) for (name, part), k in pairs}
        return self.of(parts, torch.where(keep, self.present, other.present))


class CompositeAdapter(ConditioningAdapter):
    """p(x | several conditions): an adapter for each.

    A raw condition is a dictionary, such as {"label": "cat", "text": "a cat on a mat"}; a
    condition that is missing, or None, has no effect. None in place of the dictionary: no condition at all.

    Guidance may have a scale for each, `guidance_scale={"text": 5, "label": 2}` (1 for those not named). Written for
    conditions c_1, c_2 in their order, after InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800, Eq. 3):

        e(0, 0) + s_1 (e(c_1, 0) - e(0, 0)) + s_2 (e(c_1, c_2) - e(c_1, 0))

    It does not assume that the conditions have nothing to do with each other. It costs one pass of the UNet more than
    there are different scales; equal scales are ordinary guidance by all conditions together, and so is one condition.

    Args:
        adapters: by name, in the order of guidance, built for the same UNet; or a list, as the configuration holds it.
        dropout: the probability, in training, of dropping a condition, by name; default 0.1 each. In addition
            `--condition_dropout` drops all at once.

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
        adapters: dict[str, ConditioningAdapter] | list[Spec],
        dropout: dict[str, float] | None = None,
        token_dim: int | None = None,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        if not adapters:
            raise ValueError("CompositeAdapter needs at least one adapter by name")
        # A list, for diffusers sorts the keys of a configuration.
        parts = adapters if isinstance(adapters, dict) else {str(spec["name"]): _build(spec) for spec in adapters}
        sockets = {(part.config.token_dim, part.config.pooled_dim) for part in parts.values()}
        if len(sockets) > 1:
            raise ValueError(f"the adapters are for different UNets, of sockets {sorted(sockets, key=str)}")
        if unknown := set(dropout or {}) - set(parts):
            raise ValueError(f"dropout names {sorted(unknown)}, and the conditions are {list(parts)}")
        self.parts = nn.ModuleDict(parts)
        self.dropout = [(dropout or {}).get(name, 0.1) for name in parts]
        self.num_dropout_draws = 1 + len(parts)
        ((token_dim, pooled_dim),) = sockets
        self.register_to_config(token_dim=token_dim, pooled_dim=pooled_dim)
        self._register_parts()

    def _register_parts(self) -> None:
        self.register_to_config(adapters=[{"name": name} | _spec(part) for name, part in self.parts.items()])

    @classmethod
    def for_unet(  # type: ignore[override]  # it names two of its keywords
        cls,
        unet: nn.Module,
        adapters: dict[str, ConditioningAdapter | Spec] | None = None,
        dropout: dict[str, float] | None = None,
        **kwargs: object,
    ) -> "Self":
        """Build one for the socket of `unet`; `kwargs`, such as text_encoder, go to the parts that know them.

        Args:
            adapters: by name, built for this UNet or to be built: {"class": "ClassLabelAdapter", "num_classes": 2}.
        """
        parts: dict[str, ConditioningAdapter] = {}
        for name, given in (adapters or {}).items():
            if isinstance(given, dict):
                part = _class_of({"name": name} | given)
                known = inspect.signature(part.for_unet).parameters
                more = {k: v for k, v in kwargs.items() if k in known}
                given = part.for_unet(unet, **more, **_arguments(given))
            parts[name] = given
        adapter: Self = cls(parts, dropout)
        return adapter

    def inherit_null(self, parent: nn.Module | None) -> None:
        for part in self.parts.values():
            part.inherit_null(parent)
        self._register_parts()

    def preprocess(
        self, raw: list[dict[str, object] | None], processor: "PreTrainedTokenizerBase | None" = None
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
        present = [[(condition or {}).get(name) is not None for name in self.parts] for condition in raw]
        features = {"present": torch.tensor(present)}  # (B, K)
        for name, part in self.parts.items():
            inputs = part.preprocess([(condition or {}).get(name) for condition in raw], processor)
            features |= {f"{name}.{key}": x for key, x in inputs.items()}
        return features

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        each = {name: part.encode(_of_part(inputs, name), encoder) for name, part in self.parts.items()}
        joined = {f"{name}.{key}": x for name, features in each.items() for key, x in features.items()}
        return {"present": inputs["present"]} | joined

    def forward(self, features: Features) -> _Conditions:
        parts = {name: part(_of_part(features, name)) for name, part in self.parts.items()}
        return _Conditions.of(parts, features["present"])

    def null_like(self, cond: Conditioning) -> _Conditions:
        cond = cast(_Conditions, cond)
        parts = {name: part.null_like(cond.parts[name]) for name, part in self.parts.items()}
        return _Conditions.of(parts, torch.zeros_like(cast(Tensor, cond.present)))

    def keep(self, draws: Tensor, probability: float) -> Tensor:
        """(B, 1 + K) to (B, K) bool: the first number decides on all conditions, the others on one each."""
        return (draws[:, :1] >= probability) & (draws[:, 1:] >= draws.new_tensor(self.dropout))


def _of_part(features: Features, name: str) -> Features:
    return {key.removeprefix(f"{name}."): x for key, x in features.items() if key.startswith(f"{name}.")}


def _spec(part: ConditioningAdapter) -> Spec:
    """A part as the configuration holds it."""
    arguments = {k: v for k, v in part.config.items() if not k.startswith("_")}
    return {"class": type(part).__name__, "from": type(part).__module__, **arguments}


def _arguments(spec: Spec) -> Spec:
    """The constructor's arguments of a part's configuration."""
    return {k: v for k, v in spec.items() if k not in ("name", "class", "from")}


def _build(spec: Spec) -> ConditioningAdapter:
    return cast(ConditioningAdapter, _class_of(spec).from_config(_arguments(spec)))


def _class_of(spec: Spec) -> type[ConditioningAdapter]:
    """The class that a part's configuration names, of those that are imported."""
    known, home = [ConditioningAdapter], spec.get("from")
    for cls in known:  # grows while it is walked
        known += cls.__subclasses__()
    named = [cls for cls in known if cls.__name__ == spec.get("class")]
    named = [cls for cls in named if cls.__module__ == home] or named
    if not named:
        package = f", of the package {str(home).split('.')[0]!r}: install and import it" if home else ""
        raise ValueError(f"the condition {spec['name']!r} has an unknown adapter class {spec.get('class')!r}{package}")
    return named[0]
