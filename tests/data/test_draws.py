import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cond_pipelines.data.draws import _draw_blocks, draw, draw_generators


def test_noise_is_a_function_of_seed_and_position():
    together = draw(3, torch.arange(8), (2, 4, 4), "cpu", num_uniforms=2)
    apart = [draw(3, torch.tensor(p), (2, 4, 4), "cpu", num_uniforms=2) for p in ([6, 7], [0, 1, 2], [3], [4, 5])]
    order = torch.tensor([6, 7, 0, 1, 2, 3, 4, 5])
    for name, whole in vars(together).items():
        assert torch.equal(whole[order], torch.cat([getattr(part, name) for part in apart]))
    other = draw(4, torch.arange(8), (2, 4, 4), "cpu")
    assert not torch.isclose(together.u, other.u).any() and not torch.isclose(together.dropout, other.dropout).any()


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_noise_drawn_in_blocks_is_a_function_of_the_position(rows):
    """As a GPU draws it: whatever batch a position is in, in any order, its row is the same."""
    whole = _draw_blocks(3, torch.arange(40), (2, 4, 4), torch.device("cpu"), 2, rows)
    for positions in ([0, 1, 2], [7, 8, 9, 10, 11], [39, 3, 4, 20, 0], [*range(4, 36)], [5, 5]):
        part = _draw_blocks(3, torch.tensor(positions), (2, 4, 4), torch.device("cpu"), 2, rows)
        assert all(torch.equal(a[positions], b) for a, b in zip(whole, part, strict=True))
    noise, dropout = _draw_blocks(0, torch.arange(2000), (1, 6, 6), torch.device("cpu"), 1, rows)
    assert noise.flatten(1).unique(dim=0).shape == (2000, 36) and dropout.unique().shape == (2000,)
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5 and abs(dropout.mean() - 0.5) < 4 / (12 * 2000) ** 0.5


def test_a_gpu_draws_a_batch_with_few_kernels():
    """256 images of 32 px were 512 kernels. Counted as the operations that PyTorch is asked for."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.number += 1
            return func(*args, **(kwargs or {}))

    with Count():
        _draw_blocks(0, torch.arange(1000, 1256), (3, 32, 32), torch.device("cpu"), 1, 64)
    assert Count.number < 60


def test_noise_is_standard_normal_and_independent():
    draws = draw(0, torch.arange(2000), (1, 6, 6), "cpu", num_dropout_draws=2, num_uniforms=1)
    noise, u = draws.noise, draws.u
    assert draws.dropout.shape == (2000, 2) and draws.uniform.shape == (2000, 1)
    assert torch.equal(draws.dropout[:, :1], draw(0, torch.arange(2000), (1, 6, 6), "cpu").dropout)
    coin, other_coin = draws.dropout[:, 0], draws.uniform[:, 0]
    assert noise.dtype == u.dtype == coin.dtype == torch.float32
    assert noise.shape == (2000, 1, 6, 6)
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(noise.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    flat = noise.flatten(1)
    assert abs((flat[1:] * flat[:-1]).mean()) < 4 / n**0.5  # from image to image
    assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 4 / n**0.5  # from pixel to pixel
    assert flat.unique(dim=0).shape == flat.shape
    for one, other in ((u, coin), (u, flat[:, 0]), (coin, flat[:, 0]), (coin, other_coin)):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 4 / 2000**0.5


@pytest.mark.parametrize("start", [0, 12345, 10**9])
def test_quantiles_and_dropout_draws_are_uniform(start):
    positions = torch.arange(start, start + 1000)
    draws = draw(1, positions, (1,), "cpu")
    u, coin = draws.u, draws.dropout[:, 0]
    assert 0 < u.min() < u.max() < 1
    assert 0 <= coin.min() < coin.max() < 1
    ideal = (torch.arange(1000) + 0.5) / 1000
    assert (u.sort().values - ideal).abs().max() < 0.005  # the golden ratio: far more even than chance
    assert (coin.sort().values - ideal).abs().max() < 1.95 / 1000**0.5  # Kolmogorov and Smirnov, 0.1 %


def test_any_batch_covers_the_times():
    for start in (0, 64, 6400):
        u = draw(0, torch.arange(start, start + 64), (1,), "cpu").u.sort().values
        assert (u[1:] - u[:-1]).max() < 3 / 64


def test_generators_of_a_vae_are_not_those_of_the_noise():
    positions = torch.arange(4)
    noise = draw(0, positions, (1, 4, 4), "cpu").noise
    other = [torch.randn(1, 4, 4, generator=g) for g in draw_generators(0, positions, "cpu")]
    assert not any(torch.equal(a, b) for a, b in itertools.product(noise, other))
    assert torch.equal(other[2], torch.randn(1, 4, 4, generator=draw_generators(0, torch.tensor([2]), "cpu")[0]))
