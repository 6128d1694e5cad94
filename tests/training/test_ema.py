"""Averages of the weights: their formulas, and that a length made afterwards is the one that was not kept."""

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from training_common import largest_difference, run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.cli import main
from cond_pipelines.training.ema import (
    WeightAverage,
    _overlap,
    average_of_length,
    gamma_of,
    mixture,
    power_function,
    warmed_up,
)


def walk(num_steps, size=500):
    """Weights that drift and settle, as in training; a parameter that holds those of each step in turn."""
    rng = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(size, generator=rng))
    for step in range(num_steps):
        with torch.no_grad():
            parameter.add_(torch.randn(size, generator=rng) / (1 + step) ** 0.5)
        yield [parameter]


def test_the_ordinary_average_is_that_of_diffusers():
    parameter = next(walk(1))
    ours = WeightAverage(parameter, warmed_up(0.95, 2.0, 0.7))
    theirs = EMAModel(parameter, decay=0.95, use_ema_warmup=True, inv_gamma=2.0, power=0.7)
    for parameters in walk(60):
        ours.step(parameters)
        theirs.step(parameters)
    assert torch.allclose(ours.values[0], theirs.shadow_params[0], atol=1e-6)


@pytest.mark.parametrize("length", [0.03, 0.1, 0.2])
def test_a_length_is_the_standard_deviation_of_the_weights(length):
    """Of the terms of the average: measured on the averages of one-hot sequences, so of every step's own weight."""
    num_steps, decay = 2000, power_function(length)
    weight = np.zeros(num_steps)
    for step in range(1, num_steps + 1):
        weight *= decay(step)
        weight[step - 1] = 1 - decay(step)
    assert weight.sum() == pytest.approx(1)
    t = np.arange(1, num_steps + 1) / num_steps
    mean = (weight * t).sum()
    assert ((weight * (t - mean) ** 2).sum()) ** 0.5 == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.28, 3.0])
def test_lengths_that_no_average_has(length):
    with pytest.raises(ValueError, match=r"between 0 and 0\.28"):
        gamma_of(length)


def test_overlaps_are_integrals():
    t = np.linspace(0, 120, 400_001)

    def p(end, gamma):
        return np.where(t <= end, (gamma + 1) * t**gamma / end ** (gamma + 1), 0)

    for a, b in (((70.0, 3.0), (100.0, 7.0)), ((100.0, 3.0), (70.0, 7.0)), ((90.0, 16.0), (90.0, 5.0))):
        expected = np.trapezoid(p(*a) * p(*b), t)
        found = _overlap(*(np.float64(x) for x in (a[0], a[1], b[0], b[1])))
        assert found == pytest.approx(expected, rel=1e-4)


def test_any_length_afterwards():
    """From two lengths at sixteen times, within 1 % of the average that was kept all along."""
    num_steps, kept, wanted = 1600, (0.05, 0.10), (0.04, 0.05, 0.07, 0.12)
    first = next(walk(1))
    averages = {length: WeightAverage(first, power_function(length)) for length in (*kept, *wanted)}
    snapshots = []
    for step, parameters in enumerate(walk(num_steps), start=1):
        for average in averages.values():
            average.step(parameters)
        if step % 100 == 0:
            snapshots += [(step, length, averages[length].values[0].clone()) for length in kept]
    steps, lengths, values = zip(*snapshots, strict=True)
    gammas = np.array([gamma_of(length) for length in lengths])
    for length in wanted:
        weights = mixture(np.array(steps, dtype=float), gammas, num_steps, gamma_of(length))
        made = sum(w * v.double() for w, v in zip(weights, values, strict=True))
        true = averages[length].values[0].double()
        assert (made - true).norm() < 0.01 * (true - parameters[0].detach()).norm(), length


def test_from_a_run_to_a_pipeline(tmp_path, capsys):
    """`--ema_lengths`, then the command: one of the two lengths comes back as it was, one between lies between."""
    folder = run(tmp_path / "run", conditioning="class", max_train_steps=32, ema_lengths=[0.05, 0.10])
    assert len(list((folder / "ema").iterdir())) == 16
    pipes = {}
    for length in (0.05, 0.07, 0.10):
        main(["ema", str(folder), "--length", str(length)])
        assert capsys.readouterr().out.splitlines()[-1] == f"{folder}-ema-{length:g}"
        pipes[length] = ConditionalPipeline.from_pretrained(f"{folder}-ema-{length:g}").unet
    kept = average_of_length(folder, 0.05)
    kept = {name.removeprefix("unet."): value for name, value in kept.items() if name.startswith("unet.")}
    assert largest_difference(dict(pipes[0.05].named_parameters()), kept) < 1e-6
    saved = ConditionalPipeline.from_pretrained(folder).unet  # an average of this length is the default
    assert largest_difference(saved, pipes[0.05]) < 1e-6
    near, far = largest_difference(pipes[0.05], pipes[0.07]), largest_difference(pipes[0.05], pipes[0.10])
    assert 0 < near < far
    with pytest.raises(SystemExit):
        main(["ema", str(folder), "--length", "0.07", "--output_dir", str(folder)])
    assert f"error: {folder} is there already: name a new folder with --output_dir" in capsys.readouterr().err


def test_a_run_without_snapshots(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["ema", str(tmp_path), "--length", "0.07"])
    assert capsys.readouterr().err.startswith("error: ")


def test_resumed_averages_are_the_same(tmp_path):
    settings = {"ema_lengths": [0.1], "checkpointing_steps": 8, "lr_scheduler": "constant"}
    whole = run(tmp_path / "whole", max_train_steps=16, **settings)
    run(tmp_path / "parts", max_train_steps=8, **settings)
    parts = run(tmp_path / "parts", max_train_steps=16, resume_from_checkpoint="latest", **settings)
    assert largest_difference(average_of_length(whole, 0.1), average_of_length(parts, 0.1)) == 0
