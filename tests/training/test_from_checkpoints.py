"""--pretrained_model_name_or_path of diffusers' own checkpoints, for all three settings."""

import diffusers
import numpy as np
import pytest
import torch
from parents_common import quiet, stable_diffusion, unconditional_parent
from pipelines_common import generators
from training_common import largest_difference, log_of, run

from cond_pipelines import ConditionalPipeline, PromptAdapter, TextAdapter
from cond_pipelines.data.load import load_data
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.model import build_pipeline, load_parent, load_vae

diffusers.logging.set_verbosity_error()
KINDS = {"SD": 16, "DDPM": 8, "LDM": 16}  # and the resolution
TOLD = {
    "none": {"batch_size": 2},
    "class": {"class_labels": ["circle", "square"]},
    "text": {"prompt": ["a red circle", "a blue square on white"]},
}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    for kind in KINDS:
        (stable_diffusion() if kind == "SD" else unconditional_parent(kind)).save_pretrained(folder / kind)
    return folder


def sample(pipe, **told):
    return quiet(pipe)(**told, num_inference_steps=3, output_type="np", generator=generators(2)).images


@pytest.mark.parametrize("setting", TOLD)
@pytest.mark.parametrize("kind", KINDS)
def test_step_0_is_the_parent(parents, kind, setting):
    config = TrainingConfig(
        conditioning=setting,
        dataset_name="training_common:shapes",
        resolution=KINDS[kind],
        pretrained_model_name_or_path=str(parents / kind),
    )
    parent = load_parent(config)
    vae = load_vae(config, parent)
    pipe = build_pipeline(config, load_data(config, 3), vae, parent)
    assert (pipe.vae is None) == (kind == "DDPM")
    if kind == "SD":
        told = TOLD["text"] if setting == "text" else {"prompt": ["", ""], "guidance_scale": 1.0}
        expected = sample(stable_diffusion(), **told | {"guidance_scale": told.get("guidance_scale", 2.5)})
    else:
        expected = sample(unconditional_parent(kind), batch_size=2)
    assert np.array_equal(sample(pipe, **TOLD[setting]), expected)


@pytest.mark.parametrize(
    ("kind", "setting"), [("SD", "none"), ("SD", "class"), ("SD", "text"), ("DDPM", "class"), ("LDM", "text")]
)
def test_fine_tuning(parents, kind, setting, tmp_path):
    arguments = {"resolution": KINDS[kind], "unet_size": None, "pretrained_model_name_or_path": str(parents / kind)}
    folder = run(tmp_path, conditioning=setting, **arguments, max_train_steps=2, learning_rate=1e-3)
    pipe = ConditionalPipeline.from_pretrained(folder)
    parent = stable_diffusion() if kind == "SD" else unconditional_parent(kind)
    assert 0 < largest_difference(pipe.unet, parent.unet) < 0.1
    assert type(pipe.unet) is type(parent.unet) and type(pipe.scheduler) is type(parent.scheduler)
    assert np.isfinite(sample(pipe, **TOLD[setting])).all()
    if kind == "SD":
        expected = PromptAdapter.for_unet(parent.unet, parent.text_encoder, parent.tokenizer).null_tokens
        assert torch.equal(pipe.adapter.null_tokens, expected), "what nothing is stays as it was"
    if (kind, setting) == ("SD", "text"):
        again = pipe.to_stable_diffusion()
        told = TOLD["text"] | {"guidance_scale": 2.5}
        assert np.array_equal(sample(again, **told), sample(pipe, **told))


def test_fine_tuning_with_the_text_encoder(parents, tmp_path):
    """'No prompt' is then the null tokens that it was trained with, and no longer the encoded empty prompt."""
    arguments = {"resolution": 16, "unet_size": None, "pretrained_model_name_or_path": str(parents / "SD")}
    pipe = ConditionalPipeline.from_pretrained(
        run(tmp_path / "dropped", conditioning="text", **arguments, max_train_steps=1, train_text_encoder=True)
    )
    assert largest_difference(pipe.text_encoder, stable_diffusion().text_encoder) > 0
    with pytest.raises(ValueError, match="its text encoder was trained"):
        pipe.to_stable_diffusion()
    arguments |= {"max_train_steps": 1, "train_text_encoder": True, "condition_dropout": 0.0}
    undropped = ConditionalPipeline.from_pretrained(run(tmp_path / "undropped", conditioning="text", **arguments))
    assert type(undropped.to_stable_diffusion()) is diffusers.StableDiffusionPipeline, "nothing was learned of it"


def test_another_text_encoder(parents, tmp_path):
    text = tmp_path / "text"
    stable_diffusion().text_encoder.save_pretrained(text)
    stable_diffusion().tokenizer.save_pretrained(text)
    arguments = {"resolution": 16, "unet_size": None, "pretrained_model_name_or_path": str(parents / "SD")}
    arguments |= {"text_encoder_name_or_path": str(text), "max_train_steps": 1, "conditioning": "text"}
    pipe = ConditionalPipeline.from_pretrained(run(tmp_path / "child", **arguments))
    assert type(pipe.adapter) is TextAdapter and pipe.adapter.null_tokens is not None


def test_cached_captions_and_latents(parents, tmp_path):
    """The same losses with the features made once as with those made at every step."""
    arguments = {"resolution": 16, "unet_size": None, "pretrained_model_name_or_path": str(parents / "SD")}
    arguments |= {"conditioning": "text", "max_train_steps": 2, "cache_dir": str(tmp_path / "cache")}
    plain = log_of(run(tmp_path / "plain", **arguments))
    cached = log_of(run(tmp_path / "cached", **arguments, cache_latents=True, cache_text_embeddings=True))
    assert len(plain) == 2 and plain == pytest.approx(cached, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_the_parents(parents, channels, tmp_path):
    arguments = {"resolution": 8, "unet_size": None, "pretrained_model_name_or_path": str(parents / "DDPM")}
    pipe = ConditionalPipeline.from_pretrained(run(tmp_path, **arguments, max_train_steps=1, channels=channels))
    assert (pipe.unet.config.in_channels, pipe.unet.config.out_channels) == (channels, channels)
    assert sample(pipe, batch_size=2).shape == (2, 8, 8, channels)


def test_a_resolution_that_does_not_fit(parents, tmp_path):
    arguments = {"unet_size": None, "pretrained_model_name_or_path": str(parents / "DDPM")}
    with pytest.raises(ValueError, match="--resolution 9 must be a multiple of 2 for the pretrained UNet"):
        run(tmp_path, **arguments, resolution=9)
    with pytest.raises(ValueError, match="--channels 1, but the pretrained model takes 3: leave it out"):
        run(tmp_path, **arguments | {"pretrained_model_name_or_path": str(parents / "SD")}, resolution=16, channels=1)
