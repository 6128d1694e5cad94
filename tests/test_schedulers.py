"""Schedulers: what does not sample for the model is refused, what does is set by a short name."""

import re

import diffusers
import numpy as np
import pytest
import torch
from parents_common import unet2d
from pipelines_common import generators, make_components, quiet, sample
from training_common import run

from cond_pipelines import ClassConditionalPipeline, ConditionalPipeline, UnconditionalPipeline
from cond_pipelines.networks.surgery import with_channels, without_variance
from cond_pipelines.objectives import DDPM, Objective
from cond_pipelines.objectives.scheduler_fit import misfit
from cond_pipelines.pipelines.schedulers import SCHEDULERS

FLOW_OPTIONS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
BASE = {
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(),
    "epsilon": diffusers.DDPMScheduler(),
    "v": diffusers.DDIMScheduler(prediction_type="v_prediction"),
    "edm": diffusers.EDMEulerScheduler(),
}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDPM_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
VP = ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep"]
VP += ["UniPCMultistep", "DEISMultistep", "SASolver", "LCM", "TCD", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete"]
FLOW = ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "FlowMapEulerDiscrete"]
FLOW += ["LTXEulerAncestralRF"]
FLOW_BY_OPTIONS = ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "SASolver", "DEISMultistep"]
EDM = ["EDMEuler", "EDMDPMSolverMultistep"]
NEITHER = ["IPNDM", "DDIMInverse", "CMStochasticIterative", "MiniMaxH3"]


def swapped(kind: str, name: str, **options):
    """As people swap a scheduler; with the betas, whose default values diffusers' from_config leaves out."""
    cls, config = getattr(diffusers.schedulers, f"{name}Scheduler"), BASE[kind].config
    betas = {k: config[k] for k in ("beta_start", "beta_end", "beta_schedule") if k in config}
    return cls.from_config(config, **betas | options)


@pytest.mark.parametrize("kind", BASE)
def test_only_schedulers_of_the_objective_fit(kind):
    objective = Objective.from_scheduler(BASE[kind])
    fitting = {"flow": FLOW, "edm": EDM}.get(kind, VP)
    for name in [*VP, *FLOW, *EDM, *NEITHER]:
        assert (misfit(objective, swapped(kind, name)) is None) == (name in fitting), name


def test_the_options_of_a_flow_model_go_together():
    objective = Objective.from_scheduler(BASE["flow"])
    for name in FLOW_BY_OPTIONS:
        assert misfit(objective, swapped("flow", name, **FLOW_OPTIONS)) is None
        for alone in FLOW_OPTIONS:
            assert misfit(objective, swapped("flow", name, **{alone: FLOW_OPTIONS[alone]})) is not None, name
        if name != "UniPCMultistep":  # it is the one that makes Karras noise levels of a flow
            assert misfit(objective, swapped("flow", name, **FLOW_OPTIONS, use_karras_sigmas=True)) is not None, name


def test_a_large_variance_fits():
    """It needs many steps to keep the marginals, and is what DDPM's models of CIFAR-10 are saved with."""
    assert (
        misfit(Objective.from_scheduler(BASE["epsilon"]), diffusers.DDPMScheduler(variance_type="fixed_large")) is None
    )


def test_other_betas_do_not_fit():
    """diffusers' from_config leaves out values that are its defaults; the next class may have other defaults."""
    objective = Objective.from_scheduler(BASE["epsilon"])
    heun = diffusers.HeunDiscreteScheduler.from_config(BASE["epsilon"].config)
    assert (heun.config.beta_end, BASE["epsilon"].config.beta_end) == (0.012, 0.02)
    assert "is not that of the training" in misfit(objective, heun)
    assert (
        misfit(Objective.from_scheduler(diffusers.DDPMScheduler(**SD)), diffusers.EulerDiscreteScheduler(**SD)) is None
    )


def test_options_that_leave_noise_do_not_fit():
    """DEIS ends at its last noise level, and the Adams method is unstable on large steps, until there are enough."""
    objective = Objective.from_scheduler(BASE["epsilon"])
    few, enough = 24, 100
    for name in ("DEISMultistep", "SASolver"):
        scheduler = swapped("epsilon", name, use_beta_sigmas=True)
        scheduler.set_timesteps(few)
        assert f"in {few} steps it leaves noise" in misfit(objective, scheduler, "set")
        assert misfit(objective, scheduler, "own") is None
        scheduler.set_timesteps(enough)
        assert misfit(objective, scheduler, "set") is None
        assert "leaves noise" in misfit(objective, swapped("epsilon", name, use_beta_sigmas=True))


def test_the_check_leaves_the_scheduler_and_the_random_state_alone():
    scheduler, objective = diffusers.EulerAncestralDiscreteScheduler(**SD), DDPM(noise_schedule=SD)
    scheduler.set_timesteps(3)
    before, random = scheduler.timesteps.clone(), torch.get_rng_state()
    assert misfit(objective, scheduler) is None
    assert torch.equal(scheduler.timesteps, before) and torch.equal(torch.get_rng_state(), random)


