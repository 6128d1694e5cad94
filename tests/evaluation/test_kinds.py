"""Models of every kind are evaluated: of several shapes, channels, bits, labels an image, vectors, and conditions."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score
from training_common import run, shapes

from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.evaluate import evaluate
from cond_pipelines.evaluation.obedience import label_rows, several_label_rows, vector_rows
from cond_pipelines.evaluation.probes import mean_auc
from cond_pipelines.evaluation.questions import Part, Sets
from cond_pipelines.evaluation.sampling import num_views, to_image


def with_everything() -> datasets.Dataset:
    """Oblong images, a list of labels, a vector, and a dictionary of conditions."""
    rows, rng = shapes(), np.random.default_rng(0)
    images = [image.resize([(8, 16), (16, 8), (8, 8)][i % 3]) for i, image in enumerate(rows["image"][:])]
    tags = [[name for name, has in zip("ab", rng.integers(2, size=2), strict=True) if has] for _ in images]
    vectors = rng.normal(size=(len(images), 2)).tolist()
    both = [{"label": int(label), "size": None if i % 5 == 0 else float(i)} for i, label in enumerate(rows["label"][:])]
    table = {"image": images, "tags": tags, "embedding": vectors, "both": both}
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


def partly_labelled() -> datasets.Dataset:
    """Two classes of 32 images, and as many images without a label."""
    rows = shapes()
    return datasets.Dataset.from_dict(
        {"image": rows["image"][:], "label": [["dark", "light", None][i % 3] for i in range(len(rows))]}
    ).cast_column("image", datasets.Image())


def evaluated(folder, dataset="test_kinds:with_everything", **arguments):
    run(folder, dataset_name=dataset, validation_fraction=0.3, max_train_steps=1, **arguments)
    settings = {"model": str(folder), "dataset_name": dataset, "num_samples": 60, "num_likelihood": 2}
    report = evaluate(EvaluationConfig(**settings, feature_extractor="training_common:few_pixels"))
    assert all(np.isfinite(row["value"]) for row in report["measures"])
    assert report == json.loads((folder / "evaluation/report.json").read_text())
    assert Image.open(folder / "evaluation/nearest.png").width > 100
    return report, {row["name"]: row for row in report["measures"]}


def test_aspect_buckets_and_several_labels(tmp_path):
    """Samples have the shapes of the data, as often; each label has its own number."""
    report, rows = evaluated(
        tmp_path / "model", conditioning="class", label_column="tags", aspect_buckets=True, resolution=16
    )
    files = sorted(path.name for path in (tmp_path / "model").glob("evaluation/samples/*/*.npy"))
    assert {name.split("-")[0] for name in files} == {"12x20", "16x16", "20x12"}
    assert report["classes"]["names"] == ["a", "b"] and sum(report["classes"]["samples"]) > 30
    name = "labels separated by linear probes, mean AUC of 2"
    assert 0 <= rows[name]["interval"][0] <= rows[name]["value"] <= rows[name]["interval"][1] <= 1
    text = (tmp_path / "model/evaluation/report.md").read_text()
    assert "| label | samples with it | AUC |" in text


def test_deep_images_of_many_channels(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(60):
        np.save(tmp_path / f"images/{i}.npy", rng.integers(0, 4000, (8, 8, 5)).astype(np.uint16))
    settings = {"train_data_dir": str(tmp_path / "images"), "dataset_name": None}
    run(
        tmp_path / "model",
        value_range=[0.0, 4095.0],
        channels=5,
        validation_fraction=0.3,
        max_train_steps=1,
        **settings,
    )
    config = {"model": str(tmp_path / "model"), "train_data_dir": settings["train_data_dir"], "num_samples": 40}
    report = evaluate(EvaluationConfig(**config, feature_extractor="training_common:few_pixels"))
    assert {row["question"] for row in report["measures"]} >= {"alike?", "all of it?", "new?"}
    (features,) = {np.load(path).shape[1] for path in (tmp_path / "model/evaluation").glob("features-*.npy")}
    assert features == 2 * 48  # channels 1 to 3, and 4 to 5
    samples = np.load(next((tmp_path / "model").glob("evaluation/samples/*/00000.npy")))
    assert samples.dtype == np.uint16 and samples.shape == (32, 8, 8, 5)


def test_pictures_of_all_channels_and_ranges():
    assert [num_views(channels) for channels in (1, 2, 3, 4, 5, 13)] == [1, 1, 1, 1, 2, 5]
    x = np.arange(5, dtype=np.uint8) * np.ones((2, 2, 1), np.uint8)
    assert [np.asarray(to_image(x, view))[0, 0].tolist() for view in (0, 1)] == [[0, 1, 2], [3, 4, 4]]
    values = np.arange(256)
    for deep in (values * 257, np.float32(values / 127.5 - 1)):
        pixels = deep.astype(np.uint16 if deep.dtype.kind == "i" else np.float32).reshape(16, 16, 1)
        assert np.array_equal(np.asarray(to_image(pixels)).reshape(-1), values)


def test_vectors(tmp_path):
    _, rows = evaluated(tmp_path / "model", conditioning="embedding")
    row = rows["correlation of the vector with what is read"]
    assert row["question"] == "obeys v?" and -1 <= row["interval"][0] <= row["interval"][1] <= 1


def test_samples_without_a_label_are_said_to_have_no_condition(tmp_path, monkeypatch):
    """The captions of samples.png: no class is called None."""
    drawn, text = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: drawn.append(a[2]) or text(*a, **k))
    evaluated(tmp_path / "model", "test_kinds:partly_labelled", conditioning="class")
    assert {"dark", "light"} <= set(drawn) and "None" not in drawn
    assert "no condition" in drawn or {"no", "condition"} <= set(drawn)


def test_several_conditions_together_and_each_alone(tmp_path):
    adapters = {
        "label": {"class": "ClassLabelAdapter", "num_classes": 10},
        "size": {"class": "EmbeddingAdapter", "embedding_dim": 1},
    }
    arguments = {"conditioning": "custom", "adapter": "cond_pipelines:CompositeAdapter", "condition_column": "both"}
    _, rows = evaluated(tmp_path / "model", adapter_config=json.dumps({"adapters": adapters}), **arguments)
    for end in ("", ", label alone"):
        assert f"label: class read right by a linear probe{end}" in rows
    for end in ("", ", size alone"):
        assert f"size: correlation of the vector with what is read{end}" in rows
    assert len(list((tmp_path / "model/evaluation").glob("samples*/*/"))) == 3


# ------------------------------------------------------------------------------------------------- known answers
def planted(count, seed, obeys, conditions_of):
    """Features whose first numbers show the condition in a share `obeys` of the images."""
    rng = np.random.default_rng(seed)
    conditions, shown = conditions_of(rng, count), conditions_of(rng, count)
    keep = rng.random(count) < obeys
    shown = [c if k else s for c, s, k in zip(conditions, shown, keep, strict=True)]
    x = rng.standard_normal((count, 8)).astype(np.float32)
    return x, conditions, shown, rng


def test_several_labels_that_are_shown_in_half_of_the_samples():
    def tags(rng, count):
        return [tuple(i for i in range(3) if rng.random() < 0.4) or (3,) for _ in range(count)]

    def part(count, seed, obeys):
        x, conditions, shown, _ = planted(count, seed, obeys, tags)
        x[:, :4] += 8 * np.array([[i in s for i in range(4)] for s in shown])
        return Part(x, conditions)

    names = {i: f"t{i}" for i in range(4)}
    for obeys, low, high in ((1.0, 0.99, 1.0), (0.5, 0.7, 0.8), (0.0, 0.45, 0.55)):
        sets = Sets(fake=part(2000, 1, obeys), train=part(2000, 2, 1.0), held_out=part(500, 3, 1.0))
        (row,), classes = several_label_rows(sets, names)
        assert low <= row["value"] <= high and row["real"] > 0.99, obeys
        assert np.mean(classes["auc"]) == pytest.approx(row["value"], abs=1e-3)
        assert row["interval"][1] <= 1


def test_the_mean_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    has, scores = rng.random((300, 4)) < [0.1, 0.5, 0.9, 0.0], rng.integers(9, size=(300, 4)).astype(float)  # with ties
    expected = np.mean([roc_auc_score(has[:, k], scores[:, k]) for k in range(3)])
    assert mean_auc(has, scores) == pytest.approx(expected, abs=1e-12)


def test_vectors_that_are_shown_with_noise():
    """Noise as large as the signal: r = 1 / sqrt(2)."""

    def part(count, seed, noise):
        rng = np.random.default_rng(seed)
        v = rng.standard_normal((count, 2))
        x = rng.standard_normal((count, 8)).astype(np.float32)
        x[:, :2] = v + noise * rng.standard_normal((count, 2))
        return Part(x, [tuple(row) for row in v])

    for noise, expected in ((0.0, 1.0), (1.0, 2**-0.5), (1000.0, 0.0)):
        (row,) = vector_rows(Sets(fake=part(3000, 1, noise), train=part(3000, 2, 0.01), held_out=part(500, 3, 0.01)))
        assert row["value"] == pytest.approx(expected, abs=0.05) and row["real"] > 0.99


def test_a_classifier_with_a_known_confusion():
    """A third of the samples of class 0 show class 1."""
    rng = np.random.default_rng(0)

    def part(labels, shown):
        x = rng.standard_normal((len(labels), 6)).astype(np.float32)
        x[np.arange(len(labels)), shown] += 9
        return Part(x, labels.tolist())

    labels = np.arange(900) % 3
    shown = np.where((labels == 0) & (np.arange(900) % 9 == 0), 1, labels)
    sets = Sets(fake=part(labels, shown), train=part(labels, labels), held_out=part(labels[:90], labels[:90]))
    rows, classes = label_rows(sets, {0: "a", 1: "b", 2: "c"})
    assert classes["confusion"] == [[200, 100, 0], [0, 300, 0], [0, 0, 300]]
    values = {row["name"]: row["value"] for row in rows}
    assert values["class read right by a linear probe"] == pytest.approx(8 / 9, abs=1e-3)
    assert values["class imbalance"] == pytest.approx(1 / 9, abs=1e-3)
