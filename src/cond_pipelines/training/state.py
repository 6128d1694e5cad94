"""TrainState: all that changes during a run, and how one optimizer step changes it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ..data.batches import Batch
from ..networks.denoiser import denoise
from ..objectives.base import Denoise
from ..pipelines.conditional import ConditionalPipeline
from .checkpoints import Progress, save_checkpoint
from .clipping import clipped_step
from .ema import NUM_SNAPSHOTS, WeightAverage, averaged_weights, decay_of, power_function, save_snapshot
from .guide import EARLY, EarlyAverage
from .identity import resume
from .optimizers import build_optimizer, parameter_groups, trainable
from .run import Run
from .schedule import LearningRate, crossed
from .sharding import prepare, whole_pipeline
from .teacher import repeated


class ConditionalDenoiser(nn.Module):
    """Network, adapter and, where it is trained, text encoder as one module, so that gradient sync covers them all."""

    def __init__(self, pipe: ConditionalPipeline, trained: list[nn.Module]):
        super().__init__()
        self.unet, self.adapter = pipe.unet, pipe.adapter
        encoder = pipe.components.get("text_encoder")
        self.text_encoder = encoder if any(encoder is module for module in trained) else None

    def forward(
        self, x_t: Tensor, t: Tensor, features: dict[str, Tensor], keep: Tensor, r: Tensor | None = None
    ) -> Tensor:
        """The network's prediction (B, C, h, w).

        Args:
            x_t: (B, C, h, w) noised, or (2 B, C, h, w): each condition twice. t: (B,). features: B rows each.
            keep: (B,) bool; False: the condition is dropped, so the network learns p(x) too.
            r: (B,) of a distillation; see `networks.denoiser.denoise`.
        """
        if self.text_encoder is not None:
            features = self.adapter.encode(features, self.text_encoder)
        cond = self.adapter(features)
        cond = cond.where(keep, self.adapter.null_like(cond))
        return denoise(self.unet, x_t, t, repeated(cond, x_t), r)  # (B, C, h, w)


class TrainState:
    """Network, optimizer, averages of the weights, learning rate and progress of a run.

    Attributes:
        denoiser: what is trained, as the accelerator prepared it.
        eval_pipe: the pipeline to sample from, measure and save, within `averaged`.
        progress: optimizer steps, images and seconds so far; `resumed`: the same where this process began.
        fraction_done: of the run; 1 or more: it is over.
        data_wait_sec: spent waiting for images since the log last set it to 0.

    Example:
        >>> state = TrainState(run)
        >>> while state.fraction_done < 1:
        ...     for batch in state.micro_batches(batches):
        ...         accelerator.backward(loss_of(batch))
        ...     skipped = state.step()
    """

    def __init__(self, run: Run):
        config, self.run = run.config, run
        optimizer = build_optimizer(config, parameter_groups(run.pipe, config))
        self.eval_pipe, self._eval_modules = whole_pipeline(run.pipe, run.trained, run.is_sharded)
        denoiser = ConditionalDenoiser(run.pipe, run.trained)
        self.denoiser, self.optimizer = prepare(run.accelerator, config, denoiser, optimizer)
        self.optimizer.train()
        self.parameters = trainable(run.trained)  # as prepared: they may be sharded
        self.ema: WeightAverage | None = None
        if config.use_ema:
            self.ema = WeightAverage(
                self.parameters, decay_of(config.ema_max_decay, config.ema_inv_gamma, config.ema_power)
            )
        self.averages_by_length = {
            length: WeightAverage(self.parameters, power_function(length)) for length in config.ema_lengths
        }
        self._moving = [*([self.ema] if self.ema else []), *self.averages_by_length.values()]
        self._early = EarlyAverage(run.pipe.unet) if config.autoguidance else None
        self.averages = [*self._moving, *([self._early.average] if self._early else [])]  # of a checkpoint
        self.learning_rate = LearningRate(config, self.optimizer)
        self.progress, self.resumed, self.resumed_run = Progress(), Progress(), None
        if config.resume_from_checkpoint:
            self.progress, self.resumed_run = resume(
                run.folder,
                config.resume_from_checkpoint,
                run.identity,
                self.learning_rate,
                run.length,
                self.averages,
            )
            self.resumed = replace(self.progress)
        self.progress.batch, self.progress.num_processes = run.images_per_step, run.accelerator.num_processes
        self.data_wait_sec = 0.0

    def start(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter() - self.progress.elapsed_sec
        self.fraction_done = self.fraction_before = self.run.length.fraction_done(self.progress, self.run.accelerator)

    # ------------------------------------------------------------------------------------------ one optimizer step
    def set_learning_rate(self) -> float:
        """Set and return the learning rate of the step about to be made."""
        return self.learning_rate.set(self.progress.step, self.fraction_done)

    def micro_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of one optimizer step; gradients are synced between processes at the last one."""
        accelerator = self.run.accelerator
        for _ in range(self.run.num_micro_batches):
            with accelerator.accumulate(self.denoiser):
                start = time.perf_counter()
                batch = next(batches)
                self.data_wait_sec += time.perf_counter() - start
                yield batch

    def denoise_with(self, features: dict[str, Tensor], keep: Tensor) -> Denoise:
        """The network under these conditions, as `Objective.loss` calls it; see `ConditionalDenoiser.forward`."""

        def predict(x_t: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
            with self.run.accelerator.autocast():
                return self.denoiser(x_t, t, features, keep, r)  # (B, C, h, w)

        teacher = None if self.run.teacher is None else self.run.teacher.under(features, keep)
        return Denoise(predict, teacher, self.fraction_done)

    def step(self) -> Tensor:
        """Clip the gradients, update weights and averages, count.

        Returns:
            1 where the step was skipped because its gradient was not finite, otherwise 0; a scalar on the device.
        """
        accelerator, progress = self.run.accelerator, self.progress
        skipped = clipped_step(accelerator, self.optimizer, self.parameters, self.run.config.max_grad_norm)
        self.optimizer.zero_grad()
        for average in self._moving:
            average.step(self.parameters)
        if self._early is not None:
            self._early.step(self.fraction_done)
        progress.step += 1
        progress.position += self.run.images_per_step
        progress.elapsed_sec = time.perf_counter() - self._start
        self.fraction_before = self.fraction_done
        self.fraction_done = self.run.length.fraction_done(progress, accelerator)
        return skipped

    # ------------------------------------------------------------------------------------------ once in a while
    def is_multiple_of(self, steps: int | None) -> bool:
        """Whether it is time for what is done every `steps` steps; None or 0: never."""
        return steps is not None and steps > 0 and self.progress.step % steps == 0

    @contextmanager
    def averaged(self, restore: bool = True) -> Iterator[ConditionalPipeline]:
        """Within (and after, without `restore`): `eval_pipe` with the averaged weights, in eval mode."""
        with averaged_weights(self.ema, self._eval_modules, self.parameters, self.optimizer, restore):
            if self._early is not None and self.fraction_done >= EARLY:
                self._early.give_to(self.eval_pipe)
            yield self.eval_pipe
        if restore:  # training goes on together
            self.run.accelerator.wait_for_everyone()

    def save_snapshot(self) -> None:
        """Write the averages of `--ema_lengths`, 16 times in a run."""
        run = self.run
        is_due = crossed(NUM_SNAPSHOTS, self.fraction_before, self.fraction_done)
        if self.averages_by_length and is_due and run.accelerator.is_main_process:
            save_snapshot(run.output_dir, self.progress.step, run.pipe, self.averages_by_length, run.folder.run)

    def save_checkpoint(self) -> Path:
        """Write `checkpoint-<step>`, from which the run can be resumed."""
        run = self.run
        return save_checkpoint(
            run.accelerator,
            run.output_dir,
            self.progress,
            self.averages,
            run.config.checkpoints_total_limit,
            run.identity.values,
            run.folder.run,
        )
