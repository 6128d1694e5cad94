"""Distillation: a model that draws in a few evaluations, and is the flow that it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from parents_common import stable_diffusion
from pipelines_common import quiet, tiny_vae
from training_common import ROUNDING_OF_LOSS, flags, log_of, run

from cond_pipelines import ConditionalPipeline, Objective
from cond_pipelines.cli import main as cli_main
from cond_pipelines.networks.denoiser import denoise, takes_end_time
from cond_pipelines.networks.surgery import with_end_time, without_end_time
from cond_pipelines.objectives import DDPMDistillation, Distillation
from cond_pipelines.objectives.base import Denoise, Draws
from cond_pipelines.sharing.card import CardFacts
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.device import build_accelerator
from cond_pipelines.training.memory import StepMemory
from cond_pipelines.training.teacher import build_teacher, with_teacher

SETTINGS = {"none": {}, "class": {}, "text": {"caption_column": "caption"}}
DISTILL = {"objective": "distillation", "unet_size": None, "default_num_inference_steps": None}
DISTILL |= {"default_guidance_scale": None, "max_train_steps": 2}


def load(folder):
    return quiet(ConditionalPipeline.from_pretrained(folder))


def distilled(folder: Path, parent: Path, setting: str, **arguments) -> Path:
    given = SETTINGS[setting] | DISTILL | {"pretrained_model_name_or_path": str(parent)} | arguments
    return run(folder, conditioning=setting, **given)


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parents")
    guided = {"default_guidance_scale": 2.0, "default_num_inference_steps": 24}
    return {name: run(folder / name, conditioning=name, **more, **guided) for name, more in SETTINGS.items()}


@pytest.fixture(scope="module")
def students(parents, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    return {name: distilled(folder / name, parent, name, validation_steps=2) for name, parent in parents.items()}


def test_the_code_that_travels_draws_the_same(students):
    """Four jumps, by the repository's own code, as for who has diffusers alone."""
    ours = load(students["class"])
    theirs = quiet(DiffusionPipeline.from_pretrained(students["class"], trust_remote_code=True))
    assert type(theirs).__module__.startswith("diffusers_modules") and takes_end_time(theirs.unet)
    assert theirs.config.default_num_inference_steps == 4
    torch.nn.init.normal_(ours.unet.time_embedding.cond_proj.weight)
    theirs.unet.load_state_dict(ours.unet.state_dict())
    images = [p(["circle", "ring"], generator=torch.manual_seed(0), output_type="np").images for p in (ours, theirs)]
    assert np.array_equal(*images)


# ------------------------------------------------------------------------------------------------- the identities
def test_the_input_for_the_end_of_a_jump_changes_nothing_at_first(parents):
    unet = load(parents["class"]).unet
    new = with_end_time(unet)
    added = set(new.state_dict()) - set(unet.state_dict())
    assert added == {"time_embedding.cond_proj.weight"} and takes_end_time(new) and not takes_end_time(unet)
    pipe = load(parents["class"])
    cond = pipe.encode_condition([0, 1])[0]
    x_t, t, r = torch.randn(2, 3, 8, 8), torch.tensor([900.0, 30.0]), torch.tensor([0.0, 30.0])
    with torch.no_grad():
        before = denoise(unet, x_t, t, cond)
        assert torch.equal(denoise(new, x_t, t, cond, r), before)  # its weight is zero
        torch.nn.init.normal_(new.time_embedding.cond_proj.weight)
        after = denoise(new, x_t, t, cond, r)
        # A jump is another prediction; where it ends where it starts, the flow is what it was, bit for bit.
        assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
        assert torch.equal(denoise(new, x_t, t, cond), before)
        assert torch.equal(denoise(without_end_time(new), x_t, t, cond), before)


MEAN, STD = 0.3, 0.5


