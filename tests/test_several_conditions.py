"""Several labels of an image, and several conditions of different kinds."""

import json

import datasets
import pytest
import torch
from angle_adapter import AngleAdapter
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from training_common import log_of, run

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    CompositeAdapter,
    ConditionalPipeline,
    EmbeddingAdapter,
    TextAdapter,
    UnconditionalAdapter,
    build_unet,
)
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.networks.text_encoders import new_text_encoder
from cond_pipelines.pipelines.guidance import Nested, Step

NAMES = ["red", "round", "blue"]


def with_labels() -> datasets.Dataset:
    labels = [[["red", "round"], ["blue"], [], None, ["blue", "round", "blue"]][i % 5] for i in range(20)]
    return load_shapes(20).remove_columns("label").add_column("labels", labels)


def with_class_labels() -> datasets.Dataset:
    feature = datasets.List(datasets.ClassLabel(names=NAMES))
    return with_labels().cast_column("labels", feature)


def with_conditions() -> datasets.Dataset:
    """A column of dictionaries, of which some lack some."""
    conditions = [
        {"label": None if i % 4 == 0 else i % 3, "size": None if i % 5 == 0 else float(i), "text": "a red circle"}
        for i in range(24)
    ]
    return load_shapes(24).add_column("conditions", conditions)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    unet = build_unet("xxs", sample_size=8, block_out_channels=(32, 32))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return unet


def randomised(adapter):
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, conditions, **sampling):
    latents = torch.randn(len(conditions), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sampling = {"num_inference_steps": 2, "output_type": "pt", "latents": latents} | sampling
    return quiet(pipe)(conditions, **sampling).images


# -------------------------------------------------------------------------------------------------- several labels
def test_the_vectors_of_several_labels_are_summed(unet):
    adapter = randomised(ClassLabelAdapter.for_unet(unet, id2label=dict(enumerate(NAMES))))
    for bias in (adapter.token_proj.bias, adapter.pooled_proj.bias):
        torch.nn.init.zeros_(bias)  # so that sums stay sums

    def told(raw):
        return adapter(adapter.preprocess(raw))

    single = told(["red", "round", "blue", None])
    several = told([["red", 1], ["blue"], ["red", "round", 0], None, []])
    assert several.tokens.shape == (5, 1, unet.config.cross_attention_dim)
    assert torch.allclose(several.pooled[0], single.pooled[0] + single.pooled[1], atol=1e-4)
    assert torch.allclose(several.tokens[0], single.tokens[0] + single.tokens[1], atol=1e-4)
    assert torch.allclose(several.pooled[1], single.pooled[2], atol=1e-4)
    assert torch.equal(several.pooled[2], several.pooled[0])  # named twice is named
    assert (several.pooled[3:] == 0).all()
    assert torch.equal(told([["red"], ["blue"]]).pooled, told(["red", "blue"]).pooled)
    with pytest.raises(ValueError, match="unknown class label 'rde'; did you mean 'red'"):
        told([["blue", "rde"]])
    pipe = ClassConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter)
    assert draw(pipe, [["red", "round"], ["blue"], None]).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("function", ["with_labels", "with_class_labels"])
def test_training_on_several_labels(function, tmp_path, capsys):
    folder = run(tmp_path, dataset_name=f"test_several_conditions:{function}", conditioning="class", validation_steps=3)
    names = sorted(NAMES) if function == "with_labels" else NAMES
    pipe = ConditionalPipeline.from_pretrained(folder)
    assert list(pipe.id2label.values()) == names
    counts = {"red": 4, "round": 8, "blue": 8}
    shown = f"classes (3): {', '.join(f'{n} {counts[n]}' for n in names)}; without a label: 8"
    assert shown in "".join(capsys.readouterr())
    assert json.loads((folder / "training_summary.json").read_text())["class_counts"] == counts
    assert draw(pipe, [["red", "round"], None]).isfinite().all()


# ---------------------------------------------------------------------------------------------- several conditions
@pytest.fixture(scope="module")
def text():
    return new_text_encoder(["a red circle", "a blue ring on black"], hidden_size=32, num_layers=1)


@pytest.fixture(scope="module")
def pipe(unet, text):
    torch.manual_seed(1)
    parts = {
        "label": ClassLabelAdapter.for_unet(unet, id2label=dict(enumerate(NAMES))),
        "text": TextAdapter.for_unet(unet, text_encoder=text[0]),
        "angle": AngleAdapter.for_unet(unet),
    }
    adapter = CompositeAdapter({name: randomised(part) for name, part in parts.items()})
    return quiet(ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter, None, *text))


ALL = {"label": "red", "text": "a blue ring on black", "angle": 30.0}


