"""Sharded weights on CPUs: by torch's own fully_shard, and by accelerate, which takes the CPUs for GPUs."""

import argparse
import json
from pathlib import Path

import pytest
import sharding_check
from training_common import ROUNDING_OF_LOSS, flags, log_of, rounding_of_training, run

from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

BENCHMARK = Path(__file__).parents[2] / "benchmarks/sharding_check.py"
SHARDED = """
import copy, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from accelerate import Accelerator
from cond_pipelines import UnconditionalAdapter, UnconditionalPipeline, build_unet
from cond_pipelines.training.ema import WeightAverage, averaged_weights, power_function
from cond_pipelines.training.sharding import is_sharded, whole_pipeline
from diffusers import FlowMatchEulerDiscreteScheduler

dist.init_process_group("gloo")
torch.manual_seed(0)
unet = build_unet("xxs", sample_size=8).double()  # so that a bound is one of the method, on any processor
pipe = UnconditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), UnconditionalAdapter.for_unet(unet).double())
alone = copy.deepcopy(pipe.unet)
whole, modules = whole_pipeline(pipe, [pipe.unet], sharded=True)
assert modules == [whole.unet] and whole.unet is not pipe.unet and whole.adapter is pipe.adapter

for block in (*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks):
    fully_shard(block)
fully_shard(pipe.unet)
parameters = list(pipe.unet.parameters())
assert is_sharded(parameters) and not is_sharded(list(whole.unet.parameters()))
average, expected = (WeightAverage(p, power_function(0.1)) for p in (parameters, alone.parameters()))

x, t = torch.randn(4, 3, 8, 8).double(), torch.full((4,), 500.0)
told = {"encoder_hidden_states": torch.zeros(4, 1, 64).double(), "class_labels": torch.zeros(4, 64).double()}
steps = [torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (pipe.unet, alone)]
for _ in range(3):
    for net, optimizer in zip((pipe.unet, alone), steps):
        optimizer.zero_grad()
        net(x, t, **told).sample.square().mean().backward()
        optimizer.step()
    average.step(parameters)
    expected.step(list(alone.parameters()))

def largest(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))

state = average.state_dict()
assert largest(state["values"], expected.values) < 1e-10, largest(state["values"], expected.values)
before = [p.to_local().clone() for p in parameters]
optimizer = Accelerator(cpu=True).prepare(steps[0])
with averaged_weights(average, modules, parameters, optimizer):
    assert largest(whole.unet.parameters(), expected.values) < 1e-10
    images = whole(batch_size=2, num_inference_steps=1, output_type="pt", generator=torch.manual_seed(0)).images
assert all(torch.equal(a, p.to_local()) for a, p in zip(before, parameters)), "training goes on from what it had"
with averaged_weights(None, modules, parameters, optimizer):
    assert largest(whole.unet.parameters(), alone.parameters()) < 1e-10
again = WeightAverage(parameters, power_function(0.1))
again.load_state_dict(state)
assert largest(again.state_dict()["values"], state["values"]) == 0 and again.num_steps == 3
dist.barrier()
dist.destroy_process_group()
print("sharded and whole agree")
"""


def test_averages_and_samples_of_sharded_weights(tmp_path, warm):
    """The average is the one of a network that is whole; what is sampled holds it; training goes on undisturbed."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    process = warm.start([tmp_path / "sharded.py"], num_processes=2)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    assert out.count("sharded and whole agree") == 2


@pytest.mark.timeout(900)  # two runs of two processes, and one alone
def test_fsdp_trains_as_one_process_does_and_resumes_exactly(warm):
    """With training/accelerate/fsdp2.yaml: gradients, clipping, checkpoints, held-out loss, the saved average."""
    env = warm.env | sharding_check.launch_environment("fsdp2", 2) | {"ACCELERATE_USE_CPU": "true"}
    env["PYTHONPATH"] = f"{warm.env['PYTHONPATH']}:{BENCHMARK.parent}"
    env["OMP_NUM_THREADS"] = "1"

    def start(options, args):
        process = warm.start([BENCHMARK, "as_on_gpus", *args], env, options.num_processes)
        told = process.communicate(timeout=240)[1]
        assert process.returncode == 0, told[-3000:]
        assert "nothing is sharded" not in told

    options = argparse.Namespace(kind="fsdp2", steps=2, num_processes=2, mixed_precision="no")
    found = sharding_check.compare(options, start)
    assert found["against_one_process"] < ROUNDING_OF_LOSS and found["resumed_against_whole"] == 0
    assert found["largest_difference_of_saved_weights"] < rounding_of_training(2e-3, 2)


REFUSED = """
import json, sys
from sharding_check import as_on_gpus, main_of_training
as_on_gpus()
for args in json.loads(sys.argv[1]):
    try:
        main_of_training(args)
    except SystemExit as error:
        print("exit code", error.code, file=sys.stderr)
"""


def test_what_does_not_go_with_sharding_is_refused(tmp_path, warm):
    run(tmp_path / "unsharded", checkpointing_steps=1, max_train_steps=1)
    cases = [
        (flags(output_dir=tmp_path / "a", optimizer="adafactor"), "--optimizer adafactor does not go with FSDP: adamw"),
        (flags(output_dir=tmp_path / "b", ema_lengths="0.05"), "--ema_lengths does not go with FSDP"),
        (
            flags(output_dir=tmp_path / "unsharded", resume_from_checkpoint="latest"),
            "was made with another sharding (none, now FSDP)",
        ),
    ]
    (tmp_path / "refused.py").write_text(REFUSED)
    env = warm.env | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "1", "RANK": "0"}
    env |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env["PYTHONPATH"] += f":{BENCHMARK.parent}"
    process = warm.start([tmp_path / "refused.py", json.dumps([args for args, _ in cases])], env)
    told = process.communicate(timeout=240)[1]
    lines = [line for line in told.splitlines() if line.startswith(("error: --", "exit code "))]
    assert len(lines) == 6 and lines[1::2] == ["exit code 2"] * 3, told[-3000:]
    for line, (_, words) in zip(lines[::2], cases, strict=True):
        assert words in line


def test_gradient_accumulation_is_ours(tmp_path, monkeypatch):
    """`accelerate launch` puts a 1 into the environment that accelerate would follow."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    adamw = {"optimizer": "adamw"}  # Muon makes directions of rounding
    two = run(tmp_path / "two", gradient_accumulation_steps=2, train_batch_size=4, **adamw)
    one = run(tmp_path / "one", train_batch_size=8, **adamw)
    assert log_of(two) == pytest.approx(log_of(one), rel=ROUNDING_OF_LOSS)


def test_deepspeed_with_fp16_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    config = TrainingConfig(
        dataset_name="training_common:shapes", resolution=8, mixed_precision="fp16", output_dir=str(tmp_path)
    )
    with pytest.raises(ValueError, match="fp16 does not go with DeepSpeed"):
        train(config)