def velocity_of_normal_data(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of pixels N(MEAN, STD^2), at times (B,) of 0 to 1000: E[noise - x_0 | x_t]."""
    s = (t / 1000)[:, None, None, None].double()
    variance = (1 - s) ** 2 * STD**2 + s**2
    return (s - (1 - s) * STD**2) / variance * (x_t.double() - (1 - s) * MEAN) - MEAN


def jump_of_normal_data(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """u(x, t, 0) = (x_t - x_0) / t along the flow, on which (x - mean) / std stays what it is."""
    s = (t / 1000)[:, None, None, None].double()
    std = ((1 - s) ** 2 * STD**2 + s**2).sqrt()
    x_0 = MEAN + STD * (x_t.double() - (1 - s) * MEAN) / std
    return torch.where(s > 0, (x_t.double() - x_0) / s.clamp(min=1e-9), velocity_of_normal_data(x_t, t))


def test_the_loss_is_zero_at_the_exact_map_of_normal_data():
    """At the end of the schedule the teacher's steps are short: then the exact jumps are a fixed point."""

    def exact(x_t, t, r=None, factor=1.0):
        flow = velocity_of_normal_data(x_t, t)
        return (
            flow if r is None else torch.where((r < t)[:, None, None, None], factor * jump_of_normal_data(x_t, t), flow)
        )

    def teacher(x_t, t):
        return velocity_of_normal_data(x_t, t), velocity_of_normal_data(x_t, t)

    rng = torch.Generator().manual_seed(0)
    x_0 = MEAN + STD * torch.randn(64, 1, 4, 4, generator=rng)
    draws = Draws(
        torch.randn(64, 1, 4, 4, generator=rng), (torch.arange(64) + 0.5) / 64, torch.rand(64, 1), torch.rand(64, 0)
    )
    objective = Distillation(num_halvings=9.0)
    late = objective.loss(Denoise(exact, teacher, fraction_done=1.0), x_0, draws)
    early = objective.loss(Denoise(exact, teacher, fraction_done=0.0), x_0, draws)
    wrong = objective.loss(Denoise(lambda *a: exact(*a, factor=0.9), teacher, fraction_done=0.0), x_0, draws)
    assert late.shape == (64,) and late.mean() < 0.2 * early.mean() < 0.2 * wrong.mean()
    # A network that jumps exactly, sampled in one evaluation, draws the data.
    x_1 = torch.randn(4096, 1, 2, 2, generator=rng)
    sample = x_1 - exact(x_1, torch.full((4096,), 1000.0), torch.zeros(4096))
    assert abs(sample.mean() - MEAN) < 0.02 and abs(sample.std() - STD) < 0.02
    with pytest.raises(ValueError, match="needs a teacher"):
        objective.loss(Denoise(exact), x_0, draws)


# ------------------------------------------------------------------------------------------------ a distilled model
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_distilled_model_of_each_setting(setting, parents, students):
    folder, parent = students[setting], load(parents[setting])
    pipe = load(folder)
    assert pipe.config.default_num_inference_steps == 4 and pipe.config.default_guidance_scale == 1
    assert pipe.scheduler.config.stochastic_sampling and takes_end_time(pipe.unet)
    saved = pipe.config.objective
    assert saved["name"] == "distillation" and saved["guidance_scale"] == (1.0 if setting == "none" else 2.0)
    assert type(Objective.from_pipeline(pipe)) is Distillation
    assert np.isfinite(log_of(folder)).all() and np.isfinite(log_of(folder, "held_out_loss")).all()
    calls: list[tuple[int, bool]] = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((len(args[0]), kwargs.get("timestep_cond") is not None)),
        with_kwargs=True,
    )
    condition = {"none": None, "class": 0, "text": "a red circle on a black background"}[setting]
    for steps in (1, 2, 4):
        calls.clear()
        generator = [torch.Generator().manual_seed(i) for i in range(2)]
        images = pipe.sample([condition] * 2, num_inference_steps=steps, generator=generator, output_type="np").images
        again = pipe.sample([condition], num_inference_steps=steps, generator=1, output_type="np").images
        assert calls == [(2, True)] * steps + [(1, True)] * steps  # guidance is fused in: one row an image
        assert np.allclose(images[1], again[0], atol=1e-5)  # an image depends on its own seed alone
    # The flow, with the parent's own sampler: no jumps.
    calls.clear()
    pipe.use_scheduler("euler").sample([condition], num_inference_steps=3, guidance_scale=2.0)
    assert not pipe.scheduler.config.stochastic_sampling and len(calls) == 3 and not any(jump for _, jump in calls)
    assert pipe.use_scheduler("lcm").scheduler.config.stochastic_sampling
    assert type(pipe.scheduler) is type(parent.scheduler)