def test_tokens_one_after_the_other_and_pooled_summed(pipe):
    cond, null = pipe.encode_condition([ALL, {"text": "a red circle"}, None])
    length = cond.parts["text"].tokens.shape[1]
    assert cond.tokens.shape[1] == 1 + length + 1
    assert torch.equal(cond.tokens[:, 1 : 1 + length], cond.parts["text"].tokens)
    assert torch.equal(cond.mask[:, 1 : 1 + length], cond.parts["text"].mask)
    assert not cond.mask[1, 1 : 1 + length].all()  # the shorter caption
    assert cond.mask[:, 0].tolist() == cond.mask[:, -1].tolist() == [True, False, True]  # nothing at all: any
    assert torch.allclose(cond.pooled, sum(part.pooled for part in cond.parts.values()), atol=1e-5)
    assert torch.equal(null.tokens[0], torch.zeros_like(null.tokens[0]))
    assert (cond.parts["label"].pooled[1:] == 0).all() and (cond.parts["text"].pooled[1] != 0).any()
    assert torch.equal(cond.tokens[2], null.tokens[2]) and torch.equal(cond.pooled[2], null.pooled[2])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_equal_scales_are_ordinary_guidance(pipe, scale):
    """Bit by bit, whether it is written as a number or for each by name."""
    ordinary = draw(pipe, [ALL, {"label": 1}], guidance_scale=scale)
    named = draw(pipe, [ALL, {"label": 1}], guidance_scale=dict.fromkeys(ALL, scale))
    if scale == 1.0:  # where ordinary guidance makes one pass
        assert torch.allclose(named, ordinary, atol=1e-4)
    else:
        assert torch.equal(named, ordinary)


def test_one_condition_is_ordinary_guidance(unet):
    label = randomised(ClassLabelAdapter.for_unet(unet, num_classes=3))
    alone = ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), label)
    composite = ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), CompositeAdapter({"label": label}))
    expected = draw(alone, [2, None, 0], guidance_scale=4.0)
    for scale in (4.0, {"label": 4.0}):
        assert torch.equal(draw(composite, [{"label": 2}, None, {"label": 0}], guidance_scale=scale), expected)


def test_the_formula_of_nested_guidance(pipe):
    """Against its terms, each from a pass of its own."""
    x_t, t, scales = torch.randn(1, 3, 8, 8), torch.tensor(500.0), {"label": 2.0, "text": 5.0, "angle": 0.5}

    def alone(raw):
        cond, _ = pipe.encode_condition([raw])
        return pipe.unet(x_t, t, **cond.unet_kwargs()).sample

    terms = [alone({k: ALL[k] for k in list(ALL)[:n]}) for n in range(4)]
    expected = terms[0] + sum(s * (b - a) for s, a, b in zip(scales.values(), terms[:-1], terms[1:], strict=True))
    with torch.no_grad():
        pipe._cross_attention_kwargs = None
        cond, null = pipe.encode_condition([ALL])
        found = pipe.predict(x_t, Step(0, 1, t), cond, null, Nested.by_name(scales, cond))
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())


def test_not_more_passes_than_needed(pipe):
    cond, null = pipe.encode_condition([ALL])
    for scale, expected in (
        (dict.fromkeys(ALL, 3.0), [3.0]),
        ({"label": 2.0, "text": 2.0, "angle": 5.0}, [2.0, 5.0]),
        ({"text": 5.0}, [1.0, 5.0, 1.0]),
    ):
        guidance = Nested.by_name(scale, cond)
        branches = guidance.branches(cond, null)
        assert [guidance.scales[end] for end in guidance.ends] == expected and len(branches) == len(expected) + 1
        assert branches[0][1] is null and branches[-1][1] is cond and {net for net, _ in branches} == {None}


def test_an_image_does_not_depend_on_its_batch(pipe):
    raw = {"label": "red", "angle": 10.0}
    alone, beside = draw(pipe, [raw])[0], draw(pipe, [raw, {"text": "a blue ring on black " * 3}])[0]
    assert torch.allclose(alone, beside, atol=1e-4)


def test_it_starts_with_no_effect(unet):
    parts = {
        "label": ClassLabelAdapter.for_unet(unet, num_classes=2),
        "v": EmbeddingAdapter.for_unet(unet, embedding_dim=2),
    }
    found = ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), CompositeAdapter(parts))
    parent = ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), UnconditionalAdapter.for_unet(unet))
    images = draw(found, [{"label": 1, "v": [1.0, 2.0]}, None])
    assert torch.allclose(images, draw(parent, [None, None]), atol=1e-5)


