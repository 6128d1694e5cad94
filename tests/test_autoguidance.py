"""Autoguidance: a weaker network of the same kind guides, in every setting; trained, saved, loaded, sampled, swept."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines_common import generators, make_components, quiet, tiny_unet, trained
from training_common import TINY, log_of, run

from cond_pipelines import ClassConditionalPipeline, ConditionalPipeline, TextToImagePipeline, UnconditionalPipeline
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.sweep import sweep
from cond_pipelines.grids import interpolation
from cond_pipelines.pipelines.autoguidance import AutoGuidance
from cond_pipelines.pipelines.guidance import ClassifierFree, Step
from cond_pipelines.sample import main as sample_main
from cond_pipelines.sharing.card import CardFacts

CLASSES = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
CONDITIONS = {"none": [None, None], "class": [0, 2], "text": ["a red circle", "a blue ring"]}


def weak_unet() -> torch.nn.Module:
    return trained(tiny_unet(), std=0.05, seed=7)


def make(setting: str, **more) -> ConditionalPipeline:
    components = {
        k: v for k, v in make_components(setting).items() if setting != "none" or k in ("unet", "scheduler", "adapter")
    }
    return quiet(CLASSES[setting](**components, **more))


def sample(pipe, conditions, **sampling) -> np.ndarray:
    given = {"num_inference_steps": 2, "output_type": "np", "generator": generators(len(conditions))}
    return pipe.sample(conditions, **given | sampling).images


@pytest.fixture(params=CLASSES)
def setting(request):
    return request.param


# ------------------------------------------------------------------------------------------------- the closed form
def test_the_closed_form():
    """D = D_weak + w (D_strong - D_weak); with another guidance, that one's change is added."""
    weak, null, main = (torch.randn(2, 3, 4, 4) for _ in range(3))
    step = Step(0, 1, torch.tensor(1.0))
    net = torch.nn.Identity()
    assert torch.equal(AutoGuidance(net, 0.0).combine([weak, main], step), weak)
    torch.testing.assert_close(AutoGuidance(net, 1.5).combine([weak, main], step), weak + 1.5 * (main - weak))
    scales = torch.tensor([0.0, 2.0])[:, None, None, None]
    each = AutoGuidance(net, scales).combine([weak, main], step)
    torch.testing.assert_close(each[1], 2 * main[1] - weak[1])
    both = AutoGuidance(net, 2.0, ClassifierFree(1.5)).combine([weak, null, main], step)
    torch.testing.assert_close(both, main + (main - weak) + 0.5 * (main - null))


def test_in_a_call(setting):
    """w = 1 is the model's own sample bit for bit, w = 0 the weak network's; w = 1.5 the closed form in one step."""
    pipe, guide, rows = make(setting), weak_unet(), CONDITIONS[setting]
    own = sample(pipe, rows, guidance_scale=1.0)
    assert np.array_equal(sample(pipe, rows, guide=guide, guidance_scale=1.0), own)
    weak_pipe = type(pipe)(**{k: v for k, v in pipe.components.items() if k != "guide"} | {"unet": guide})
    weak = sample(quiet(weak_pipe), rows, guidance_scale=1.0)
    assert np.allclose(sample(pipe, rows, guide=guide, guidance_scale=0.0), weak, atol=1e-6)
    one = {"num_inference_steps": 1, "output_type": "latent"}
    strong, weak = (sample(p, rows, guidance_scale=1.0, **one) for p in (pipe, weak_pipe))
    guided = sample(pipe, rows, guide=guide, guidance_scale=1.5, **one)
    assert torch.allclose(guided, weak + 1.5 * (strong - weak), atol=1e-5)
    listed = sample(pipe, rows, guide=guide, guidance_scale=[1.5, 1.0], **one)
    assert torch.allclose(listed[0], guided[0], atol=1e-5) and torch.allclose(listed[1], strong[1], atol=1e-5)
    interval = sample(pipe, rows, guide=guide, guidance_scale=3.0, guidance_interval=(0.0, 0.0))
    assert np.array_equal(interval, own)


def test_both_kinds_by_name():
    pipe, guide, rows = make("class"), weak_unet(), CONDITIONS["class"]
    one = {"num_inference_steps": 1, "output_type": "latent"}
    strong, null = sample(pipe, rows, guidance_scale=1.0, **one), sample(pipe, [None, None], guidance_scale=1.0, **one)
    weak = sample(pipe, rows, guide=guide, guidance_scale=0.0, **one)
    both = sample(pipe, rows, guide=guide, guidance_scale={"auto": 2, "class": 1.5}, **one)
    assert torch.allclose(both, strong + (strong - weak) + 0.5 * (strong - null), atol=1e-5)
    alone = sample(pipe, rows, guide=guide, guidance_scale={"class": 1.5}, **one)
    assert torch.allclose(alone, sample(pipe, rows, guidance_scale=1.5, **one), atol=1e-6)
    with pytest.raises(ValueError, match="the model has no guide, so 'auto' means nothing"):
        sample(pipe, rows, guidance_scale={"auto": 2})
    with pytest.raises(ValueError, match=r"guidance_scale .* the names are 'auto' and 'class'"):
        sample(pipe, rows, guide=guide, guidance_scale={"auto": 2, "label": 2})
    with pytest.raises(ValueError, match="guide 'weak' is not a network"):
        sample(pipe, rows, guide="weak")
    with pytest.raises(ValueError, match="pass guide or guidance, not both"):
        sample(pipe, rows, guide=guide, guidance=ClassifierFree(2.0))


