"""Conditioning adapters: what turns a raw condition (nothing, a label, a caption) into the UNet's conditioning inputs.

    raw --preprocess--> inputs --encode--> features --forward--> Conditioning --> UNet

This file travels with a checkpoint. It needs denoiser.py only.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from cond_pipelines.adapters.denoiser import conditioning_inputs, socket

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedTokenizerBase

Features = dict[str, Tensor]
RawConditions = list[Any]  # each adapter documents the type of its elements


@dataclass(frozen=True)
class Conditioning:
    """The conditioning inputs of the UNet, one row an image.

    Args:
        tokens: (B, L, token_dim) float, a sequence for cross-attention, or None.
        mask: (B, L) bool, True where a token counts; None means that all do.
        pooled: (B, pooled_dim) float, one vector an image, added to the time embedding, or None.

    Example:
        >>> cond = Conditioning(tokens=torch.randn(2, 5, 8), pooled=torch.randn(2, 8))
        >>> both = null.cat(cond)                            # batch [null, cond] for guidance
        >>> denoise(unet, torch.cat([x_t, x_t]), t, both)
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self._first)

    @property
    def _first(self) -> Tensor:
        """One of its tensors, for batch size, device and dtype."""
        first = self.pooled if self.tokens is None else self.tokens
        if first is None:
            raise ValueError("a Conditioning needs tokens or pooled, and has neither")
        return first

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self._first.device

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply `function` to every tensor that is there."""
        return Conditioning(*(None if x is None else function(x) for x in (self.tokens, self.mask, self.pooled)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move; only floating-point tensors change their dtype."""
        return self.map(lambda x: x.to(device, dtype if x.is_floating_point() else None))

    def repeat_interleave(self, repeats: int) -> "Conditioning":
        """Each image's condition `repeats` times in a row: (B, ...) to (B * repeats, ...)."""
        return self.map(lambda x: x.repeat_interleave(repeats, dim=0))

    def equal(self, other: "Conditioning") -> bool:
        """True when both give the UNet exactly the same inputs."""
        a, b = self._aligned(other)
        pairs = zip((a.tokens, a.mask, a.pooled), (b.tokens, b.mask, b.pooled), strict=True)
        return all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)

    def where(self, keep: Tensor, other: "Conditioning") -> "Conditioning":
        """Per-example choice: this condition where `keep` (B,) bool is True, `other` elsewhere.

        Both sides stay in the graph, so every parameter gets a gradient whatever the draws are.
        """
        return self._join(other, lambda x, y: torch.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, y))

    def cat(self, other: "Conditioning") -> "Conditioning":
        """Batch-wise: this one's images, then the other's."""
        return self._join(other, lambda x, y: torch.cat([x, y]))

    def unet_kwargs(self, unet: nn.Module | None = None) -> dict[str, Tensor | None]:
        """Under the argument names of the network's `forward`; see `denoise`, which calls it with them."""
        return conditioning_inputs(unet, self)

    def _join(self, other: "Conditioning", join: Callable[[Tensor, Tensor], Tensor]) -> "Conditioning":
        a, b = self._aligned(other)
        pairs = zip((a.tokens, a.mask, a.pooled), (b.tokens, b.mask, b.pooled), strict=True)
        return Conditioning(*(None if x is None else join(x, y) for x, y in pairs))

    def _aligned(self, other: "Conditioning") -> tuple["Conditioning", "Conditioning"]:
        """Both with tokens of one length, and a mask in both or in neither."""
        if self.tokens is None or other.tokens is None:
            return self, other  # one of them has no tokens: there is nothing to align
        if self.mask is None and other.mask is None and self.tokens.shape[1] == other.tokens.shape[1]:
            return self, other
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        return self._padded(length), other._padded(length)

    def _padded(self, length: int) -> "Conditioning":
        tokens = self._first  # (B, L, token_dim): called where there are tokens
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if self.mask is None else self.mask
        missing = length - tokens.shape[1]
        return Conditioning(F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing)), self.pooled)


