"""What must not change a run: accumulation, the number of processes, an interruption."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_common import ROUNDING_OF_LOSS, flags, largest_difference, log_of, rounding_of_training, run

from cond_pipelines import ConditionalPipeline, TrainingConfig
from cond_pipelines.training.checkpoints import all_checkpoints
from cond_pipelines.training.schedule import LearningRate

# Adam divides by the gradient's size, so rounding would show where it is nearly zero; a large epsilon prevents that.
# Muon makes small directions as large as the others, rounding too.
SMOOTH = {
    "optimizer": "adamw",
    "adam_epsilon": 1e-2,
    "learning_rate": 1e-2,
    "conditioning": "class",
    "max_train_steps": 3,
}


def weights(folder):
    return {
        f"{part}.{name}": x
        for part in ("unet", "adapter")
        for name, x in load_file(folder / part / "diffusion_pytorch_model.safetensors").items()
    }


@pytest.fixture(scope="module")
def batch_of_8(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), use_ema=False, **SMOOTH)


def test_two_micro_steps_of_4_equal_one_of_8(batch_of_8, tmp_path):
    two = run(tmp_path, use_ema=False, train_batch_size=4, gradient_accumulation_steps=2, **SMOOTH)
    assert log_of(two) == pytest.approx(log_of(batch_of_8), rel=ROUNDING_OF_LOSS)
    assert log_of(two, "images") == log_of(batch_of_8, "images") == [8, 16, 24]
    assert log_of(two, "lr") == log_of(batch_of_8, "lr")
    assert largest_difference(weights(two), weights(batch_of_8)) < rounding_of_training(1e-2, 3)


def test_two_processes_of_4_equal_one_of_8(batch_of_8, tmp_path, warm):
    args = flags(train_batch_size=4, output_dir=tmp_path, validation_steps=2, **SMOOTH) + ["--no_use_ema"]
    process = warm.start(["-m", "cond_pipelines.training", *args], num_processes=2)
    output = "".join(process.communicate(timeout=240))
    assert process.returncode == 0, output[-3000:]
    assert "x 2 process(es)" in output
    assert log_of(tmp_path) == pytest.approx(log_of(batch_of_8), rel=ROUNDING_OF_LOSS)
    assert log_of(tmp_path, "images")[-1] == 24
    assert log_of(tmp_path, "lr") == log_of(batch_of_8, "lr")
    assert largest_difference(weights(tmp_path), weights(batch_of_8)) < rounding_of_training(1e-2, 3)


# -------------------------------------------------------------------------------------------------- checkpoints
STEPS = {"max_train_steps": 5, "gradient_accumulation_steps": 2, "train_batch_size": 4, "conditioning": "text"}
STEPS |= {"ema_max_decay": 0.999}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), checkpointing_steps=1, random_flip=True, **STEPS)


@pytest.mark.parametrize("which", ["latest", "checkpoint-3"])
def test_resumed_equals_uninterrupted(uninterrupted, tmp_path, which):
    """Bit by bit: weights, their average, and every line of the log."""
    shutil.copytree(uninterrupted / "checkpoint-3", tmp_path / "checkpoint-3")
    shutil.copytree(uninterrupted / "checkpoint-5", tmp_path / "unfinished-checkpoint-5")
    shutil.copytree(uninterrupted / "checkpoint-5", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "progress.json").unlink()  # cut off while it was written
    shutil.copy(uninterrupted / "log.jsonl", tmp_path)
    resumed = run(tmp_path, resume_from_checkpoint=which, checkpointing_steps=5, random_flip=True, **STEPS)
    assert largest_difference(weights(resumed), weights(uninterrupted)) == 0
    encoders = [ConditionalPipeline.from_pretrained(folder).text_encoder for folder in (resumed, uninterrupted)]
    assert largest_difference(*encoders) == 0
    for key in ("loss", "step", "images", "lr"):
        assert log_of(resumed, key) == log_of(uninterrupted, key)
    assert json.loads((resumed / "checkpoint-5" / "progress.json").read_text())["step"] == 5


def test_the_average_is_what_is_saved(uninterrupted):
    """The saved weights follow the EMA's formula over the raw weights of every step."""
    checkpoints = all_checkpoints(uninterrupted)
    assert [path.name for path in checkpoints] == [f"checkpoint-{i}" for i in range(1, 6)]
    raw = [load_file(path / "model.safetensors") for path in checkpoints]
    average = raw[0]  # the first step sets it
    for step, new in enumerate(raw[1:], start=1):
        decay = min(0.999, 1 - (1 + step) ** -0.75)
        average = {name: decay * average[name] + (1 - decay) * new[name] for name in average}
    saved = weights(uninterrupted)
    average = {name: x for name, x in average.items() if not name.startswith("text_encoder.")}
    assert largest_difference(saved, average) < 1e-6
    raw_last = {name: x for name, x in raw[-1].items() if name in saved}
    assert largest_difference(saved, raw_last) > 1e-4


