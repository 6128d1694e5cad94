"""What a UNet computes is kept when it is given another number of channels, or a socket."""

import diffusers
import pytest
import torch
from parents_common import unet2d
from pipelines_common import tiny_unet

from cond_pipelines.adapters import UnconditionalAdapter, socket
from cond_pipelines.networks.surgery import with_channels, with_socket

UNETS = {"UNet2DConditionModel": lambda channels: tiny_unet(channels=channels), "UNet2DModel": unet2d}


def answer(unet, x):
    """To 2 images, told nothing."""
    told = {}
    if not isinstance(unet, diffusers.UNet2DModel) or unet.config.class_embed_type:
        told = UnconditionalAdapter.for_unet(unet)({"batch": torch.zeros(len(x))}).unet_kwargs(unet)
    with torch.no_grad():
        return unet(x, torch.tensor([5, 500]), **told).sample


@pytest.fixture(params=UNETS)
def build(request):
    torch.manual_seed(0)
    return UNETS[request.param]


@pytest.mark.parametrize(("old", "new"), [(3, 4), (3, 9), (4, 16)])
def test_more_channels_keep_the_first(build, old, new):
    unet = build(old)
    wide = with_channels(unet, new)
    x, rest = torch.randn(2, old, 8, 8), torch.randn(2, new - old, 8, 8)
    out = answer(wide, torch.cat([x, rest], dim=1))
    assert torch.allclose(out[:, :old], answer(unet, x), atol=1e-6) and not out[:, old:].any()
    assert (wide.config.in_channels, wide.config.out_channels) == (new, new)


@pytest.mark.parametrize(("old", "new"), [(4, 3), (9, 4)])
def test_fewer_channels_answer_as_if_the_others_were_zero(build, old, new):
    unet = build(old)
    x = torch.randn(2, new, 8, 8)
    expected = answer(unet, torch.cat([x, torch.zeros(2, old - new, 8, 8)], dim=1))[:, :new]
    assert torch.allclose(answer(with_channels(unet, new), x), expected, atol=1e-6)


@pytest.mark.parametrize("old", [3, 4])
def test_gray_from_rgb(build, old):
    unet, gray = build(old), torch.randn(2, 1, 8, 8)
    colour = torch.cat([gray.expand(-1, 3, -1, -1), torch.zeros(2, old - 3, 8, 8)], dim=1)
    expected = answer(unet, colour)[:, :3].mean(dim=1, keepdim=True)
    assert torch.allclose(answer(with_channels(unet, 1), gray), expected, atol=1e-5)


@pytest.mark.parametrize("new", [3, 4])
def test_rgb_from_gray(build, new):
    unet, gray = build(1), torch.randn(2, 1, 8, 8)
    colour = torch.cat([gray.expand(-1, 3, -1, -1), torch.randn(2, new - 3, 8, 8)], dim=1)
    out = answer(with_channels(unet, new), colour)
    assert torch.allclose(out[:, :3], answer(unet, gray).expand(-1, 3, -1, -1), atol=1e-5) and not out[:, 3:].any()


def test_more_to_see_than_to_answer():
    """An inpainting UNet from any other: mask and masked image beside the latents."""
    unet = tiny_unet(channels=4)
    inpainting = with_channels(unet, 9, out_channels=4)
    x, beside = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
    assert torch.allclose(answer(inpainting, torch.cat([x, beside], dim=1)), answer(unet, x), atol=1e-6)
    assert torch.allclose(answer(with_channels(inpainting, 4), x), answer(unet, x), atol=1e-6)


def test_the_old_unet_is_left_alone_and_shares_its_weights(build):
    unet = build(3)
    before = {name: x.clone() for name, x in unet.state_dict().items()}
    wide = with_channels(unet, 5)
    after, new = unet.state_dict(), wide.state_dict()
    assert unet.config.in_channels == 3 and all(torch.equal(before[name], after[name]) for name in before)
    changed = {name for name in after if after[name].data_ptr() != new[name].data_ptr()}
    assert changed == {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    assert with_channels(unet, 3) is unet
    assert all(p.requires_grad for p in wide.parameters()) and not wide.training
    half = with_channels(build(3).to(torch.bfloat16), 4)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_socket_for_a_unet2d_model():
    unet = unet2d()
    told = with_socket(unet)
    assert socket(unet) == socket(told) == (None, 32) and with_socket(told) is told
    assert sum(p.numel() for p in told.parameters()) == sum(p.numel() for p in unet.parameters())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(answer(told, x), answer(unet, x))
    with torch.no_grad():
        assert not torch.allclose(told(x, 5, class_labels=torch.ones(2, 32)).sample, unet(x, 5).sample, atol=1e-3)
    assert socket(unet2d(time_embedding_dim=24)) == (None, 24)


def test_skip_blocks_are_refused():
    unet = unet2d(
        block_out_channels=(32, 32),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )
    with pytest.raises(ValueError, match="Skip blocks keeps its number of channels"):
        with_channels(unet, 1)
