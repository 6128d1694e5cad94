"""How long a run is, and the learning rate at each moment of it."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import get_scheduler

from .checkpoints import Progress
from .config import TrainingConfig

_MOST_WARMUP_STEPS, _MOST_WARMUP_FRACTION = 100, 0.1


@dataclass(frozen=True)
class RunLength:
    """The end of a run: what is reached first of these; None where there is no such end.

    Args:
        steps: optimizer steps. minutes: of training, over all parts of the run.
        images: seen in training, over all processes. Epochs are counted in images, so that a run that goes on with
            another batch or another number of processes still sees all of them.
    """

    steps: int | None
    images: int | None
    minutes: float | None

    @classmethod
    def of(cls, config: TrainingConfig, num_images: int | None) -> "RunLength":
        """The length of a run on `num_images` (None: streamed), of a configuration whose defaults are filled in."""
        images = None
        if config.max_train_steps is None and config.num_train_epochs is not None and num_images is not None:
            images = config.num_train_epochs * num_images
        return cls(config.max_train_steps, images, config.max_train_minutes)

    def num_steps(self, progress: Progress) -> int | None:
        """Steps of the whole run, of which `progress` is made, with `progress.batch` images a step from here on."""
        if self.images is None:
            return self.steps
        return progress.step + max(0, -(-(self.images - progress.position) // progress.batch))

    def fraction_done(self, progress: Progress, accelerator: Accelerator) -> float:
        """How much of the run is done; 1 or more: it is over."""
        done = progress.step / self.steps if self.steps else 0.0
        if self.images:
            done = max(done, progress.position / self.images)
        if not self.minutes:
            return done
        done = max(done, progress.elapsed_sec / (60 * self.minutes))
        if accelerator.num_processes == 1:
            return done
        # Clocks differ, and all processes must stop at the same step.
        shared = torch.tensor(done, dtype=torch.float32, device=accelerator.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared.item())

    def check_not_passed(self, progress: Progress, changed: bool) -> None:
        """Raise ValueError where a run that is resumed is longer already than it is to be.

        Args:
            changed: the minutes are fewer than they were; a run by minutes always ends a little after them.
        """
        anew = "or start anew in another --output_dir"
        if self.steps and progress.step > self.steps:
            raise ValueError(
                f"--max_train_steps {self.steps}: {progress.step:,} steps are done already; give at least that, {anew}"
            )
        if self.images and progress.position - progress.batch >= self.images:
            raise ValueError(
                f"--num_train_epochs comes to {self.images:,} images, and {progress.position:,} are seen already; "
                f"give more, {anew}"
            )
        if self.minutes and changed and progress.elapsed_sec > 60 * self.minutes:
            raise ValueError(
                f"--max_train_minutes {self.minutes:g}: {progress.elapsed_sec / 60:.1f} minutes are done already; "
                f"give more, {anew}"
            )

    def __str__(self) -> str:
        parts = [f"{self.steps:,} steps"] if self.steps else []
        parts += [f"{self.images:,} images"] if self.images else []
        parts += [f"{self.minutes:g} minutes"] if self.minutes else []
        return " or ".join(parts)


def crossed(parts: int, before: float, after: float) -> bool:
    """Whether one of `parts` equal parts of the run ended between two fractions of it."""
    return int(parts * before) != int(parts * min(after, 1.0))


def default_warmup_steps(num_steps: int | None) -> int | None:
    """100 steps, at most a tenth of the run; None where its steps are not known, and `LearningRate` uses the clock."""
    if num_steps is None:
        return None
    return min(_MOST_WARMUP_STEPS, int(_MOST_WARMUP_FRACTION * num_steps))


class LearningRate:
    """The learning rate as a function of the fraction done, so that it fits a number of steps or of minutes alike.

    It is set by hand once an optimizer step: accelerate steps a prepared scheduler `num_processes` times.

    Example:
        >>> learning_rate = LearningRate(config, optimizer)
        >>> lr = learning_rate.set(step=0, done=0.0)  # the rate of the first step
    """

    def __init__(self, config: TrainingConfig, optimizer: torch.optim.Optimizer, resolution: int = 10_000):
        self.config, self.optimizer, self.resolution = config, optimizer, resolution
        self.peak = config.learning_rate or 0.0  # of a group without a rate of its own
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", self.peak)
        decay = {"num_decay_steps": round(config.lr_decay_fraction * resolution)}
        shape = get_scheduler(
            config.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=0,
            num_training_steps=resolution,
            scheduler_specific_kwargs=decay if config.lr_scheduler == "warmup_stable_decay" else None,
        )
        self.shape = shape.lr_lambdas[0]

    def scale(self, step: int, done: float) -> float:
        """The part of its peak that the rate has at the step about to be made.

        Args:
            step: the steps that were made. done: the fraction of the run that is over.
        """
        if self.config.lr_warmup_steps is not None:
            warmup = (step + 1) / max(1, self.config.lr_warmup_steps)
        else:
            warmup = max((step + 1) / _MOST_WARMUP_STEPS, done / _MOST_WARMUP_FRACTION)
        return float(min(1.0, warmup) * self.shape(int(done * self.resolution)))

    def set(self, step: int, done: float) -> float:
        """Set and return the rate of the step about to be made; see `scale`."""
        scale = self.scale(step, done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
        return self.peak * scale
