"""Everything random of training, as a function of (seed, position): no stop and no batch size changes it."""

import math

import numpy as np
import torch
from torch import Tensor

from ..objectives.base import Draws

_GOLDEN_RATIO = 0.6180339887498949
_BLOCK_ROWS, _BLOCK_NUMBERS = 64, 2**18  # at most, of the noise that a GPU draws at once


def draw_generators(seed: int, positions: Tensor, device: torch.device | str) -> list[torch.Generator]:
    """One for each image, for what is drawn besides `draw`: a VAE's latents."""
    return [torch.Generator(device).manual_seed(_seed_at(seed + 2, p)) for p in positions.tolist()]


def _seed_at(seed: int, position: int) -> int:
    # Consecutive seeds are far apart for Philox (CUDA) and, through its own mixing, for Mersenne twister (CPU).
    return (seed * 0x9E3779B97F4A7C15 + position) % 2**63


def draw(
    seed: int,
    positions: Tensor,
    shape: tuple[int, ...],
    device: torch.device | str,
    num_dropout_draws: int = 1,
    num_uniforms: int = 0,
) -> Draws:
    """Everything random of a training step, each image's from its position.

    Args:
        positions: (B,) int64.
        shape: (C, H, W) of one image or latent.
        num_dropout_draws: columns of `Draws.dropout`. num_uniforms: columns of `Draws.uniform`.
    """
    noise, uniforms = _draw(seed, positions, shape, torch.device(device), num_dropout_draws + num_uniforms)
    # Times by the golden-ratio sequence: any run of positions covers (0, 1) evenly, so the loss varies less from batch
    # to batch than with independent times (variational diffusion models, arXiv 2107.00630, appendix I.1, likewise).
    start = np.random.default_rng(seed).random()
    u = (start + positions.double() * _GOLDEN_RATIO) % 1.0
    u = u.float().clamp(1e-6, 1 - 1e-6).to(device, non_blocking=True)  # else the CPU waits for a GPU
    return Draws(noise, u, uniforms[:, :num_dropout_draws], uniforms[:, num_dropout_draws:])


def _draw(
    seed: int, positions: Tensor, shape: tuple[int, ...], device: torch.device, num_uniforms: int
) -> tuple[Tensor, Tensor]:
    """Noise (B, C, H, W) and uniform (B, num_uniforms), each row from its position, by one generator for some rows.

    A CPU draws row by row. A GPU is slow to begin and quick to go on (256 rows of 32 px were 512 kernels, longer than
    the network's own): there position p has row p % n of what the generator of block p // n gives, n by the shape.
    """
    rows = 1 if device.type == "cpu" else max(1, min(_BLOCK_ROWS, _BLOCK_NUMBERS // math.prod(shape)))
    return _draw_blocks(seed, positions, shape, device, num_uniforms, rows)


def _draw_blocks(
    seed: int, positions: Tensor, shape: tuple[int, ...], device: torch.device, num_uniforms: int, rows: int
) -> tuple[Tensor, Tensor]:
    """As `_draw`, with `rows` of a block. The positions are looked at on the CPU, so that no GPU is waited for."""
    generator, blocks = torch.Generator(device), {}
    for block in dict.fromkeys((positions // rows).tolist()):
        generator.manual_seed(_seed_at(seed, block))
        noise = torch.randn(rows, *shape, generator=generator, device=device)
        blocks[block] = noise, torch.rand(rows, num_uniforms, generator=generator, device=device)
    parts = [  # consecutive positions of a block are one slice of it
        (blocks[first // rows], slice(first % rows, first % rows + count)) for first, count in _runs(positions, rows)
    ]
    return torch.cat([noise[at] for (noise, _), at in parts]), torch.cat([uniform[at] for (_, uniform), at in parts])


def _runs(positions: Tensor, rows: int) -> list[tuple[int, int]]:
    """Positions as (first, count) of those that follow each other within a block of `rows`."""
    runs: list[tuple[int, int]] = []
    for position in positions.tolist():
        first, count = runs[-1] if runs else (position, 0)
        if count and position == first + count and position // rows == first // rows:
            runs[-1] = first, count + 1
        else:
            runs.append((position, 1))
    return runs
