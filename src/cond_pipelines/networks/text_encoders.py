"""Text encoders: pretrained ones from transformers, or a small new one for one's own captions."""

from collections.abc import Iterable

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    UMT5EncoderModel,
)

from .readable import SAFE, readable_folder

# One letter with its marks.
_WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*"
_LONG_WORD = r"\S{64}"  # learning the pairs of a word takes the square of its length: 2 MB without a space never end
_TEXT_HALF = {"clip": CLIPTextModel, "t5": T5EncoderModel, "umt5": UMT5EncoderModel}


def load_text_encoder(
    name_or_path: str, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained text encoder, in float32, and its tokenizer.

    Args:
        name_or_path: Hub id or folder of CLIP, T5, a BERT-like, or a decoder-only language model; or a pipeline's
            folder, with `text_encoder` and `tokenizer` inside.

    Raises:
        OSError: transformers' own, where there is no such model.

    Example:
        >>> text_encoder, tokenizer = load_text_encoder("openai/clip-vit-base-patch32")
    """
    folder = readable_folder(name_or_path, revision=revision)
    pipeline = (folder / "text_encoder").is_dir()
    of_model, of_tokenizer = ({"subfolder": n} if pipeline else {} for n in ("text_encoder", "tokenizer"))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **of_model)
    model_class = _TEXT_HALF.get(config.model_type, AutoModel)
    model = model_class.from_pretrained(folder, dtype=torch.float32, **SAFE, **of_model)
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **of_tokenizer)


def train_tokenizer(captions: Iterable[str], vocab_size: int = 4096, max_length: int = 64) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of one's own captions, lower case.

    Scripts without spaces, such as Chinese, Japanese and Thai, are split into characters: a whole caption would become
    one token, and no other caption would share it. `trained_ids` are the tokens that the captions consist of.

    Args:
        captions: what to learn from; any text can be encoded afterwards.
        vocab_size: at most so many tokens.
        max_length: saved as `model_max_length`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    one_space = [normalizers.Replace(Regex("^ "), ""), normalizers.Prepend(" ")]  # before the first word too
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *one_space])
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_character = pre_tokenizers.Split(Regex(_WITHOUT_SPACES), "isolated")
    of_long_words = pre_tokenizers.Split(Regex(_LONG_WORD), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_character, of_long_words, bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<start>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    captions = list(captions)
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ids)
    trained = {i for encoded in tokenizer.encode_batch_fast(list(dict.fromkeys(captions))) for i in encoded.ids}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=max_length,
        trained_ids=sorted(trained),
    )


def new_text_encoder(
    captions: Iterable[str], hidden_size: int = 128, num_layers: int = 3, max_length: int = 64
) -> tuple[CLIPTextModel, PreTrainedTokenizerFast]:
    """A small CLIPTextModel with random weights and a tokenizer of `captions`, to be trained with the UNet.

    Example:
        >>> text_encoder, tokenizer = new_text_encoder(["a red circle", "a blue square"])
    """
    tokenizer = train_tokenizer(captions, max_length=max_length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        projection_dim=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, hidden_size // 32),
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    text_encoder = CLIPTextModel(config)
    # CLIP's own 0.02 drowns a word's identity in what the untrained attention adds: colours were learned last.
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    return text_encoder, tokenizer
