import pytest
import torch
from diffusers import UNet2DConditionModel
from pipelines_common import make_components, tiny_unet
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from cond_pipelines import (
    UNET_SIZES,
    ClassConditionalPipeline,
    ClassLabelAdapter,
    TextAdapter,
    TextToImagePipeline,
    UnconditionalAdapter,
    UnconditionalPipeline,
    build_unet,
)

# From the smallest for a laptop to ADM's and Stable Diffusion's scale.
MILLIONS_OF_PARAMETERS = {
    "xxs": (0.9, 1.1),
    "xs": (1.5, 1.8),
    "s": (2.7, 3.0),
    "s32": (3, 4),
    "m": (15.5, 16),
    "l": (138, 140),
    "xl": (414, 417),
    "xxl": (861, 864),
}


def count(module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_state_dict_is_the_same_in_all_settings(tmp_path):
    """On disk, where the three settings meet."""
    classes = {"none": UnconditionalPipeline, "class": ClassConditionalPipeline, "text": TextToImagePipeline}
    shapes = {}
    for setting, pipeline_class in classes.items():
        pipeline_class(**make_components(setting)).save_pretrained(tmp_path / setting)
        weights = load_file(tmp_path / setting / "unet" / "diffusion_pytorch_model.safetensors")
        shapes[setting] = {name: (x.shape, x.dtype) for name, x in weights.items()}
    assert shapes["none"] and shapes["none"] == shapes["class"] == shapes["text"]


@pytest.mark.parametrize("size", UNET_SIZES)
class TestSizes:
    def test_builds_with_the_socket_that_every_adapter_fits(self, size):
        with torch.device("meta"):
            unet = build_unet(size, sample_size=64)
            token_dim, pooled_dim = unet.config.cross_attention_dim, unet.config.projection_class_embeddings_input_dim
            made = {
                UnconditionalAdapter.for_unet(unet): {"batch": torch.zeros(2)},
                ClassLabelAdapter.for_unet(unet, num_classes=9): {"label": torch.zeros(2, dtype=torch.int64)},
                TextAdapter.for_unet(unet, hidden_size=32): {
                    "hidden_states": torch.zeros(2, 5, 32),
                    "mask": torch.ones(2, 5, dtype=torch.bool),
                },
            }
            x_t, t = torch.zeros(2, 3, 64, 64), torch.zeros(2)
            for adapter, features in made.items():
                cond = adapter(features)
                assert cond.tokens.shape[::2] == (2, token_dim) and cond.pooled.shape == (2, pooled_dim)
                assert unet(x_t, t, **cond.unet_kwargs()).sample.shape == x_t.shape

    def test_number_of_parameters(self, size):
        with torch.device("meta"):
            millions = count(build_unet(size, sample_size=64))
        print(f"{size}: {millions:.2f} M parameters")
        low, high = MILLIONS_OF_PARAMETERS[size]
        assert low <= millions <= high

    def test_heads_are_as_wide_as_the_table_says(self, size):
        with torch.device("meta"):
            unet = build_unet(size, sample_size=64)
        attentions = [m for name, m in unet.named_modules() if name.endswith(("attn1", "attn2"))]
        width = 32 if size in ("xxs", "xs", "s", "s32", "m") else 64
        assert attentions and {m.to_q.out_features // m.heads for m in attentions} == {width}


def test_s32_does_little_more_than_half_the_work_of_s_at_32_px():
    flops = {}
    for size in ("s", "s32"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            unet = build_unet(size, sample_size=32)
            cond = UnconditionalAdapter.for_unet(unet)({"batch": torch.zeros(2)})
            unet(torch.zeros(2, 3, 32, 32), torch.zeros(2), **cond.unet_kwargs())
        flops[size] = counter.get_total_flops()
        assert type(unet) is UNet2DConditionModel  # diffusers loads it
    assert flops["s32"] < 0.57 * flops["s"]


def test_sizes_grow():
    with torch.device("meta"):
        millions = [count(build_unet(size, sample_size=64)) for size in UNET_SIZES]
    assert millions == sorted(millions) and len(set(millions)) == len(millions)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("sample_size", [8, 28, (12, 20)])
def test_forward(channels, sample_size):
    unet = tiny_unet(channels=channels, sample_size=sample_size)
    height, width = sample_size if isinstance(sample_size, tuple) else (sample_size,) * 2
    x_t = torch.randn(2, channels, height, width)
    told = UnconditionalAdapter.for_unet(unet)({"batch": torch.zeros(2)})
    with torch.no_grad():
        out = unet(x_t, torch.tensor([1.0, 999.0]), **told.unet_kwargs()).sample
    assert out.shape == x_t.shape and torch.isfinite(out).all() and out.std() > 0


def test_28_pixels_through_four_levels():
    """28 / 8 is no whole number."""
    thin = {"block_out_channels": (8, 16, 24, 32), "norm_num_groups": 8, "layers_per_block": 1}
    unet = build_unet("l", sample_size=28, channels=1, **thin)
    told = UnconditionalAdapter.for_unet(unet)({"batch": torch.zeros(1)})
    with torch.no_grad():
        assert unet(torch.zeros(1, 1, 28, 28), 5, **told.unet_kwargs()).sample.shape == (1, 1, 28, 28)


def test_both_inputs_of_the_socket_and_the_time_are_heard():
    unet = tiny_unet()
    x_t, tokens, pooled = torch.randn(1, 3, 8, 8), torch.randn(1, 2, 16), torch.randn(1, 24)
    with torch.no_grad():
        out = [
            unet(x_t, t, encoder_hidden_states=tokens * a, class_labels=pooled * b).sample
            for t, a, b in [(5, 1, 1), (500, 1, 1), (5, 0, 1), (5, 1, 0)]
        ]
    assert all(not torch.allclose(out[0], other, atol=1e-3) for other in out[1:])


def test_overrides_reach_the_unet():
    unet = tiny_unet(dropout=0.1, layers_per_block=2)
    assert unet.config.dropout == 0.1 and len(unet.down_blocks[0].resnets) == 2
    with pytest.raises(TypeError, match="dropuot"):
        tiny_unet(dropuot=0.1)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("xxxl", 32), "--unet_size 'xxxl' is not one of xxs, xs, s, s32, m, l, xl, xxl, nor module:SIZE"),
        (("l", 4), "UNet size 'l' halves 3 times: sample_size 4 is too small"),
        (("s", (32, 2)), r"UNet size 's' halves 2 times: sample_size \(32, 2\) is too small"),
    ],
)
def test_errors_name_the_value(args, line):
    with pytest.raises(ValueError, match=line):
        build_unet(args[0], sample_size=args[1])
