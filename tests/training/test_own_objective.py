"""The objective of a run: the scheduler's, with arguments, or somebody's own; saved, and read from the model again."""

import itertools
import json

import datasets
import diffusers
import numpy as np
import pytest
import torch
from consistency import Consistency
from PIL import Image
from pipelines_common import quiet
from training_common import ROUNDING_OF_LOSS, flags, log_of, run

from cond_pipelines import ConditionalPipeline, Objective
from cond_pipelines.objectives import DDPM, OBJECTIVES, FlowMatching

FLOW = {"name": "flow_matching", "num_train_timesteps": 1000, "logit_mean": 0.0, "logit_std": 1.0}
EDM_ARGUMENTS = {"sigma_data": 0.5, "prediction_type": "epsilon", "sigma_min": 0.002, "sigma_max": 80.0}
MEAN, STD = 0.2, 0.3


def normal_pixels() -> datasets.Dataset:
    """1,024 gray images of 4 px, each pixel N(MEAN, STD^2) by itself."""
    values = np.random.default_rng(0).normal(MEAN, STD, (1024, 4, 4))
    images = [Image.fromarray(np.uint8(((x + 1) * 127.5).round().clip(0, 255))) for x in values]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


def load(folder):
    return quiet(ConditionalPipeline.from_pretrained(folder))


# ------------------------------------------------------------------------------------------------- the optimum
def test_a_trained_model_reaches_the_known_optimum(tmp_path):
    """Of normal pixels the best possible loss and the samples of its minimiser are known in closed form."""
    data = {"dataset_name": "test_own_objective:normal_pixels", "resolution": 4, "validation_fraction": 0.2}
    course = {"max_train_steps": 80, "learning_rate": 4e-3, "train_batch_size": 32}
    course |= {"validation_steps": 80, "num_validation_images": 1}
    folder = run(tmp_path, conditioning="none", **data, **course)
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    sigma = torch.special.ndtri(u).sigmoid()
    # x_t = (1 - sigma) x_0 + sigma noise and v = noise - x_0: of determinant 1, so Var(v|x_t) = STD^2 / Var(x_t)
    bayes_loss = (STD**2 / ((1 - sigma) ** 2 * STD**2 + sigma**2)).mean().item()
    assert bayes_loss * 0.97 < log_of(folder, "held_out_loss")[-1] < bayes_loss * 1.05
    # v*(x_t) is linear, so each step of Euler scales the deviation from the mean by a known factor.
    pipe, steps, expected_std = load(folder), 25, 1.0
    times = [2 * s / (1 + s) for s in np.arange(steps, -1, -1) / steps]  # SD3's Eq. 23, shifted by 2
    for s, following in itertools.pairwise(times):
        expected_std *= 1 - (s - (1 - s) * STD**2) / ((1 - s) ** 2 * STD**2 + s**2) * (s - following)
    generator = torch.Generator().manual_seed(0)
    images = pipe(batch_size=64, num_inference_steps=steps, generator=generator, output_type="np").images
    pixels = 2 * images - 1
    assert abs(pixels.mean() - MEAN) < 0.03 and abs(pixels.std() / expected_std - 1) < 0.15


# --------------------------------------------------------------------------------------------- somebody's own
def test_a_loss_that_calls_the_network_twice(tmp_path, monkeypatch):
    own = {"objective": "consistency:Consistency", "objective_config": '{"step": 0.25}', "max_train_steps": 3}
    folder = run(tmp_path / "own", conditioning="class", validation_steps=3, **own)
    pipe = load(folder)
    saved = FLOW | {"name": "consistency:Consistency", "step": 0.25}
    assert pipe.config.objective == saved and type(Objective.from_pipeline(pipe)) is Consistency
    assert "consistency:Consistency" in (folder / "README.md").read_text()
    assert np.isfinite(log_of(folder)).all() and np.isfinite(log_of(folder, "held_out_loss")).all()
    plain = run(tmp_path / "plain", conditioning="class", max_train_steps=3)
    assert log_of(plain)[0] < log_of(folder)[0]  # the same draws, and one more term
    # By a row of the table the same run has the same losses, under its short name.
    monkeypatch.setitem(OBJECTIVES, "consistency", Consistency)
    row = run(tmp_path / "row", conditioning="class", validation_steps=3, **own | {"objective": "consistency"})
    assert log_of(row) == log_of(folder) and load(row).config.objective["name"] == "consistency"
    # A swap of the setting keeps it.
    parent = {"pretrained_model_name_or_path": str(row), "unet_size": None, "max_train_steps": 1}
    assert load(run(tmp_path / "child", conditioning="none", **parent)).config.objective == saved | {
        "name": "consistency"
    }


def test_the_network_may_be_called_twice_by_each_of_two_processes(tmp_path, warm):
    """Gradients are synced once, and the run is that of one process."""
    own = {"objective": "consistency:Consistency", "conditioning": "class", "lr_scheduler": "constant"}
    own |= {"optimizer": "adamw"}  # Muon makes directions of rounding
    alone = run(tmp_path / "alone", **own)
    arguments = flags(**own, train_batch_size=4, output_dir=tmp_path / "two")
    process = warm.start(["-m", "cond_pipelines.training", *arguments], num_processes=2)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 0, told[-3000:]
    assert np.allclose(log_of(tmp_path / "two"), log_of(alone), rtol=ROUNDING_OF_LOSS)


