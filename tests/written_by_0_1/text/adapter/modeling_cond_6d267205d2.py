# The code of cond_pipelines.adapters, cond_pipelines.adapters.text, gathered so that this model loads with diffusers alone.
"""Conditioning adapters: what turns a raw condition (nothing, a label, a caption) into what the UNet is told.

    raw --preprocess--> inputs --encode--> features --forward--> Conditioning --> UNet

This file is self-contained on purpose: it travels with a checkpoint.
"""

import difflib
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

Features = dict[str, Tensor]


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about each image of a batch.

    Args:
        tokens: (B, L, token_dim) float, a sequence for cross-attention, or None.
        mask: (B, L) bool, True where a token counts; None means that all do.
        pooled: (B, pooled_dim) float, one vector an image, added to the time embedding, or None.

    Example:
        >>> cond = Conditioning(tokens=torch.randn(2, 5, 8), pooled=torch.randn(2, 8))
        >>> both = null.cat(cond)                            # batch [null, cond] for guidance
        >>> unet(x_t, t, **both.unet_kwargs(unet)).sample
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled if self.tokens is None else self.tokens)

    def map(self, function: Any) -> "Conditioning":
        """Apply `function` to every tensor that is there."""
        return Conditioning(*(None if x is None else function(x) for x in (self.tokens, self.mask, self.pooled)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Move; only floating-point tensors change their dtype."""
        return self.map(lambda x: x.to(device, dtype if x.is_floating_point() else None))

    def repeat_interleave(self, repeats: int) -> "Conditioning":
        """Each image's condition `repeats` times in a row: (B, ...) to (B * repeats, ...)."""
        return self.map(lambda x: x.repeat_interleave(repeats, dim=0))

    def equal(self, other: "Conditioning") -> bool:
        """True when both tell the UNet exactly the same."""
        a, b = self._aligned(other)
        pairs = zip((a.tokens, a.mask, a.pooled), (b.tokens, b.mask, b.pooled), strict=True)
        return all((x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in pairs)

    def where(self, keep: Tensor, other: "Conditioning") -> "Conditioning":
        """Per-example choice: this condition where `keep` (B,) bool is True, `other` elsewhere.

        Both sides stay in the graph, so every parameter gets a gradient whatever the coins say.
        """
        return self._join(other, lambda x, y: torch.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, y))

    def cat(self, other: "Conditioning") -> "Conditioning":
        """Batch-wise: this one's images, then the other's."""
        return self._join(other, lambda x, y: torch.cat([x, y]))

    def branches(
        self, null: "Conditioning", guidance_scale: float | dict[str, float]
    ) -> tuple[list["Conditioning"], list[float]]:
        """What guidance asks the UNet, from `null` to all, and the scale of each difference between two of them."""
        if isinstance(guidance_scale, dict):
            raise ValueError(f"guidance_scale {guidance_scale} needs conditions with names (a CompositeAdapter)")
        return [null, self], [guidance_scale]

    def unet_kwargs(self, unet: nn.Module | None = None) -> dict[str, Tensor | None]:
        """Under the names of `UNet2DConditionModel.forward`, or, where `unet` is a UNet2DModel, of that one's."""
        if isinstance(unet, UNet2DModel):
            return {"class_labels": self.pooled}  # (B, pooled_dim)
        return {
            "encoder_hidden_states": self.tokens,  # (B, L, token_dim)
            "encoder_attention_mask": self.mask,  # (B, L)
            "class_labels": self.pooled,  # (B, pooled_dim)
        }

    def _join(self, other: "Conditioning", join: Any) -> "Conditioning":
        a, b = self._aligned(other)
        pairs = zip((a.tokens, a.mask, a.pooled), (b.tokens, b.mask, b.pooled), strict=True)
        return Conditioning(*(None if x is None else join(x, y) for x, y in pairs))

    def _aligned(self, other: "Conditioning") -> tuple["Conditioning", "Conditioning"]:
        """Both with tokens of one length, and a mask in both or in neither."""
        if self.tokens is None or other.tokens is None:
            return self, other
        if self.mask is None and other.mask is None and self.tokens.shape[1] == other.tokens.shape[1]:
            return self, other
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        return self._padded(length), other._padded(length)

    def _padded(self, length: int) -> "Conditioning":
        mask = self.mask if self.mask is not None else self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)
        missing = length - self.tokens.shape[1]
        return Conditioning(F.pad(self.tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing)), self.pooled)