def test_what_a_flow_can_do_a_distilled_one_can(students):
    pipe = load(students["class"])
    images = pipe(class_labels=[0, 1], generator=0).images
    found = pipe.classify(images, [0, 1, 2], num_noise=4)
    assert found.probabilities.shape == (2, 3) and torch.isfinite(pipe.bits_per_dim(images, num_noise=4)).all()
    changed = pipe(class_labels=[0, 1], image=images, strength=0.5, generator=0, output_type="np").images
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, :4] = 255
    painted = pipe(
        class_labels=[0, 1], image=images, mask_image=torch.tensor(mask / 255.0)[None, None], output_type="np"
    )
    kept = np.stack([np.asarray(image) for image in images])[:, :, 4:] / 255
    assert changed.shape == (2, 8, 8, 3) and np.allclose(painted.images[:, :, 4:], kept, atol=0.01)


def test_the_frozen_teacher_is_the_parent_as_it_was(parents, tmp_path, monkeypatch):
    """The teacher of step 2 is that of step 1, though the network that learns shares no more with it than its start."""
    from cond_pipelines.training import teacher as module

    seen = []
    monkeypatch.setattr(
        module.Teacher, "under", lambda self, *a, _old=module.Teacher.under: seen.append(self) or _old(self, *a)
    )
    folder = distilled(tmp_path, parents["class"], "class")
    before, now = load(parents["class"]).unet.state_dict(), seen[-1].pipe.unet.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before)
    after = load(folder).unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_distilled_parent_is_the_flow_that_it_holds(parents, students, tmp_path):
    common = {"unet_size": None, "pretrained_model_name_or_path": str(students["class"]), "max_train_steps": 1}
    open_ = {"default_num_inference_steps": None, "default_guidance_scale": None}
    pipe = load(run(tmp_path / "flow", conditioning="class", **common | open_))
    assert pipe.config.objective["name"] == "flow_matching" and not takes_end_time(pipe.unet)
    assert pipe.config.default_guidance_scale == 2 and not pipe.scheduler.config.stochastic_sampling
    again = load(distilled(tmp_path / "again", students["class"], "class"))
    assert again.config.objective["guidance_scale"] == 2 and takes_end_time(again.unet)


def test_autoguidance_is_fused_in(tmp_path):
    """p(x) has no other guidance: the teacher's step is away from its weaker network."""
    parent = run(tmp_path / "guided", conditioning="none", autoguidance=True, default_guidance_scale=1.5)
    student = load(distilled(tmp_path / "student", parent, "none"))
    assert student.config.objective["guidance_scale"] == 1.5 and student.guide is None
    config = TrainingConfig(mixed_precision="no", report_to="none")
    teacher = build_teacher(config, Distillation(), load(parent), build_accelerator(config, tmp_path))
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([700.0, 200.0])
    own, guided = teacher.under(teacher.pipe._features([None, None]))(x_t, t)
    cond = teacher.pipe.encode_condition([None, None])[0]
    weak = denoise(teacher.pipe.guide, x_t, t, cond)
    assert torch.allclose(guided, weak + 1.5 * (own - weak), atol=1e-5) and not torch.allclose(guided, own, atol=1e-5)


def test_its_memory():
    memory = with_teacher(lambda **_: StepMemory(10, 5, lambda batch_size: 3 * batch_size), torch.nn.Linear(2, 2))()
    assert (memory.fixed, memory.gradients, memory.peak(4)) == (10 + 4 * 6, 5, 24)


def test_in_latents(tmp_path, students):
    vae = tmp_path / "vae"
    tiny_vae().save_pretrained(vae)
    parent = run(tmp_path / "parent", conditioning="class", resolution=16, pretrained_vae_model_name_or_path=str(vae))
    pipe = load(distilled(tmp_path / "student", parent, "class", resolution=16))
    assert pipe(class_labels=[0]).images[0].size == (16, 16) and pipe.config.objective["name"] == "distillation"