def test_an_objective_that_is_not_imported_is_never_imported(tmp_path, warm):
    """A model's files decide nothing about what code runs; sampling needs no objective."""
    folder = run(tmp_path, conditioning="none", max_train_steps=1, objective="consistency:Consistency")
    code = (
        "import sys; from cond_pipelines import ConditionalPipeline, Objective\n"
        "pipe = ConditionalPipeline.from_pretrained(sys.argv[1]); pipe(num_inference_steps=1)\n"
        "assert 'consistency' not in sys.modules\n"
        "try:\n    Objective.from_pipeline(pipe)\nexcept ValueError as error:\n    print(error)"
    )
    found, told = warm.start(["-c", code, str(folder)]).communicate(timeout=240)
    message = "the objective 'consistency:Consistency', which is not imported: import its module first"
    assert message in found, told[-2000:]


# --------------------------------------------------------------------------------------------------- arguments
def test_every_argument_of_edm(tmp_path):
    chosen = {"scheduler": "EDMEulerScheduler", "objective_config": '{"P_mean": -0.8}', "max_train_steps": 1}
    more = {"conditioning": "none", "checkpointing_steps": 1}
    folder = run(tmp_path / "edm", **more, **chosen)
    assert load(folder).config.objective == {"name": "edm", **EDM_ARGUMENTS, "P_mean": -0.8, "P_std": 1.2}
    other = run(tmp_path / "other", **more, **chosen | {"objective_config": None})
    assert log_of(folder) != log_of(other)
    changed = chosen | {"objective_config": '{"P_std": 1.0}', "max_train_steps": 2}
    with pytest.raises(
        ValueError, match=r'made with --objective_config {"P_mean": -0.8, "P_std": 1.2}, now .*"P_std": 1'
    ):
        run(tmp_path / "edm", **more, **changed, resume_from_checkpoint="latest")
    # A pretrained model's are kept, where they are not given.
    parent = {"pretrained_model_name_or_path": str(folder), "unet_size": None, "max_train_steps": 1}
    child = run(tmp_path / "child", conditioning="class", **parent, objective_config='{"P_std": 1.5}')
    assert load(child).config.objective == {"name": "edm", **EDM_ARGUMENTS, "P_mean": -0.8, "P_std": 1.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "flow"}, "--objective 'flow' is not one of flow_matching, edm, ddpm, distillation, "),
        ({"objective": "json:loads"}, "'json:loads' is a function, and a subclass of Objective is needed"),
        ({"objective": "ddpm"}, "--objective ddpm: FlowMatchEulerDiscreteScheduler samples for another one"),
        ({"objective_config": "{"}, "--objective_config {: "),
        ({"objective_config": '{"P_mean": 1}'}, "--objective_config: 'P_mean' is no argument of the objective flow_"),
        ({"objective_config": '{"num_train_timesteps": 9}'}, "--objective_config: 'num_train_timesteps' is no arg"),
        ({"objective_config": '{"logit_mean": "x"}'}, "--objective_config: logit_mean 'x' is not of type float"),
        ({"objective_config": '{"logit_mean": NaN}'}, "--objective_config: logit_mean nan is not of type float"),
        ({"objective_config": '{"logit_std": 0}'}, '--objective_config {"logit_std": 0}: logit_std 0 must be greater'),
        ({"objective_config": '{"logit_std": 2}', "logit_std": 1.5}, "--objective_config: logit_std is given by --log"),
        ({"objective": "consistency:Forgetful"}, "the objective consistency:Forgetful: consistency:Forgetful must k"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message, tmp_path):
    with pytest.raises(ValueError) as error:
        run(tmp_path, conditioning="none", **arguments)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "log.jsonl").exists()


# ------------------------------------------------------------------------------------------ a swapped scheduler
def test_a_scheduler_of_another_objective_is_refused(tmp_path, caplog):
    folder = run(tmp_path, conditioning="none", max_train_steps=1)
    assert json.loads((folder / "model_index.json").read_text())["objective"] == FLOW
    pipe = load(folder)
    assert "objective" not in caplog.text  # diffusers warns of arguments of another type than annotated
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for scheduler in (diffusers.FlowMatchHeunDiscreteScheduler(), diffusers.UniPCMultistepScheduler(**solver)):
        pipe.scheduler = scheduler
        assert np.isfinite(pipe(num_inference_steps=3, output_type="np").images).all()
        assert isinstance(Objective.from_pipeline(pipe), FlowMatching)
    pipe.scheduler = diffusers.DDIMScheduler()
    for use in (lambda: pipe(num_inference_steps=3), lambda: Objective.from_pipeline(pipe)):
        with pytest.raises(ValueError, match="with the objective flow_matching, and DDIMScheduler samples for ddpm"):
            use()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    with pytest.raises(ValueError, match=r"was trained with num_train_timesteps 1000, and this FlowMatch.* has 500"):
        pipe(num_inference_steps=3)
    # A model of before has no entry: its scheduler says what it is.
    pipe.register_to_config(objective=None)
    pipe.scheduler = diffusers.DDIMScheduler()
    assert isinstance(Objective.from_pipeline(pipe), DDPM)
