"""Stable Diffusion in one .safetensors file, in the layout of its first publication."""

import numpy as np
import pytest
import torch
from parents_common import generators, quiet, stable_diffusion
from safetensors.torch import save_file

from cond_pipelines import ClassConditionalPipeline, ConditionalPipeline, TextToImagePipeline

# The names of the parts of a block of residual layers, diffusers' and the first publication's.
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
RESNET |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def unet_blocks(unet) -> dict[str, str]:
    """Prefixes of the names of diffusers' blocks, and those of the first publication."""
    names, n = {"conv_in.": "input_blocks.0.0."}, 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            names[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{n}.0."
            names[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{n}.1."
            n += 1
        if block.downsamplers is not None:
            names[f"down_blocks.{i}.downsamplers.0.conv."], n = f"input_blocks.{n}.0.op.", n + 1
    for j, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        names[f"mid_block.{name}."] = f"middle_block.{j}."
    n = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            names[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{n}.0."
            names[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{n}.1."
            n += 1
        if block.upsamplers is not None:
            place = 2 if hasattr(block, "attentions") else 1
            names[f"up_blocks.{i}.upsamplers.0.conv."] = f"output_blocks.{n - 1}.{place}.conv."
    names |= {f"time_embedding.linear_{i}.": f"time_embed.{2 * i - 2}." for i in (1, 2)}
    return names | {"conv_norm_out.": "out.0.", "conv_out.": "out.2."}


def vae_blocks(vae) -> dict[str, str]:
    names = {}
    for side, blocks, other, sampler in (
        ("encoder", vae.encoder.down_blocks, "down", "downsample"),
        ("decoder", vae.decoder.up_blocks, "up", "upsample"),
    ):
        for i, block in enumerate(blocks):
            number = i if other == "down" else len(blocks) - 1 - i
            for j in range(len(block.resnets)):
                names[f"{side}.{other}_blocks.{i}.resnets.{j}."] = f"{side}.{other}.{number}.block.{j}."
            names[f"{side}.{other}_blocks.{i}.{sampler}rs.0.conv."] = f"{side}.{other}.{number}.{sampler}.conv."
        names |= {f"{side}.mid_block.resnets.{j}.": f"{side}.mid.block_{j + 1}." for j in (0, 1)}
        names |= {
            f"{side}.mid_block.attentions.0.": f"{side}.mid.attn_1.",
            f"{side}.conv_norm_out.": f"{side}.norm_out.",
        }
    return names


def renamed(name: str, blocks: dict[str, str], parts: dict[str, str]) -> str:
    for ours, theirs in blocks.items():
        if name.startswith(ours):
            part = name.removeprefix(ours)
            head = part.rpartition(".")[0]
            return theirs + part.replace(head, parts.get(head, head), 1)
    return name


def published(pipe, openclip: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a StableDiffusionPipeline as 1.x names them, or 2.x (`openclip`)."""
    blocks = unet_blocks(pipe.unet)
    weights = {f"model.diffusion_model.{renamed(k, blocks, RESNET)}": v for k, v in pipe.unet.state_dict().items()}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    blocks = vae_blocks(pipe.vae)
    for name, value in pipe.vae.state_dict().items():
        is_attention = "attentions" in name and value.ndim == 2
        value = value[:, :, None, None] if is_attention else value  # a convolution then
        weights[f"first_stage_model.{renamed(name, blocks, attention | {'conv_shortcut': 'nin_shortcut'})}"] = value
    text = {k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}
    if not openclip:
        return weights | {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}
    names = {"embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm.": "ln_final."}
    names |= {
        "embeddings.position_embedding.weight": "positional_embedding",
        "encoder.layers.": "transformer.resblocks.",
    }
    names |= {"self_attn.": "attn.", "layer_norm": "ln_", "fc1": "c_fc", "fc2": "c_proj"}
    for name, value in text.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            value = torch.cat([text[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            name = name.replace("q_proj.", "in_proj_")
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[f"cond_stage_model.model.{name}"] = value
    return weights


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A folder with the configurations in diffusers' layout, without one weight."""
    folder = tmp_path_factory.mktemp("layout")
    stable_diffusion().save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


@pytest.mark.parametrize("openclip", [False, True])
def test_stable_diffusion_in_one_file(openclip, layout, tmp_path):
    """The same images as the pipeline that the weights came from, and the start of another setting."""
    parent = stable_diffusion()
    weights = {name: value.contiguous().clone() for name, value in published(parent, openclip).items()}
    save_file(weights, tmp_path / "sd.safetensors")
    call = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "np"}
    expected = parent("a red circle", **call, generator=generators(1)).images
    for cls in (TextToImagePipeline, ConditionalPipeline):
        pipe = quiet(cls.from_pretrained(tmp_path / "sd.safetensors", config=str(layout), default_guidance_scale=3.0))
        assert type(pipe) is TextToImagePipeline and pipe.config.default_guidance_scale == 3.0
        images = pipe("a red circle", **call, generator=generators(1)).images
        assert np.allclose(images, expected, atol=1e-5), np.abs(images - expected).max()
    with pytest.raises(ValueError, match=r"use TextToImagePipeline\.from_pretrained, then ClassConditional"):
        ClassConditionalPipeline.from_pretrained(tmp_path / "sd.safetensors")


@pytest.mark.parametrize(
    ("name", "weights", "line"),
    [
        ("model.ckpt", None, "is no .safetensors file"),
        ("model.safetensors", None, "cannot be read"),
        ("flat.safetensors", {"conv_in.weight": 1}, r"not in the layout of Stable Diffusion \(its weights are conv_in"),
        (
            "xl.safetensors",
            {"model.diffusion_model.x": 1, "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": 1},
            "is xl_base: one file of Stable Diffusion 1.x or 2.x",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(name, weights, line, tmp_path):
    if weights is None:
        (tmp_path / name).write_bytes(b"no weights")
    else:
        save_file({key: torch.zeros(size) for key, size in weights.items()}, tmp_path / name)
    with pytest.raises(ValueError, match=line) as error:
        TextToImagePipeline.from_pretrained(tmp_path / name)
    assert "\n" not in str(error.value)