def test_between_two_conditions_guidance_is_classifier_free():
    """The model's own scale is that of its guide, so one must be given."""
    pipe = make("class", guide=weak_unet(), default_guidance_scale=1.5)
    with pytest.raises(ValueError, match="this model's own scale is that of its guide: give a guidance_scale"):
        interpolation(pipe, "circle", "square", num_steps=2)
    assert interpolation(pipe, "circle", "square", num_steps=2, guidance_scale=1.0, num_inference_steps=1).width > 16


# --------------------------------------------------------------------------------------------- an optional component
def test_saved_and_loaded(setting, tmp_path):
    pipe = make(setting, guide=weak_unet(), default_guidance_scale=1.5)
    images = sample(pipe, CONDITIONS[setting])
    assert not np.allclose(images, sample(pipe, CONDITIONS[setting], guidance_scale=1.0), atol=1e-4)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "guide/config.json").is_file() and not list(tmp_path.glob("guide/*.py"))
    again = quiet(ConditionalPipeline.from_pretrained(tmp_path))
    assert np.allclose(sample(again, CONDITIONS[setting]), images, atol=1e-6)
    alone = quiet(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True))  # its own code
    assert type(alone).__module__.startswith("diffusers_modules")
    assert np.allclose(sample(alone, CONDITIONS[setting]), images, atol=1e-6)
    without = quiet(ConditionalPipeline.from_pretrained(tmp_path, guide=None))
    assert without.guide is None


# ------------------------------------------------------------------------------------------------------ training
COURSE = {"conditioning": "class", "autoguidance": True, "max_train_steps": 16, "default_guidance_scale": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return run(tmp_path_factory.mktemp("guided") / "model", **COURSE, checkpointing_steps=8)


def test_the_guide_is_the_average_of_an_eighth_of_the_run(model, tmp_path):
    """The same as the average of a run that ends there, and no other loss or weight changes."""
    pipe = quiet(ConditionalPipeline.from_pretrained(model))
    assert pipe.config.default_guidance_scale == 1.5
    same = {"conditioning": "class", "lr_scheduler": "constant"}
    guided = run(tmp_path / "guided", **same, autoguidance=True, max_train_steps=16)
    early = run(tmp_path / "early", **same, max_train_steps=2)
    plain = run(tmp_path / "plain", **same, max_train_steps=16)
    guide, short = (quiet(ConditionalPipeline.from_pretrained(f)) for f in (guided, early))
    for name, value in short.unet.state_dict().items():
        assert torch.equal(guide.guide.state_dict()[name], value), name
    assert log_of(guided) == log_of(plain)
    whole = quiet(ConditionalPipeline.from_pretrained(plain))
    assert all(torch.equal(v, guide.unet.state_dict()[k]) for k, v in whole.unet.state_dict().items())
    assert whole.guide is None


def test_it_is_resumed_exactly(model, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part/checkpoint-8").symlink_to(model / "checkpoint-8")
    (tmp_path / "part/checkpoint-8").unlink()
    import shutil

    shutil.copytree(model / "checkpoint-8", tmp_path / "part/checkpoint-8")
    part = run(tmp_path / "part", **COURSE, checkpointing_steps=8, resume_from_checkpoint="checkpoint-8")
    a, b = (quiet(ConditionalPipeline.from_pretrained(folder)) for folder in (model, part))
    for one, other in ((a.unet, b.unet), (a.guide, b.guide)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_what_knows_it(model, tmp_path):
    """Card, `sample`, and a sweep over both scales."""
    assert "guide" in (model / "README.md").read_text()
    assert CardFacts.of_folder(model).has_guide
    sample_main(
        [str(model), "circle", "--guide_scale", "1", "2", "--num_images", "1", "--out", str(tmp_path / "a.png")]
    )
    assert (tmp_path / "a.png").is_file()
    config = EvaluationConfig(
        model=str(model),
        dataset_name=TINY["dataset_name"],
        feature_extractor="pixels",
        num_samples=8,
        sweep=["guide.scale=1,2", "num_inference_steps=1,2"],
        output_dir=str(tmp_path / "sweep"),
        write_best="Frechet distance",
    )
    reports = sweep(config)
    assert [(r["guide_scale"], r["num_inference_steps"]) for r in reports] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [r["network_evaluations_per_image"] for r in reports] == [1, 2, 2, 4]
    assert "guide.scale" in (tmp_path / "sweep/sweep.md").read_text()
    best = min(reports, key=lambda r: next(row["value"] for row in r["measures"] if row["name"] == "Frechet distance"))
    index = json.loads((model / "model_index.json").read_text())
    assert index["default_guidance_scale"] == best["guide_scale"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "adapter"}, "--autoguidance has no effect without --train unet"),
        ({"objective": "distillation"}, "--autoguidance has no effect with --objective distillation"),
    ],
)
def test_what_does_not_go_with_it(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **COURSE | arguments)
