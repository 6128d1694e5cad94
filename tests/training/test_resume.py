"""What a resume means: which settings must stay, which take effect, and that both are said."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from parents_common import stable_diffusion
from safetensors.torch import load_file, save_file
from training_common import log_of, run

from cond_pipelines import ConditionalPipeline, UnconditionalAdapter, UnconditionalPipeline, build_unet
from cond_pipelines.files import write_checked_json
from cond_pipelines.training.at_checkpoint import pipeline_at
from cond_pipelines.training.checkpoints import all_checkpoints
from cond_pipelines.training.identity import RunIdentity

BASE = {"conditioning": "class", "max_train_steps": 4, "checkpointing_steps": 2}
GIVEN = {"learning_rate": 1e-3, "optimizer": "adamw"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return run(tmp_path_factory.mktemp("saved"), **BASE, **GIVEN)


def resume(saved, tmp_path, which="checkpoint-2", **changed):
    """Go on from a checkpoint in a folder of its own; with the output of the run."""
    if not (tmp_path / which).exists():
        shutil.copytree(saved / which, tmp_path / which)
        shutil.copy(saved / "log.jsonl", tmp_path)
    return run(tmp_path, resume_from_checkpoint=which, **BASE | GIVEN | changed)


def optimizer_groups(folder, step=4):
    return torch.load(folder / f"checkpoint-{step}" / "optimizer.bin")["param_groups"]


# -------------------------------------------------------------------------------------------- what takes effect
def test_a_rate_of_a_resumed_run_is_the_one_given(saved, tmp_path, capsys):
    """Header, log, configuration, card and optimizer agree."""
    changed = {"learning_rate": 1e-7, "adam_weight_decay": 0.25, "adam_beta1": 0.5, "adam_epsilon": 1e-5}
    folder = resume(saved, tmp_path, **changed, adapter_lr=1e-6, lr_scheduler="constant")
    said = "".join(capsys.readouterr())
    assert "learning rate 1e-07" in said and "learning_rate 0.001 -> 1e-07" in said
    assert "adapter_lr 0.001 -> 1e-06" in said and "adam_weight_decay 0.0 -> 0.25" in said
    assert "lr_scheduler warmup_stable_decay -> constant" in said
    unet, adapter = optimizer_groups(folder)
    assert [group["lr"] for group in (unet, adapter)] == [1e-7, 1e-6]
    for group in (unet, adapter):
        assert (group["weight_decay"], group["eps"], tuple(group["betas"])) == (0.25, 1e-5, (0.5, 0.99))
    assert log_of(folder, "lr")[2:] == [1e-7, 1e-7]
    assert "learning_rate: 1.0e-07" in (folder / "training_config.yaml").read_text()
    assert json.loads((folder / "training_summary.json").read_text())["learning_rate"] == 1e-7
    moved = [load_file(folder / f"checkpoint-{i}" / "model.safetensors") for i in (2, 4)]
    largest = max((moved[1][k] - moved[0][k]).abs().max().item() for k in moved[0] if k.startswith("unet."))
    assert largest < 1e-5, "steps of AdamW are hardly larger than its rate"


@pytest.mark.parametrize("optimizer", ["muon", "schedulefree", "prodigy"])
def test_rates_reach_other_optimizers_too(optimizer, tmp_path):
    more = {"optimizer": optimizer, "checkpointing_steps": 1, "conditioning": "class"}
    run(tmp_path, max_train_steps=1, **more)
    changed = {"learning_rate": 1e-7, "adam_weight_decay": 0.25}
    run(tmp_path, max_train_steps=2, resume_from_checkpoint="latest", lr_scheduler="constant", **more, **changed)
    state = torch.load(tmp_path / "checkpoint-2" / "optimizer.bin")
    for part in [state] if "param_groups" in state else state.values():  # muon is two optimizers
        assert {group["initial_lr"] for group in part["param_groups"]} == {1e-7}
        assert {group["weight_decay"] for group in part["param_groups"]} == {0.25}


# -------------------------------------------------------------------------------------------------- the length
@pytest.mark.parametrize("batch_size", [4, 16])
def test_epochs_are_seen_whole_with_another_batch(batch_size, tmp_path):
    """96 shapes, three of them held out: two epochs are 186 images, whatever the batch."""
    more = {"max_train_steps": None, "num_train_epochs": 2, "checkpointing_steps": 12, "logging_steps": 1}
    more |= {"held_out_by": "row"}
    run(tmp_path, **more)
    assert log_of(tmp_path, "images")[-2:] == [184, 192]
    shutil.rmtree(tmp_path / "checkpoint-24")
    run(
        tmp_path, resume_from_checkpoint="latest", **more | {"train_batch_size": batch_size, "checkpointing_steps": 999}
    )
    assert log_of(tmp_path, "images")[:12] == [8 * step for step in range(1, 13)]
    assert 186 <= log_of(tmp_path, "images")[-1] < 186 + batch_size


def test_a_longer_run_says_what_it_means(saved, tmp_path, capsys):
    folder = resume(saved, tmp_path, which="checkpoint-4", max_train_steps=8)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "max_train_steps 4 -> 8" in said
    assert "the learning-rate schedule is now that of a run of 8 steps from its start, so the rate goes from " in said
    whole = run(tmp_path / "whole", **BASE | GIVEN | {"max_train_steps": 8, "checkpointing_steps": 8})
    assert log_of(folder, "lr")[4:] == log_of(whole, "lr")[4:]
    assert f"to {log_of(folder, 'lr')[4]:.3g}; the images are the same" in said
    assert log_of(folder, "images") == log_of(whole, "images")


def test_a_shorter_run_is_refused(saved, tmp_path):
    with pytest.raises(
        ValueError, match=r"--max_train_steps 3: 4 steps are done already; give at least that, or "
    ) as e:
        resume(saved, tmp_path, which="checkpoint-4", max_train_steps=3)
    assert "\n" not in str(e.value)
    resume(saved, tmp_path, which="checkpoint-4", max_train_steps=4)  # done: it is finished again


def test_nothing_changed_is_nothing_said(saved, tmp_path, capsys):
    resume(saved, tmp_path)
    assert "; changed: " not in "".join(capsys.readouterr())


# ----------------------------------------------------------------------------------------------- what must stay
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"prediction_type": "v_prediction"},
            "made with --prediction_type epsilon, now --prediction_type v_pred",
        ),
        ({"snr_gamma": 5.0}, "made with no --snr_gamma, now --snr_gamma 5.0"),
        ({"validation_fraction": 0.2}, "made with --validation_fraction 0.03, now --validation_fraction 0.2"),
        ({"condition_dropout": 0.5}, "made with --condition_dropout 0.1, now --condition_dropout 0.5"),
        ({"random_flip": True}, "made with --no_random_flip, now --random_flip"),
        ({"image_interpolation_mode": "box"}, "made with --image_interpolation_mode lanczos, now --image_int"),
        ({"unet_size": "xs"}, "made with --unet_size xxs, now --unet_size xs"),
        ({"optimizer_config": '{"momentum": 0.8}'}, "made with no --optimizer_config, now --optimizer_config"),
        ({"ema_max_decay": 0.9}, "made with no --ema_max_decay, now --ema_max_decay 0.9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_model_or_course_is_refused(changed, words, tmp_path_factory, tmp_path):
    kept = tmp_path_factory.getbasetemp() / "ddpm"
    more = {"scheduler": "DDPMScheduler", "conditioning": "class", "max_train_steps": 1, "checkpointing_steps": 1}
    if not kept.exists():
        run(kept, **more)
    shutil.copytree(kept / "checkpoint-1", tmp_path / "checkpoint-1")
    with pytest.raises(ValueError) as error:
        run(tmp_path, resume_from_checkpoint="latest", **more | {"max_train_steps": 2} | changed)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_flow_matching_times_must_stay(saved, tmp_path):
    with pytest.raises(ValueError, match=r"made with --logit_mean 0\.0, now --logit_mean 0\.5"):
        resume(saved, tmp_path, logit_mean=0.5)
    resume(saved, tmp_path, logit_mean=0.0, logit_std=1.0)  # the same, given by hand


def same_weights_elsewhere(folder, there):
    shutil.copytree(folder, there)
    return str(there)


def other_weights(folder, file):
    """The same network with other weights, at the same path."""
    weights = load_file(folder / file)
    save_file({k: x + 0.01 for k, x in weights.items()}, folder / file, {"format": "pt"})


def test_a_parent_is_known_by_its_weights(tmp_path):
    parent = run(tmp_path / "parent", conditioning="none", max_train_steps=1)
    more = {"unet_size": None, "conditioning": "class", "checkpointing_steps": 1, "max_train_steps": 2}
    child = tmp_path / "child"
    run(child, **more | {"max_train_steps": 1}, pretrained_model_name_or_path=str(parent))
    moved = same_weights_elsewhere(parent, tmp_path / "moved")
    run(child, **more, resume_from_checkpoint="checkpoint-1", pretrained_model_name_or_path=moved)
    other_weights(parent, "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"--pretrained_model_name_or_path with the weights \w{12}, now .* with the w"):
        run(child, **more, resume_from_checkpoint="checkpoint-1", pretrained_model_name_or_path=str(parent))
    with pytest.raises(ValueError, match="made with no --unet_size, now --unet_size xxs"):
        run(child, **more | {"unet_size": "xxs"}, resume_from_checkpoint="checkpoint-1")


def test_a_frozen_text_encoder_and_a_vae_are_known_by_their_weights(tmp_path):
    text, vae = tmp_path / "text", tmp_path / "vae"
    stable_diffusion().text_encoder.save_pretrained(text)
    stable_diffusion().tokenizer.save_pretrained(text)
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **BLOCKS).save_pretrained(vae)
    more = {"conditioning": "text", "checkpointing_steps": 1, "resolution": 16, "max_train_steps": 2}
    paths = {"text_encoder_name_or_path": str(text), "pretrained_vae_model_name_or_path": str(vae)}
    run(tmp_path / "run", **more | {"max_train_steps": 1}, **paths)
    again = more | {"resume_from_checkpoint": "checkpoint-1"}
    moved = {"text_encoder_name_or_path": same_weights_elsewhere(text, tmp_path / "moved")}
    run(tmp_path / "run", **again, **paths | moved)
    other_weights(text, "model.safetensors")
    with pytest.raises(ValueError, match="made with --text_encoder_name_or_path with the weights "):
        run(tmp_path / "run", **again, **paths)
    other_weights(vae, "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="made with --pretrained_vae_model_name_or_path with the weights "):
        run(tmp_path / "run", **again, **paths | moved)


BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


# --------------------------------------------------------------------------------- what the parent's scheduler is
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prediction_type": "epsilon"}, "--prediction_type epsilon: the pretrained model's DDPMScheduler predicts v_"),
        ({"logit_mean": 0.5}, "--logit_mean has no meaning for DDPMScheduler: leave it out"),
        ({"prediction_type": "v_prediction"}, None),  # what it is
        ({"prediction_type": "epsilon", "scheduler": "DDPMScheduler"}, None),  # a new one
    ],
    ids=str,
)
def test_what_is_said_of_a_parents_objective_is_so(given, words, tmp_path):
    unet = build_unet("xxs", sample_size=8, channels=3)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    UnconditionalPipeline(unet=unet, adapter=UnconditionalAdapter.for_unet(unet), scheduler=scheduler).save_pretrained(
        tmp_path / "parent"
    )
    more = {"unet_size": None, "pretrained_model_name_or_path": str(tmp_path / "parent"), "max_train_steps": 1}
    if words is None:
        index = json.loads((run(tmp_path / "run", **more, **given) / "scheduler/scheduler_config.json").read_text())
        assert index["prediction_type"] == given["prediction_type"]
    else:
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "run", **more, **given)


# ------------------------------------------------------------------------------------------- checkpoints of before
def test_a_checkpoint_of_before_resumes(saved, tmp_path):
    """Whose identity was a list chosen by hand, with other names."""
    shutil.copytree(saved / "checkpoint-2", tmp_path / "checkpoint-2")
    path = tmp_path / "checkpoint-2/manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    now = manifest["identity"]
    same = ("conditioning", "resolution", "channels", "aspect_buckets", "data set", "adapter", "scheduler", "seed")
    same += ("held_out_by",)  # what a run of before held out: test_written_by_0_1.py
    old = {name: now[name] for name in (*same, "optimizer", "use_ema", "ema_lengths")} | {"value range": []}
    manifest["identity"] = old | {"train": ["unet"], "sharding": "none"}
    write_checked_json(path, manifest)
    resumed = resume(saved, tmp_path)
    assert log_of(resumed, "loss") == log_of(saved, "loss")[2:]
    schedulers = [ConditionalPipeline.from_pretrained(folder).scheduler.config for folder in (saved, resumed)]
    assert [config.shift for config in schedulers] == [2.0, 1.0]  # as runs of then had it
    (resumed / "model_index.json").unlink()  # as of a run that is not finished
    assert pipeline_at(all_checkpoints(resumed)[-1]).scheduler.config.shift == 1.0
    resume(resumed, tmp_path)  # once more: nothing is left to do
    manifest["identity"].pop("adapter")  # which has the sizes of its UNet
    write_checked_json(path, manifest)
    with pytest.raises(ValueError, match=r"checkpoint-2 holds another network: .*size mismatch") as error:
        resume(saved, tmp_path, unet_size="xs")
    assert "\n" not in str(error.value)
    manifest["identity"] = old | {"train": ["lora", 4, ["to_q"]]}
    write_checked_json(path, manifest)
    with pytest.raises(ValueError, match="was made with --train lora, now --train unet"):
        resume(saved, tmp_path)


def test_what_is_saved_with_a_checkpoint_is_every_setting(saved):
    identity = json.loads((all_checkpoints(saved)[-1] / "manifest.json").read_text())["identity"]
    assert {"learning_rate", "seed", "UNet", "data set", "pretrained_model_name_or_path"} <= set(identity)
    assert "hub_token" not in identity
    RunIdentity(identity).accept(identity)
    assert np.isfinite(identity["learning_rate"])
