"""Another data set than the training's: labels go by name, and old runs hold out what they held out."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from cond_pipelines import ClassConditionalPipeline, ClassLabelAdapter, build_unet
from cond_pipelines.data.load import load_data
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.data import EvaluatedData, load_evaluated_data
from cond_pipelines.settings import SETTINGS, AdapterInputs
from cond_pipelines.training.identity import FILE_TIMES, RunIdentity


@pytest.fixture(scope="module")
def pipe():
    unet = build_unet("xxs", sample_size=8)
    adapter = ClassLabelAdapter.for_unet(unet, id2label={0: "blue", 1: "green", 2: "red"})
    return ClassConditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), adapter)


def folder_of(folder, *classes):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def test_labels_go_by_name(pipe, tmp_path):
    """Two of three classes, whose own ids are 0 and 1."""
    config = EvaluationConfig(model="m", train_data_dir=folder_of(tmp_path / "a", "blue", "red"))
    data = load_evaluated_data(config, pipe, "class", {"cache_dir": str(tmp_path / "cache")})
    assert data.id2label == {0: "blue", 2: "red"} and len(data.held_out) == 10
    for index in range(len(data.dataset)):
        row = int(data.dataset.usable[index])
        expected = 2 if "/red/" in data.dataset.name(row) else 0
        assert data.dataset.read_condition(row) == data.conditions([index])[0] == expected
        assert data.dataset[0, index].condition == expected


def test_fine_tuning_keeps_the_classes_of_the_pretrained_model(pipe, tmp_path):
    """On two of its three classes; on another class it gets an adapter of its own."""
    fits = SETTINGS["class"].adapter_fits
    for name, expected in (("red", True), ("violet", False)):
        folder = folder_of(tmp_path / name, "blue", name)
        data = load_data(EvaluatedData(conditioning="class", train_data_dir=folder, cache_dir=str(tmp_path / "cache")))
        assert fits(pipe.adapter, AdapterInputs(ClassLabelAdapter, pipe.unet, data)) == expected
    data = load_data(EvaluatedData(conditioning="class", train_data_dir=str(tmp_path / "red"), cache_dir=str(tmp_path)))
    data.use_labels(pipe.adapter.label_id, "the model")
    assert set(data.dataset.conditions()) == {0, 2} and data.id2label == {0: "blue", 2: "red"}


def test_a_class_that_the_model_does_not_know_is_refused(pipe, tmp_path):
    config = EvaluationConfig(model="m", train_data_dir=folder_of(tmp_path / "a", "blue", "violet"))
    with pytest.raises(ValueError, match=r"a class 'violet', and the model \(blue, green, red\) does not"):
        load_evaluated_data(config, pipe, "class", {"cache_dir": str(tmp_path / "cache")})


def test_a_model_of_before_is_evaluated_on_the_rows_that_it_held_out(pipe, tmp_path):
    folder = folder_of(
        tmp_path / "a", "blue", "red", "green", "blue 2", "red 2", "green 2", "a", "b", "c", "d", "e", "f"
    )
    known = {"train_data_dir": folder, "cache_dir": str(tmp_path / "cache"), "conditioning": "none"}
    config = EvaluationConfig(model="m", train_data_dir=folder)
    by_row = load_evaluated_data(config, pipe, "none", known | {"validation_fraction": 0.2})
    assert by_row.held_out_by == "row" and len(by_row.held_out) == 72
    by_content = load_evaluated_data(
        config, pipe, "none", known | {"validation_fraction": 0.9, "held_out_by": "content"}
    )
    assert by_content.held_out_by == "content" and len(by_content.held_out) == 90


def test_what_a_run_of_before_recorded():
    """Rows were held out then: the same rows go on, others are refused in one line."""
    RunIdentity({"held_out_by": "row"}).accept({})
    with pytest.raises(ValueError, match="was made with --held_out_by row, now --held_out_by content"):
        RunIdentity({"held_out_by": "content"}).accept({})
    identity = RunIdentity({FILE_TIMES: "a", "content of the data": "x"})
    identity.accept({FILE_TIMES: "b", "content of the data": "x"})
    assert identity.notes == ["image files were written again since, with the same size or content"]
    with pytest.raises(ValueError, match="was made with another content of the data"):
        identity.accept({FILE_TIMES: "b", "content of the data": "y"})