# ------------------------------------------------------------------------------------------------------- the run
def test_it_is_resumed_exactly(parents, tmp_path):
    course = {"max_train_steps": 4, "checkpointing_steps": 2, "lr_scheduler": "constant"}
    whole = distilled(tmp_path / "whole", parents["class"], "class", **course)
    (tmp_path / "part").mkdir()
    (whole / "checkpoint-2").rename(tmp_path / "part/checkpoint-2")
    part = distilled(tmp_path / "part", parents["class"], "class", **course, resume_from_checkpoint="checkpoint-2")
    a, b = (load(folder).unet.state_dict() for folder in (whole, part))
    assert log_of(part) == log_of(whole)[2:] and all(torch.equal(a[name], b[name]) for name in a)
    other = {"objective_config": '{"guidance_scale": 3.0}'}
    with pytest.raises(ValueError, match=r"was made with --objective_config .*2\.0.*, now .*3\.0"):
        distilled(
            tmp_path / "part", parents["class"], "class", **course, **other, resume_from_checkpoint="checkpoint-2"
        )


def test_two_processes_are_one(parents, tmp_path, warm):
    same = (
        SETTINGS["class"]
        | DISTILL
        | {"pretrained_model_name_or_path": str(parents["class"]), "lr_scheduler": "constant"}
    )
    alone = run(tmp_path / "alone", conditioning="class", **same)
    arguments = flags(conditioning="class", **same, train_batch_size=4, output_dir=tmp_path / "two")
    process = warm.start(["-m", "cond_pipelines.training", *arguments], num_processes=2)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said[-3000:]
    assert np.allclose(log_of(tmp_path / "two"), log_of(alone), rtol=ROUNDING_OF_LOSS)


def test_the_command_knows_the_setting(parents, tmp_path):
    names = {"conditioning", *DISTILL}
    arguments = flags(max_train_steps=1, output_dir=tmp_path, **dict.fromkeys(names - {"max_train_steps"}))
    cli_main(["distill", str(parents["text"]), *arguments, "--caption_column", "caption"])
    assert type(load(tmp_path)).__name__ == "TextToImagePipeline"
    card, facts = (tmp_path / "README.md").read_text(), CardFacts.of_folder(tmp_path)
    assert facts.num_inference_steps == 4 and "4 steps" in card and "steps.png" in card
    assert "| started from | another model |" in card, "which is a folder of this machine, so it has no public name"
    assert json.loads((tmp_path / "model_index.json").read_text())["objective"]["name"] == "distillation"


