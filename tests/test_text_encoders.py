import random

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from cond_pipelines.networks.text_encoders import load_text_encoder, new_text_encoder, train_tokenizer

CAPTIONS = ["a red circle on a blue background", "A small green square.", "the ring is yellow"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, vocab_size=300, max_length=16)


# ---------------------------------------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("text", ["a red circle", "A Red CIRCLE", "never seen: zebra 42!", "naïve café, 日本 🙂", " "])
def test_any_text_survives_in_lower_case(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(tokenizer(text, truncation=False)["input_ids"], skip_special_tokens=True)
    assert decoded.strip() == text.lower().strip()


def test_known_words_take_fewer_tokens(tokenizer):
    assert len(tokenizer("red circle")["input_ids"]) < len(tokenizer("xqz wvkjpf")["input_ids"])


def test_special_tokens_and_lengths(tokenizer):
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(special) == 3
    assert tokenizer.model_max_length == 16
    assert len(tokenizer("circle " * 99, truncation=True)["input_ids"]) == 16
    assert len(tokenizer) <= 300
    batch = tokenizer(["a", "a red circle"], padding=True)
    assert batch["attention_mask"][0][-1] == 0


def test_a_tokenizer_is_saved_whole(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in CAPTIONS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.model_max_length == 16


def test_it_learns_from_a_generator():
    learned = train_tokenizer((c for c in CAPTIONS), vocab_size=300)
    assert learned.get_vocab() == train_tokenizer(CAPTIONS, vocab_size=300).get_vocab()


# ------------------------------------------------------------------------------------------------ a new encoder
def test_a_word_of_any_length():
    """Without a space in 500 kB: learning the pairs of one word takes the square of its length."""
    text = "".join(random.Random(0).choices("abcdefgh", k=500_000))
    tokenizer = train_tokenizer([text, "a red circle"], vocab_size=500)
    for some in (text[:300], "a red circle"):
        assert tokenizer.decode(tokenizer(some, truncation=False).input_ids, skip_special_tokens=True).strip() == some


def test_new_text_encoder():
    text_encoder, tokenizer = new_text_encoder(CAPTIONS, hidden_size=32, num_layers=2, max_length=24)
    assert isinstance(text_encoder, CLIPTextModel)
    inputs = tokenizer(CAPTIONS[:3], padding=True, return_tensors="pt")
    hidden = text_encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    assert hidden.shape == (3, inputs["input_ids"].shape[1], 32)
    assert torch.isfinite(hidden).all()
    config = text_encoder.config
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length == 24
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


# ------------------------------------------------------------------------------------------ pretrained encoders
def tiny(kind, vocab_size):
    torch.manual_seed(0)
    if kind == "bert":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertModel(BertConfig(vocab_size=vocab_size, **sizes))
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(vocab_size=vocab_size, decoder_start_token_id=0, **sizes))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=16, n_layer=1, n_head=2))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = sizes | {"vocab_size": vocab_size, "max_position_embeddings": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}))


@pytest.mark.parametrize(
    ("kind", "expected"), [("bert", BertModel), ("t5", T5EncoderModel), ("gpt2", GPT2Model), ("clip", CLIPTextModel)]
)
def test_only_the_text_half_is_loaded(tokenizer, tmp_path, kind, expected):
    whole = tiny(kind, len(tokenizer))
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text_encoder, loaded = load_text_encoder(str(tmp_path))
    assert type(text_encoder) is expected
    assert loaded("a red circle")["input_ids"] == tokenizer("a red circle")["input_ids"]
    inputs = loaded(["a red circle"], return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    half = {
        "bert": lambda m: m,
        "t5": lambda m: m.encoder,
        "gpt2": lambda m: m.transformer,
        "clip": lambda m: m.text_model,
    }
    with torch.no_grad():
        found = text_encoder.eval()(**inputs).last_hidden_state
        assert torch.allclose(found, half[kind](whole.eval())(**inputs).last_hidden_state, atol=1e-6)


def test_half_precision_files_are_loaded_in_float32(tokenizer, tmp_path):
    """Or a text encoder that is trained would be trained in half precision."""
    tiny("bert", len(tokenizer)).half().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {p.dtype for p in load_text_encoder(str(tmp_path))[0].parameters()} == {torch.float32}


def test_from_a_pipeline(tokenizer, tmp_path):
    tiny("bert", len(tokenizer)).save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    text_encoder, loaded = load_text_encoder(str(tmp_path))
    assert isinstance(text_encoder, BertModel)
    assert loaded("a red circle")["input_ids"] == tokenizer("a red circle")["input_ids"]


def test_nothing_there(tmp_path):
    with pytest.raises(OSError):
        load_text_encoder(str(tmp_path / "nowhere"))
