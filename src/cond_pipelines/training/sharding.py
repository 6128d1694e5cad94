"""Runs whose processes share what one of them would hold: DeepSpeed and FSDP, as accelerate is configured.

With FSDP each process holds a part of every weight that is trained. What is sampled from, measured and saved is then a
copy of the pipeline with all of them, which is filled when it is needed.
"""

import copy
import os
import sys
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..pipelines.conditional import ConditionalPipeline
from ..processes import join_on_cpus
from .config import TrainingConfig
from .optimizers import OPTIMIZERS

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class RunAccelerator(Accelerator):
    """An Accelerator that computes in `precision` and keeps weights in float32, under DeepSpeed too.

    accelerate holds one precision for a whole process, but two runs in one process may differ. So autocast and loss
    scaling are done here. FSDP casts by itself: there a process keeps the precision of its first run. DeepSpeed's own
    mixed precision would hand bf16 weights to the moving averages, which then stand still: in bf16 1 + 0.001 is 1.

    Raises:
        ValueError: fp16 with DeepSpeed.
    """

    def __init__(self, precision: str, **kwargs: object):
        self.precision = precision
        if _is_configured("DEEPSPEED") and precision == "fp16":
            raise ValueError("--mixed_precision fp16 does not go with DeepSpeed here: bf16 or no")
        os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # `accelerate launch` sets it to 1, unasked
        self.ddp_settings = DistributedDataParallelKwargs()  # `prepare` completes them
        theirs = _is_configured("FSDP")
        super().__init__(mixed_precision=precision if theirs else None, kwargs_handlers=[self.ddp_settings], **kwargs)
        self.autocast_dtype = None if theirs else {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        if not theirs:
            self.native_amp = False
            self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        for kind in ("FSDP", "DEEPSPEED"):
            if _is_configured(kind) and self.distributed_type != kind:  # without a word of accelerate
                self.print(
                    f"warning: {kind} is configured, this run is {self.distributed_type.value}: nothing is sharded, "
                    f"each of {self.num_processes} process(es) on {self.device.type} holds the whole model",
                    file=sys.stderr,
                )

    def autocast(self, *args: Any, **kwargs: object) -> Any:
        if self.autocast_dtype is not None:
            return torch.autocast(self.device.type, self.autocast_dtype)
        return super().autocast(*args, **kwargs)

    def unscale_gradients(self, optimizer: AcceleratedOptimizer | None = None) -> None:
        """Divide the gradients by the loss scale; `clip_grad_norm_` calls it, without an optimizer."""
        if self.autocast_dtype is not None and self.scaler is not None:
            self.scaler.unscale_((optimizer or self.prepared_optimizer).optimizer)
        else:
            super().unscale_gradients(optimizer)


def run_state() -> PartialState:
    """The processes of this run, joined at the first call."""
    join_on_cpus()
    if _is_configured("DEEPSPEED"):
        return PartialState(**({} if torch.accelerator.is_available() else {"backend": "gloo"}))
    return PartialState(cpu=_is_configured("CPU"))


def _is_configured(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"


def prepare(
    accelerator: RunAccelerator, config: TrainingConfig, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """As `accelerator.prepare`; DeepSpeed gets the batch size and the clipping from `config`, not from its file.

    Raises:
        ValueError: sharding does not go with the optimizer, or with --ema_lengths.
    """
    kind = accelerator.distributed_type
    if kind in SHARDED and config.optimizer in OPTIMIZERS and config.optimizer != "adamw":
        # Tried: the others fail in a step on part of a weight, in saving, or in resuming.
        raise ValueError(f"--optimizer {config.optimizer} does not go with {kind.value}: adamw does")
    if kind == DistributedType.FSDP and config.ema_lengths:
        raise ValueError("--ema_lengths does not go with FSDP: leave it out, the ordinary average is kept")
    if kind == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": config.train_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "gradient_clipping": config.max_grad_norm,
        }
    accelerator.ddp_settings.find_unused_parameters = _may_be_unused(model)
    model, accelerator.prepared_optimizer = accelerator.prepare(model, optimizer)
    return model, accelerator.prepared_optimizer


def _may_be_unused(model: nn.Module) -> bool:
    """Whether a step may leave a parameter without gradient: DDP then looks for them at each step, or it fails.

    A pretrained text encoder may hold parts that we do not use, such as BERT's pooler; so may a third party's module.
    """
    parts = {type(module).__module__.split(".")[0] for module in model.modules()}
    return bool(parts - {"cond_pipelines", "diffusers", "peft", "torch"})


def how_sharded(accelerator: Accelerator) -> dict[str, object]:
    """What must not change when a run is resumed: a checkpoint of one kind is not read by another."""
    kind = accelerator.distributed_type
    parts = {"number of DeepSpeed's processes": accelerator.num_processes} if kind == DistributedType.DEEPSPEED else {}
    return {"sharding": kind.value if kind in SHARDED else "none"} | parts


def whole_pipeline(
    pipe: ConditionalPipeline, trained: list[nn.Module], sharded: bool
) -> tuple[ConditionalPipeline, list[nn.Module]]:
    """The pipeline to sample from and to save, and its modules that are trained; before weights are sharded.

    It is `pipe` itself, or, where weights will be `sharded`, a copy whose trained modules stay whole; see `fill`.
    """
    if not sharded:
        return pipe, trained
    whole, modules = copy.copy(pipe), []
    for name, module in pipe.components.items():
        if any(module is m for m in trained):
            modules.append(copy.deepcopy(module))
            setattr(whole, name, modules[-1])
    return whole, modules


def is_sharded(values: list[Tensor]) -> bool:
    """True where each process holds only a part of them."""
    return any(isinstance(value, DTensor) for value in values)


def gathered(value: Tensor) -> Tensor:
    """All of a tensor; every process must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def as_sharded(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process holds of `like`."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements).to_local() if is_sharded([like]) else value


@torch.no_grad()
def fill(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    """Copy sharded values into whole parameters, one at a time; every process must do it."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(gathered(value))
