"""Muon: steps of momentum whose matrices are made orthogonal, so that no direction of a layer learns faster."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dtypes import fast_precision

# Jordan et al. 2024: of the polynomial a x + b x^3 + c x^5, which brings all singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_PADDING = 40_000  # zeros that a matrix may get, see `_alike`
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


class GraphOfOrthogonalized:
    """`orthogonalized` of several stacks as one CUDA graph: a CPU launches its hundreds of small products too slowly.

    Args:
        stacks: of the shapes to come, on a GPU. The other arguments are those of `orthogonalized`.

    Example:
        >>> graph = GraphOfOrthogonalized([torch.randn(3, 16, 32, device="cuda")])
        >>> (result,) = graph([torch.randn(3, 16, 32, device="cuda")])  # valid until the next call
    """

    def __init__(self, stacks: list[Tensor], num_iterations: int = 5, dtype: torch.dtype = torch.bfloat16):
        self._stacks = [x.clone() for x in stacks]  # (N, rows, columns) each; where the graph reads and writes

        def run() -> None:
            for x in self._stacks:
                x.copy_(orthogonalized(x, num_iterations, dtype))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # once before, so that the libraries make what they need outside of the graph
            run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: they pin the memory of images.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            run()

    def __call__(self, stacks: list[Tensor]) -> list[Tensor]:
        """U V^T of each matrix, in tensors that the next call overwrites."""
        torch._foreach_copy_(self._stacks, stacks)
        self._graph.replay()
        return self._stacks


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon moves it: the weight of a linear layer or a convolution, (out, in ...), that is not too narrow."""
    return parameter.ndim >= 2 and bool(min(len(parameter), parameter[0].numel()) >= _SMALLEST_SIDE)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the weights of linear layers and convolutions, AdamW for all other parameters.

    A convolution's weight (out, in, height, width) is a matrix (out, in * height * width). Muon's step is scaled to the
    size of AdamW's (Liu et al. 2025, arXiv 2502.16982, Eq. 4), so that one rate suits both.

    Args:
        groups: parameter groups; those of "embeddings", a list of them, go to AdamW whatever their shape.
        momentum, ns_steps: Muon's. Jordan et al. have 0.95; 0.9 learns faster in short runs (benchmarks/results/
            ablations.md). betas, eps: AdamW's. weight_decay: of both, times the rate.

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
        momentum: float = 0.9,
        ns_steps: int = 5,
    ):
        if not 0 <= momentum < 1 or ns_steps < 1:
            raise ValueError(f"momentum {momentum} must be in [0, 1), ns_steps {ns_steps} at least 1")
        shared: dict[str, object] = {"lr": lr, "weight_decay": weight_decay}
        # AdamW makes the step of the groups that are handed to it there; groups and state are kept here, once.
        self._adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], betas=betas, eps=eps, fused=True, **shared)
        self._of_matrices = shared | {"momentum": momentum, "ns_steps": ns_steps}
        self._given: list[dict[str, Any]] = []
        self._graphs: dict[object, GraphOfOrthogonalized] = {}
        super().__init__(groups, shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = param_group | {"params": list(param_group["params"])}
        self._given.append(group)
        embeddings = group.get("embeddings", [])
        self._split(group, lambda p: is_matrix(p) and not any(p is table for table in embeddings))

    def _split(self, group: dict[str, Any], is_for_muon: Callable[[Tensor], bool]) -> None:
        """Add a group as two: what Muon moves, and what AdamW moves."""
        settings = {name: value for name, value in group.items() if name not in ("params", "embeddings")}
        for matrices, defaults in ((True, self._of_matrices), (False, self._adamw.defaults)):
            chosen = [p for p in group["params"] if is_for_muon(p) == matrices]
            if chosen:
                super().add_param_group(defaults | settings | {"params": chosen, "matrices": matrices})

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
        # 16 bits are enough, where products of them are fast.
        dtype = torch.bfloat16 if fast_precision(parameters[0].device) == "bf16" else torch.float32
        grads, momenta = [p.grad for p in parameters], [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        groups = _alike(parameters)
        stacks = (_stacked([updates[i] for i in which], columns) for columns, which in groups)
        for (_, which), stack in zip(groups, self._orthogonalized(stacks, group, dtype), strict=True):
            chosen = [parameters[i] for i in which]
            # Eq. 4: the entries' root mean square becomes 0.2, as of AdamW's steps.
            scales = [0.2 * max(len(p), p[0].numel()) ** 0.5 for p in chosen]
            stack *= scales[0] if len(set(scales)) == 1 else torch.tensor(scales)[:, None, None]
            steps = [_unstacked(matrix, p) for matrix, p in zip(stack, chosen, strict=True)]
            torch._foreach_add_(chosen, steps, alpha=-group["lr"])

    def _orthogonalized(self, stacks: Iterable[Tensor], group: dict[str, Any], dtype: torch.dtype) -> Iterable[Tensor]:
        """Of each stack (N, rows, columns) in turn."""
        num_iterations, device = group["ns_steps"], group["params"][0].device
        if device.type != "cuda":
            return (orthogonalized(u, num_iterations, dtype) for u in stacks)
        stacks = list(stacks)
        key = num_iterations, tuple(u.shape for u in stacks)
        if key not in self._graphs:
            self._graphs[key] = GraphOfOrthogonalized(stacks, num_iterations, dtype)
        return self._graphs[key](stacks)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a checkpoint of before, when Muon moved what has two dimensions: the run goes on like that."""
        if not self._is_grouped_as(state_dict):
            self.param_groups.clear()
            for group in self._given:
                self._split(group, lambda p: p.ndim == 2)
        super().load_state_dict(state_dict if "param_groups" in state_dict else self._joined(state_dict))

    def _is_grouped_as(self, state_dict: dict[str, Any]) -> bool:
        groups = state_dict.get("param_groups", [])
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            return False
        numbers = [number for group in groups for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        # Two groupings can be of the same sizes; the shapes of the averages decide.
        return all(
            value.shape == p.shape
            for number, p in zip(numbers, parameters, strict=True)
            for name, value in state_dict["state"].get(number, {}).items()
            if name in ("momentum_buffer", "exp_avg")
        )

    def _joined(self, parts: dict[str, Any]) -> dict[str, object]:
        """The state of a checkpoint of long before, which has one for each of the two optimizers."""
        groups = self.state_dict()["param_groups"]
        state: dict[int, object] = {}
        for name, matrices in (("muon", True), ("adamw", False)):
            numbers = [i for group in groups if group["matrices"] == matrices for i in group["params"]]
            state |= {numbers[i]: value for i, value in parts.get(name, {"state": {}})["state"].items()}
        for group in groups:
            if group["matrices"] and "muon" in parts:
                group["momentum"] = parts["muon"]["param_groups"][0]["momentum"]
        return {"state": state, "param_groups": groups}

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def _alike(parameters: list[Tensor]) -> list[tuple[int, list[int]]]:
    """(columns, which parameters): those whose matrices, lying down, have as many rows and about as many columns.

    A stack of them is made orthogonal at once. Columns of zeros, which change nothing, make them alike on a CPU: there
    half of the time goes to calls for few matrices.
    """
    spare = _PADDING if parameters[0].device.type == "cpu" else 0
    sides = [sorted((len(p), p[0].numel())) for p in parameters]
    groups: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(sides)), key=lambda i: sides[i], reverse=True):
        rows, columns = sides[i]
        if groups and sides[groups[-1][1][0]][0] == rows and rows * (groups[-1][0] - columns) <= spare:
            groups[-1][1].append(i)
        else:
            groups.append((columns, [i]))
    return groups


def _stacked(updates: list[Tensor], columns: int) -> Tensor:
    """(N, rows, columns): the matrices lying down, with zeros at their ends."""
    matrices = [u.flatten(1) for u in updates]
    matrices = [m.mT if len(m) > m.shape[1] else m for m in matrices]
    return torch.stack([m if m.shape[1] == columns else F.pad(m, (0, columns - m.shape[1])) for m in matrices])


def _unstacked(matrix: Tensor, parameter: Tensor) -> Tensor:
    """The step of a parameter: what `_stacked` made of it, back in its shape."""
    rows, columns = len(parameter), parameter[0].numel()
    step = matrix[:, : max(rows, columns)]
    return (step.mT if rows > columns else step).reshape(parameter.shape)
