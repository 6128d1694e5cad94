"""Parents and parts in half precision: whatever the files are, a run's weights are float32, and so is what it saves."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from parents_common import quiet, stable_diffusion, unconditional_parent
from PIL import Image
from training_common import run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.training.dtypes import hold_float32

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def halved(pipe, folder: Path, dtype: torch.dtype, variant: str | None = None) -> str:
    """Saved in half precision, every network of it."""
    parts = {k: copy.deepcopy(v).to(dtype) if isinstance(v, torch.nn.Module) else v for k, v in pipe.components.items()}
    more = {"requires_safety_checker": False} if "StableDiffusion" in type(pipe).__name__ else {}
    type(pipe)(**parts, **more).save_pretrained(folder, variant=variant)
    return str(folder)


@pytest.fixture(scope="module", params=HALF)
def parents(request, tmp_path_factory) -> dict[str, str]:
    root, dtype = tmp_path_factory.mktemp(request.param), HALF[request.param]
    ours = ConditionalPipeline.from_pretrained(run(root / "new", conditioning="text", max_train_steps=1))
    return {
        "sd": halved(stable_diffusion(), root / "sd", dtype),
        "variant": halved(stable_diffusion(), root / "variant", dtype, variant="fp16"),
        "ddpm": halved(unconditional_parent("DDPM"), root / "ddpm", dtype),
        "ours": halved(ours, root / "ours", dtype),
        "dtype": request.param,
    }


def dtypes(pipe: ConditionalPipeline) -> set[torch.dtype]:
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    return {p.dtype for module in modules for p in module.parameters()}


RUNS = {
    "text": {"conditioning": "text"},
    "text, variant": {"conditioning": "text", "parent": "variant", "variant": "fp16"},
    "text and its encoder": {"conditioning": "text", "train_text_encoder": True},
    "LoRA": {"conditioning": "text", "train": "lora", "train_text_encoder": True},
    "class": {"conditioning": "class"},
    "DDPM": {"conditioning": "class", "parent": "ddpm", "resolution": 8},
    "ours": {"conditioning": "text", "parent": "ours", "resolution": 8},
    "ours, the adapter": {"conditioning": "text", "parent": "ours", "resolution": 8, "train": "adapter"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_parent_in_half_precision(parents, tmp_path, name):
    arguments = {"resolution": 16, "unet_size": None, "max_train_steps": 1, "validation_steps": 1} | RUNS[name]
    # Each run once: the files' precision and the run's are once the same and once not.
    arguments["mixed_precision"] = "bf16" if list(RUNS).index(name) % 2 else "no"
    parent = parents[arguments.pop("parent", "sd")]
    folder = run(tmp_path, pretrained_model_name_or_path=parent, **arguments)
    if arguments.get("train") == "lora":
        whole = ConditionalPipeline.from_pretrained(parent)
        parts = {k: whole.components[k] for k in ("unet", "vae", "text_encoder", "tokenizer")}
        pipe = ConditionalPipeline.from_pretrained(folder, **parts)
        pipe.load_lora_weights(folder)
    else:
        pipe = ConditionalPipeline.from_pretrained(folder)
    assert dtypes(pipe) == {torch.float32}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_parts_in_half_precision(parents, tmp_path, precision):
    parts = {"text_encoder_name_or_path": parents["sd"], "pretrained_vae_model_name_or_path": parents["sd"]}
    arguments = {"conditioning": "text", "resolution": 16, "max_train_steps": 1, "validation_steps": 1}
    folder = run(tmp_path, mixed_precision=precision, train_text_encoder=True, **arguments, **parts)
    assert dtypes(ConditionalPipeline.from_pretrained(folder)) == {torch.float32}


@pytest.mark.parametrize("kind", ["sd", "ours", "ddpm"])
def test_loading_samples_and_classifies_in_float32_unless_told(parents, kind):
    for kwargs, expected in (({}, torch.float32), ({"dtype": HALF[parents["dtype"]]}, HALF[parents["dtype"]])):
        pipe = quiet(ConditionalPipeline.from_pretrained(parents[kind], **kwargs))
        assert dtypes(pipe) == {expected}
        conditions = [None, None] if kind == "ddpm" else ["a red circle", "a blue square"]
        call = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
        images = ConditionalPipeline.__call__(pipe, conditions, **call).images
        assert images.dtype == np.float32 and np.isfinite(images).all()
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        pictures = [Image.new("RGB", (side, side), colour) for colour in ("red", "blue")]
        if kind == "ddpm":
            assert pipe.bits_per_dim(pictures, num_noise=2).isfinite().all()
        else:
            assert len(pipe.classify(pictures, conditions).best) == 2


def test_half_precision_that_was_loaded_on_purpose_is_trained_in_float32(parents):
    pipe = ConditionalPipeline.from_pretrained(parents["sd"], dtype=torch.float16)
    before = pipe.unet.conv_in.weight.clone()
    hold_float32(pipe)
    assert dtypes(pipe) == {torch.float32}
    assert torch.equal(pipe.unet.conv_in.weight, before.float())