class ConditioningAdapter(ModelMixin, ConfigMixin):
    """The contract. Subclass it, in your own package if you like: no registry, its import path is enough.

    An adapter is built for a UNet's socket `(token_dim, pooled_dim)`, where None means that this UNet has no such
    input. Override `preprocess` and `forward`; `encode` only when a frozen network is in between. Start at zero
    difference (`zero_init`), so that a converted model begins as its parent. Keep at least one parameter, a frozen one
    will do: offloading asks for a model's first.

    Class attributes:
        conditioning: the name of the setting ("none", "class", "text", or your own).

    Attributes:
        null_tokens: (1, L, token_dim), the tokens that mean "no condition" to the UNet's parent (Stable Diffusion's
            encoded empty prompt), saved with the adapter; None: zeros. See `to_conditioning` and `set_null_tokens`.
    """

    config_name = "config.json"
    conditioning = "custom"
    num_dropout_draws = 1  # uniform numbers that `keep` takes for each image

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("null_tokens", None)

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        # diffusers learns how to load a component from the base classes' names in the component's own module.
        vars(sys.modules[cls.__module__]).setdefault("ModelMixin", ModelMixin)
        if isinstance(old := vars(cls).get("num_coins"), int):
            _renamed("num_coins", "num_dropout_draws")
            cls.num_dropout_draws = old

    @classmethod
    def for_unet(cls, unet: nn.Module, **kwargs: object) -> "Self":
        """Build one for the socket of a network; `kwargs` go to the constructor."""
        build: Callable[..., Self] = cls  # each subclass has a constructor of its own
        token_dim, pooled_dim = socket(unet)
        return build(token_dim=token_dim, pooled_dim=pooled_dim, **kwargs)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: object
    ) -> "Self | tuple[Self, dict[str, object]]":
        """As diffusers' own, with room for `null_tokens`, which no constructor needs to know."""
        own = dict(config)
        length = own.pop("null_length", None)
        adapter, unused = super().from_config(own, return_unused_kwargs=True, **kwargs)
        if length:
            adapter.set_null_tokens(torch.zeros(1, length, own["token_dim"]))
        return (adapter, unused) if return_unused_kwargs else adapter

    def set_null_tokens(self, tokens: Tensor) -> None:
        """Let `tokens` (1, L, token_dim) be what "no condition" is."""
        self.null_tokens = tokens.detach().clone()
        self.register_to_config(null_length=tokens.shape[1])

    def inherit_null(self, parent: nn.Module | None) -> None:
        """Take over the `null_tokens` of the adapter that this one replaces, unless it has its own."""
        tokens = getattr(parent, "null_tokens", None)
        if self.null_tokens is None and tokens is not None and self.config.get("token_dim") == tokens.shape[-1]:
            self.set_null_tokens(tokens)

    def preprocess(self, raw: RawConditions, processor: "PreTrainedTokenizerBase | None" = None) -> Features:
        """Raw conditions of a batch to tensors with B rows, on the CPU, in a DataLoader's worker.

        Args:
            raw: one condition an image; None means "no condition".
            processor: the pipeline's tokenizer, where it has one.
        """
        raise TypeError(f"{type(self).__name__} must define preprocess(raw, processor=None)")

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        """Inputs to features through the pipeline's encoder; what this returns may be cached."""
        return inputs

    def forward(self, features: Features) -> Conditioning:
        """Features to the UNet's conditioning inputs; the trained part."""
        raise TypeError(f"{type(self).__name__} must define forward(features)")

    def null_like(self, cond: Conditioning) -> Conditioning:
        """ "No condition" for each row of `cond`: the other branch of guidance and of condition dropout.

        `null_tokens`, or zeros in the shape of `cond`.
        """
        pooled = None if cond.pooled is None else torch.zeros_like(cond.pooled)
        if cond.tokens is None or self.null_tokens is None:
            return Conditioning(None if cond.tokens is None else torch.zeros_like(cond.tokens), cond.mask, pooled)
        return Conditioning(self.null_tokens.to(cond.tokens).expand(cond.tokens.shape[0], -1, -1), None, pooled)

    def keep(self, draws: Tensor, probability: float) -> Tensor:
        """Condition dropout: which images of a batch keep their condition.

        Args:
            draws: (B, num_dropout_draws), uniform in [0, 1).
            probability: of dropping the condition of an image.

        Returns:
            The first argument of `Conditioning.where`: (B,) bool.
        """
        return draws[:, 0] >= probability

    def to_conditioning(
        self, tokens: Tensor | None = None, mask: Tensor | None = None, pooled: Tensor | None = None
    ) -> Conditioning:
        """A Conditioning with zeros in every input of the socket that is None here.

        Where there are `null_tokens`, tokens are added to them, so that zeros still mean no condition: a single
        vector to each of them, a sequence (where `mask` is True) to the first of them; what is longer is cut.
        """
        given = Conditioning(tokens, mask, pooled)  # `shape[0]` and not `len`, which is a constant in an ONNX export
        if tokens is None and self.config.token_dim is not None:
            tokens = given._first.new_zeros(given._first.shape[0], 1, self.config.token_dim)  # (B, 1, token_dim)
        if pooled is None and self.config.pooled_dim is not None:
            pooled = given._first.new_zeros(given._first.shape[0], self.config.pooled_dim)  # (B, pooled_dim)
        if tokens is None or self.null_tokens is None:
            return Conditioning(tokens, mask, pooled)
        if mask is not None:
            tokens = tokens * mask[..., None]
        if mask is not None or tokens.shape[1] > 1:
            tokens = F.pad(tokens, (0, 0, 0, self.null_tokens.shape[1] - tokens.shape[1]))  # a negative number cuts
        return Conditioning(self.null_tokens.to(tokens) + tokens, None, pooled)  # (B, L, token_dim)

    # ---------------------------------------------------------------- names of before, until the next release

    def fill(
        self, tokens: Tensor | None = None, mask: Tensor | None = None, pooled: Tensor | None = None
    ) -> Conditioning:
        """The old name of `to_conditioning`."""
        _renamed("fill", "to_conditioning")
        return self.to_conditioning(tokens, mask, pooled)

    @property
    def num_coins(self) -> int:
        """The old name of `num_dropout_draws`."""
        return self.num_dropout_draws

    @num_coins.setter
    def num_coins(self, value: int) -> None:
        _renamed("num_coins", "num_dropout_draws")
        self.num_dropout_draws = value


def _renamed(old: str, new: str) -> None:
    warnings.warn(f"ConditioningAdapter.{old} is now {new}", DeprecationWarning, stacklevel=3)


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters to zero: the new condition starts with no effect. Returns `module`."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
