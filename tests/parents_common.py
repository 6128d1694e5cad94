"""Tiny checkpoints of diffusers' own pipelines: random weights, a real CLIP tokenizer, the formats of the Hub."""

import functools
import random
from typing import Any

import diffusers
import torch
from pipelines_common import generators
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_LENGTH = 12
PROMPTS = ["a red circle", "two blue squares", "a small star on a black background, drawn by hand with a pencil", ""]


def clip_tokenizer() -> CLIPTokenizer:
    """With bytes for words, and a few words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("bl", "u"), ("blu", "e</w>"), ("s", "t")]
    words = [*letters, *(x + "</w>" for x in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, merges, model_max_length=MAX_LENGTH)


def clip_text_encoder(tokenizer: CLIPTokenizer, hidden_size: int = 16) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def loud(module: nn.Module) -> nn.Module:
    """With weights large enough for a prompt to be seen in the images."""
    for name, parameter in module.named_parameters():
        if "attn2" in name and parameter.ndim > 1:
            parameter.data *= 4
    return module


def sd_unet(in_channels: int = 4, **overrides: Any) -> diffusers.UNet2DConditionModel:
    arguments = {
        "sample_size": 8,
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }
    return loud(diffusers.UNet2DConditionModel(**arguments | overrides)).eval()


def sd_vae(kind: str = "kl") -> nn.Module:
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    if kind == "vq":
        return diffusers.VQModel(latent_channels=3, num_vq_embeddings=16, **blocks).eval()
    return diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.18215, **blocks).eval()


@functools.cache
def stable_diffusion(in_channels: int = 4) -> diffusers.StableDiffusionPipeline:
    """Shared by all tests, which leave it as it is."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    parts = {
        "vae": sd_vae(),
        "text_encoder": clip_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": sd_unet(in_channels),
        "scheduler": diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    cls = diffusers.StableDiffusionPipeline if in_channels == 4 else diffusers.StableDiffusionInpaintPipeline
    return quiet(cls(**parts, requires_safety_checker=False))


def unet2d(channels: int = 3, **overrides: Any) -> diffusers.UNet2DModel:
    arguments = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return diffusers.UNet2DModel(**arguments | overrides).eval()


@functools.cache
def unconditional_parent(kind: str) -> diffusers.DiffusionPipeline:
    """ "DDPM", "DDIM" or "LDM"; shared by all tests, which leave it as it is."""
    torch.manual_seed(0)
    if kind == "LDM":
        scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
        return quiet(diffusers.LDMPipeline(sd_vae("vq"), unet2d(), scheduler))
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    return quiet(getattr(diffusers, f"{kind}Pipeline")(unet2d(), scheduler))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The schedulers of the equality tests, and the kinds of answer that each understands.
SCHEDULERS = {
    "DDIMScheduler": ("epsilon", "v_prediction", "sample"),
    "DPMSolverMultistepScheduler": ("epsilon", "v_prediction", "sample"),
    "EulerDiscreteScheduler": ("epsilon", "v_prediction"),
    "PNDMScheduler": ("epsilon", "v_prediction"),
    "UniPCMultistepScheduler": ("epsilon", "v_prediction", "sample"),
}


def random_scheduler(rng: random.Random, number: int) -> Any:
    """Each class in turn; the rest by chance."""
    name = list(SCHEDULERS)[number % len(SCHEDULERS)]
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": rng.choice(["scaled_linear", "linear"]),
        "steps_offset": 1,
        "prediction_type": rng.choice(SCHEDULERS[name]),
        "timestep_spacing": rng.choice(["leading", "trailing"]),
    }
    if name == "DDIMScheduler":
        config |= {"clip_sample": False, "set_alpha_to_one": False}
    if name == "PNDMScheduler":
        config |= {"skip_prk_steps": True}  # as Stable Diffusion has it; three steps are too few otherwise
    return getattr(diffusers, name)(**config)


def random_prompts(rng: random.Random) -> dict[str, Any]:
    """Prompt, negative prompt and guidance; one or several, as StableDiffusionPipeline takes them."""
    n = rng.choice([1, 2, 3])
    prompt = [rng.choice(PROMPTS[:3]) for _ in range(n)]
    negative = rng.choice([None, [rng.choice(PROMPTS[1:]) for _ in range(n)]])
    if n == 1 and rng.random() < 0.5:
        prompt, negative = prompt[0], negative and negative[0]
    return {"prompt": prompt, "negative_prompt": negative, "guidance_scale": rng.choice([1.0, 7.5])}


def random_generator(rng: random.Random, batch_size: int) -> Any:
    """A function, so that two pipelines can be given the same."""
    seed = rng.randrange(1000)
    if rng.random() < 0.5:
        return lambda: generators(batch_size, seed)
    return lambda: torch.Generator().manual_seed(seed)
