"""What is trained, at which rates, and by which optimizer."""

import copy
import itertools
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_common import INFINITE, largest_difference, log_of, rounding_of_training, run

from cond_pipelines import ConditionalPipeline, TrainingConfig
from cond_pipelines.training.command_line import read_recipe
from cond_pipelines.training.config import OPTIMIZER_NAMES
from cond_pipelines.training.muon import MuonAndAdamW, is_matrix, orthogonalized
from cond_pipelines.training.optimizers import OPTIMIZERS, build_optimizer, parameter_groups


def load(folder):
    return ConditionalPipeline.from_pretrained(folder)


def weights(pipe):
    """All of it, by part and name."""
    modules = {k: m for k, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    return {f"{part}.{name}": x.clone() for part, m in modules.items() for name, x in m.state_dict().items()}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return run(tmp_path_factory.mktemp("parent"), conditioning="text", max_train_steps=3)


# ----------------------------------------------------------------------------------------------- what to train
@pytest.mark.parametrize(
    ("train", "more", "parts"),
    [
        ("unet", {}, ("unet.", "adapter.")),
        ("adapter", {}, ("adapter.",)),
        ("cross_attention", {}, (".attn2.", "adapter.")),
        ("adapter", {"train_text_encoder": True}, ("adapter.", "text_encoder.")),
    ],
    ids=["unet", "adapter", "cross_attention", "adapter_and_text_encoder"],
)
def test_what_is_trained_and_nothing_else(train, more, parts, parent, tmp_path, capsys):
    again = {"pretrained_model_name_or_path": str(parent), "unet_size": None, "conditioning": "text"}
    run(tmp_path, train=train, checkpointing_steps=2, **again, **more)
    before, after = weights(load(parent)), weights(load(tmp_path))
    assert set(before) == set(after)
    chosen = {name for name in before if any(part in name for part in parts)}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= chosen
    assert len(changed) > 0.9 * len(chosen)  # the rest: biases that softmax ignores, words that no caption has
    count = sum(before[name].numel() for name in chosen)
    average = load_file(tmp_path / "checkpoint-2" / "averages.safetensors")  # of what is trained only
    assert sum(x.numel() for x in average.values()) == count
    shown = capsys.readouterr()
    (line,) = [line for line in (shown.out + shown.err).splitlines() if f"trained parameters (--train {train})" in line]
    assert f"adapter {count_of(before, 'adapter'):.2f} of {count_of(before, 'adapter'):.2f} M" in line
    if train == "adapter":
        assert f"unet 0.00 of {count_of(before, 'unet'):.2f} M" in line


def count_of(found, part):
    return sum(x.numel() for name, x in found.items() if name.startswith(f"{part}.")) / 1e6


@pytest.mark.parametrize("train", ["adapter", "cross_attention"])
def test_a_part_is_resumed_to_the_same_bits(train, parent, tmp_path):
    again = {"pretrained_model_name_or_path": str(parent), "unet_size": None, "conditioning": "class", "train": train}
    whole = run(tmp_path / "whole", checkpointing_steps=2, **again)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path / "resumed", resume_from_checkpoint="latest", **again)
    assert largest_difference(weights(load(resumed)), weights(load(whole))) == 0
    assert log_of(resumed) == log_of(whole)[2:]
    with pytest.raises(ValueError, match=f"was made with --train {train}, now --train unet"):
        run(tmp_path / "resumed", resume_from_checkpoint="checkpoint-2", **again | {"train": "unet"})


def test_nothing_to_train(parent, tmp_path):
    again = {"pretrained_model_name_or_path": str(parent), "unet_size": None}
    with pytest.raises(ValueError, match="--train adapter: the adapter learns nothing, so nothing is left to train"):
        run(tmp_path, conditioning="none", train="adapter", **again)


def test_each_part_has_a_rate_of_its_own(parent, tmp_path):
    again = {"pretrained_model_name_or_path": str(parent), "unet_size": None, "conditioning": "text", "use_ema": False}
    run(tmp_path, adapter_lr=1e-3, learning_rate=1e-5, text_encoder_lr=1e-4, train_text_encoder=True, **again)
    before, after = weights(load(parent)), weights(load(tmp_path))
    steps = 4  # of AdamW, whose steps are never much larger than the rate
    for part, rate in (("unet.", 1e-5), ("adapter.", 1e-3), ("text_encoder.", 1e-4)):
        moved = max((before[name] - after[name]).abs().max() for name in before if name.startswith(part))
        assert 0.3 * steps * rate < moved < 1.5 * steps * rate, part


