"""Models of every kind are evaluated: of several shapes, channels, bits, labels an image, vectors, and conditions."""

import json
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score
from training_common import run, shapes

from cond_pipelines.evaluation.conditions import ModelCondition
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.evaluate import evaluate
from cond_pipelines.evaluation.features import load_classifier
from cond_pipelines.evaluation.obedience import classifier_row, label_rows, several_label_rows, vector_rows
from cond_pipelines.evaluation.probes import mean_auc
from cond_pipelines.evaluation.questions import Part, Sets, is_measure
from cond_pipelines.evaluation.sampling import num_views, to_image
from cond_pipelines.networks.text_encoders import new_text_encoder
from cond_pipelines.settings import SETTINGS


def with_everything() -> datasets.Dataset:
    """Oblong images, a list of labels, a vector, and a dictionary of conditions."""
    rows, rng = shapes(), np.random.default_rng(0)
    images = [image.resize([(16, 8), (8, 16), (8, 8), (16, 8)][i % 4]) for i, image in enumerate(rows["image"][:])]
    tags = [[name for name, has in zip("ab", rng.integers(2, size=2), strict=True) if has] for _ in images]
    vectors = rng.normal(size=(len(images), 2)).tolist()
    both = [{"label": int(label), "size": None if i % 5 == 0 else float(i)} for i, label in enumerate(rows["label"][:])]
    two = [{"a": 0, "b": 1}] * len(images)
    table = {"image": images, "tags": tags, "embedding": vectors, "both": both, "two": two}
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


def larger() -> datasets.Dataset:
    """The same images, twice as wide and high: a run chooses a resolution of 16."""
    rows = with_everything()
    images = [image.resize((2 * image.width, 2 * image.height)) for image in rows["image"][:]]
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())


def partly_labelled() -> datasets.Dataset:
    """Two classes of 32 images, and as many images without a label."""
    rows = shapes()
    return datasets.Dataset.from_dict(
        {"image": rows["image"][:], "label": [["dark", "light", None][i % 3] for i in range(len(rows))]}
    ).cast_column("image", datasets.Image())


def of_two_kinds() -> datasets.Dataset:
    """A dictionary of a class and a caption; every image has its own caption."""
    rows = shapes()
    both = [{"label": i % 2, "text": f"{caption} {i}"} for i, caption in enumerate(rows["caption"])]
    return datasets.Dataset.from_dict({"image": rows["image"][:], "both": both}).cast_column("image", datasets.Image())


def darkness(images):
    """A classifier of "dark" and "light"."""
    return ["dark" if np.asarray(image).mean() < 128 else "light" for image in images]


def darkness_and_its_contrary(images):
    """Scores of two labels an image."""
    means = [np.asarray(image).mean() for image in images]
    return [[-mean, mean] for mean in means]


def evaluated(folder, dataset="test_kinds:with_everything", flags=None, **arguments):
    run(folder, dataset_name=dataset, validation_fraction=0.3, max_train_steps=1, **arguments)
    settings = {"model": str(folder), "dataset_name": dataset, "num_samples": 60, "num_likelihood": 2} | (flags or {})
    report = evaluate(EvaluationConfig(**settings, feature_extractor="training_common:few_pixels"))
    assert all(np.isfinite(row["value"]) for row in report["measures"])
    assert report == json.loads((folder / "evaluation/report.json").read_text())
    assert Image.open(folder / "evaluation/nearest.png").width > 100
    return report, {row["name"]: row for row in report["measures"]}


def sizes_of_samples(folder):
    return {path.name.split("-")[0] for path in folder.glob("evaluation/samples/*/*.npy")}


