"""The layout in which a CPU trains a network: the one its group norms suit, from end to end, with the same results."""

import copy
import io
import shutil

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file
from training_common import rounding_of_training, run

from cond_pipelines import ClassLabelAdapter, TrainingConfig, build_unet
from cond_pipelines.training import device
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


def test_a_copy_has_a_hook_of_its_own():
    """Of blocks of its own; and what is hooked can be saved whole."""
    unet, cond = made("s32", num_processes=1)
    copied = copy.deepcopy(unet)
    copied(torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0]), **cond)
    modes = [{m.training for m in net.modules() if isinstance(m, ResnetBlock2D)} for net in (unet, copied)]
    assert modes == [{True}, {False}]
    torch.save(unet, io.BytesIO())


@pytest.mark.parametrize("first", ["contiguous", "channels_last"])
def test_a_run_goes_on_in_another_layout(tmp_path, monkeypatch, first):
    """As it does in the same one. So it is of two processes and then one, or of a CPU and then a GPU."""
    settings = {"unet_size": "s32", "conditioning": "class", "optimizer": "adamw", "use_ema": False}
    settings |= {"learning_rate": 1e-3, "adam_epsilon": 1e-3, "lr_scheduler": "constant", "train_batch_size": 2}
    settings |= {"checkpointing_steps": 3, "max_train_steps": 3}

    def trained(folder, layout, **changes):
        with monkeypatch.context() as patch:
            if layout == "contiguous":
                patch.setattr(device, "_norms_suit_channels_last", lambda network: False)
            run(folder, **settings | changes)
        return load_file(folder / "unet/diffusion_pytorch_model.safetensors")

    before = trained(tmp_path / first, first)
    other = {"contiguous": "channels_last", "channels_last": "contiguous"}[first]
    shutil.copytree(tmp_path / first, tmp_path / other)
    same, changed = (
        trained(tmp_path / layout, layout, max_train_steps=5, resume_from_checkpoint="latest")
        for layout in (first, other)
    )
    bound = rounding_of_training(1e-3, 2)
    assert max(float((same[name] - weight).abs().max()) for name, weight in before.items()) > 10 * bound
    for name, weight in same.items():
        assert (changed[name] - weight).abs().max() <= bound, name


def test_lora_of_convolutions_is_saved_from_channels_last(tmp_path):
    parent = run(tmp_path / "parent", unet_size="s32", conditioning="class", max_train_steps=1)
    folder = run(
        tmp_path / "lora",
        conditioning="class",
        unet_size=None,
        pretrained_model_name_or_path=str(parent),
        train="lora",
        lora_target_modules=["conv1", "conv2"],
        max_train_steps=1,
    )
    saved = load_file(folder / "pytorch_lora_weights.safetensors")
    assert any(weight.ndim == 4 and weight.shape[-1] == 3 for weight in saved.values())