class ConditioningAdapter(ModelMixin, ConfigMixin):
    """The contract. Subclass it, in your own package if you like: no registry, its import path is enough.

    An adapter is built for a UNet's socket `(token_dim, pooled_dim)`, where None means that this UNet has no such
    input. Override `preprocess` and `forward`; `encode` only when a frozen network is in between. Start at zero
    difference (`zero_init`), so that a converted model begins as its parent. Keep at least one parameter, a frozen one
    will do: offloading asks for a model's first.

    Class attributes:
        conditioning: the name of the setting ("none", "class", "text", or your own).

    Attributes:
        null_tokens: (1, L, token_dim), what the UNet's parent was told when it was told nothing (Stable Diffusion's
            encoded empty prompt), saved with the adapter; None: zeros. See `fill` and `set_null_tokens`.
    """

    config_name = "config.json"
    conditioning = "custom"
    num_coins = 1  # that `keep` takes for each image

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("null_tokens", None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # diffusers learns how to load a component from the base classes' names in the component's own module.
        vars(sys.modules[cls.__module__]).setdefault("ModelMixin", ModelMixin)

    @classmethod
    def for_unet(cls, unet: nn.Module, **kwargs: Any) -> "ConditioningAdapter":
        """Build one for the socket of `unet`, a UNet2DConditionModel or UNet2DModel; `kwargs` go to the constructor."""
        token_dim, pooled_dim = socket(unet)
        return cls(token_dim=token_dim, pooled_dim=pooled_dim, **kwargs)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As diffusers' own, with room for `null_tokens`, which no constructor needs to know."""
        config = dict(config)
        length = config.pop("null_length", None)
        found = super().from_config(config, return_unused_kwargs, **kwargs)
        if length:
            adapter = found[0] if return_unused_kwargs else found
            adapter.set_null_tokens(torch.zeros(1, length, config["token_dim"]))
        return found

    def set_null_tokens(self, tokens: Tensor) -> None:
        """Let `tokens` (1, L, token_dim) be what "no condition" is."""
        self.null_tokens = tokens.detach().clone()
        self.register_to_config(null_length=tokens.shape[1])

    def inherit_null(self, parent: nn.Module | None) -> None:
        """Take over the `null_tokens` of the adapter that told this one's UNet before, unless it has its own."""
        tokens = getattr(parent, "null_tokens", None)
        if self.null_tokens is None and tokens is not None and self.config.get("token_dim") == tokens.shape[-1]:
            self.set_null_tokens(tokens)

    def preprocess(self, raw: list[Any], processor: Any = None) -> Features:
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
        """Features to what the UNet is told; the trained part."""
        raise TypeError(f"{type(self).__name__} must define forward(features)")

    def null_like(self, cond: Conditioning) -> Conditioning:
        """ "No condition" for each row of `cond`: the other branch of guidance and of condition dropout.

        `null_tokens`, or zeros in the shape of `cond`.
        """
        pooled = None if cond.pooled is None else torch.zeros_like(cond.pooled)
        if cond.tokens is None or self.null_tokens is None:
            return Conditioning(None if cond.tokens is None else torch.zeros_like(cond.tokens), cond.mask, pooled)
        return Conditioning(self.null_tokens.to(cond.tokens).expand(len(cond), -1, -1), None, pooled)

    def keep(self, coins: Tensor, probability: float) -> Tensor:
        """Condition dropout: which images of a batch are told their condition.

        Args:
            coins: (B, num_coins), uniform in [0, 1).
            probability: that an image is told nothing.

        Returns:
            What the first argument of `Conditioning.where` is: (B,) bool.
        """
        return coins[:, 0] >= probability

    def fill(self, tokens: Tensor | None = None, mask: Tensor | None = None, pooled: Tensor | None = None):
        """A Conditioning with zeros in every input of the socket that was not given.

        Where there are `null_tokens`, tokens are what is added to them, so that zeros tell nothing still: a single
        vector to each of them, a sequence (where `mask` is True) to the first of them; what is longer is cut.
        """
        some = pooled if tokens is None else tokens
        if tokens is None and self.config.token_dim is not None:
            tokens = some.new_zeros(len(some), 1, self.config.token_dim)  # (B, 1, token_dim)
        if pooled is None and self.config.pooled_dim is not None:
            pooled = some.new_zeros(len(some), self.config.pooled_dim)  # (B, pooled_dim)
        if tokens is None or self.null_tokens is None:
            return Conditioning(tokens, mask, pooled)
        if mask is not None:
            tokens = tokens * mask[..., None]
        if mask is not None or tokens.shape[1] > 1:
            tokens = F.pad(tokens, (0, 0, 0, self.null_tokens.shape[1] - tokens.shape[1]))  # a negative number cuts
        return Conditioning(self.null_tokens.to(tokens) + tokens, None, pooled)  # (B, L, token_dim)


def socket(unet: nn.Module) -> tuple[int | None, int | None]:
    """(token_dim, pooled_dim) of a UNet2DConditionModel or a UNet2DModel; None where it has no such input."""
    config = unet.config
    if isinstance(unet, UNet2DModel):
        return None, config.time_embedding_dim or 4 * config.block_out_channels[0]
    return config.cross_attention_dim, config.projection_class_embeddings_input_dim


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters to zero: the new condition starts with no effect. Returns `module`."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class UnconditionalAdapter(ConditioningAdapter):
    """p(x): every image is told nothing.

    Example:
        >>> adapter = UnconditionalAdapter.for_unet(unet)
        >>> adapter(adapter.preprocess([None, None])).pooled.shape
        torch.Size([2, 64])
    """

    conditioning = "none"

    @register_to_config
    def __init__(self, token_dim: int | None = None, pooled_dim: int | None = None):
        super().__init__()
        # A parameter, though nothing is learned: offloading asks a model's first parameter for its device.
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

    def preprocess(self, raw: list[Any], processor: Any = None) -> Features:
        return {"batch": torch.zeros(len(raw))}

    def forward(self, features: Features) -> Conditioning:
        n = len(features["batch"])
        pooled = None if self.config.pooled_dim is None else self.nothing.new_zeros(n, self.config.pooled_dim)
        tokens = None if self.config.token_dim is None else self.nothing.new_zeros(n, 1, self.config.token_dim)
        return self.fill(tokens=tokens, pooled=pooled)  # (B, 1, token_dim), (B, pooled_dim)

    def null_like(self, cond: Conditioning) -> Conditioning:
        return cond


class ClassLabelAdapter(ConditioningAdapter):
    """p(x|y): a learned vector for each class, beside the time embedding and as one token.

    An image may have several labels, in a list: their vectors are summed.

    Args:
        num_classes: number of classes; from `id2label` where that is given.
        id2label: {0: "cat", 1: "dog"}; saved in the configuration, so that a model knows its classes' names. DiT's
            own works too: {0: "tench, Tinca tinca", ...} is known by either name, or by both as they stand.
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
        self.num_classes = num_classes or len(self.id2label)
        if not self.num_classes:
            raise ValueError("ClassLabelAdapter needs num_classes or id2label, and got neither")
        if id2label and sorted(self.id2label) != list(range(self.num_classes)):
            raise ValueError(
                f"id2label must number the classes 0 .. {self.num_classes - 1}, not {sorted(self.id2label)}"
            )
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
            found = [i for i, name in self.id2label.items() if name == label] or [
                i for i, name in self.id2label.items() if label in map(str.strip, name.split(","))
            ]
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(f"class label {label!r} is the name of {' and '.join(map(str, found))}: pass the id")
            names = [part.strip() for name in self.id2label.values() for part in name.split(",")]
            near = difflib.get_close_matches(label, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ValueError(f"unknown class label {label!r}{hint} (known: {known or 'ids only'})")
        if not 0 <= int(label) < self.num_classes:
            raise ValueError(f"class label {label} is outside of 0 .. {self.num_classes - 1}; None means no label")
        return int(label)

    def preprocess(self, raw: list[Any], processor: Any = None) -> Features:
        each = [label if isinstance(label, list | tuple) else [label] for label in raw]
        ids = [list(dict.fromkeys(self.label_id(label) for label in labels)) for labels in each]
        length = max((len(row) for row in ids), default=1)
        if length <= 1:
            return {"label": torch.tensor([row[0] if row else -1 for row in ids], dtype=torch.int64)}  # (B,)
        return {"label": torch.tensor([row + [-1] * (length - len(row)) for row in ids])}  # (B, L)

    def forward(self, features: Features) -> Conditioning:
        label = features["label"].reshape(len(features["label"]), -1)  # (B, L) int64, -1: no label
        known = (label >= 0)[..., None]  # (B, L, 1)
        vector = (self.embedding(label.clamp(min=0)) * known).sum(dim=1)  # (B, embedding_dim)
        known = known.any(dim=1)  # (B, 1)
        tokens = pooled = None
        if self.config.token_dim is not None:
            tokens = (self.token_proj(vector) * known)[:, None]  # (B, 1, token_dim)
        if self.config.pooled_dim is not None:
            pooled = self.pooled_proj(vector) * known  # (B, pooled_dim)
        return self.fill(tokens=tokens, pooled=pooled)


"""p(x|text): captions for a new UNet (TextAdapter), and as Stable Diffusion has them (PromptAdapter).

This file travels with a checkpoint, behind adapters.py, and needs nothing else.
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn



class TextAdapter(ConditioningAdapter):
    """p(x|text): the last hidden states of any transformers text encoder (CLIP, T5, BERT-like, GPT-like).

    The hidden states are normalised, because encoders differ in scale by orders of magnitude, then projected to the
    socket: each token for cross-attention, their mean beside the time embedding. Tokenizers are used as they are: we
    pad by hand with a mask, so a tokenizer without a pad token (the GPT kind) works and is not changed.

    Args:
        hidden_size: of the text encoder; `for_unet(unet, text_encoder=...)` reads it.
        max_length: captions are cut after this many tokens.

    Example:
        >>> adapter = TextAdapter.for_unet(unet, text_encoder=text_encoder)
        >>> inputs = adapter.preprocess(["a red circle", None], tokenizer)  # None: unconditional
        >>> cond = adapter(adapter.encode(inputs, text_encoder))
    """

    conditioning = "text"

    @register_to_config
    def __init__(
        self, hidden_size: int, max_length: int = 77, token_dim: int | None = None, pooled_dim: int | None = None
    ):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        if token_dim is not None:
            self.token_proj = zero_init(nn.Linear(hidden_size, token_dim))
        if pooled_dim is not None:
            self.pooled_proj = zero_init(nn.Linear(hidden_size, pooled_dim))

    @classmethod
    def for_unet(cls, unet: nn.Module, text_encoder: nn.Module | None = None, **kwargs: Any) -> "TextAdapter":
        """Build one for the socket of `unet` and the width and positions of `text_encoder`."""
        if text_encoder is not None:
            config = text_encoder.config.get_text_config()
            positions = getattr(config, "max_position_embeddings", None) or 256
            kwargs = {"hidden_size": config.hidden_size, "max_length": min(positions, 256)} | kwargs
        return super().for_unet(unet, **kwargs)

    def preprocess(self, raw: list[str | None], processor: Any = None) -> Features:
        if processor is None:
            raise ValueError("TextAdapter.preprocess needs the tokenizer: preprocess(captions, tokenizer)")
        max_length = min(self.config.max_length, processor.model_max_length)
        ids = [
            [] if text is None else processor(text, truncation=True, max_length=max_length)["input_ids"] for text in raw
        ]
        length = max(1, max(len(row) for row in ids))  # of the longest caption here, not of the encoder
        pad = processor.pad_token_id or 0  # masked, so any valid id will do
        return {
            "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in ids]),  # (B, L)
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids]),  # (B, L)
        }

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        mask = inputs["attention_mask"]
        present = mask.any(dim=1, keepdim=True)  # (B, 1)
        # An encoder given only masked tokens answers NaN; those rows are zeroed in forward anyway.
        seen = torch.where(present, mask, torch.ones_like(mask))
        encoder = encoder.get_encoder() if getattr(encoder.config, "is_encoder_decoder", False) else encoder
        hidden_states = encoder(input_ids=inputs["input_ids"], attention_mask=seen).last_hidden_state  # (B, L, D)
        return {"hidden_states": hidden_states, "mask": mask.bool()}

    def forward(self, features: Features) -> Conditioning:
        mask = features["mask"]  # (B, L)
        hidden_states = self.norm(features["hidden_states"])  # (B, L, D)
        present = mask.any(dim=1)[:, None]  # (B, 1), False: no caption
        tokens = pooled = None
        if self.config.token_dim is not None:
            tokens = self.token_proj(hidden_states) * present[..., None]  # (B, L, token_dim)
        if self.config.pooled_dim is not None:
            weight = mask[..., None].to(hidden_states.dtype)  # (B, L, 1)
            mean = (hidden_states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # (B, D)
            pooled = self.pooled_proj(mean) * present  # (B, pooled_dim)
        return self.fill(tokens, mask | ~present, pooled)


class PromptAdapter(ConditioningAdapter):
    """The text encoder's last hidden states as they are, for a UNet that has learned to read them.

    Captions are padded to one length and the UNet attends to the padding too, since that is how it was trained. No
    caption (None) is `null_tokens`: the encoded empty prompt, once `for_unet` has seen the encoder.

    Args:
        max_length: tokens that a caption is padded to, or cut at; at most the tokenizer's `model_max_length`.
        null_prompt: what a pipeline encodes where no negative prompt is given, as StableDiffusionPipeline does. None:
            it takes `null_tokens`, which is right once the text encoder has been trained with them.
        token_dim, pooled_dim: the UNet's socket; see `for_unet`.

    Example:
        >>> adapter = PromptAdapter.for_unet(unet, text_encoder=text_encoder, tokenizer=tokenizer)
        >>> inputs = adapter.preprocess(["a red circle", None], tokenizer)
        >>> cond = adapter(adapter.encode(inputs, text_encoder))
    """

    conditioning = "text"

    @register_to_config
    def __init__(
        self,
        max_length: int = 77,
        null_prompt: str | None = "",
        token_dim: int | None = None,
        pooled_dim: int | None = None,
    ):
        super().__init__()
        # A parameter, though nothing is learned: offloading asks a model's first parameter for its device.
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

    @classmethod
    @torch.no_grad()
    def for_unet(
        cls, unet: nn.Module, text_encoder: nn.Module | None = None, tokenizer: Any = None, **kwargs: Any
    ) -> "PromptAdapter":
        """Build one for the socket of `unet`; with `text_encoder` and `tokenizer` it knows the empty prompt.

        Raises:
            ValueError: the hidden states are not as wide as the tokens that the UNet takes.
        """
        if text_encoder is not None:
            kwargs = {"max_length": text_encoder.config.max_position_embeddings} | kwargs
        adapter = super().for_unet(unet, **kwargs)
        if text_encoder is None or tokenizer is None:
            return adapter
        width, token_dim = text_encoder.config.hidden_size, adapter.config.token_dim
        if width != token_dim:
            raise ValueError(
                f"PromptAdapter passes on the text encoder's {width} numbers a token, and the UNet takes {token_dim}: "
                "use TextAdapter, which projects them"
            )
        inputs = {k: x.to(text_encoder.device) for k, x in adapter.preprocess([""], tokenizer).items()}
        adapter.set_null_tokens(adapter.encode(inputs, text_encoder)["hidden_states"])
        return adapter

    def preprocess(self, raw: list[str | None], processor: Any = None) -> Features:
        if processor is None:
            raise ValueError("PromptAdapter.preprocess needs the tokenizer: preprocess(captions, tokenizer)")
        inputs = processor(
            ["" if text is None else text for text in raw],
            padding="max_length",
            max_length=min(self.config.max_length, processor.model_max_length),
            truncation=True,
            return_tensors="pt",
        )
        present = torch.tensor([[text is not None] for text in raw])  # (B, 1)
        return {
            "input_ids": inputs.input_ids,  # (B, L)
            "attention_mask": present.expand_as(inputs.input_ids).long(),  # (B, L): padding counts
            "tokenizer_mask": inputs.attention_mask,  # (B, L): it does not, for the few encoders that are told
        }

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        told = getattr(encoder.config, "use_attention_mask", False)
        mask = inputs["tokenizer_mask"] if told else None
        hidden_states = encoder(inputs["input_ids"], attention_mask=mask)[0]  # (B, L, token_dim)
        return {"hidden_states": hidden_states, "mask": inputs["attention_mask"].bool()}

    def forward(self, features: Features) -> Conditioning:
        tokens: Tensor = features["hidden_states"]  # (B, L, token_dim)
        pooled = None if self.config.pooled_dim is None else tokens.new_zeros(len(tokens), self.config.pooled_dim)
        told = Conditioning(tokens=tokens, pooled=pooled)
        return told.where(features["mask"].any(dim=1), self.null_like(told))

_ADAPTER_FROM = "cond_pipelines.adapters.text"
