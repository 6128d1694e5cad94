"""Any vector as a condition."""

import datasets
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from training_common import log_of, run

from cond_pipelines import ConditionalPipeline, EmbeddingAdapter, UnconditionalAdapter, build_unet
from cond_pipelines.data.shapes import load_shapes


def with_vectors() -> datasets.Dataset:
    """Shapes with a vector of three numbers each: two of large values, one that never varies; None now and then."""
    rng = np.random.default_rng(0)
    vectors = [None if i % 8 == 3 else [100 + 10 * rng.normal(), 0.01 * rng.normal(), 7.0] for i in range(24)]
    return load_shapes(24).add_column("embedding", vectors)


def with_numbers() -> datasets.Dataset:
    return load_shapes(8).add_column("height", [None, *(float(i) for i in range(7))])


def with_a_bad_vector() -> datasets.Dataset:
    return load_shapes(3).add_column("embedding", [[1.0, 2.0], [1.0], [0.0, 1.0]])


def with_one_not_finite() -> datasets.Dataset:
    return load_shapes(3).add_column("embedding", [[1.0, 2.0], [1.0, float("nan")], None])


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet("xxs", sample_size=8, block_out_channels=(32, 32))


def draw(pipe, conditions, **sampling):
    latents = torch.randn(len(conditions), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.set_progress_bar_config(disable=True)
    sampling = {"num_inference_steps": 2, "output_type": "pt"} | sampling
    return ConditionalPipeline.__call__(pipe, conditions, latents=latents, **sampling).images


# ------------------------------------------------------------------------------------------------------ the adapter
def test_it_starts_with_no_effect(unet):
    pipes = [
        ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter)
        for adapter in (UnconditionalAdapter.for_unet(unet), EmbeddingAdapter.for_unet(unet, embedding_dim=2))
    ]
    vectors = [[1.0, -3.0], None]
    parent, found = draw(pipes[0], [None, None]), draw(pipes[1], vectors)
    assert (parent - found).abs().max() <= 1e-6  # four tokens of zeros instead of one
    assert torch.equal(draw(pipes[1], [None, None]), found)


