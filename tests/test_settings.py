"""The table of settings, and a row of somebody else's package as a worked example: see angle_adapter/setting.py."""

import re

import pytest
import torch
from angle_adapter import AngleAdapter
from angle_adapter.setting import ANGLE
from training_common import flags, run

from cond_pipelines import ConditionalPipeline, TrainingConfig
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.evaluate import evaluate
from cond_pipelines.pipelines import ClassConditionalPipeline
from cond_pipelines.settings import SETTINGS, find_setting, setting_of
from cond_pipelines.training.__main__ import main

ROW = "angle_adapter.setting:ANGLE"


def turned():
    """With a direction in degrees, as text; a few are not known."""
    return load_shapes(96).add_column("degrees", [None if i % 7 == 3 else str(3.75 * i) for i in range(96)])


def one_word():
    return load_shapes(16).add_column("degrees", ["north" if i == 5 else "10" for i in range(16)])


def test_a_third_party_setting_from_the_command_line_to_the_evaluation(tmp_path):
    chosen = {"conditioning": ROW, "dataset_name": "test_settings:turned", "adapter_config": '{"num_waves": 3}'}
    chosen |= {"output_dir": tmp_path / "a", "validation_fraction": 0.3, "validation_steps": 4}
    main([*flags(**chosen), "--validation_prompts", "0", "90.5", "null"])
    pipe = ConditionalPipeline.from_pretrained(tmp_path / "a")
    assert type(pipe.adapter) is AngleAdapter and pipe.adapter.config.num_waves == 3
    assert (pipe.adapter.proj.weight != 0).any(), "the column was found by its name, and its text parsed"
    assert (tmp_path / "a/samples/000004.png").is_file()
    card = (tmp_path / "a/README.md").read_text()
    assert "images from p(x|angle): a shape that points where you say." in card

    report = evaluate(
        EvaluationConfig(
            model=str(tmp_path / "a"),
            dataset_name="test_settings:turned",
            num_samples=16,
            num_likelihood=2,
            feature_extractor="training_common:few_pixels",
        )
    )
    assert report["setting"] == "angle" and report["num_held_out"] > 10
    assert {row["question"] for row in report["measures"]} == {"alike?", "all of it?", "new?", "likely?"}
    with pytest.raises(ValueError, match="--classifier needs a class-conditional model, and this one is 'angle'"):
        evaluate(EvaluationConfig(model=str(tmp_path / "a"), dataset_name="test_settings:turned", classifier="a:b"))

    # ... and its adapter is kept where a run starts from the model.
    child = {"unet_size": None, "pretrained_model_name_or_path": str(tmp_path / "a"), "learning_rate": 1e-12}
    child |= {"conditioning": ROW, "dataset_name": "test_settings:turned", "max_train_steps": 1}
    kept = ConditionalPipeline.from_pretrained(run(tmp_path / "b", **child)).adapter
    assert torch.allclose(kept.proj.weight, pipe.adapter.proj.weight, atol=1e-6)


def test_what_a_third_party_row_refuses_names_the_row_of_the_data(tmp_path):
    settings = {"conditioning": ROW, "dataset_name": "test_settings:one_word"}
    with pytest.raises(ValueError, match=r"row 5.*could not convert string to float: 'north'"):
        run(tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("label", r"--conditioning 'label' is not one of none, class, text, embedding, custom, nor module:SETTING"),
        ("angle_adapter:AngleAdapter", r"'angle_adapter:AngleAdapter' is a \w+, and a Setting is needed"),
        ("angle_adapter:NOT_THERE", r"cannot import 'angle_adapter:NOT_THERE' \(module:name\)"),
    ],
)
def test_what_is_no_row_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(conditioning=name, train_data_dir="images")


def test_flags_of_other_settings_have_no_effect_on_a_third_partys():
    arguments = {"conditioning": ROW, "train_data_dir": "images"}
    assert TrainingConfig(**arguments, condition_column="turn", condition_dropout=0.2).setting is ANGLE
    with pytest.raises(ValueError, match="--label_column turn has no effect without --conditioning class"):
        TrainingConfig(**arguments, label_column="turn")


def test_a_row_and_its_classes_agree():
    for name, row in SETTINGS.items():
        assert find_setting(name) is row and row.name == name
        if row.adapter is not None:
            assert row.adapter_class.conditioning == name
        assert row.pipeline_class.conditioning in (None, name)
        assert setting_of(row.pipeline_class.__name__).name == (name if row.pipeline_class.conditioning else "custom")
    assert setting_of(ClassConditionalPipeline.__name__) is SETTINGS["class"]


def test_the_recipe_of_a_run_names_the_row(tmp_path):
    TrainingConfig(conditioning=ROW, train_data_dir="images").save(tmp_path / "recipe.yaml")
    assert re.search(rf"^conditioning: {ROW}$", (tmp_path / "recipe.yaml").read_text(), re.MULTILINE)
