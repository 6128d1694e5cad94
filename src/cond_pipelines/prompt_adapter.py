"""p(x|text) as Stable Diffusion has it.

This file travels with a checkpoint, behind adapters.py, and needs nothing else.
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from cond_pipelines.adapters import Conditioning, ConditioningAdapter, Features


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