def randomised(unet, **arguments):
    adapter = EmbeddingAdapter.for_unet(unet, **arguments)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def test_shapes_and_none(unet):
    adapter = randomised(unet, embedding_dim=3, num_tokens=5)
    cond = adapter(adapter.preprocess([[1, 2, 3], torch.tensor([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), None]))
    assert cond.tokens.shape == (4, 5, unet.config.cross_attention_dim)
    assert cond.pooled.shape == (4, unet.config.projection_class_embeddings_input_dim)
    assert torch.equal(cond.pooled[0], cond.pooled[1]) and not torch.allclose(cond.pooled[0], cond.pooled[2])
    assert (cond.pooled[3] == 0).all() and (cond.tokens[3] == 0).all()
    null = adapter.null_like(cond)
    assert torch.equal(null.pooled[0], cond.pooled[3]) and torch.equal(null.tokens[0], cond.tokens[3])
    one = randomised(unet, embedding_dim=1)
    assert torch.equal(one(one.preprocess([2.5])).pooled, one(one.preprocess([[2.5]])).pooled)


def test_statistics_from_data_are_those_given(unet):
    torch.manual_seed(0)
    data = torch.randn(50, 3) * torch.tensor([10.0, 0.1, 0.0]) + torch.tensor([5.0, -2.0, 7.0])
    learned = randomised(unet, embedding_dim=3).fit([*data, None])
    given = EmbeddingAdapter.for_unet(
        unet, embedding_dim=3, mean=data.mean(0).tolist(), std=[*data.std(0, correction=0)[:2].tolist(), 1.0]
    )
    assert torch.allclose(learned.data_mean, given.data_mean) and torch.allclose(learned.data_std, given.data_std)
    given.load_state_dict(learned.state_dict() | {"data_mean": given.data_mean, "data_std": given.data_std})
    conditions = [learned(learned.preprocess(list(data))), given(given.preprocess(list(data)))]
    assert torch.allclose(conditions[0].tokens, conditions[1].tokens, atol=1e-3)
    scaled = randomised(unet, embedding_dim=3).fit(1000 * data)  # units do not matter
    scaled.load_state_dict(learned.state_dict() | {"data_mean": scaled.data_mean, "data_std": scaled.data_std})
    found = scaled(scaled.preprocess(list(1000 * data)))
    assert torch.allclose(found.pooled, conditions[0].pooled, atol=1e-2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [([1.0], "an embedding of 1 numbers, and this model takes 2"), ([1.0, float("inf")], "not finite")],
)
def test_bad_vectors(unet, raw, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingAdapter.for_unet(unet, embedding_dim=2).preprocess([raw])


def test_it_travels(unet, tmp_path):
    """Loaded by this package and by diffusers alone: the same images, statistics included."""
    adapter = randomised(unet, embedding_dim=2).fit([[1.0, 2.0], [3.0, 5.0]])
    pipe = ConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter)
    pipe.save_pretrained(tmp_path)
    vectors = [[1.5, 2.0], None, [4.0, 4.0]]
    expected = draw(pipe, vectors)
    ours = ConditionalPipeline.from_pretrained(tmp_path)
    assert type(ours.adapter) is EmbeddingAdapter
    theirs = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(theirs.adapter) is not EmbeddingAdapter
    assert torch.equal(draw(ours, vectors), expected)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(theirs(vectors, latents=latents, num_inference_steps=2, output_type="pt").images, expected)


# --------------------------------------------------------------------------------------------------------- training
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    arguments = {"dataset_name": "test_embedding_adapter:with_vectors", "conditioning": "embedding"}
    return run(tmp_path_factory.mktemp("embedding"), validation_steps=3, **arguments)


def test_a_run(trained):
    pipe = ConditionalPipeline.from_pretrained(trained)
    assert type(pipe.adapter) is EmbeddingAdapter and pipe.adapter.config.embedding_dim == 3
    known = np.array([v for v in with_vectors()["embedding"] if v is not None])
    assert np.allclose(pipe.adapter.data_mean, known.mean(axis=0), rtol=1e-5)
    assert np.allclose(pipe.adapter.data_std, [*known.std(axis=0)[:2], 1.0], rtol=1e-3)
    assert all((p != 0).any() for p in pipe.adapter.parameters())
    assert len(log_of(trained)) == 4
    card = (trained / "README.md").read_text()
    assert "condition=[[" in card or 'condition=["[' in card


def test_variations_and_interpolation(trained):
    pipe = ConditionalPipeline.from_pretrained(trained)
    a, b = torch.tensor([90.0, 0.0, 7.0]), torch.tensor([115.0, 0.01, 7.0])
    between = draw(pipe, [torch.lerp(a, b, w) for w in (0.0, 0.5, 1.0)])
    assert torch.equal(draw(pipe, [a, a, b])[0], between[0])
    variations = draw(pipe, [a, a])
    assert not torch.equal(variations[0], variations[1])


def test_going_on(trained, tmp_path):
    arguments = {"pretrained_model_name_or_path": str(trained), "unet_size": None, "conditioning": "embedding"}
    again = run(tmp_path / "a", dataset_name="test_embedding_adapter:with_vectors", learning_rate=1e-9, **arguments)
    adapters = [ConditionalPipeline.from_pretrained(folder).adapter for folder in (trained, again)]
    assert torch.equal(adapters[0].data_mean, adapters[1].data_mean)
    assert torch.allclose(adapters[0].pooled_proj.weight, adapters[1].pooled_proj.weight, atol=1e-6)
    given = {"adapter_config": '{"mean": 3, "std": 2, "num_tokens": 2}', "condition_column": "height"}
    other = run(tmp_path / "b", dataset_name="test_embedding_adapter:with_numbers", **arguments | given)
    adapter = ConditionalPipeline.from_pretrained(other).adapter
    assert (adapter.config.embedding_dim, adapter.config.num_tokens) == (1, 2)
    assert (adapter.data_mean.item(), adapter.data_std.item()) == (3, 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("with_a_bad_vector", "row 1.*: a vector of 1 numbers, and the first has 2; mend it"),
        ("with_one_not_finite", "row 1.*: a vector with a number that is not finite"),
    ],
)
def test_bad_rows_are_named(function, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, dataset_name=f"test_embedding_adapter:{function}", conditioning="embedding")
