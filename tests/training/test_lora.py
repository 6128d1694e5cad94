"""LoRA through PEFT: what it trains, what it leaves alone, and every way in which its file is used."""

import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from hub_server import TOKEN
from safetensors.torch import load_file
from training_common import largest_difference, log_of, run, shapes
from transformers import CLIPTextConfig, CLIPTextModel

from cond_pipelines import (
    ClassConditionalPipeline,
    ConditionalPipeline,
    TextAdapter,
    TextToImagePipeline,
    TrainingConfig,
)
from cond_pipelines.errors import UserError
from cond_pipelines.networks.pretrained import load_pipeline
from cond_pipelines.networks.text_encoders import train_tokenizer
from cond_pipelines.sharing.push import push_folder
from cond_pipelines.training.lora import add_lora

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def parent_folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("parent"), conditioning="none", max_train_steps=40)


@pytest.fixture(scope="module")
def arguments(parent_folder):
    """A model told nothing becomes class-conditional; only a LoRA and the new adapter are trained."""
    few = {"dataset_name": "training_common:few_shapes", "max_train_steps": 60, "learning_rate": 5e-3}
    more = {"conditioning": "class", "use_lora": True, "rank": 3, "lora_alpha": 6, "checkpointing_steps": 30}
    more |= {"lora_target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]}
    return few | more | {"pretrained_model_name_or_path": str(parent_folder), "unet_size": None, "use_ema": False}


@pytest.fixture(scope="module")
def lora_folder(arguments, tmp_path_factory):
    return run(tmp_path_factory.mktemp("lora"), **arguments)


def load(folder, parent_folder, **lora):
    parent = ConditionalPipeline.from_pretrained(parent_folder)
    pipe = ConditionalPipeline.from_pretrained(folder, unet=parent.unet)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(folder, **lora)
    return pipe


def draw(pipe):
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe(["circle", "ring"], latents=latents, num_inference_steps=2, output_type="pt").images


# ----------------------------------------------------------------------------------------------------- training
def test_the_loss_goes_down(lora_folder):
    loss = log_of(lora_folder)
    assert sum(loss[-10:]) < 0.9 * sum(loss[:10])


def test_the_base_weights_do_not_change_by_a_bit(lora_folder, parent_folder):
    before = load_file(parent_folder / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(lora_folder / "checkpoint-60/model.safetensors")
    base = {k.removeprefix("unet.").replace(".base_layer", ""): x for k, x in after.items() if k.startswith("unet.")}
    assert largest_difference(before, {k: x for k, x in base.items() if ".lora_" not in k}) == 0
    assert {k.split(".lora_")[1] for k in base if ".lora_" in k} == {"A.default.weight", "B.default.weight"}


def test_what_is_saved(lora_folder):
    written = {str(p.relative_to(lora_folder)) for p in lora_folder.rglob("*") if "checkpoint" not in str(p)}
    assert {
        LORA,
        "training_config.yaml",
        "samples.png",
        "README.md",
        "adapter/config.json",
        "unet/config.json",
    } <= written
    assert not [name for name in written if name.startswith("unet/") and name.endswith(".safetensors")]
    raw, saved = load_file(lora_folder / "checkpoint-60/model.safetensors"), load_file(lora_folder / LORA)
    assert sum(x.numel() for x in saved.values()) == sum(x.numel() for name, x in raw.items() if ".lora_" in name)
    assert all(name.startswith("unet.") for name in saved)
    card = (lora_folder / "README.md").read_text()
    assert "pipe.load_lora_weights(" in card and "- lora\n" in card and "trust_remote_code" not in card
    adapter = load_file(lora_folder / "adapter/diffusion_pytorch_model.safetensors")
    assert (
        largest_difference(adapter, {k.removeprefix("adapter."): x for k, x in raw.items() if k.startswith("adapter.")})
        == 0
    )


def test_a_command_names_the_parent_that_it_needs(lora_folder, parent_folder):
    with pytest.raises(UserError, match="has no UNet of its own") as error:
        load_pipeline(lora_folder)
    said = str(error.value)
    assert f"from_pretrained({str(parent_folder)!r})" in said and f"load_lora_weights({str(lora_folder)!r})" in said


def test_resumed_equals_uninterrupted(arguments, lora_folder, tmp_path):
    shutil.copytree(lora_folder / "checkpoint-30", tmp_path / "checkpoint-30")
    resumed = run(tmp_path, resume_from_checkpoint="latest", **arguments)
    assert largest_difference(load_file(resumed / LORA), load_file(lora_folder / LORA)) == 0
    assert log_of(resumed) == log_of(lora_folder)[30:]
    with pytest.raises(ValueError, match="was made with --rank 3, now --rank 2"):
        run(tmp_path, resume_from_checkpoint="checkpoint-30", **arguments | {"rank": 2, "lora_alpha": None})


def test_only_the_lora_is_averaged(arguments, lora_folder, tmp_path):
    folder = run(tmp_path, **arguments | {"use_ema": True, "max_train_steps": 30})
    average = load_file(folder / "checkpoint-30/averages.safetensors").values()
    trained = [
        *load_file(folder / LORA).values(),
        *load_file(folder / "adapter/diffusion_pytorch_model.safetensors").values(),
    ]
    assert sum(x.numel() for x in average) == sum(x.numel() for x in trained)
    assert 0 < largest_difference(load_file(folder / LORA), load_file(lora_folder / LORA)) < 1


# ------------------------------------------------------------------------------------------- the file, and its uses
def test_the_file_is_the_product_of_two_small_matrices(lora_folder, parent_folder):
    base = load(lora_folder, parent_folder).unet.state_dict()
    pipe = load(lora_folder, parent_folder, adapter_name="a")
    assert type(pipe) is ClassConditionalPipeline
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused, lora = pipe.unet.state_dict(), load_file(lora_folder / LORA)
    assert set(fused) == set(base)
    up = {
        name.removeprefix("unet."): x for name, x in lora.items() if name.endswith(("lora.up.weight", "lora_B.weight"))
    }
    assert up
    for name, b in up.items():
        a = lora["unet." + name.replace("lora.up", "lora.down").replace("lora_B", "lora_A")]
        weight = name.replace("lora.up.weight", "weight").replace("lora_B.weight", "weight")
        base_weight = base.pop(weight)  # (out, in), or (out, in, 3, 3)
        assert torch.allclose(
            fused.pop(weight), base_weight + 6 / 3 * (b.flatten(1) @ a.flatten(1)).reshape(base_weight.shape), atol=1e-6
        )
    assert largest_difference(fused, base) == 0  # no other


def test_scaled_fused_unfused_unloaded(lora_folder, parent_folder):
    plain = draw(load(lora_folder, parent_folder))
    pipe = load(lora_folder, parent_folder, adapter_name="a")
    whole = draw(pipe)
    assert (whole - plain).abs().max() > 1e-3
    pipe.set_adapters("a", 0.0)
    assert torch.allclose(draw(pipe), plain, atol=1e-6)
    pipe.set_adapters("a", 0.5)
    half = draw(pipe)
    assert (half - plain).abs().max() > 1e-4 and not torch.allclose(half, whole, atol=1e-4)
    pipe.set_adapters("a", 1.0)
    assert torch.allclose(draw(pipe), whole, atol=1e-6)
    weights = {name: x.clone() for name, x in pipe.unet.state_dict().items()}
    for _ in range(3):
        pipe.fuse_lora()
        assert torch.allclose(draw(pipe), whole, atol=1e-5)
        assert largest_difference(pipe.unet, weights) > 1e-4
        pipe.unfuse_lora()
    assert largest_difference(pipe.unet, weights) < 1e-6
    assert torch.allclose(draw(pipe), whole, atol=1e-6)
    pipe.disable_lora()
    assert torch.allclose(draw(pipe), plain, atol=1e-6)
    pipe.unload_lora_weights()
    assert torch.allclose(draw(pipe), plain, atol=1e-6)


def test_several_at_once(lora_folder, parent_folder):
    pipe = load(lora_folder, parent_folder, adapter_name="a")
    whole = draw(pipe)
    pipe.load_lora_weights(load_file(lora_folder / LORA), adapter_name="b")
    assert pipe.get_list_adapters() == {"unet": ["a", "b"]}
    twice = load_file(lora_folder / LORA)
    pipe.set_adapters(["a", "b"], [1.0, 0.0])
    assert torch.allclose(draw(pipe), whole, atol=1e-5)
    pipe.set_adapters(["a", "b"], [1.0, 1.0])
    assert not torch.allclose(draw(pipe), whole, atol=1e-4)
    pipe.delete_adapters("a")
    assert pipe.get_list_adapters() == {"unet": ["b"]} and twice


def test_a_complete_pipeline_can_be_made_of_it(lora_folder, parent_folder, tmp_path):
    pipe = load(lora_folder, parent_folder, adapter_name="a")
    whole = draw(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    assert torch.allclose(draw(ConditionalPipeline.from_pretrained(tmp_path)), whole, atol=1e-5)


def test_from_the_hub(lora_folder, parent_folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_folder(lora_folder, "me/lora")
    pipe = ConditionalPipeline.from_pretrained("me/lora", unet=ConditionalPipeline.from_pretrained(parent_folder).unet)
    pipe.load_lora_weights("me/lora")
    assert torch.equal(draw(pipe), draw(load(lora_folder, parent_folder, adapter_name="a")))


# ---------------------------------------------------------------------------------------------- Stable Diffusion
def test_a_plain_stable_diffusion_pipeline_takes_it(tmp_path):
    """And the text encoder's part of it."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(shapes()["caption"], vocab_size=300)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=77, **sizes))
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 2}
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, **blocks, **kinds)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(32, 32), norm_num_groups=8, latent_channels=4, **kinds)
    adapter = TextAdapter.for_unet(unet, text_encoder=text_encoder)
    torch.nn.init.eye_(adapter.token_proj.weight)
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    parent = TextToImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(), adapter=adapter, **parts)
    parent.save_pretrained(tmp_path / "parent")
    more = {"conditioning": "text", "train": "lora", "resolution": 16, "train_text_encoder": True, "use_ema": False}
    more |= {"pretrained_model_name_or_path": str(tmp_path / "parent"), "unet_size": None, "learning_rate": 1e-2}
    folder = run(tmp_path / "lora", checkpointing_steps=4, **more)
    names = set(load_file(folder / LORA))
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    assert {name.split(".lora")[1] for name in names if "unet." in name} == {".up.weight", ".down.weight"}  # diffusers'
    assert not (folder / "text_encoder").exists() and not (folder / "vae").exists()

    parts["text_encoder"].requires_grad_(False)
    theirs = StableDiffusionPipeline(**parts, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None)
    before = theirs.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state
    theirs.load_lora_weights(folder)
    raw = load_file(folder / "checkpoint-4/model.safetensors")
    state = {f"{part}.{k}": x for part in ("unet", "text_encoder") for k, x in parts[part].state_dict().items()}
    loras = {name: x for name, x in raw.items() if ".lora_" in name}
    assert (
        largest_difference({k.replace("default_0", "default"): x for k, x in state.items() if ".lora_" in k}, loras)
        == 0
    )
    assert not torch.allclose(theirs.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state, before, atol=1e-5)
    theirs.set_progress_bar_config(disable=True)
    assert theirs("a red circle", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)

    again = TextToImagePipeline.from_pretrained(folder, **{k: v for k, v in parts.items() if k != "tokenizer"})
    assert again.adapter.config.token_dim == 32


# ------------------------------------------------------------------------------------------------------ refusals
def test_no_module_has_such_a_name(arguments, tmp_path):
    with pytest.raises(ValueError, match=r"--lora_target_modules to_z: .* has none, but .*to_q") as error:
        run(tmp_path, **arguments | {"lora_target_modules": ["to_z"]})
    assert "\n" not in str(error.value)


def test_a_kind_of_unet_that_takes_none():
    unet = UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    with pytest.raises(ValueError, match="diffusers gives no LoRA to a UNet2DModel; --train unet trains all of it"):
        add_lora(unet, TrainingConfig(), ["to_q"])
