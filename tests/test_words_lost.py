"""Captions: what of them the model does not see is said, and scripts without spaces are made of characters."""

import logging

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from cond_pipelines import TextAdapter, TextToImagePipeline, build_unet
from cond_pipelines.adapters.text import lost_words
from cond_pipelines.cli import main
from cond_pipelines.networks.text_encoders import new_text_encoder, train_tokenizer

CAPTIONS = ["a red circle on black", "a blue ring on white", "a red ring"] * 4


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    encoder, tokenizer = new_text_encoder(CAPTIONS, hidden_size=32, num_layers=1)
    unet = build_unet("xxs", sample_size=8, cross_attention_dim=32)
    adapter = TextAdapter.for_unet(unet, text_encoder=encoder)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return TextToImagePipeline(
        unet, FlowMatchEulerDiscreteScheduler(), adapter, text_encoder=encoder, tokenizer=tokenizer
    )


@pytest.mark.parametrize(
    ("captions", "unseen"),
    [
        (["一只红色的猫", "红色的狗"], "一只狗"),
        (["赤い猫がいる", "いる犬"], "赤い犬"),
        (["แมวสีแดง", "สีดำ"], "แมวดำ"),
    ],
)
def test_a_new_combination_of_characters_is_of_trained_tokens(captions, unseen):
    tokenizer = train_tokenizer(captions * 10)
    ids = tokenizer(unseen)["input_ids"]
    assert set(ids) <= {i for caption in captions for i in tokenizer(caption)["input_ids"]}
    assert lost_words([unseen], tokenizer, 64) == []


def test_what_is_lost(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    for known in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert lost_words([*CAPTIONS, None, "", "A Red  ring"], known, 64) == []
        assert lost_words(["a red star", "star", "a blue square"], known, 64) == [
            "words that no caption of the training had: 'star', 'square'"
        ]
        (cut,) = lost_words(["a red ring " * 40, "a ring"], known, 64)
        assert cut.startswith("captions cut after 64 tokens: 1 of 2; the longest has 123 tokens, and ends for the ")


def test_a_call_says_it_once(pipe, caplog):
    logging.getLogger("cond_pipelines").propagate = True
    pipe.set_progress_bar_config(disable=True)
    with caplog.at_level(logging.WARNING):
        pipe(["a red star", "a red ring"], num_inference_steps=2)
    assert [m for m in caplog.messages if "no caption of the training had: 'star'" in m] == caplog.messages
    assert len(caplog.messages) == 1


def test_the_command_says_it(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    out = ["--num_inference_steps", "1", "--out", str(tmp_path / "grid.png")]
    main(["sample", str(tmp_path / "model"), "a red star", "a red ring " * 40, *out])
    printed = capsys.readouterr().err
    assert "warning: words that no caption of the training had: 'star'" in printed
    assert "warning: captions cut after 64 tokens: 1 of 2" in printed


def test_an_empty_prompt_is_no_prompt(pipe):
    cond, null = pipe.encode_condition(["", "  ", "a red ring"])
    for name, value in vars(null).items():
        mine = getattr(cond, name)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert torch.equal(mine[:2].float()[..., :1], value[:2].float()[..., :1].expand_as(mine[:2][..., :1]))
    generator = lambda: [torch.Generator().manual_seed(0)]  # noqa: E731
    images = [pipe([p], num_inference_steps=2, generator=generator(), output_type="pt").images for p in ("", None)]
    assert torch.equal(*images)