def test_aspect_buckets_and_several_labels(tmp_path):
    """Samples have the shapes of training, also where most images are wide; each label has its own number."""
    report, rows = evaluated(
        tmp_path / "model", conditioning="class", label_column="tags", aspect_buckets=True, resolution=16
    )
    assert json.loads((tmp_path / "model/unet/config.json").read_text())["sample_size"] == [12, 20]
    assert sizes_of_samples(tmp_path / "model") == {"12x20", "16x16", "20x12"} and report["resolution_px"] == 16
    assert "Not evaluated" not in (tmp_path / "model/README.md").read_text()
    assert report["classes"]["names"] == ["a", "b"] and sum(report["classes"]["samples"]) > 30
    name = "labels separated by linear probes, mean AUC of 2"
    assert 0 <= rows[name]["interval"][0] <= rows[name]["value"] <= rows[name]["interval"][1] <= 1
    text = (tmp_path / "model/evaluation/report.md").read_text()
    assert "| label | samples with it | AUC |" in text


def test_aspect_buckets_of_a_resolution_that_the_run_chose(tmp_path):
    """Other data would have another: those of training count. Without any record there are no buckets."""
    evaluated(tmp_path / "model", "test_kinds:larger", aspect_buckets=True, resolution=None)
    trained = sizes_of_samples(tmp_path / "model")
    shutil.rmtree(tmp_path / "model/evaluation")
    other = {"dataset_name": "test_kinds:with_everything", "num_samples": 60, "num_likelihood": 0}
    options = EvaluationConfig(str(tmp_path / "model"), feature_extractor="training_common:few_pixels", **other)
    assert evaluate(options)["resolution_px"] == 16 and sizes_of_samples(tmp_path / "model") == trained
    assert len(trained) == 3 and "Not evaluated" not in (tmp_path / "model/README.md").read_text()
    for name in ("training_config.yaml", "training_summary.json"):
        (tmp_path / "model" / name).unlink()
    evaluate(options)
    assert "00000.npy" in sizes_of_samples(tmp_path / "model")  # of the UNet's own size
    assert "Not evaluated" not in (tmp_path / "model/README.md").read_text()


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


COMPOSITE = {"conditioning": "custom", "adapter": "cond_pipelines:CompositeAdapter", "condition_column": "both"}


