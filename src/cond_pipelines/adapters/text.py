"""p(x|text): captions for a new UNet (TextAdapter), and as Stable Diffusion has them (PromptAdapter).

This file travels with a checkpoint. It needs adapters/base.py only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor, nn

from cond_pipelines.adapters.base import Conditioning, ConditioningAdapter, Features, zero_init

if TYPE_CHECKING:
    from typing import Self

    from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokens_of(tokenizer: "PreTrainedTokenizerBase", text: str | list[str], **kwargs: object) -> "BatchEncoding":
    """What a tokenizer makes of a text, or of several. Raises ValueError, in one line, for whatever it fails with."""
    try:
        return tokenizer(text, **kwargs)
    except BaseException as error:  # of Rust: a plain Exception, or a panic, which is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        shown = text if isinstance(text, str) else text[0]
        raise ValueError(f"the tokenizer cannot read {shown[:60]!r}: {' '.join(str(error).split())}") from error


@contextmanager
def known_ids() -> Iterator[None]:
    """For a call of a text encoder: ids that it has no vector for are its tokenizer's fault."""
    try:
        yield
    except IndexError as error:
        raise ValueError(f"the tokenizer gives an id that the text encoder has no vector for: {error}") from error


def lost_words(texts: Sequence[object], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[str]:
    """Lines on what of some captions a model does not see.

    Args:
        tokenizer: one that `new_text_encoder` made knows which of its tokens were trained; of another, only captions
            that are cut are counted.

    Example:
        >>> lost_words(["a red star"], tokenizer, max_length=64)
        ["words that no caption of the training had: 'star'"]
    """
    lines = []
    known = [text for text in texts if isinstance(text, str) and text.strip()]
    ids = tokens_of(tokenizer, known, verbose=False)["input_ids"] if known else []
    cut = [(text, len(row)) for text, row in zip(known, ids, strict=True) if len(row) > max_length]
    if cut:
        text, length = max(cut, key=lambda one: one[1])
        whole = tokens_of(tokenizer, text, truncation=True, max_length=max_length)["input_ids"]
        kept = tokenizer.decode(whole[-8:-1])
        lines.append(
            f"captions cut after {max_length} tokens: {len(cut):,} of {len(known):,}; the longest has {length:,} "
            f"tokens, and ends for the model with {kept.strip()!r}"
        )
    trained = set(tokenizer.init_kwargs.get("trained_ids") or ())
    if trained:
        words = dict.fromkeys(word for text in known for word in text.split())
        unseen = [word for word in words if not trained.issuperset(tokens_of(tokenizer, word)["input_ids"])]
        if unseen:
            shown = ", ".join(map(repr, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
            lines.append(f"words that no caption of the training had: {shown}")
    return lines


class TextAdapter(ConditioningAdapter):
    """p(x|text): the last hidden states of any transformers text encoder (CLIP, T5, BERT-like, GPT-like).

    The hidden states are normalised, because encoders differ in scale by orders of magnitude, then projected to the
    socket: each token for cross-attention, their mean with the time embedding. Tokenizers are used as they are: we
    pad by hand with a mask, so a tokenizer without a pad token (the GPT kind) works and is not changed. An empty
    caption is none, as for Stable Diffusion.

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
    def for_unet(cls, unet: nn.Module, text_encoder: nn.Module | None = None, **kwargs: object) -> "Self":
        """Build one for the socket of `unet` and the width and positions of `text_encoder`."""
        if text_encoder is not None:
            config = text_encoder.config.get_text_config()
            positions = getattr(config, "max_position_embeddings", None) or 256
            kwargs = {"hidden_size": config.hidden_size, "max_length": min(positions, 256)} | kwargs
        return super().for_unet(unet, **kwargs)

    def preprocess(self, raw: list[str | None], processor: "PreTrainedTokenizerBase | None" = None) -> Features:
        if processor is None:
            raise ValueError("TextAdapter.preprocess needs the tokenizer: preprocess(captions, tokenizer)")
        max_length = min(self.config.max_length, processor.model_max_length)
        raw = [None if text is None else _with_all_vectors(text, processor) for text in raw]
        ids = [
            tokens_of(processor, text, truncation=True, max_length=max_length)["input_ids"]
            if text and text.strip()
            else []
            for text in raw
        ]
        length = max(1, max(len(row) for row in ids))  # of the longest caption here, not of the encoder
        pad = processor.pad_token_id or 0  # masked, so any valid id will do
        return {
            "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in ids]),  # (B, L)
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids]),  # (B, L)
        }

    def lost_words(self, texts: Sequence[object], processor: "PreTrainedTokenizerBase") -> list[str]:
        """Lines on what of some captions the model does not see: tokens that are cut, words that were never trained."""
        return lost_words(texts, processor, min(self.config.max_length, processor.model_max_length))

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        if encoder is None:
            raise ValueError("TextAdapter.encode needs the text encoder: encode(inputs, text_encoder)")
        mask = inputs["attention_mask"]
        present = mask.any(dim=1, keepdim=True)  # (B, 1)
        # An encoder given only masked tokens answers NaN; those rows are zeroed in forward anyway.
        seen = torch.where(present, mask, torch.ones_like(mask))
        encoder = encoder.get_encoder() if getattr(encoder.config, "is_encoder_decoder", False) else encoder
        with known_ids():
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
        return self.to_conditioning(tokens, mask | ~present, pooled)


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
        cls,
        unet: nn.Module,
        text_encoder: nn.Module | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **kwargs: object,
    ) -> "Self":
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

    def preprocess(self, raw: list[str | None], processor: "PreTrainedTokenizerBase | None" = None) -> Features:
        if processor is None:
            raise ValueError("PromptAdapter.preprocess needs the tokenizer: preprocess(captions, tokenizer)")
        inputs = tokens_of(
            processor,
            ["" if text is None else _with_all_vectors(text, processor) for text in raw],
            padding="max_length",
            max_length=min(self.config.max_length, processor.model_max_length),
            truncation=True,
            return_tensors="pt",
        )
        present = torch.tensor([[text is not None] for text in raw])  # (B, 1)
        return {
            "input_ids": inputs.input_ids,  # (B, L)
            "attention_mask": present.expand_as(inputs.input_ids).long(),  # (B, L): padding counts
            "tokenizer_mask": inputs.attention_mask,  # (B, L): without padding, for the few encoders that take it
        }

    def lost_words(self, texts: Sequence[object], processor: "PreTrainedTokenizerBase") -> list[str]:
        """Lines on captions that are cut; see `lost_words`."""
        return lost_words(texts, processor, min(self.config.max_length, processor.model_max_length))

    def encode(self, inputs: Features, encoder: nn.Module | None = None) -> Features:
        if encoder is None:
            raise ValueError("PromptAdapter.encode needs the text encoder: encode(inputs, text_encoder)")
        mask = inputs["tokenizer_mask"] if getattr(encoder.config, "use_attention_mask", False) else None
        with known_ids():
            hidden_states = encoder(inputs["input_ids"], attention_mask=mask)[0]  # (B, L, token_dim)
        return {"hidden_states": hidden_states, "mask": inputs["attention_mask"].bool()}

    def forward(self, features: Features) -> Conditioning:
        tokens: Tensor = features["hidden_states"]  # (B, L, token_dim)
        pooled = None if self.config.pooled_dim is None else tokens.new_zeros(len(tokens), self.config.pooled_dim)
        cond = Conditioning(tokens=tokens, pooled=pooled)
        return cond.where(features["mask"].any(dim=1), self.null_like(cond))


def _with_all_vectors(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A word of textual inversion with several vectors, "<cat>", to all of its tokens, "<cat> <cat>_1 ..."."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return text
    expanded: str = TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
    return expanded
