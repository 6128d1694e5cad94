"""Distillation: the frozen pretrained model that a run learns from, and what it makes of the model that is trained."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.base import Conditioning
from ..errors import UserError
from ..networks.denoiser import denoise
from ..networks.surgery import with_end_time, without_end_time
from ..objectives import DDPM, OBJECTIVES, FlowMatching, Objective
from ..objectives.base import Teach, saved_class
from ..pipelines.autoguidance import guidance_by_scale
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.guidance import Guidance, Step, predictions_of
from ..user_code import load_object
from .config import TrainingConfig
from .memory import StepMemory
from .sharding import SHARDED, RunAccelerator

NUM_STEPS, GUIDANCE_SCALE = 4, 1.0  # of a distilled model: guidance is learned
_FLOW_STEPS = 30  # of the flow in a distilled model


def is_distillation(config: TrainingConfig) -> bool:
    """Whether --objective learns from the pretrained model."""
    name = config.objective
    if name is None:
        return False
    cls: Any = load_object(name, Objective) if ":" in name else OBJECTIVES.get(name)
    return cls is not None and bool(cls.uses_teacher)


def repeated(cond: Conditioning, x_t: Tensor) -> Conditioning:
    """The condition once for each time that `x_t` holds its images, one after the other."""
    joined = cond
    for _ in range(len(x_t) // len(cond) - 1):
        joined = joined.cat(cond)
    return joined


# ---------------------------------------------------------------------------------------------------- the teacher
@dataclass(frozen=True)
class Teacher:
    """The pretrained model, frozen.

    Args:
        pipe: a copy that no training changes.
        guidance_scale: of its guided prediction.
        accelerator: whose precision it computes in.
    """

    pipe: ConditionalPipeline
    guidance_scale: float | dict[str, float]
    accelerator: RunAccelerator

    def under(self, features: dict[str, Tensor], keep: Tensor | None = None) -> Teach:
        """Its predictions under conditions, as `Denoise.teacher` has them.

        Args:
            features: of the adapter, B rows each. keep: (B,) bool, False: no condition; None: all are kept.
        """
        with torch.no_grad(), self.accelerator.autocast():
            cond = self.pipe.adapter(features)
            null = self.pipe.adapter.null_like(cond)
            cond = cond if keep is None else cond.where(keep, null)
        guidance = self._guidance(cond)

        @torch.no_grad()
        def teach(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            def predict(network: nn.Module | None, rows: Conditioning) -> Tensor:
                count = len(rows) // len(x_t)
                with self.accelerator.autocast():
                    return denoise(network or self.pipe.unet, x_t.repeat(count, 1, 1, 1), t.repeat(count), rows)

            predictions = predictions_of(guidance.branches(cond, null), predict)
            return predictions[-1], guidance.combine(predictions, Step(0, 1, t))

        return teach

    def _guidance(self, cond: Conditioning) -> Guidance:
        return guidance_by_scale(
            self.guidance_scale, cond, self.pipe.adapter.conditioning, True, self.pipe.components.get("guide")
        )


def with_teacher(memory_of: Callable[..., StepMemory], unet: nn.Module) -> Callable[..., StepMemory]:
    """The memory of a step with a frozen copy of `unet`, in which each image goes through the network twice."""

    def doubled(**options: Any) -> StepMemory:
        memory = memory_of(**options)
        weights = sum(parameter.nbytes for parameter in unet.parameters())
        return StepMemory(memory.fixed + weights, memory.gradients, lambda batch_size: memory.peak(2 * batch_size))

    return doubled


def build_teacher(
    config: TrainingConfig, objective: Objective, parent: ConditionalPipeline, accelerator: RunAccelerator
) -> Teacher:
    """The pretrained model as it is now, on the device of the run; to be called before anything is trained.

    The scale of its guidance becomes an argument of the objective, so that it is saved with the model.
    """
    pipe = copy.copy(parent)
    for name in ("unet", "adapter", "guide"):
        if parent.components.get(name) is not None:
            module = copy.deepcopy(parent.components[name]).requires_grad_(False).eval()
            setattr(pipe, name, module.to(accelerator.device))
    scale = getattr(objective, "guidance_scale", None)
    scale = parent.config.default_guidance_scale if scale is None else scale
    if config.column is None and parent.components.get("guide") is None:
        scale = 1.0  # there is nothing to guide by
    for value in scale.values() if isinstance(scale, dict) else [scale]:
        if not math.isfinite(value):
            raise UserError(f"--objective_config: guidance_scale {scale} is no number")
    objective.guidance_scale = scale  # type: ignore[attr-defined]  # of a third party's it may be another's name
    if config.train == "lora":  # the flow is the pretrained model's, without the LoRA
        objective.flow_weight = 0.0  # type: ignore[attr-defined]
    return Teacher(pipe, scale, accelerator)


# ------------------------------------------------------------------------------------------------ what is trained
def check_distillation(
    config: TrainingConfig,
    pipe: ConditionalPipeline,
    parent: ConditionalPipeline | None,
    accelerator: RunAccelerator,
) -> None:
    """Raise UserError, in one line, where the pretrained model cannot teach this run."""
    flag = f"--objective {config.objective}"
    if parent is None:
        raise UserError(f"{flag} needs --pretrained_model_name_or_path, the model to learn from")
    if config.train not in ("unet", "lora") or config.train_text_encoder:
        what = "--train_text_encoder" if config.train_text_encoder else f"--train {config.train}"
        raise UserError(f"{flag} trains all of the UNet or a LoRA, and no text encoder: leave {what} out")
    if config.scheduler:
        raise UserError(f"{flag} keeps the pretrained model's noise: leave --scheduler {config.scheduler} out")
    if accelerator.distributed_type in SHARDED:
        raise UserError(f"{flag} does not go with FSDP or DeepSpeed: several processes with DDP do")
    saved = parent.config.get("objective")
    cls = type(Objective.from_scheduler(parent.scheduler)) if saved is None else saved_class(saved)
    if cls is None or not issubclass(cls, FlowMatching | DDPM):
        name = "an objective that is not imported" if cls is None else cls.__name__
        raise UserError(
            f"{flag} needs a model of flow matching or DDPM, and {config.pretrained_model_name_or_path} was trained "
            f"with {name}: train it further with --scheduler FlowMatchEulerDiscreteScheduler first"
        )
    if pipe.adapter is not parent.adapter:
        raise UserError(
            f"{flag} needs the pretrained model's own setting and conditions, and --conditioning {config.conditioning} "
            "with these data makes a new adapter: train that first, then distill it"
        )
    if pipe.unet is not parent.unet:
        raise UserError(f"{flag} needs images with as many channels as the pretrained model has")


def make_distilled(pipe: ConditionalPipeline, config: TrainingConfig) -> None:
    """Give the pipeline the UNet's input for the end of a jump, and the scheduler that jumps.

    A LoRA, which is to fit the pretrained UNet, gets no such input.
    """
    if config.train != "lora":
        try:
            pipe.unet = with_end_time(pipe.unet)
        except ValueError as error:
            raise UserError(f"--objective {config.objective}: {error}") from error
    pipe.use_scheduler("lcm")


def as_flow(parent: ConditionalPipeline) -> ConditionalPipeline:
    """A pretrained model that was distilled as the many-step model that it still is; any other as it is."""
    saved = parent.config.get("objective") or {}
    cls: Callable[..., Objective] | None = OBJECTIVES.get(str(saved.get("name")))
    if cls is None or not getattr(cls, "uses_teacher", False):
        return parent
    scale = saved.get("guidance_scale")
    parent.use_scheduler("euler")
    parent.unet = without_end_time(parent.unet)
    parent.register_to_config(
        objective=Objective.from_scheduler(parent.scheduler).config,
        default_num_inference_steps=_FLOW_STEPS,
        default_guidance_scale=scale if isinstance(scale, int | float) else GUIDANCE_SCALE,
    )
    return parent
