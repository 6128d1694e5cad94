"""The estimate of a step's memory against what the allocator of a CPU gave out, and what is chosen from it."""

import json
import types
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel

from cond_pipelines.networks.unet_sizes import build_unet
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.defaults import fit_memory
from cond_pipelines.training.memory import StepMemory, free_bytes, step_memory

GIB = 2**30
STABLE_DIFFUSION = {  # 1.5's configuration
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def fake_vae() -> AutoencoderKL:
    with FakeTensorMode():
        blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return AutoencoderKL(latent_channels=4, sample_size=512, **blocks, **kinds)


def measured(unet, batch_size: int, size: int, precision: str, tmp_path) -> int:
    """The most bytes at a time that PyTorch's allocator had given out in one step, which the profiler records."""
    unet.set_default_attn_processor()
    config = unet.config
    x_t = torch.randn(batch_size, 3, size, size)
    told = {
        "encoder_hidden_states": torch.randn(batch_size, 77, config.cross_attention_dim, requires_grad=True),
        "class_labels": torch.randn(batch_size, config.projection_class_embeddings_input_dim, requires_grad=True),
    }
    with torch.profiler.profile(profile_memory=True) as profiler:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            prediction = unet(x_t, torch.zeros(batch_size), **told).sample
        loss = prediction.float().square().mean()
        del prediction
        loss.backward()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    # The allocator's own sum: times of two events may be the same.
    changes = [e["args"] for e in sorted(events, key=lambda e: e.get("ts", 0)) if e.get("name") == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    for parameter in unet.parameters():
        parameter.grad = None
    return max(change["Total Allocated"] for change in changes) - before


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "size", "precision"), [("xxs", 16, "no"), ("s", 32, "no"), ("m", 32, "bf16")])
def test_the_estimate_is_what_the_allocator_gave_out(name, size, precision, checkpointing, tmp_path):
    config = TrainingConfig(mixed_precision=precision)
    make = partial(build_unet, name, sample_size=size)
    kwargs = {"sample_size": size, "on_cpu": True, "gradient_checkpointing": checkpointing}
    memory = step_memory(make, config, **kwargs)
    unet = make().train()
    assert memory.gradients == 4 * sum(p.numel() for p in unet.parameters())
    assert memory.fixed == 4 * memory.gradients  # weights, AdamW's two moments, the average
    if checkpointing:
        unet.enable_gradient_checkpointing()
    for batch_size in (4, 12):
        real, estimated = measured(unet, batch_size, size, precision, tmp_path), memory.peak(batch_size)
        # Within an operator a kernel holds what no dispatcher sees: of a convolution's backward pass the input, the
        # gradients and the weights in a layout of its own; where the processor has no bfloat16, in float32.
        activation = batch_size * 2 * unet.config.block_out_channels[0] * size**2 * 4
        weights = max(4 * p.numel() for p in unet.parameters())
        assert estimated <= 1.01 * real and real <= estimated + 4 * activation + 2 * weights


def test_a_text_encoder_that_is_trained_counts():
    config = TrainingConfig(conditioning="text", text_encoder_name_or_path="bert", train_text_encoder=True)
    with FakeTensorMode():
        bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64))
    kwargs = {"sample_size": 8, "on_cpu": True, "text_encoder": bert}
    frozen, trained = (
        step_memory(partial(build_unet, "xxs", sample_size=8), config, train_text_encoder=train, **kwargs)
        for train in (False, True)
    )
    num = sum(p.numel() for p in bert.parameters())
    assert trained.fixed - frozen.fixed == 12 * num and trained.gradients - frozen.gradients == 4 * num
    assert trained.peak(2) > frozen.peak(2)


def chosen(config: TrainingConfig, images: int, gib: float, on_cpu: bool = False, memory=None) -> TrainingConfig:
    return fit_memory(config, images, lambda gradient_checkpointing: memory(gradient_checkpointing), int(gib * GIB), 4)


def toy(checkpointing: bool) -> StepMemory:
    """A GiB of weights, half of gradients, a GiB an image, a quarter with checkpointing."""
    return StepMemory(GIB, GIB // 2, lambda n: GIB // 2 + (GIB // 4 if checkpointing else GIB) * n)


@pytest.mark.parametrize(
    ("images", "gib", "batch_size", "parts", "checkpointing"),
    [
        (16, 18, 16, 1, False),
        (16, 17, 8, 2, False),
        (16, 6, 4, 4, False),
        (16, 5, 8, 2, True),
        (16, 2.4, 1, 16, True),
        (16, 1, 1, 16, True),  # too little for any
        (5, 4, 5, 1, True),
        (7, 2.5, 1, 7, True),
        (1, 2.5, 1, 1, False),
        (1, 2.0, 1, 1, True),
    ],
)
def test_what_does_not_fit_goes_in_parts(images, gib, batch_size, parts, checkpointing):
    config, why = chosen(TrainingConfig(), images, gib, memory=toy)
    found = (config.train_batch_size, config.gradient_accumulation_steps, config.gradient_checkpointing)
    assert found == (batch_size, parts, checkpointing)
    assert config.train_batch_size * config.gradient_accumulation_steps == images  # whatever the memory
    assert ("may be too much" in why) == (gib == 1) and ("checkpointing" in why) == checkpointing


def test_accumulation_and_checkpointing_that_were_given_are_kept():
    config, _ = chosen(TrainingConfig(gradient_accumulation_steps=3), 16, 6, memory=toy)
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (4, 3)
    config, _ = chosen(TrainingConfig(gradient_accumulation_steps=1), 16, 6, memory=toy)
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (4, 1)  # a 1 that is given, too
    config, _ = chosen(TrainingConfig(gradient_checkpointing=True), 16, 100, memory=toy)
    assert config.gradient_checkpointing and config.train_batch_size == 16


def test_stable_diffusion_at_512_px():
    """860 M parameters, never in memory: on 80 GB 16 images at a time, on 16 GB not even one; a LoRA takes less."""
    vae = fake_vae()

    def memory(checkpointing: bool, train: str = "unet") -> StepMemory:
        config = TrainingConfig(pretrained_model_name_or_path="sd", train=train, mixed_precision="bf16")
        kwargs = {"sample_size": 64, "on_cpu": False, "vae": vae}
        make = partial(UNet2DConditionModel, **STABLE_DIFFUSION)
        return step_memory(make, config, gradient_checkpointing=checkpointing, **kwargs)

    whole, checkpointed, lora = memory(False), memory(True), memory(False, "lora")
    assert 859e6 < whole.gradients / 4 < 861e6 and lora.gradients / 4 < 1e6
    for gib, expected in ((64, (16, False)), (13, (1, True))):
        config, why = chosen(TrainingConfig(), 16, gib, memory=lambda c: checkpointed if c else whole)
        assert (config.train_batch_size, config.gradient_checkpointing) == expected, why
        assert ("too much" in why) == (gib == 13)
    # An image takes 0.7 GiB of activations, with autocast, and 16 of them half of an A100.
    assert 25 * GIB < whole.total(16) < 40 * GIB
    assert checkpointed.peak(16) < whole.peak(16)
    # A LoRA has no moments and no average of 860 M parameters, 12 bytes each.
    assert lora.total(16) < whole.total(16) - 12 * 855e6


def test_free_memory_is_that_of_the_device(monkeypatch):
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
    device = types.SimpleNamespace(type="npu")  # one whose module says what is free, as that of CUDA does
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(mem_get_info=lambda _: (10 * GIB, 80 * GIB)), raising=False)
    assert free_bytes(device) == 8 * GIB