def test_the_command_always_distills(parents, tmp_path, capsys):
    """Also with the recipe of the parent's own training, whose objective is another."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: flow_matching\nmax_train_steps: 1\n")
    left = {*DISTILL, "conditioning", "max_train_steps"}
    arguments = flags(output_dir=tmp_path / "student", config=recipe, **dict.fromkeys(left))
    cli_main(["distill", str(parents["class"]), *arguments])
    assert load(tmp_path / "student").config.objective["name"] == "distillation"
    with pytest.raises(SystemExit):
        cli_main(["distill", str(parents["class"]), *arguments, "--objective", "flow_matching"])
    assert "--objective flow_matching does not distill: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained_model_name_or_path": None, "unet_size": "xxs"}, "--objective distillation needs --pretrained_mo"),
        ({"train": "adapter"}, "--objective distillation trains all of the UNet or a LoRA, and no text encoder: leave"),
        ({"conditioning": "none"}, "--objective distillation needs the pretrained model's own setting and conditions"),
        ({"objective_config": '{"end_share": 1}'}, '--objective_config {"end_share": 1}: end_share 1 must be at least'),
        ({"objective_config": '{"guidance_scale": "x"}'}, "--objective_config: guidance_scale 'x' is not of type"),
        ({"scheduler": "DDPMScheduler"}, "--objective distillation keeps the pretrained model's noise: leave --sched"),
    ],
)
def test_what_cannot_be_distilled_is_one_line(arguments, message, parents, tmp_path):
    given = DISTILL | {"conditioning": "class", "pretrained_model_name_or_path": str(parents["class"])} | arguments
    with pytest.raises(ValueError) as error:
        run(tmp_path, **given)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "log.jsonl").exists()


def test_an_edm_parent_is_refused(tmp_path):
    parent = run(tmp_path / "edm", conditioning="none", max_train_steps=1, scheduler="EDMEulerScheduler")
    with pytest.raises(ValueError, match=r"of flow matching or DDPM, and .* was trained with EDM: train it further"):
        distilled(tmp_path / "student", parent, "none")


# -------------------------------------------------------------------------------------------- epsilon, v and a LoRA
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_ddpm_loss_is_zero_where_every_jump_is_exact(prediction_type):
    """Data of one image: each prediction means that image, so every jump ends there; noise in it is an error."""
    image = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    objective = DDPMDistillation(LCMScheduler().alphas_cumprod, prediction_type)

    def exact(x_t, t, r=None, factor=1.0):
        return torch.cat(
            [objective.exact_prediction(x[None], factor * image, float(s)) for x, s in zip(x_t, t, strict=True)]
        )

    draws = Draws(torch.randn(32, 1, 4, 4), (torch.arange(32) + 0.5) / 32, torch.rand(32, 1), torch.rand(32, 0))
    denoise_ = Denoise(exact, lambda x_t, t: (exact(x_t, t), exact(x_t, t)))
    loss = objective.loss(denoise_, image.expand(32, -1, -1, -1), draws)
    wrong = objective.loss(
        Denoise(lambda *a: exact(*a, factor=0.5), denoise_.teacher), image.expand(32, -1, -1, -1), draws
    )
    assert loss.mean() < 0.02 * wrong.mean()
    # Sampled by the LCMScheduler, exact jumps end at the image, whatever the number of steps.
    scheduler, x = LCMScheduler(prediction_type=prediction_type, clip_sample=False), torch.randn(1, 1, 4, 4)
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        x = scheduler.step(exact(x, t[None]), t, x, return_dict=False)[0]
    assert torch.allclose(x, image, atol=0.02)


def test_a_diffusion_parent(tmp_path):
    prediction_type = "v_prediction"  # epsilon is Stable Diffusion's, below
    new = {"scheduler": "DDPMScheduler", "prediction_type": prediction_type, "max_train_steps": 1}
    parent = run(tmp_path / "ddpm", conditioning="class", **new)
    pipe = load(distilled(tmp_path / "student", parent, "class"))
    saved = pipe.config.objective
    assert saved["name"] == "ddpm_distillation" and saved["prediction_type"] == prediction_type
    assert type(pipe.scheduler) is LCMScheduler and takes_end_time(pipe.unet)
    assert np.isfinite(pipe(class_labels=[0, 1], output_type="np").images).all()
    assert np.isfinite(
        pipe.use_scheduler("euler")(class_labels=[0], num_inference_steps=3, output_type="np").images
    ).all()


def test_a_lora_of_stable_diffusion(tmp_path):
    """As LCM-LoRA: it loads into diffusers' own pipeline, with diffusers' LCMScheduler."""
    pytest.importorskip("peft")
    parent = stable_diffusion()
    parent.save_pretrained(tmp_path / "sd")
    lora = {"use_lora": True, "resolution": 16, "max_train_steps": 1}
    folder = distilled(tmp_path / "lora", tmp_path / "sd", "text", **lora)
    saved = json.loads((folder / "model_index.json").read_text())
    assert saved["objective"]["name"] == "ddpm_distillation" and saved["objective"]["flow_weight"] == 0
    assert saved["scheduler"][1] == "LCMScheduler" and saved["default_num_inference_steps"] == 4
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "sd")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(folder)
    images = quiet(pipe)("a red circle", num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert np.isfinite(images).all()


def test_a_scheduler_of_another_objective_is_refused(students):
    pipe = load(students["none"])
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="with the objective distillation, and DDIMScheduler samples for ddpm"):
        pipe(num_inference_steps=2)