# -------------------------------------------------------------------------------------------------- in a pipeline
def pipeline(kind: str) -> ClassConditionalPipeline:
    components = make_components("class") | {"scheduler": BASE[kind]}
    return quiet(ClassConditionalPipeline(**components, objective=Objective.from_scheduler(BASE[kind]).config))


@pytest.mark.parametrize("kind", BASE)
def test_use_scheduler(kind, tmp_path):
    pipe = pipeline(kind)
    names = SCHEDULERS[{"flow": "flow_matching", "edm": "edm"}.get(kind, "ddpm")]
    for name in names:
        assert np.isfinite(sample(pipe.use_scheduler(name), class_labels=["star", 0], num_inference_steps=4)).all()
    with pytest.raises(ValueError, match=re.escape(f"scheduler 'ddim' is not one of {', '.join(names)}")):
        pipe.use_scheduler("ddim")
    with pytest.raises(ValueError, match="spacing 'linear' is not one of karras, beta, sgm_uniform"):
        pipe.use_scheduler("dpm++", "linear")
    if kind in ("epsilon", "v"):
        for spacing in ("karras", "beta", "sgm_uniform"):
            assert np.isfinite(sample(pipe.use_scheduler("dpm++", spacing), class_labels=["star", 0])).all()
        assert pipe.use_scheduler("euler").scheduler.config.timestep_spacing == "linspace", "the spacing is of one call"
    else:
        with pytest.raises(ValueError, match=r"spacing 'karras' does not fit 'dpm.*' on this model"):
            pipe.use_scheduler("dpm++", "karras")
    pipe.use_scheduler("dpm++").save_pretrained(tmp_path)
    loaded = ConditionalPipeline.from_pretrained(tmp_path)
    calls = [sample(p, class_labels=["star", 0], num_inference_steps=4) for p in (pipe, loaded)]
    assert np.array_equal(*calls)


@pytest.mark.parametrize("wrong", ["FlowMatchEulerDiscrete", "EDMEuler", "DDIM"])
def test_use_scheduler_mends_a_misfit(wrong):
    """It is the remedy that the error names, so it takes nothing from the scheduler that does not fit."""
    objective = Objective.from_scheduler(diffusers.DDPMScheduler(**SD))
    pipe = quiet(ClassConditionalPipeline(**make_components("class"), objective=objective.config))
    options = {"prediction_type": "v_prediction"} if wrong == "DDIM" else {}
    pipe.scheduler = getattr(diffusers.schedulers, f"{wrong}Scheduler")(**options)
    with pytest.raises(ValueError):
        sample(pipe, class_labels=["star", 0])
    for name in SCHEDULERS["ddpm"]:
        assert np.isfinite(sample(pipe.use_scheduler(name), class_labels=["star", 0])).all()
        assert pipe.scheduler.config.beta_end == SD["beta_end"] and pipe.scheduler.config.prediction_type == "epsilon"
        pipe.scheduler = getattr(diffusers.schedulers, f"{wrong}Scheduler")(**options)


def test_a_misfit_is_refused_in_one_line(tmp_path):
    """In a call, after save and load, in classify and bits_per_dim, and as the parent of a training."""
    pipe = pipeline("epsilon")
    pipe.scheduler = diffusers.schedulers.FlowMapEulerDiscreteScheduler()
    pipe.save_pretrained(tmp_path / "misfit")
    images = torch.zeros(1, 3, 8, 8)
    calls = [
        function
        for each in (pipe, quiet(ConditionalPipeline.from_pretrained(tmp_path / "misfit")))
        for function in (
            lambda each=each: sample(each, class_labels=["star", 0]),
            lambda each=each: each.classify(images, ["star", "circle"]),
            lambda each=each: each.bits_per_dim(images, num_noise=1),
        )
    ]
    parent = {"conditioning": "class", "pretrained_model_name_or_path": str(tmp_path / "misfit"), "unet_size": None}
    calls.append(lambda: run(tmp_path / "run", **parent))
    for call in calls:
        with pytest.raises(ValueError, match=r"does not sample for it: .*pipe.use_scheduler\(name\)") as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_flow_is_sampled_at_even_sigmas_whatever_the_scheduler():
    pipe = pipeline("flow")
    for name in ("euler", "heun", "unipc", "lcm"):
        pipe.use_scheduler(name).set_timesteps(4)
        sigmas = pipe.scheduler.timesteps.unique() / 1000
        assert torch.allclose(sigmas.float(), torch.tensor([0.25, 0.5, 0.75, 1.0]), atol=2e-3), name


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [("flow", "DEISMultistep", FLOW_OPTIONS), ("epsilon", "DEISMultistep", {"use_beta_sigmas": True})],
)
def test_what_leaves_noise_in_few_steps_is_refused_there(kind, name, options):
    """DEIS stays at its last noise level: much in few steps, and next to nothing in many."""
    pipe = pipeline(kind)
    pipe.scheduler = swapped(kind, name, **options)
    with pytest.raises(ValueError, match="in 4 steps it leaves noise") as error:
        sample(pipe, class_labels=["star", 0], num_inference_steps=4)
    assert "\n" not in str(error.value)
    assert np.isfinite(sample(pipe, class_labels=["star", 0], num_inference_steps=100)).all()
    pipe.use_scheduler("dpm++")
    assert np.isfinite(sample(pipe, class_labels=["star", 0], num_inference_steps=4)).all()


