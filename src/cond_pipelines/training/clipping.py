"""One optimizer step with clipped gradients; a step whose gradient is not finite is skipped."""

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from .sharding import gathered

_WHOLE_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def clipped_step(
    accelerator: Accelerator, optimizer: AcceleratedOptimizer, parameters: list[nn.Parameter], max_norm: float
) -> Tensor:
    """Clip the norm of all gradients to `max_norm` (0: no clipping), then make a step.

    Returns:
        1 where the step is skipped because the norm is not finite, otherwise 0; a scalar on the device.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # `backward` did all that
        return torch.tensor(float(optimizer.step_was_skipped), device=accelerator.device)
    if _is_fused(accelerator, optimizer):
        return _fused_step(optimizer.optimizer, parameters, max_norm)
    norm = gathered(accelerator.clip_grad_norm_(parameters, max_norm or float("inf")))
    skipped = 1 - norm.isfinite().float()
    if optimizer.scaler is not None or not skipped:  # a loss scaler skips the step itself
        optimizer.step()
    return skipped


def _is_fused(accelerator: Accelerator, optimizer: AcceleratedOptimizer) -> bool:
    """Whether `_fused_step` can be used."""
    whole = accelerator.distributed_type in _WHOLE_GRADIENTS and optimizer.scaler is None
    return whole and getattr(optimizer.optimizer, "_step_supports_amp_scaling", False)  # torch's own mark


def _fused_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """The same through two private arguments of PyTorch's fused optimizers, made for loss scalers.

    `grad_scale` divides the gradients within the step, so they need no pass of their own. `found_inf` skips the step on
    the device, so a GPU does not wait for the CPU: `clip_grad_norm_` needs one synchronisation a step, this none
    (benchmarks/results/gpu_h100.md). On a CPU it saves 1.2 ms of an update of 2.8 M parameters, 0.2 % of a step of size
    s (benchmarks/clipping.py): there it is used only so that both devices compute the same.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    skipped = 1 - norm.isfinite().float()
    divisor = (norm / max_norm).clamp(min=1.0) if max_norm else None
    if norm.device.type == "cpu":  # reading a number is free there, the two tensors are not
        optimizer.grad_scale, optimizer.found_inf = None if divisor is None or divisor <= 1 else divisor, None
        if skipped:
            return skipped
    else:
        optimizer.grad_scale, optimizer.found_inf = divisor, skipped
    optimizer.step()  # accelerate's own `step` looks for a package each time, which takes as long as the norm
    return skipped