def test_a_class_and_a_caption_are_measured_as_those_of_models_with_one(tmp_path, clip):
    """Every flag reads the part that has what it needs; the rows, tables and pictures name it."""
    label = {"class": "ClassLabelAdapter", "id2label": {0: "dark", 1: "light"}}
    parts = {"label": label, "text": {"class": "TextAdapter"}}
    for part in new_text_encoder(shapes()["caption"], hidden_size=16, num_layers=1):
        part.save_pretrained(tmp_path / "encoder")
    (tmp_path / "new.txt").write_text("a purple circle on orange\n\na striped square, tilted\n")
    flags = {"clip_model": str(clip), "classifier": "test_kinds:darkness", "unseen_captions": str(tmp_path / "new.txt")}
    report, rows = evaluated(
        tmp_path / "model",
        "test_kinds:of_two_kinds",
        flags | {"classify": True, "num_classified": 4},
        adapter_config=json.dumps({"adapters": parts}),
        text_encoder_name_or_path=str(tmp_path / "encoder"),
        **COMPOSITE,
    )
    for end in ("", ", text alone", ", captions unseen in training", ", unseen combinations"):
        assert f"text: CLIP score{end}" in rows and f"text: matched against shuffled, AUC{end}" in rows
    assert all(is_measure(name) for name in rows)
    assert {"label: class read right by test_kinds:darkness", "label: held-out images classified right"} <= set(rows)
    table = report["classes_of_conditions"]["label"]
    assert report["classes"] == {} and table["names"] == ["dark", "light"] and np.sum(table["confusion"]) == 60
    folder = tmp_path / "model/evaluation"
    assert "\n## label\n" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert "Each class of label" in page and page.count("data:image/png;base64,") == 4
    assert all(Image.open(folder / name).width > 100 for name in ("per_class.png", "confusion.png"))
    drawn = sorted(path.name for path in folder.glob("samples-*"))
    kinds = ["label-alone", "text-alone", "text-captions-unseen-in-training", "text-unseen-combinations"]
    assert drawn == [f"samples-{kind}" for kind in kinds]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("clip_model", "--clip_model needs a text-conditional model, and this one has a (class), b (class)"),
        ("classifier", "--classifier x:y reads one condition, and a, b are labels: leave it out"),
    ],
)
def test_what_no_condition_or_more_than_one_can_take_is_refused(tmp_path, flag, words):
    part = {"class": "ClassLabelAdapter", "num_classes": 10}
    run(
        tmp_path / "model",
        dataset_name="test_kinds:with_everything",
        max_train_steps=1,
        validation_fraction=0.3,
        adapter_config=json.dumps({"adapters": {"a": part, "b": part}}),
        **COMPOSITE | {"condition_column": "two"},
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        evaluate(
            EvaluationConfig(model=str(tmp_path / "model"), dataset_name="test_kinds:with_everything", **{flag: "x:y"})
        )
    assert not list((tmp_path / "model").glob("evaluation/samples*"))


def test_a_classifier_of_several_labels_an_image(tmp_path):
    name = "test_kinds:darkness_and_its_contrary"
    arguments = {"conditioning": "class", "label_column": "tags"}
    _, rows = evaluated(tmp_path / "model", flags={"classifier": name}, **arguments)
    row = rows[f"labels separated by {name}, mean AUC of 2"]
    assert 0 <= row["interval"][0] <= row["value"] <= row["interval"][1] <= 1
    assert is_measure(row["name"])
    settings = {"model": str(tmp_path / "model"), "dataset_name": "test_kinds:with_everything"}
    settings |= {"feature_extractor": "training_common:few_pixels", "num_samples": 20}
    with pytest.raises(ValueError, match="it must give 2 x 2 numbers, higher where an image seems to have the label"):
        evaluate(EvaluationConfig(**settings, classifier="test_kinds:darkness"))
    with pytest.raises(ValueError, match=r"--classify needs one label an image, .* the report has the AUC of each"):
        evaluate(EvaluationConfig(**settings, classify=True))


def test_a_transformers_classifier_of_several_labels(tmp_path):
    """Its logits, in the order of our labels."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    theirs = {0: "c", 1: "a", 2: "b"}
    vit = ViTConfig(**sizes, id2label=theirs, label2id={n: i for i, n in theirs.items()})
    model = ViTForImageClassification(vit)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0, 1.0, 2.0])
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}'
    )
    read = load_classifier(str(tmp_path), {0: "b", 5: "a"}, has_several=True)
    assert read([Image.new("RGB", (9, 9))] * 3).tolist() == [[2.0, 1.0]] * 3


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


def test_a_classifier_that_reads_several_labels_in_half_of_the_samples():
    """One that sees the labels themselves: half of the samples show others."""
    rng = np.random.default_rng(0)

    def tags(count):
        return [tuple(i for i in range(3) if rng.random() < 0.5) for _ in range(count)]

    asked, shown, real = tags(2000), tags(2000), tags(300)
    seen = [a if rng.random() < 0.5 else s for a, s in zip(asked, shown, strict=True)]
    scores, ceiling = (np.array([[i in c for i in range(3)] for c in cs], np.float32) for cs in (seen, real))
    features = np.zeros((2000, 1), np.float32)
    sets = Sets(fake=Part(features, asked), train=Part(features, asked), held_out=Part(features[:300], real))
    condition = ModelCondition("", None, SETTINGS["class"], {i: f"t{i}" for i in range(3)}, has_several=True)
    row = classifier_row("x:y", condition, sets, scores, ceiling)
    assert row["value"] == pytest.approx(0.75, abs=0.03) and row["real"] == 1
    assert row["name"] == "labels separated by x:y, mean AUC of 3"


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
