import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from angle_adapter import AngleAdapter
from diffusers import FlowMatchEulerDiscreteScheduler
from pipelines_common import CAPTIONS, ID2LABEL, assert_close, quiet, tiny_unet, trained
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from cond_pipelines import (
    ClassLabelAdapter,
    ConditionalPipeline,
    Conditioning,
    ConditioningAdapter,
    TextAdapter,
    UnconditionalAdapter,
)
from cond_pipelines.networks.text_encoders import load_text_encoder, new_text_encoder, train_tokenizer


def random_condition(batch: int = 3, length: int | None = 4, pooled: bool = True, mask: bool = True, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    tokens = None if length is None else torch.randn(batch, length, 5, generator=generator)
    lengths = torch.arange(batch).clamp(max=max(0, (length or 1) - 1)) + 1
    return Conditioning(
        tokens=tokens,
        mask=torch.arange(length)[None] < lengths[:, None] if mask and length else None,
        pooled=torch.randn(batch, 6, generator=generator) if pooled else None,
    )


def tensors(cond: Conditioning) -> list[torch.Tensor]:
    return [x for x in (cond.tokens, cond.mask, cond.pooled) if x is not None]


# ------------------------------------------------------------------------------------------------- Conditioning
SHAPES = [{}, {"mask": False}, {"length": None}, {"pooled": False}, {"pooled": False, "mask": False}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestConditioning:
    def test_where_everything_or_nothing_is_kept(self, shape):
        a, b = random_condition(**shape), random_condition(**shape, seed=1)
        assert a.where(torch.ones(3, dtype=torch.bool), b).equal(a)
        assert a.where(torch.zeros(3, dtype=torch.bool), b).equal(b)
        assert not a.equal(b)

    def test_where_chooses_rows(self, shape):
        a, b = random_condition(**shape), random_condition(**shape, seed=1)
        keep = torch.tensor([True, False, True])
        for x, y, z in zip(*map(tensors, (a, b, a.where(keep, b))), strict=True):
            assert torch.equal(z[0], x[0]) and torch.equal(z[1], y[1]) and torch.equal(z[2], x[2])

    def test_cat_puts_self_first(self, shape):
        a, b = random_condition(2, **shape), random_condition(3, **shape, seed=1)
        both = a.cat(b)
        assert len(both) == 5
        for x, y, z in zip(*map(tensors, (a, b, both)), strict=True):
            assert torch.equal(z, torch.cat([x, y]))

    def test_repeat_interleave(self, shape):
        a = random_condition(**shape)
        twice = a.repeat_interleave(2)
        assert len(twice) == 6
        for x, z in zip(tensors(a), tensors(twice), strict=True):
            assert torch.equal(z, x[[0, 0, 1, 1, 2, 2]])
        assert a.repeat_interleave(1).equal(a)

    def test_to_changes_floats_alone(self, shape):
        a = random_condition(**shape).to(dtype=torch.bfloat16)
        assert {x.dtype for x in tensors(a)} - {torch.bool} == {torch.bfloat16}
        assert a.mask is None or a.mask.dtype == torch.bool

    def test_unet_kwargs(self, shape):
        a = random_condition(**shape)
        kwargs = a.unet_kwargs()
        assert kwargs["encoder_hidden_states"] is a.tokens and kwargs["class_labels"] is a.pooled
        assert kwargs["encoder_attention_mask"] is a.mask and len(kwargs) == 3


def test_conditioning_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_condition().tokens = None


@pytest.mark.parametrize("masks", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("lengths", [(2, 5), (5, 2), (3, 3)])
def test_different_lengths_and_masks_are_aligned(masks, lengths):
    a, b = (random_condition(length=n, mask=m, seed=n) for n, m in zip(lengths, masks, strict=True))
    both = a.cat(b)
    longest = max(lengths)
    assert both.tokens.shape == (6, longest, 5)
    for offset, part in ((0, a), (3, b)):
        n = part.tokens.shape[1]
        assert torch.equal(both.tokens[offset : offset + 3, :n], part.tokens)
        if both.mask is None:
            assert not any(masks) and lengths[0] == lengths[1]
            continue
        expected = part.mask if part.mask is not None else torch.ones(3, n, dtype=torch.bool)
        assert torch.equal(both.mask[offset : offset + 3, :n], expected)
        assert not both.mask[offset : offset + 3, n:].any(), "padding must not be attended to"
    keep = torch.tensor([True, False, True])
    chosen = a.where(keep, b)
    assert torch.equal(chosen.tokens, torch.where(keep[:, None, None], both.tokens[:3], both.tokens[3:]))


def test_padding_tells_the_unet_nothing():
    unet = tiny_unet()
    cond = Conditioning(tokens=torch.randn(2, 3, 16), pooled=torch.randn(2, 24))
    longer = Conditioning(tokens=torch.randn(2, 9, 16), pooled=torch.randn(2, 24))
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    with torch.no_grad():
        alone = unet(x_t, t, **cond.unet_kwargs()).sample
        beside = unet(torch.cat([x_t, x_t]), torch.cat([t, t]), **cond.cat(longer).unet_kwargs()).sample[:2]
    assert_close(alone, beside)


# ----------------------------------------------------------------------------------------- tokenizers, encoders
def gpt_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of the GPT kind: no pad token, nothing added around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[PAD]"]
    tokenizer.train_from_iterator(CAPTIONS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}


def make_text(kind: str):
    torch.manual_seed(0)
    if kind == "clip":
        return new_text_encoder(CAPTIONS, hidden_size=32, num_layers=2, max_length=40)
    tokenizer = {"bert": bert_tokenizer, "t5": train_tokenizer_of_captions, "t5-full": train_tokenizer_of_captions}.get(
        kind, gpt_tokenizer
    )()
    size = {"vocab_size": len(tokenizer)}
    model = {
        "bert": lambda: BertModel(BertConfig(**SMALL, **size, max_position_embeddings=64)),
        "t5": lambda: T5EncoderModel(T5Config(**T5, **size)),
        "t5-full": lambda: T5Model(T5Config(**T5, **size)),
        "gpt2": lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **size)),
        "llama": lambda: LlamaModel(LlamaConfig(**SMALL, **size, num_key_value_heads=1)),
        "qwen": lambda: Qwen2Model(Qwen2Config(**SMALL, **size, num_key_value_heads=1)),
    }[kind]()
    return model, tokenizer


def train_tokenizer_of_captions() -> PreTrainedTokenizerFast:
    return train_tokenizer(CAPTIONS, max_length=50)


@pytest.fixture(scope="module", params=["clip", "bert", "t5", "t5-full", "gpt2", "llama", "qwen"])
def text(request):
    """(trained adapter, text encoder, tokenizer) for the tiny UNet's socket."""
    encoder, tokenizer = make_text(request.param)
    adapter = trained(TextAdapter.for_unet(tiny_unet(), text_encoder=encoder))
    return adapter, encoder.eval(), tokenizer


def tell(text, captions) -> Conditioning:
    adapter, encoder, tokenizer = text
    with torch.no_grad():
        return adapter(adapter.encode(adapter.preprocess(captions, tokenizer), encoder))


class TestTextEncoders:
    def test_shapes_and_lengths(self, text):
        adapter, _, tokenizer = text
        cond = tell(text, CAPTIONS)
        lengths = [len(tokenizer(caption)["input_ids"]) for caption in CAPTIONS]
        assert cond.tokens.shape == (4, max(lengths), 16) and cond.pooled.shape == (4, 24)
        assert cond.mask.dtype == torch.bool and cond.mask.sum(dim=1).tolist() == lengths
        assert all(torch.isfinite(x).all() for x in tensors(cond))
        assert adapter.config.hidden_size == 32

    def test_a_caption_does_not_depend_on_its_neighbours(self, text):
        batch = tell(text, [CAPTIONS[0], None, CAPTIONS[1], CAPTIONS[3]])
        for row, caption in ((0, CAPTIONS[0]), (2, CAPTIONS[1]), (3, CAPTIONS[3])):
            alone = tell(text, [caption])
            length = alone.tokens.shape[1]
            assert_close(batch.tokens[row, :length], alone.tokens[0], atol=2e-5)
            assert_close(batch.pooled[row], alone.pooled[0], atol=2e-5)
            assert batch.mask[row].sum() == length and alone.mask.all()

    def test_what_stands_in_the_padding_changes_nothing(self, text):
        adapter, encoder, tokenizer = text
        inputs = adapter.preprocess(CAPTIONS, tokenizer)
        masked = inputs["attention_mask"] == 0
        assert masked.any()
        other = inputs | {"input_ids": torch.where(masked, 7, inputs["input_ids"])}
        with torch.no_grad():
            a, b = (adapter(adapter.encode(x, encoder)) for x in (inputs, other))
        assert torch.equal(a.mask, b.mask) and torch.equal(a.mask, ~masked)
        assert_close(a.tokens[a.mask], b.tokens[b.mask])
        assert_close(a.pooled, b.pooled)

    def test_a_word_changes_something(self, text):
        a, b = (tell(text, [caption]) for caption in ("a red circle", "a blue circle"))
        assert not torch.allclose(a.pooled, b.pooled, atol=1e-3)

    def test_a_missing_caption_is_exactly_null(self, text):
        adapter = text[0]
        mixed = tell(text, [CAPTIONS[0], None])
        null = adapter.null_like(mixed)
        assert mixed.where(torch.tensor([False, True]), null).equal(null)
        assert mixed.mask[1].all() and not mixed.tokens[1].any() and not mixed.pooled[1].any()
        nothing = tell(text, [None, None])
        assert nothing.equal(adapter.null_like(nothing)) and nothing.tokens.shape == (2, 1, 16)

    def test_a_new_adapter_tells_nothing(self, text):
        _, encoder, tokenizer = text
        new = TextAdapter.for_unet(tiny_unet(), text_encoder=encoder)
        cond = tell((new, encoder, tokenizer), CAPTIONS)
        assert not cond.tokens.any() and not cond.pooled.any() and cond.equal(new.null_like(cond))

    def test_long_captions_are_cut_at_what_the_encoder_can_read(self, text):
        adapter, encoder, tokenizer = text
        cond = tell(text, ["star " * 500, "a star"])
        assert cond.tokens.shape[1] == min(adapter.config.max_length, tokenizer.model_max_length)
        assert adapter.config.max_length == min(getattr(encoder.config, "max_position_embeddings", None) or 256, 256)
        assert torch.isfinite(cond.tokens).all()

    def test_tokenizer_is_not_changed(self, text):
        adapter, _, tokenizer = text

        def state():
            backend = json.loads(tokenizer.backend_tokenizer.to_str())
            del backend["truncation"]  # transformers itself notes the last call's there
            return backend, tokenizer.special_tokens_map, tokenizer.pad_token, tokenizer.padding_side, len(tokenizer)

        before = copy.deepcopy(state())
        adapter.preprocess([*CAPTIONS, None], tokenizer)
        assert state() == before

    def test_save_and_load(self, text, tmp_path):
        adapter = text[0]
        adapter.save_pretrained(tmp_path)
        loaded = TextAdapter.from_pretrained(tmp_path)
        assert tell((loaded, *text[1:]), CAPTIONS).equal(tell(text, CAPTIONS))
        assert loaded.config.max_length == adapter.config.max_length

    def test_half_precision(self, text):
        adapter, encoder, tokenizer = (copy.deepcopy(part) for part in text)
        adapter, encoder = adapter.to(torch.bfloat16), encoder.to(torch.bfloat16)
        cond = tell((adapter, encoder, tokenizer), [*CAPTIONS, None])
        assert cond.tokens.dtype == cond.pooled.dtype == torch.bfloat16 and cond.mask.dtype == torch.bool
        assert torch.isfinite(cond.tokens).all() and not cond.tokens[4].any()


def test_gpt_tokenizer_has_no_pad_token_and_an_empty_caption_is_no_caption():
    encoder, tokenizer = make_text("gpt2")
    assert tokenizer.pad_token is None and tokenizer("")["input_ids"] == []
    text = trained(TextAdapter.for_unet(tiny_unet(), text_encoder=encoder)), encoder.eval(), tokenizer
    assert tell(text, ["", CAPTIONS[0]]).equal(tell(text, [None, CAPTIONS[0]]))


def test_pooled_is_the_mean_over_real_tokens():
    adapter = trained(TextAdapter(hidden_size=8, token_dim=4, pooled_dim=5))
    hidden_states, mask = torch.randn(1, 6, 8), torch.tensor([[True] * 4 + [False] * 2])
    with torch.no_grad():
        cond = adapter({"hidden_states": hidden_states, "mask": mask})
        normed = torch.nn.functional.layer_norm(hidden_states[:, :4], (8,))
        assert_close(cond.pooled, adapter.pooled_proj(normed.mean(dim=1)))
        assert_close(cond.tokens[:, :4], adapter.token_proj(normed))


def test_text_adapter_without_a_tokenizer_is_an_error():
    with pytest.raises(ValueError, match=r"needs the tokenizer: preprocess\(captions, tokenizer\)"):
        TextAdapter(hidden_size=8, pooled_dim=4).preprocess(["a"])


@pytest.mark.parametrize("kind", ["clip", "bert", "t5", "gpt2", "llama"])
def test_a_saved_encoder_loads_by_its_folder(kind, tmp_path):
    encoder, tokenizer = make_text(kind)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = load_text_encoder(str(tmp_path))
    adapter = trained(TextAdapter.for_unet(tiny_unet(), text_encoder=encoder))
    expected = tell((adapter, encoder.eval(), tokenizer), CAPTIONS)
    assert tell((adapter, loaded.eval(), loaded_tokenizer), CAPTIONS).equal(expected)


# ------------------------------------------------------------------------------------------------------- labels
class TestClassLabelAdapter:
    @pytest.fixture
    def adapter(self):
        return trained(ClassLabelAdapter.for_unet(tiny_unet(), id2label=ID2LABEL))

    def test_by_name_and_by_id(self, adapter):
        raw = ["star", "circle", 2, 0, None, np.int64(1), torch.tensor(1)]
        assert adapter.preprocess(raw)["label"].tolist() == [2, 0, 2, 0, -1, 1, 1]

    def test_a_missing_label_is_exactly_null(self, adapter):
        cond = adapter(adapter.preprocess([None, "star", None]))
        null = adapter.null_like(cond)
        assert cond.where(torch.tensor([False, True, False]), null).equal(cond)
        assert not cond.equal(null)
        nothing = adapter(adapter.preprocess([None, None]))
        assert nothing.equal(adapter.null_like(nothing))
        assert nothing.tokens.shape == (2, 1, 16) and nothing.pooled.shape == (2, 24)

    def test_each_class_is_told_its_own_vector(self, adapter):
        cond = adapter(adapter.preprocess([0, 1, 2]))
        assert torch.equal(cond.tokens[:, 0], adapter.token_proj(adapter.embedding.weight))
        assert torch.equal(cond.pooled, adapter.pooled_proj(adapter.embedding.weight))
        assert not torch.equal(cond.pooled[0], cond.pooled[1])

    def test_dits_labels(self):
        """As facebook/DiT-XL-2-256 has them in its model_index.json: several names an id, some of several ids."""
        names = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane", "3": "maillot", "4": "maillot, tank suit"}
        adapter = ClassLabelAdapter.for_unet(tiny_unet(), id2label=names)
        raw = ["Tinca tinca", "tench", "tench, Tinca tinca", "maillot", "tank suit", 2, None]
        assert adapter.preprocess(raw)["label"].tolist() == [0, 0, 0, 3, 4, 2, -1]
        with pytest.raises(ValueError, match="class label 'crane' is the name of 1 and 2: pass the id"):
            adapter.preprocess(["crane"])
        with pytest.raises(ValueError, match="did you mean 'Tinca tinca'"):
            adapter.preprocess(["Tinca tinka"])

    def test_many_names_are_not_all_listed(self):
        adapter = ClassLabelAdapter(id2label={i: f"class number {i}" for i in range(1000)}, pooled_dim=4)
        with pytest.raises(ValueError, match=r"unknown class label 'zebra' \(known: .*, class number 19, \.\.\.\)"):
            adapter.preprocess(["zebra"])

    @pytest.mark.parametrize(
        ("label", "line"),
        [
            ("sqare", "unknown class label 'sqare'; did you mean 'square'? (known: circle, square, star)"),
            ("zebra", "unknown class label 'zebra' (known: circle, square, star)"),
            (3, "class label 3 is outside of 0 .. 2; None means no label"),
            (-1, "class label -1 is outside of 0 .. 2; None means no label"),
        ],
    )
    def test_an_unknown_label_is_named(self, adapter, label, line):
        with pytest.raises(ValueError) as error:
            adapter.preprocess([0, label])
        assert str(error.value) == line

    def test_names_without_id2label_are_an_error(self):
        with pytest.raises(ValueError, match=r"unknown class label 'cat'.*ids only"):
            ClassLabelAdapter(num_classes=2, pooled_dim=4).preprocess(["cat"])

    @pytest.mark.parametrize(
        ("kwargs", "line"),
        [
            ({}, "needs num_classes or id2label"),
            ({"num_classes": 2, "id2label": {1: "a", 2: "b"}}, r"must number classes 0 .. 1, not \[1, 2\]"),
            ({"id2label": {-1: "a", 0: "b"}}, r"must number classes 0 .. 0, not \[-1, 0\]"),
        ],
    )
    def test_classes_must_be_numbered_from_zero(self, kwargs, line):
        with pytest.raises(ValueError, match=line):
            ClassLabelAdapter(**kwargs, pooled_dim=4)

    def test_a_number_without_a_name_is_no_class(self):
        adapter = ClassLabelAdapter(id2label={1: "1", 3: "3"}, pooled_dim=4)
        assert adapter.num_classes == 4 and adapter.preprocess([1, "3", None])["label"].tolist() == [1, 3, -1]
        for label in (0, 2):
            with pytest.raises(ValueError, match=f"class label {label} is no class of this model: 1, 3; None means"):
                adapter.preprocess([label])

    def test_config_round_trip(self, adapter, tmp_path):
        adapter.save_pretrained(tmp_path / "first")
        loaded = ClassLabelAdapter.from_pretrained(tmp_path / "first")
        assert loaded.id2label == ID2LABEL and loaded.num_classes == 3
        loaded.save_pretrained(tmp_path / "second")
        first, second = (json.loads((tmp_path / x / "config.json").read_text()) for x in ("first", "second"))
        assert first["id2label"] == second["id2label"] == {str(i): name for i, name in ID2LABEL.items()}
        assert first["num_classes"] == second["num_classes"] == 3
        assert ClassLabelAdapter.from_pretrained(tmp_path / "second").id2label == ID2LABEL


# ------------------------------------------------------------------------------------------------- all adapters
def adapters():
    """(adapter, features) of each kind."""
    unet = tiny_unet()
    classes = ClassLabelAdapter.for_unet(unet, num_classes=3)
    text = TextAdapter.for_unet(unet, hidden_size=32)
    angle = AngleAdapter.for_unet(unet)
    hidden = {"hidden_states": torch.randn(3, 4, 32), "mask": torch.ones(3, 4, dtype=torch.bool)}
    return {
        "class": (classes, classes.preprocess([0, 1, 2])),
        "text": (text, hidden),
        "angle": (angle, angle.preprocess([10, 20, 30])),
    }


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("kind", ["class", "text", "angle"])
def test_every_parameter_gets_a_gradient_whatever_is_dropped(kind, is_kept):
    adapter, features = adapters()[kind]
    cond = trained(adapter)(features)  # behind a projection of zeros, a class's vector has no gradient at first
    cond = cond.where(torch.full((3,), is_kept), adapter.null_like(cond))
    (cond.tokens.sum() + cond.pooled.sum()).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == is_kept, name


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_jointly_trained_text_encoder_gets_gradients(is_kept):
    encoder, tokenizer = make_text("clip")
    adapter = trained(TextAdapter.for_unet(tiny_unet(), text_encoder=encoder))
    cond = adapter(adapter.encode(adapter.preprocess([*CAPTIONS, None], tokenizer), encoder))
    keep = torch.full((5,), is_kept)
    cond = cond.where(keep, adapter.null_like(cond))
    (cond.tokens.square().sum() + cond.pooled.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("is_pooled", [True, False])
@pytest.mark.parametrize("is_told_by_tokens", [True, False])
def test_adapters_fit_any_socket(is_told_by_tokens, is_pooled):
    socket = {"token_dim": 16 if is_told_by_tokens else None, "pooled_dim": 24 if is_pooled else None}
    made = {
        UnconditionalAdapter(**socket): {"batch": torch.zeros(2)},
        ClassLabelAdapter(num_classes=2, **socket): {"label": torch.tensor([0, -1])},
        TextAdapter(hidden_size=8, **socket): {
            "hidden_states": torch.randn(2, 3, 8),
            "mask": torch.ones(2, 3, dtype=torch.bool),
        },
    }
    for adapter, features in made.items():
        cond = adapter(features)
        assert (cond.tokens is not None) == is_told_by_tokens and (cond.pooled is not None) == is_pooled
        assert cond.tokens is None or cond.tokens.shape[::2] == (2, 16)
        assert cond.pooled is None or cond.pooled.shape == (2, 24)
        if is_told_by_tokens or is_pooled:
            assert cond.equal(adapter.null_like(cond)), "a new adapter tells nothing"


def test_for_unet_reads_the_socket():
    unet = tiny_unet(class_embed_type=None, projection_class_embeddings_input_dim=None)
    adapter = UnconditionalAdapter.for_unet(unet)
    assert (adapter.config.token_dim, adapter.config.pooled_dim) == (16, None)
    kwargs = adapter(adapter.preprocess([None])).unet_kwargs()
    assert unet(torch.zeros(1, 3, 8, 8), 1, **kwargs).sample.shape == (1, 3, 8, 8)


def test_fill_completes_the_socket():
    adapter = AngleAdapter(token_dim=3, pooled_dim=5)
    cond = adapter.to_conditioning(pooled=torch.ones(2, 5))
    assert torch.equal(cond.tokens, torch.zeros(2, 1, 3)) and torch.equal(cond.pooled, torch.ones(2, 5))
    cond = adapter.to_conditioning(tokens=torch.ones(2, 4, 3))
    assert torch.equal(cond.pooled, torch.zeros(2, 5)) and cond.tokens.shape == (2, 4, 3)


def test_the_contract_names_what_is_missing():
    class Half(ConditioningAdapter):
        pass

    with pytest.raises(TypeError, match="Half must define preprocess"):
        Half().preprocess([1])
    with pytest.raises(TypeError, match="Half must define forward"):
        Half()({})


# -------------------------------------------------------------------------------------------------- third party
LOAD_ELSEWHERE = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
import angle_adapter  # the user's own package; cond_pipelines does not know it
from cond_pipelines import ConditionalPipeline

pipe = ConditionalPipeline.from_pretrained(sys.argv[1])
assert type(pipe) is ConditionalPipeline and type(pipe.adapter) is angle_adapter.AngleAdapter
generator = [torch.Generator().manual_seed(i) for i in range(3)]
images = pipe(condition=[10.0, None, 200.0], generator=generator, output_type="np").images
np.save(sys.argv[2], images)
"""


def test_a_third_partys_adapter_reloads_in_another_process(tmp_path, warm):
    unet = tiny_unet()
    adapter = trained(AngleAdapter.for_unet(unet, num_waves=3), std=2.0)
    pipe = quiet(ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter, default_num_inference_steps=3))
    generator = [torch.Generator().manual_seed(i) for i in range(3)]
    expected = pipe(condition=[10.0, None, 200.0], generator=generator, output_type="np").images
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["adapter"][1] == "AngleAdapter"
    assert index["_adapter_from"] == "angle_adapter.adapter", "its import path is its registration"
    process = warm.start(["-c", LOAD_ELSEWHERE, tmp_path / "model", tmp_path / "images.npy"])
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert np.array_equal(np.load(tmp_path / "images.npy"), expected)


def test_names_of_the_last_release_work_with_a_warning():
    """`fill`, and `num_coins` of a class or set in a constructor."""
    unet = tiny_unet()
    with pytest.warns(DeprecationWarning, match="num_coins is now num_dropout_draws"):

        class Two(UnconditionalAdapter):
            num_coins = 2

    with pytest.warns(DeprecationWarning, match="fill is now to_conditioning"):
        cond = Two.for_unet(unet).fill(pooled=torch.ones(2, unet.config.projection_class_embeddings_input_dim))
    assert Two.num_dropout_draws == 2 and len(cond) == 2
    adapter = UnconditionalAdapter.for_unet(unet)
    with pytest.warns(DeprecationWarning, match="num_coins"):
        adapter.num_coins = 3
    assert adapter.num_dropout_draws == adapter.num_coins == 3
