"""Prompts to hidden states where a pipeline has no adapter: with the text encoder and the tokenizer alone.

This file is self-contained on purpose: it travels with a checkpoint.
"""

from typing import TYPE_CHECKING

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encoded_alone(
    prompts: list[object], tokenizer: "PreTrainedTokenizerBase | None", text_encoder: "PreTrainedModel | None"
) -> dict[str, Tensor]:
    """What any adapter over text can use: hidden states (B, L, D) of the full length, and which are of the text (B, L).

    An adapter that attends to the padding too, as Stable Diffusion does, reads all of them; others read those of the
    text. No prompt, None or "", has no token of text: such an adapter takes its own "no prompt" for it.

    Raises:
        ValueError: there is no text encoder, or no tokenizer.
    """
    if tokenizer is None or text_encoder is None:
        missing = "tokenizer" if tokenizer is None else "text encoder"
        raise ValueError(f"this pipeline has no {missing}: encode_prompt needs both, or pass prompt_embeds")
    config = text_encoder.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 256
    length = min(positions, 256, tokenizer.model_max_length)
    pad = tokenizer.pad_token_id or 0
    texts = [str(prompt) if prompt else "" for prompt in prompts]
    whole = [TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer) for text in texts]
    ids = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in whole]
    input_ids = torch.tensor([row + [pad] * (length - len(row)) for row in ids], device=text_encoder.device)  # (B, L)
    is_text = [
        [i < len(row) and bool(text.strip()) for i in range(length)] for row, text in zip(ids, texts, strict=True)
    ]
    mask = torch.tensor(is_text, device=text_encoder.device)  # (B, L)
    encoder = text_encoder.get_encoder() if getattr(config, "is_encoder_decoder", False) else text_encoder
    # A causal encoder does not see what follows, and Stable Diffusion gives its encoder no mask.
    is_causal = type(encoder).__name__.startswith("CLIP") and not getattr(config, "use_attention_mask", False)
    seen = torch.where(mask.any(dim=1, keepdim=True), mask, True).long()  # none at all would make NaN
    hidden_states = encoder(input_ids=input_ids, attention_mask=None if is_causal else seen).last_hidden_state
    return {"hidden_states": hidden_states, "mask": mask}  # (B, L, D), (B, L)