def test_without_ema_the_raw_weights_are_saved(uninterrupted, tmp_path):
    plain = run(tmp_path, use_ema=False, random_flip=True, **STEPS | {"ema_max_decay": None})
    raw = load_file(uninterrupted / "checkpoint-5" / "model.safetensors")
    saved = weights(plain)
    assert largest_difference(saved, {name: raw[name] for name in saved}) == 0


def test_only_so_many_checkpoints_are_kept(tmp_path):
    run(tmp_path, max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(p.name for p in tmp_path.glob("*checkpoint*")) == ["checkpoint-3", "checkpoint-4"]


def test_resume_where_there_is_nothing(tmp_path, uninterrupted):
    run(tmp_path, resume_from_checkpoint="latest", max_train_steps=1)
    assert log_of(tmp_path, "step") == [1]
    shutil.copytree(uninterrupted / "checkpoint-1", tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"checkpoint-9: no complete checkpoint there .*: checkpoint-1\)"):
        run(tmp_path, resume_from_checkpoint="checkpoint-9")


# ------------------------------------------------------------------------------------------------ learning rate
@pytest.mark.parametrize("accumulation", [1, 2])
def test_learning_rate_counts_optimizer_steps(tmp_path, accumulation):
    arguments = {"max_train_steps": 8, "lr_warmup_steps": 3, "learning_rate": 1e-3, "train_batch_size": 4}
    folder = run(tmp_path, gradient_accumulation_steps=accumulation, **arguments)
    warmup = [min(1, (step + 1) / 3) for step in range(8)]
    expected = [1e-3 * w * SHAPES["warmup_stable_decay"](step / 8) for step, w in enumerate(warmup)]
    assert log_of(folder, "lr") == pytest.approx(expected, rel=1e-3)


SHAPES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "warmup_stable_decay": lambda done: 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - done) / 0.7))),
}


@pytest.mark.parametrize("name", SHAPES)
def test_learning_rate_shapes(name):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rate = LearningRate(TrainingConfig(lr_scheduler=name, learning_rate=0.1, lr_warmup_steps=0), optimizer)
    for i in range(1000):
        expected = 0.1 * SHAPES[name](i / 1000)
        assert rate.set(i, i / 1000) == optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-4)


def test_no_decay_at_all():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    config = TrainingConfig(
        learning_rate=0.1, lr_scheduler="warmup_stable_decay", lr_warmup_steps=0, lr_decay_fraction=0.0
    )
    assert LearningRate(config, optimizer).set(9, 0.9999) == 0.1


def test_minutes(tmp_path):
    """The run stops with the first step that ends after the time given, and the rate follows the clock down to zero."""
    minutes, peak = 0.03, 1e-3
    folder = run(tmp_path, max_train_steps=None, max_train_minutes=minutes, learning_rate=peak)
    done = [sec / (60 * minutes) for sec in log_of(folder, "elapsed_sec")]
    assert max(done[:-1]) < 1 <= done[-1]
    expected = [peak * SHAPES["warmup_stable_decay"](d) for d in [0.0, *done[:-1]]]
    assert log_of(folder, "lr") == pytest.approx(expected, abs=1e-3 * peak)
    assert log_of(folder, "lr") == sorted(log_of(folder, "lr"), reverse=True)


def test_minutes_and_steps_stop_at_what_comes_first(tmp_path):
    folder = run(tmp_path, max_train_steps=2, max_train_minutes=30.0)
    assert log_of(folder, "step") == [1, 2]


def test_a_run_leaves_nothing_behind(batch_of_8, tmp_path):
    """Another precision and accumulation in between, in the same process, change nothing."""
    run(tmp_path / "between", mixed_precision="bf16", gradient_accumulation_steps=2, seed=7, conditioning="none")
    again = run(tmp_path / "again", use_ema=False, **SMOOTH)
    assert largest_difference(weights(again), weights(batch_of_8)) == 0
    assert log_of(again) == log_of(batch_of_8)