# --------------------------------------------------------------------------------------------------- optimizers
def test_every_name_is_known():
    assert set(OPTIMIZERS) == set(OPTIMIZER_NAMES)


@pytest.mark.parametrize("optimizer", ["prodigy", "schedulefree", "muon", "adafactor"])
def test_resumed_equals_uninterrupted(optimizer, tmp_path):
    arguments = {"conditioning": "class", "optimizer": optimizer, "checkpointing_steps": 2, "max_train_steps": 4}
    whole = run(tmp_path / "whole", validation_steps=3, **arguments)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path / "resumed", resume_from_checkpoint="latest", **arguments)  # without a look in between
    assert largest_difference(weights(load(resumed)), weights(load(whole))) == 0
    assert log_of(resumed) == log_of(whole)[2:]
    raw = [load_file(whole / f"checkpoint-{i}" / "model.safetensors") for i in (2, 4)]
    assert largest_difference(*raw) > 0 and all(x.isfinite().all() for x in raw[1].values())


@pytest.mark.parametrize("optimizer", ["muon", "schedulefree"])
def test_the_loss_goes_down(optimizer, tmp_path):
    few = {"dataset_name": "training_common:few_shapes", "max_train_steps": 30, "learning_rate": 2e-3}
    loss = log_of(run(tmp_path, conditioning="class", optimizer=optimizer, **few))
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_the_ordinary_path_clips_as_the_fused_one(tmp_path):
    arguments = {"conditioning": "class", "max_grad_norm": 0.1, "adam_epsilon": 1e-2}
    fused = run(tmp_path / "fused", optimizer="adamw", **arguments)
    ordinary = run(tmp_path / "ordinary", optimizer="torch.optim:AdamW", **arguments)
    free = run(tmp_path / "free", optimizer="torch.optim:AdamW", **arguments | {"max_grad_norm": 0.0})
    assert largest_difference(weights(load(fused)), weights(load(ordinary))) < rounding_of_training(2e-3, 4)
    assert largest_difference(weights(load(free)), weights(load(ordinary))) > 1e-5


@pytest.mark.parametrize("optimizer", ["schedulefree", "muon"])
def test_gradients_that_are_not_finite_are_left_out(optimizer, tmp_path):
    folder = run(
        tmp_path, dataset_name="training_common:some_infinite", optimizer=optimizer, max_train_steps=16, **INFINITE
    )
    (skipped,) = set(log_of(folder, "skipped_steps"))
    assert skipped == 1
    assert all(x.isfinite().all() for x in weights(load(folder)).values())
    raw = [load_file(folder / f"checkpoint-{i}" / "model.safetensors") for i in range(1, 17)]
    same = [largest_difference(a, b) == 0 for a, b in itertools.pairwise(raw)]
    assert sum(same) <= 1  # the step left out, unless it was the first


def test_schedulefree_saves_its_average(tmp_path):
    """x of Defazio et al. 2024 (arXiv 2405.15682): y = (1 - beta) z + beta x is what the gradients are taken at."""
    folder = run(tmp_path, conditioning="class", optimizer="schedulefree", checkpointing_steps=4)
    assert "use_ema: false" in (folder / "training_config.yaml").read_text()
    y = load_file(folder / "checkpoint-4" / "model.safetensors")["unet.conv_in.weight"]
    state = torch.load(folder / "checkpoint-4" / "optimizer.bin")["state"]
    z = next(s["z"] for s in state.values() if s["z"].shape == y.shape)
    saved = load(folder).unet.conv_in.weight
    assert torch.allclose(saved, (y - 0.1 * z) / 0.9, atol=1e-6)
    assert not torch.allclose(saved, y, atol=1e-5)


