"""The log of a run: a progress bar, log.jsonl, a tracker, and the loss curve."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from ..console import lines_for_terminal, say
from ..files import append_text, sync_file, write_text
from ..pictures import loss_plot
from ..processes import cores_in_words, crowded_warning
from ..provenance import save_picture
from .checkpoints import Progress
from .failures import TrainingFailure, how_to_go_on, is_full_disk
from .optimizers import count_trained
from .run import Run
from .state import TrainState
from .trackers import start_trackers


class TrainingLog:
    """Writes a line of log.jsonl each `logging_steps`: the mean loss since the last one, over all processes.

    Args:
        run: log.jsonl, samples.png and loss.png go into its folder; its pictures say that they are of it.
        progress: where the run starts; older lines of log.jsonl are kept when it is resumed.
    """

    def __init__(self, run: Run, progress: Progress):
        accelerator, config, output_dir = run.accelerator, run.config, run.output_dir
        self.run, self.run_name = run, run.folder.run
        self.accelerator, self.config, self.output_dir = accelerator, config, output_dir
        self.path = output_dir / "log.jsonl"
        self._unwritten: list[str] = []  # lines that the disk had no room for
        self._said_full = False
        # Read once a line, so that a GPU need not wait for the CPU at each step: sum and count of the losses since
        # the last line, skipped steps (their gradient was not finite): all of them, and in a row.
        self.losses = torch.zeros(2, device=accelerator.device)
        self.num_skipped = torch.tensor(progress.skipped, device=accelerator.device)
        if progress.losses:
            rank, known = accelerator.process_index, torch.tensor(progress.losses)  # (processes, 2)
            # With another number of processes than before, each goes on with their mean.
            mine = known[rank] if len(known) == accelerator.num_processes else known.mean(dim=0)
            self.losses = mine.to(accelerator.device)
        self.last = (time.perf_counter(), progress.position)
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            kept = [line for line in self._lines() if line["step"] <= progress.step] if progress.step else []
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        values = {k: v for k, v in config.to_dict().items() if isinstance(v, int | float | str) and k != "hub_token"}
        start_trackers(accelerator, config.tracker_project_name, values)
        self.num_steps = run.length.num_steps(progress)
        self.bar = tqdm(
            total=self.num_steps,
            initial=progress.step,
            desc="Training",
            unit="step",
            disable=not accelerator.is_local_main_process,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the trackers, however the training ended: what they hold back is written."""
        for tracker in self.accelerator.trackers:
            with self.until_there_is_room():
                tracker.finish()

    @contextmanager
    def until_there_is_room(self) -> Iterator[None]:
        """Within: a full disk does not end a run without checkpoints, whose weights are nowhere but in memory."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if not is_full_disk(error) or self.config.checkpointing_steps:
                raise
            if not self._said_full:
                self._said_full = True
                say(
                    f"warning: no room for the log, the pictures and ema/ in {self.output_dir} "
                    f"({getattr(error, 'strerror', None) or 'No space left on device'}): the run "
                    "goes on, and its lines are written once there is room"
                )

    def opening(self, resumed: Progress, lost_words: list[str]) -> None:
        """Print the data, the model, what is trained and what was chosen; where a resumed run goes on, what changed."""
        config, data, length = self.config, self.run.data, self.run.length
        images = "\n".join([data.summary(), *lost_words])
        self.print(
            f"{images}\n"
            f"model: {config.pretrained_model_name_or_path or 'UNet size ' + str(config.unet_size)}, "
            f"setting {config.conditioning!r}\n"
            f"trained parameters (--train {config.train}): {count_trained(self.run.pipe)}\n"
            f"run: {length} of {config.train_batch_size} x {config.gradient_accumulation_steps} images x "
            f"{self.accelerator.num_processes} process(es), learning rate {config.learning_rate:g}, "
            f"precision {config.mixed_precision}, EMA {'on' if config.use_ema else 'off'}, "
            f"{config.dataloader_num_workers} workers, on {self.accelerator.device}, {cores_in_words()}"
        )
        if (
            self.accelerator.num_processes == 1
            and self.accelerator.device.type == "cpu"
            and (line := crowded_warning())
        ):
            self.print(line)
        steps = self.num_steps
        if steps and config.lr_warmup_steps and config.lr_warmup_steps >= steps:
            self.print(
                f"warning: --lr_warmup_steps {config.lr_warmup_steps} of a run of {steps} steps: the learning rate "
                f"does not reach {config.learning_rate:g}"
            )
        for name in ("checkpointing_steps", "evaluation_steps"):
            if steps and (every := getattr(config, name) or 0) > steps:
                self.print(f"warning: --{name} {every} of a run of {steps} steps: it comes to none")
        if resumed.step:
            changed = [
                f"{name} {before} -> {now}"
                for name, before, now in (
                    ("images a step", resumed.batch, self.run.images_per_step),
                    ("processes", resumed.num_processes, self.accelerator.num_processes),
                )
                if before != now
            ] + self.run.identity.notes
            self.print(
                f"resumed after step {resumed.step:,}, {resumed.position:,} images seen"
                + (f"; changed: {', '.join(changed)}" if changed else "")
            )
        self.print(self.run.choices)

    def print(self, text: str) -> None:
        """On the main process, above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(lines_for_terminal(text))  # labels are text of others

    def step(self, state: TrainState, loss: Tensor, skipped: Tensor, lr: float) -> None:
        """Note one optimizer step; write a line when it is time.

        Args:
            loss: of this process, a scalar on the device.
            skipped: 1 where the step was skipped because its gradient was not finite, otherwise 0.

        Raises:
            TrainingFailure: `max_skipped_steps` in a row were skipped.
        """
        progress, finite = state.progress, loss.isfinite()
        self.losses += torch.stack([torch.where(finite, loss, 0.0), finite.float()])
        self.num_skipped = torch.stack([self.num_skipped[0] + skipped, (self.num_skipped[1] + 1) * skipped])
        self.bar.update()
        if progress.step % self.config.logging_steps and state.fraction_done < 1:
            return
        total, count = self.accelerator.reduce(self.losses, "sum").tolist()
        num_skipped, in_a_row = (int(n) for n in self.num_skipped.tolist())
        loss_mean = total / count if count else float("nan")  # all of them were skipped
        sec, images = time.perf_counter() - self.last[0], progress.position - self.last[1]
        self.losses.zero_()
        self.last = (time.perf_counter(), progress.position)
        line = {"step": progress.step, "images": progress.position, "loss": loss_mean if count else None, "lr": lr}
        line |= {"images_per_sec": round(images / sec, 1), "elapsed_sec": round(progress.elapsed_sec, 4)}
        line |= {"data_wait_sec": round(state.data_wait_sec, 4)}
        state.data_wait_sec = 0.0
        line |= {"skipped_steps": num_skipped} if num_skipped else {}
        self._write(line)
        if in_a_row >= self.config.max_skipped_steps:
            raise TrainingFailure(
                f"step {progress.step:,}: the last {in_a_row} gradients were not finite, so their steps were skipped; "
                f"try a smaller --learning_rate, or --mixed_precision no; {how_to_go_on(self.output_dir)}"
            )
        self.bar.set_postfix(loss=f"{loss_mean:.4f}", images_per_s=f"{images / sec:.0f}")
        if self.config.max_train_minutes:  # the bar's end is an estimate, of the time given
            self.bar.total = max(progress.step, round(progress.step / min(max(state.fraction_done, 1e-9), 1.0)))

    def save_to(self, progress: Progress) -> None:
        """Put the losses since the last line, and the skipped steps, into `progress`, of which a checkpoint is made.

        A resumed run then writes the line that this one would have written.
        """
        if self.accelerator.is_main_process and self.path.is_file():
            sync_file(self.path)  # a checkpoint is nothing without the lines up to it
        progress.losses = self.accelerator.gather(self.losses[None]).tolist()  # [sum, count] of each process
        progress.skipped = self.num_skipped.tolist()

    def validation(self, progress: Progress, loss: float | None, grid: Image.Image | None) -> None:
        """Note a validation: the loss of held-out images and a grid of samples; None: not measured, not drawn."""
        if grid is None or not self.accelerator.is_main_process:
            return
        if loss is not None:
            self._write({"step": progress.step, "images": progress.position, "held_out_loss": loss})
            self.print(f"step {progress.step:,}: held-out loss {loss:.4f}")
        with self.until_there_is_room():
            (self.output_dir / "samples").mkdir(exist_ok=True)
            save_picture(grid, self.output_dir / "samples" / f"{progress.step:06d}.png", self.run_name)
            save_picture(grid, self.output_dir / "samples.png", self.run_name)
            pixels = np.asarray(grid)[None]  # (1, H, W, 3)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({"samples": pixels}, step=progress.step, dataformats="NHWC")
                elif hasattr(tracker, "log_images"):
                    tracker.log_images({"samples": pixels}, step=progress.step)

    def evaluation(self, progress: Progress, values: dict[str, float]) -> None:
        """Note a small evaluation of samples; nothing where a signal has ended it."""
        if values:
            self._write({"step": progress.step, "images": progress.position, **values})
            self.print(f"step {progress.step:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def close(self) -> None:
        """Write loss.png."""
        self.bar.close()
        lines = self._lines()
        loss_plot(
            self.output_dir / "loss.png",
            [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None],
            [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line],
            self.run_name,
        )

    def last_losses(self) -> dict[str, float | None]:
        """The last training loss and the last held-out one."""
        lines = self._lines()
        return {
            key: next((line[key] for line in reversed(lines) if line.get(key) is not None), None)
            for key in ("loss", "held_out_loss")
        }

    def _lines(self) -> list[dict]:
        if not self.path.is_file():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError, RecursionError):  # the last one of a run that was killed
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
        return lines

    def _write(self, line: dict) -> None:
        values = {k: v for k, v in line.items() if k not in ("step", "elapsed_sec", "data_wait_sec") and v is not None}
        with self.until_there_is_room():
            if self.accelerator.is_main_process:
                self._unwritten.append(json.dumps(line) + "\n")
                append_text(self.path, "".join(self._unwritten))
                self._unwritten.clear()
            self.accelerator.log(values, step=line["step"])
