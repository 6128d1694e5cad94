"""Muon: steps of momentum whose matrices are made orthogonal, so that no direction of a layer learns faster."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Jordan et al. 2024: of the polynomial a x + b x^3 + c x^5, which brings all singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_SMALLEST_SIDE = 16  # of a matrix that gains from it; narrower ones cost as much, and AdamW suits them


def orthogonalized(matrices: Tensor, num_iterations: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """U V^T of each matrix U S V^T, about: its singular values all become 0.7 to 1.2.

    Newton-Schulz iterations (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Args:
        matrices: (N, rows, columns). dtype: of the products; 16 bits are enough.

    Example:
        >>> orthogonalized(torch.randn(1, 4, 8))[0].svd().S  # all of them near 1
    """
    x = matrices.to(dtype)  # (N, m, n)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT  # (N, m, m), of the shorter side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if is_tall else x).to(matrices.dtype)


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon moves it: the weight of a linear layer or a convolution, (out, in ...), that is not too narrow."""
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= _SMALLEST_SIDE


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the weights of linear layers and convolutions, AdamW for all other parameters.

    A convolution's weight (out, in, height, width) is a matrix (out, in * height * width). Muon's step is scaled to the
    size of AdamW's (Liu et al. 2025, arXiv 2502.16982, Eq. 4), so that one rate suits both. A group with
    `"matrices": False`, such as embeddings, goes to AdamW whole.

    Args:
        groups: parameter groups.
        momentum, ns_steps: Muon's. betas, eps: AdamW's. weight_decay: of both, times the rate.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> optimizer = MuonAndAdamW([{"params": list(unet.parameters())}], lr=2e-3)
    """

    def __init__(
        self,
        groups: list[dict[str, object]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ):
        if not 0 <= momentum < 1 or ns_steps < 1:
            raise ValueError(f"momentum {momentum} must be in [0, 1), ns_steps {ns_steps} at least 1")
        shared: dict[str, object] = {"lr": lr, "weight_decay": weight_decay}
        # AdamW makes the step of the groups that are handed to it there; groups and state are kept here, once.
        self._adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], betas=betas, eps=eps, fused=True, **shared)
        self._of_matrices = shared | {"momentum": momentum, "ns_steps": ns_steps}
        super().__init__(groups, shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {"matrices": True} | param_group
        parameters = list(group["params"])
        for matrices, defaults in ((True, self._of_matrices), (False, self._adamw.defaults)):
            chosen = [p for p in parameters if (group["matrices"] and is_matrix(p)) == matrices]
            if chosen:
                super().add_param_group(defaults | group | {"params": chosen, "matrices": matrices})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrices"]:
                self._step_of_matrices(group)
        self._adamw.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _step_of_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        grads, momenta = [p.grad for p in parameters], [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for rows, columns, indices in _by_shape(parameters):
            u = torch.stack([updates[i].reshape(rows, columns) for i in indices])  # (N, rows, columns)
            u = orthogonalized(u, group["ns_steps"], _fast_dtype(u.device))
            # Eq. 4: the entries' root mean square becomes 0.2, as of AdamW's steps.
            u *= 0.2 * max(rows, columns) ** 0.5
            chosen = [parameters[i] for i in indices]
            torch._foreach_add_(chosen, [x.view_as(p) for x, p in zip(u, chosen, strict=True)], alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def _by_shape(parameters: list[Tensor]) -> list[tuple[int, int, list[int]]]:
    """(rows, columns, which parameters): matrices of one shape are made orthogonal together."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, p in enumerate(parameters):
        groups[len(p), p[0].numel()].append(i)
    return [(*shape, indices) for shape, indices in groups.items()]


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are fast: GPUs, and CPUs with such instructions."""
    if device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32
