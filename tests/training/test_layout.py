"""The layout in which a CPU trains a network: the one its group norms suit, from end to end, with the same results."""

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from cond_pipelines import ClassLabelAdapter, TrainingConfig, build_unet
from cond_pipelines.training.device import tune_network

CPU = torch.device("cpu")


def made(size, **tuned):
    """(network in training mode, its pooled and token conditions), of the same weights each time."""
    torch.manual_seed(0)
    unet = build_unet(size, sample_size=16).train()
    cond = ClassLabelAdapter.for_unet(unet, num_classes=2)
    cond = cond(cond.preprocess([0, 1]))
    if tuned:
        tune_network(unet, TrainingConfig(), CPU, **tuned)
    return unet, {name: x.detach() for name, x in cond.unet_kwargs().items() if x is not None}


def layouts(unet, x, cond):
    """Whether the output of each residual block is channels_last, and the prediction."""
    found = []
    hooks = [
        block.register_forward_hook(lambda _, __, y: found.append(y.is_contiguous(memory_format=torch.channels_last)))
        for block in unet.modules()
        if isinstance(block, ResnetBlock2D)
    ]
    prediction = unet(x, torch.tensor([3.0, 700.0]), **cond).sample
    for hook in hooks:
        hook.remove()
    return found, prediction


@pytest.mark.parametrize(
    ("size", "tuned", "expected"),
    [
        ("s32", {"num_processes": 1}, True),
        ("s32", {"num_processes": 2}, False),
        ("s32", {"sharded": True}, False),
        ("s", {"num_processes": 1}, False),
        ("m", {"num_processes": 1}, False),
    ],
)
def test_layout_from_end_to_end(size, tuned, expected):
    """Also after `train` and `eval` were called, as a validation does. FSDP2 refuses weights in another layout."""
    unet, cond = made(size, **tuned)
    x = torch.randn(2, 3, 16, 16)
    for mode in (True, False, True):
        unet.train(mode)
        found, prediction = layouts(unet, x, cond)
        assert len(found) > 4 and all(is_last == expected for is_last in found)
    prediction.square().mean().backward()
    assert unet.training and all(torch.isfinite(p.grad).all() for p in unet.parameters() if p.grad is not None)


def test_the_layout_changes_no_result():
    x, results = torch.randn(2, 3, 16, 16), []
    for tuned in ({}, {"num_processes": 1}):
        unet, cond = made("s32", **tuned)
        prediction = unet(x, torch.tensor([3.0, 700.0]), **cond).sample
        prediction.square().mean().backward()
        results.append((prediction.detach(), {n: p.grad for n, p in unet.named_parameters() if p.grad is not None}))
    (plain, grads), (tuned, tuned_grads) = results
    assert torch.allclose(plain, tuned, atol=1e-5) and grads.keys() == tuned_grads.keys()
    for name, grad in grads.items():
        assert (grad - tuned_grads[name]).norm() <= 1e-3 * grad.norm() + 1e-7, name


def test_a_block_with_dropout_stays_in_training_mode():
    torch.manual_seed(0)
    unet = build_unet("s32", sample_size=16, dropout=0.5).train()
    tune_network(unet, TrainingConfig(), CPU)
    cond = ClassLabelAdapter.for_unet(unet, num_classes=2)
    cond = {name: x for name, x in cond(cond.preprocess([0, 1])).unet_kwargs().items() if x is not None}
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    assert not torch.equal(unet(x, t, **cond).sample, unet(x, t, **cond).sample)