def _relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (20, 20)])
def test_orthogonalized_keeps_directions_and_forgets_sizes(shape):
    """U S V^T becomes U D V^T with D near 1, whatever S is within a hundredfold; in each of a stack alike."""
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    scales = torch.logspace(-2, 0, min(shape))
    out = orthogonalized(7.0 * u * scales @ vh, num_iterations=8, dtype=torch.float32)
    directions = u.mT @ out @ vh.mT  # (3, k, k), diagonal
    sizes = directions.diagonal(dim1=1, dim2=2)
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    assert (directions - torch.diag_embed(sizes)).abs().max() < 1e-3
    assert torch.equal(orthogonalized(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_muon_moves_matrices_and_adamw_the_rest():
    """As PyTorch's Muon moves each as a matrix, and PyTorch's AdamW the others; also after it was saved and read."""
    torch.manual_seed(0)
    # Those of 16 rows go together, lying down, though one has 32 columns, one 24, one 288.
    shapes = [(32, 16), (24, 16), (16, 32, 3, 3), (32, 16, 3, 3), (32, 16, 3, 3), (8, 64), (48,), (40, 16)]
    values, grads = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    parameters = [nn.Parameter(x.clone()) for x in values]
    matrices = [nn.Parameter(x.flatten(1).clone()) for x in values[:5]]
    others = [nn.Parameter(x.clone()) for x in values[5:]]
    alone = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.02, betas=(0.9, 0.99), weight_decay=0.1),
    ]
    groups = [
        {"params": parameters[:7], "lr": 0.02},
        {"params": parameters[7:], "lr": 0.02, "embeddings": parameters[7:]},
    ]
    both = MuonAndAdamW(groups, lr=0.02, weight_decay=0.1, momentum=0.95)
    steps = []
    both.register_step_post_hook(lambda *_: steps.append(len(steps)))  # what every torch.optim.Optimizer has
    for step in range(3):
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g.clone()
        for p, g in zip([*matrices, *others], grads, strict=True):
            p.grad = g.reshape(p.shape).clone()
        for optimizer in (both, *alone):
            optimizer.step()
        if step == 1:
            state = copy.deepcopy(both.state_dict())
            both = MuonAndAdamW(groups, lr=0.5, weight_decay=0.1)
            both.load_state_dict(state)
            assert both.param_groups[0]["momentum"] == 0.95  # as it was saved
    # Theirs multiplies in bfloat16 on every device; the sum of its rounding in three steps is a few per cent of them.
    for p, q, start in zip(parameters[:5], matrices, values, strict=False):
        assert _relative(p.flatten(1) - start.flatten(1), q - start.flatten(1)) < 0.05
    assert all(_relative(p, q) < 1e-5 for p, q in zip(parameters[5:], others, strict=True))
    assert steps == [0, 1]
    both.add_param_group({"params": [nn.Parameter(torch.ones(16, 16))]})
    assert [(len(g["params"]), g["lr"], g["matrices"]) for g in both.param_groups] == [
        (5, 0.02, True),
        (2, 0.02, False),
        (1, 0.02, False),
        (1, 0.5, True),
    ]


@pytest.mark.parametrize("joined", [True, False])
def test_a_checkpoint_of_before_goes_on_as_it_began(joined):
    """Then Muon moved what has two dimensions, embeddings too; long before, each of two optimizers had a state."""
    torch.manual_seed(0)
    values = [torch.randn(24, 20), torch.randn(24, 16, 3, 3), torch.randn(24), torch.randn(32, 16)]
    values += [torch.randn(64, 2), torch.randn(64)]  # of an adapter: today none of it is a matrix
    grads = [torch.randn_like(x) for x in values]
    parameters = [nn.Parameter(x.clone()) for x in values]
    then = [nn.Parameter(x.clone()) for x in values]
    alone = [
        torch.optim.Muon([then[0], then[3], then[4]], lr=0.02, adjust_lr_fn="match_rms_adamw", weight_decay=0.0),
        torch.optim.AdamW([then[1], then[2], then[5]], lr=0.02, betas=(0.9, 0.99), weight_decay=0.0),
    ]
    network, adapter = {"params": parameters[:4], "lr": 0.02, "embeddings": parameters[3:4]}, {"params": parameters[4:]}
    both = MuonAndAdamW([network, adapter], lr=0.02)
    assert [len(group["params"]) for group in both.param_groups] == [2, 2, 2]
    for step in range(3):
        for p, g in zip(then, grads, strict=True):
            p.grad = g.clone()
        for optimizer in alone:
            optimizer.step()
        if step == 1:
            state = copy.deepcopy([o.state_dict() for o in alone])
            for p, q in zip(parameters, then, strict=True):
                p.data.copy_(q)
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g.clone()
    parts = dict(zip(("muon", "adamw"), state, strict=True))
    if not joined:  # one state, its parameters in the order of the groups
        muon, adamw = (parts[name]["param_groups"][0] | {"matrices": name == "muon"} for name in parts)
        groups = [
            muon | {"params": [0, 1]},
            adamw | {"params": [2, 3]},
            muon | {"params": [4]},
            adamw | {"params": [5]},
        ]
        of_muon, of_adamw = (parts[name]["state"] for name in parts)
        states = {0: of_muon[0], 1: of_muon[1], 4: of_muon[2], 2: of_adamw[0], 3: of_adamw[1], 5: of_adamw[2]}
        parts = {"state": states, "param_groups": groups}
    both.load_state_dict(parts)
    assert [group.get("momentum") for group in both.param_groups] == [0.95, None, 0.95, None]
    starts = [p.detach().clone() for p in parameters]
    both.step()
    for p, q, start in zip(parameters, then, starts, strict=True):
        assert _relative(p - start, q - start) < 0.05
    assert {p.shape for p in both.state if "momentum_buffer" in both.state[p]} == {(24, 20), (32, 16), (64, 2)}


