"""What a training step does on a GPU, found out without one: on PyTorch's "meta" device, whose tensors hold nothing.

They refuse to be looked at, which on a GPU is where it would be waited for, and operands on two devices.
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from cond_pipelines import ClassLabelAdapter, TextAdapter, TrainingConfig, build_unet
from cond_pipelines.objectives import Objective
from cond_pipelines.training.clipping import clipped_step
from cond_pipelines.training.conditions import _padded
from cond_pipelines.training.device import has_cuda_graphs, tune_network
from cond_pipelines.training.ema import WeightAverage, power_function

SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(),
    "ddpm": DDPMScheduler(),
    "v": DDPMScheduler(prediction_type="v_prediction"),
    "edm": EDMEulerScheduler(),
}


class Fused(torch.optim.Optimizer):
    """In place of fused AdamW, which the meta device does not have: it takes the two tensors of a loss scaler too."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-self.defaults["lr"])


@pytest.mark.parametrize("look", [torch.Tensor.item, torch.Tensor.tolist, bool])
def test_the_meta_device_sees_what_would_wait(look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.zeros((), device="meta"))
    with pytest.raises(RuntimeError):
        torch.zeros(3, device="meta") + torch.zeros(3)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("setting", ["class", "text"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_step_waits_for_nothing(kind, setting, max_grad_norm):
    """Noise, adapter, dropout, UNet with weights in channels_last, loss, backward, clipping, AdamW, average."""
    with torch.device("meta"):
        unet = build_unet("xxs", sample_size=8).to(memory_format=torch.channels_last)
        if setting == "class":
            adapter = ClassLabelAdapter.for_unet(unet, id2label={0: "a", 1: "b"})
            features = {name: x.to("meta") for name, x in adapter.preprocess(["a", None, "b", "a"]).items()}
        else:
            adapter = TextAdapter.for_unet(unet, hidden_size=32)
            features = {"hidden_states": torch.rand(4, 5, 32), "mask": torch.ones(4, 5, dtype=torch.bool)}
        x_0, noise, u, coins = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8), torch.rand(4), torch.rand(4, 1)
    parameters = [p for p in (*unet.parameters(), *adapter.parameters()) if p.requires_grad]
    optimizer = Fused(parameters, {"lr": 1e-3})
    accelerator, prepared = SimpleNamespace(distributed_type=DistributedType.NO), SimpleNamespace(scaler=None)
    prepared.optimizer = optimizer
    average = WeightAverage(parameters, power_function(0.1))
    noised = Objective.from_scheduler(SCHEDULERS[kind]).sample(x_0, noise, u)
    cond = adapter(features)
    cond = cond.where(adapter.keep(coins, 0.1), adapter.null_like(cond))
    loss = noised.loss(unet(noised.x_t, noised.t, **cond.unet_kwargs(unet)).sample).mean()
    loss.backward()
    skipped = clipped_step(accelerator, prepared, parameters, max_grad_norm)
    average.step(parameters)
    assert loss.device.type == skipped.device.type == optimizer.found_inf.device.type == "meta"
    assert (optimizer.grad_scale is None) == (max_grad_norm == 0)


def test_captions_of_a_batch_are_padded_by_few_kernels():
    """As pad_sequence does it with one for each caption, of every dtype."""
    generator = torch.Generator().manual_seed(0)
    features = [
        {"hidden_states": torch.randn(n, 6, generator=generator), "mask": torch.ones(n, dtype=torch.bool)}
        for n in (3, 1, 7, 7, 2, *[4] * 40)
    ]
    count = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal count
            count += 1
            return func(*args, **(kwargs or {}))

    with Count():
        padded = _padded(features)
    assert count < 45
    for name in features[0]:
        expected = pad_sequence([one[name] for one in features], batch_first=True)
        assert torch.equal(padded[name], expected) and padded[name].dtype == expected.dtype


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_fused_adamw_with_a_loss_scaler_is_adamw(max_grad_norm):
    """fp16 on a GPU, with the scaler that PyTorch has for CPUs: unscaled once, clipped, left out if infinite."""
    accelerator = Accelerator(cpu=True)
    # accelerate refuses fp16 on a CPU.
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before, accelerator.state._mixed_precision = accelerator.state._mixed_precision, "fp16"
    torch.manual_seed(0)
    ours, plain = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    plain.load_state_dict(ours.state_dict())
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(ours.parameters(), fused=True), scaler=accelerator.scaler)
    accelerator._optimizers = [optimizer]
    expected = torch.optim.AdamW(plain.parameters())
    for step in range(4):
        x, overflows = torch.randn(8, 4), step == 2
        loss = ours(x).square().sum() * (float("inf") if overflows else 1.0)
        accelerator.scaler.scale(loss).backward()
        assert clipped_step(accelerator, optimizer, list(ours.parameters()), max_grad_norm) == overflows
        optimizer.zero_grad()
        if not overflows:
            plain(x).square().sum().backward()
            if max_grad_norm:
                torch.nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
            expected.step()
            expected.zero_grad()
        assert torch.allclose(ours.weight, plain.weight, atol=1e-6)
    accelerator.state._mixed_precision = before


@pytest.mark.parametrize(
    ("unet_size", "sharded", "expected"), [("xxs", False, True), ("xxs", True, False), ("l", False, False)]
)
def test_only_small_whole_networks_are_channels_last(unet_size, sharded, expected):
    """FSDP2 refuses weights that are not contiguous, and large networks are slower with them (gpu_h100.md)."""
    with torch.device("meta"):
        unet = build_unet(unet_size, sample_size=8)
    tune_network(unet, TrainingConfig(), torch.device("cuda"), sharded)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == expected
    assert unet.conv_in.weight.is_contiguous() != expected


@pytest.mark.parametrize(
    ("settings", "device", "num_processes", "expected"),
    [
        ({}, "cuda", 1, True),
        ({"conditioning": "class"}, "cuda", 1, True),
        ({}, "cpu", 1, False),
        ({}, "cuda", 2, False),
        ({"conditioning": "text"}, "cuda", 1, False),
        ({"aspect_buckets": True, "train_data_dir": "x"}, "cuda", 1, False),
        ({"gradient_accumulation_steps": 2}, "cuda", 1, False),
        ({"gradient_checkpointing": True}, "cuda", 1, False),
    ],
)
def test_cuda_graphs_where_each_step_is_one_pass_of_one_shape(settings, device, num_processes, expected):
    config, device = TrainingConfig(**settings), torch.device(device)
    assert has_cuda_graphs(config, device, num_processes) == expected
    assert not has_cuda_graphs(config, device, num_processes, sharded=True)
