"""The pipeline as it was at a checkpoint: what the run would have saved there."""

import shutil
from pathlib import Path

import pytest
import torch
from training_common import TINY

from cond_pipelines.errors import UserError
from cond_pipelines.networks.pretrained import load_pipeline
from cond_pipelines.training.at_checkpoint import pipeline_at, pipeline_of_average, write_model
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.ema import pipeline_of_length
from cond_pipelines.training.loop import train
from cond_pipelines.training.plan import planned

RUN = TINY | {"max_train_steps": 4, "checkpointing_steps": 2, "validation_steps": 100}


def weights(pipe) -> dict[str, torch.Tensor]:
    parts = ("unet", "adapter", "text_encoder", "guide")
    modules = {name: pipe.components.get(name) for name in parts if pipe.components.get(name) is not None}
    return {f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}


def same(one, other) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "settings",
    [
        {"conditioning": "none"},
        {"conditioning": "class", "use_ema": False},
        {"conditioning": "text", "ema_lengths": [0.05, 0.1]},
        {"conditioning": "class", "autoguidance": True},
    ],
    ids=str,
)
def test_at_the_last_checkpoint_it_is_the_finished_model_also_before_that_is_there(tmp_path, settings):
    run = train(TrainingConfig(**RUN | settings, output_dir=str(tmp_path / "run")))
    finished = load_pipeline(run)
    last, earlier = pipeline_at(run / "checkpoint-4"), pipeline_at(run / "checkpoint-2")
    assert same(last, finished) and not same(earlier, finished)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("training_config.yaml", "checkpoint-2", "checkpoint-4"):
        copy = shutil.copytree if (run / name).is_dir() else shutil.copyfile
        copy(run / name, unfinished / name)
    again = pipeline_at(unfinished / "checkpoint-4")
    assert same(again, finished) and same(pipeline_at(unfinished / "checkpoint-2"), earlier)
    assert again.config["objective"] == finished.config["objective"]
    condition = {"none": None, "text": "a red circle"}.get(settings["conditioning"], 0)
    one, other = (
        pipe.sample([condition], num_inference_steps=2, generator=[torch.Generator().manual_seed(0)]).images[0]
        for pipe in (again, finished)
    )
    assert one.tobytes() == other.tobytes()


def test_a_checkpoint_becomes_a_model_and_a_damaged_one_does_not(tmp_path):
    run = train(TrainingConfig(**RUN, conditioning="class", output_dir=str(tmp_path / "run")))
    write_model(pipeline_at(run / "checkpoint-2"), run, tmp_path / "chosen")
    assert same(load_pipeline(tmp_path / "chosen"), pipeline_at(run / "checkpoint-2"))
    assert (tmp_path / "chosen" / "README.md").is_file()
    assert (tmp_path / "chosen" / "training_config.yaml").read_bytes() == (run / "training_config.yaml").read_bytes()
    file = run / "checkpoint-2" / "averages.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"averages\.safetensors is damaged"):
        pipeline_at(run / "checkpoint-2")
    (run / "training_config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no training_config\.yaml"):
        pipeline_at(run / "checkpoint-4")


def test_an_average_of_any_length_of_a_run_that_is_not_finished(tmp_path):
    run, before = tmp_path / "run", tmp_path / "before"
    train(TrainingConfig(**RUN | {"conditioning": "class", "output_dir": str(run), "ema_lengths": [0.05, 0.1]}))
    shutil.copytree(run, before)
    (before / "model_index.json").unlink()  # as after `kill -9` before the model was written
    assert same(pipeline_of_average(before, 0.07), pipeline_of_length(run, 0.07))
    assert not same(pipeline_of_average(before, 0.07), pipeline_at(before / "checkpoint-4"))
    for checkpoint in before.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="no checkpoint yet"):
        pipeline_of_average(before, 0.07)


def test_a_plan_is_what_the_run_chooses(tmp_path):
    open_settings = {"learning_rate": None, "train_batch_size": None}
    config = TrainingConfig(
        **RUN | open_settings | {"max_train_steps": 2}, conditioning="class", output_dir=str(tmp_path / "run")
    )
    chosen, lines = planned(config)
    assert lines[0].startswith("images: ") and lines[-1].startswith("chosen: ")
    assert not Path(config.output_dir).exists()
    run = train(config)
    saved = (run / "training_config.yaml").read_text()
    for name in open_settings:
        assert f"{name}: {chosen[name]}\n" in saved