def test_each_condition_has_a_coin_of_its_own(unet):
    parts = {
        "a": ClassLabelAdapter.for_unet(unet, num_classes=2),
        "b": EmbeddingAdapter.for_unet(unet, embedding_dim=2),
    }
    adapter = CompositeAdapter({name: randomised(part) for name, part in parts.items()}, dropout={"a": 0.5})
    coins = torch.tensor([[0.3, 0.4, 0.9], [0.3, 0.6, 0.05], [0.1, 0.9, 0.9], [0.3, 0.9, 0.9]])
    keep = adapter.keep(coins, 0.2)
    assert keep.tolist() == [[False, True], [True, False], [False, False], [True, True]]
    cond = adapter(adapter.preprocess([{"a": 1, "b": [1.0, 2.0]}] * 4))
    kept = cond.where(keep, adapter.null_like(cond))
    raw = [{"b": [1.0, 2.0]}, {"a": 1}, None, {"a": 1, "b": [1.0, 2.0]}]
    expected = adapter(adapter.preprocess(raw))
    assert kept.equal(expected)


def test_it_travels(pipe, tmp_path):
    """With the code of its parts, those of another package too."""
    pipe.save_pretrained(tmp_path)
    sampling = {"guidance_scale": {"label": 2, "text": 5}}
    raw = [ALL, {"angle": 90.0}]
    expected = draw(pipe, raw, **sampling)
    ours = ConditionalPipeline.from_pretrained(tmp_path)
    assert [type(part) for part in ours.adapter.parts.values()] == [ClassLabelAdapter, TextAdapter, AngleAdapter]
    assert torch.equal(draw(ours, raw, **sampling), expected)
    theirs = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(theirs.adapter.parts["angle"]) is not AngleAdapter
    assert torch.equal(draw(theirs, raw, **sampling), expected)
    ours.save_pretrained(tmp_path / "again")
    first, again = ((folder / "adapter/config.json").read_text() for folder in (tmp_path, tmp_path / "again"))
    assert json.loads(first)["adapters"] == json.loads(again)["adapters"]


@pytest.mark.parametrize(
    ("raw", "sampling", "message"),
    [
        ([{"lable": 1}], {}, r"condition \{'lable': 1\} has \['lable'\], and the conditions are \['label', 'text'"),
        (["red"], {}, "condition 'red' is not a dictionary"),
        ([ALL], {"guidance_scale": {"txt": 3}}, r"guidance_scale names \['txt'\], and the conditions are"),
    ],
)
def test_unknown_names(pipe, raw, sampling, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, raw, **sampling)


def test_a_dictionary_of_scales_needs_several_conditions(unet):
    pipe = ConditionalPipeline(
        unet, FlowMatchEulerDiscreteScheduler(), randomised(ClassLabelAdapter.for_unet(unet, num_classes=2))
    )
    with pytest.raises(ValueError, match=r"guidance_scale \{'label': 2.0\} needs conditions with names"):
        draw(pipe, [1], guidance_scale={"label": 2})


def test_an_unknown_class(unet):
    with pytest.raises(
        ValueError, match="the condition 'a' has an unknown adapter class 'NoAdapter', of the package 'x'"
    ):
        CompositeAdapter([{"name": "a", "class": "NoAdapter", "from": "x.y"}])
    with pytest.raises(ValueError, match=r"dropout names \['b'\], and the conditions are \['a'\]"):
        CompositeAdapter({"a": UnconditionalAdapter.for_unet(unet)}, dropout={"b": 0.5})


# --------------------------------------------------------------------------------------------------------- training
def test_training_on_several_conditions(text, tmp_path):
    encoder = tmp_path / "encoder"
    for part in text:
        part.save_pretrained(encoder)
    adapters = {
        "label": {"class": "ClassLabelAdapter", "num_classes": 3},
        "size": {"class": "EmbeddingAdapter", "embedding_dim": 1, "mean": 12, "std": 7},
        "text": {"class": "TextAdapter"},
    }
    arguments = {
        "dataset_name": "test_several_conditions:with_conditions",
        "conditioning": "custom",
        "adapter": "cond_pipelines:CompositeAdapter",
        "adapter_config": json.dumps({"adapters": adapters, "dropout": {"label": 0.3}}),
        "condition_column": "conditions",
        "text_encoder_name_or_path": str(encoder),
    }
    folder = run(tmp_path / "run", validation_steps=3, **arguments)
    assert len(log_of(folder)) == 4
    pipe = ConditionalPipeline.from_pretrained(folder)
    assert list(pipe.adapter.parts) == ["label", "size", "text"] and pipe.adapter.dropout == [0.3, 0.1, 0.1]
    assert all((part.pooled_proj.weight != 0).any() for part in pipe.adapter.parts.values())  # each has learned
    images = draw(pipe, [{"label": 1, "text": "a red circle"}, {"size": 3.0}], guidance_scale={"label": 3, "text": 2})
    assert images.isfinite().all()