def test_embeddings_are_not_matrices(tmp_path):
    """A row of a table is a word's own, which an orthogonal step would move with the others."""
    pipe = load(run(tmp_path, conditioning="text", max_train_steps=1))
    config = TrainingConfig(conditioning="text", optimizer="muon", learning_rate=1e-3, train_text_encoder=True)
    pipe.text_encoder.requires_grad_(True)
    optimizer = build_optimizer(config, parameter_groups(pipe, config))
    table = pipe.text_encoder.get_input_embeddings().weight
    assert is_matrix(table)
    by_adamw = [p for group in optimizer.param_groups if not group["matrices"] for p in group["params"]]
    assert any(p is table for p in by_adamw)
    assert not any(p is pipe.unet.mid_block.resnets[0].conv1.weight for p in by_adamw)


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [({}, "muon"), ({"optimizer": "adamw"}, "adamw"), ({"optimizer_config": '{"fused": false}'}, "adamw")],
)
def test_the_default_of_a_new_network(arguments, chosen, tmp_path):
    folder = run(tmp_path, max_train_steps=1, **arguments)
    assert read_recipe(folder / "training_config.yaml")["optimizer"] == chosen
    if chosen == "muon":
        tuned = run(tmp_path / "tuned", pretrained_model_name_or_path=str(folder), unet_size=None, max_train_steps=1)
        assert read_recipe(tuned / "training_config.yaml")["optimizer"] == "adamw"


def test_a_run_goes_on_with_the_optimizer_and_size_it_began_with(tmp_path):
    """Whatever is the default of the version that goes on."""
    run(tmp_path, optimizer="adamw", unet_size="xxs", max_train_steps=1, checkpointing_steps=1)
    run(tmp_path, unet_size=None, max_train_steps=2, resume_from_checkpoint="latest")
    recipe = read_recipe(tmp_path / "training_config.yaml")
    assert (recipe["optimizer"], recipe["unet_size"]) == ("adamw", "xxs")


# ------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam"}, r"--optimizer 'adam' is not one of adamw, .*, nor module:Class"),
        ({"optimizer": "torch.optim:Nothing"}, "cannot import 'torch.optim:Nothing'"),
        ({"optimizer_config": '{"speed": 3}'}, r"--optimizer adamw \{\"speed\": 3\}: .*unexpected keyword argument"),
        ({"optimizer_config": "speed"}, "--optimizer_config speed: Expecting value"),
        ({"optimizer_config": '{"lr": 1}'}, "--optimizer_config: lr has no effect there: give it as --learning_rate"),
        (
            {"optimizer_config": '{"betas": [0.5, 0.9]}', "adam_beta1": 0.8},
            "--optimizer_config: betas is given by --adam_beta1 too: leave one of them out",
        ),
        ({"optimizer": "prodigy", "adapter_lr": 0.5}, "prodigy has one rate for all"),
        (
            {"optimizer": "schedulefree", "ema_lengths": [0.1]},
            "--ema_lengths 0.1 has no effect with --optimizer schedulefree: leave one of them out",
        ),
    ],
)
def test_refused_in_one_line(arguments, message):
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1e-3}]
    with pytest.raises(ValueError, match=message) as error:
        build_optimizer(
            TrainingConfig(learning_rate=1e-3, **{"optimizer": "adamw", "adapter_lr": None} | arguments), parameters
        )
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_installed(tmp_path):
    """bitsandbytes needs a GPU, so no test installs it."""
    with pytest.raises(
        ValueError, match="--optimizer adamw8bit needs the package bitsandbytes: pip install bitsandbytes"
    ):
        run(tmp_path, optimizer="adamw8bit")
    assert not (tmp_path / "log.jsonl").exists()


def test_arguments_reach_the_optimizer():
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(16, 16))], "lr": 1e-3}]
    config = TrainingConfig(
        learning_rate=1e-3, optimizer="muon", adam_weight_decay=0.3, optimizer_config='{"momentum": 0.8}'
    )
    (group,) = build_optimizer(config, parameters).param_groups
    assert (group["weight_decay"], group["momentum"], group["lr"]) == (0.3, 0.8, 1e-3)