def test_noise_levels_of_ones_own_on_a_flow():
    """UniPC makes Karras levels from those of its training; it would swap the ends of even levels that it is given."""
    pipe = pipeline("flow")
    pipe.scheduler = swapped("flow", "UniPCMultistep", **FLOW_OPTIONS, use_karras_sigmas=True)
    for num_steps in (4, 24):
        pipe.set_timesteps(num_steps)
        sigmas = pipe.scheduler.sigmas
        assert sigmas[0] > 0.98 and sigmas[-2] < 0.05 and (sigmas.diff() < 0).all()


def test_sigmas_and_timesteps_of_ones_own():
    pipe = pipeline("flow")
    images = sample(pipe, class_labels=["star", 0], num_inference_steps=None, sigmas=[1.0, 0.7, 0.2])
    assert torch.allclose(pipe.scheduler.sigmas, torch.tensor([1.0, 0.7, 0.2, 0.0])) and pipe.num_timesteps == 3
    even = sample(pipe, class_labels=["star", 0], num_inference_steps=None, sigmas=list(np.linspace(1, 1 / 3, 3)))
    assert np.allclose(even, sample(pipe, class_labels=["star", 0], num_inference_steps=3), atol=1e-6)
    assert not np.allclose(even, images, atol=1e-3)
    pipe = pipeline("epsilon")
    sample(pipe, class_labels=["star", 0], num_inference_steps=None, timesteps=[900, 400, 100])
    assert pipe.scheduler.timesteps.tolist() == [900, 400, 100]
    with pytest.raises(ValueError, match="DDIMScheduler does not take timesteps="):
        sample(pipeline("v"), class_labels=["star", 0], num_inference_steps=None, timesteps=[900])
    with pytest.raises(ValueError, match="pass one of num_inference_steps, sigmas and timesteps"):
        pipe("star", sigmas=[1.0], timesteps=[900])


# ------------------------------------------------------------------------------------------------ learned variance
@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_parent_with_learned_variance(kind):
    torch.manual_seed(0)
    unet = with_channels(unet2d(), 3, 6)
    parent = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(variance_type=kind))
    pipe = quiet(UnconditionalPipeline.from_pipe(parent))
    call = {"generator": generators(1), "num_inference_steps": 3, "output_type": "np"}
    assert np.isfinite(pipe(**call).images).all()
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"):
        pipe.scheduler = getattr(diffusers, name).from_config(parent.scheduler.config)
        if name == "EulerDiscreteScheduler":  # the mean alone decides, as of a UNet without a variance
            images = pipe(**call | {"generator": generators(1)}).images
            pipe.unet = with_channels(pipe.unet, 3)
            assert np.allclose(images, pipe(**call | {"generator": generators(1)}).images, atol=1e-4)
            pipe.unet = with_channels(pipe.unet, 3, 6)
        assert np.isfinite(pipe(**call | {"generator": generators(1)}).images).all(), name
    pipe.unet, pipe.scheduler = with_channels(pipe.unet, 3), without_variance(parent.scheduler)  # as training does
    assert np.isfinite(pipe(**call | {"generator": generators(1)}).images).all()


def test_training_from_a_parent_with_learned_variance(tmp_path):
    """The variance is no part of the loss: its outputs are cut off, and the scheduler says so, also after a save."""
    torch.manual_seed(0)
    unet = with_channels(unet2d(), 3, 6)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "p")
    parent = {"pretrained_model_name_or_path": str(tmp_path / "p"), "unet_size": None, "max_train_steps": 2}
    folder = run(tmp_path / "run", conditioning="class", validation_steps=2, num_validation_images=2, **parent)
    pipe = quiet(ConditionalPipeline.from_pretrained(folder))
    assert (pipe.unet.config.out_channels, pipe.scheduler.config.variance_type) == (3, "fixed_small")
    labels = list(pipe.id2label.values())[:2]
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", None):
        if name is not None:
            pipe.scheduler = getattr(diffusers, name).from_config(diffusers.DDPMScheduler().config, **DDPM_BETAS)
        assert np.isfinite(sample(pipe, class_labels=labels, num_inference_steps=3)).all(), name
        pipe.use_scheduler("dpm++")
