"""What a run tells: a progress bar, log.jsonl, a tracker, and the loss curve."""

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..data.load import TrainingData
from ..files import sync_file, write_text
from ..pictures import loss_plot
from ..processes import cores_in_words
from ..provenance import save_picture
from .checkpoints import Progress
from .config import TrainingConfig
from .failures import TrainingFailure, how_to_go_on
from .schedule import RunLength


class TrainingLog:
    """One line of log.jsonl each `logging_steps`: the mean loss since the last one, over all processes.

    Args:
        output_dir: log.jsonl, samples.png and loss.png go here.
        progress: where the run starts; older lines of log.jsonl are kept when it is resumed.
        length: where it ends.
        run: its pictures say that they are of it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainingConfig,
        output_dir: Path,
        progress: Progress,
        length: RunLength,
        run: str | None = None,
    ):
        self.length, self.run = length, run
        self.accelerator, self.config, self.output_dir = accelerator, config, output_dir
        self.path = output_dir / "log.jsonl"
        # Read once a line, so that a GPU need not wait for the CPU at each step: sum and count of the losses since
        # the last line, steps left out because of a gradient that is not finite: all of them, and in a row.
        self.losses = torch.zeros(2, device=accelerator.device)
        self.left_out = torch.tensor(progress.skipped, device=accelerator.device)
        if progress.losses:
            rank, known = accelerator.process_index, torch.tensor(progress.losses)  # (processes, 2)
            # With another number of processes than before, each goes on with their mean.
            mine = known[rank] if len(known) == accelerator.num_processes else known.mean(dim=0)
            self.losses = mine.to(accelerator.device)
        self.last = (time.perf_counter(), progress.position)
        self.data_wait_sec = 0.0  # since the last line, of this process
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            kept = [line for line in self._lines() if line["step"] <= progress.step] if progress.step else []
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        values = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str) and k != "hub_token"}
        accelerator.init_trackers(config.tracker_project_name, config=values)
        self.bar = tqdm(
            total=length.num_steps(progress),
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
            tracker.finish()

    def opening(self, data: TrainingData, trained: str, resumed: Progress, notes: list[str]) -> None:
        """Print what was found, chosen and is `trained`; where a resumed run goes on, and what changes (`notes`)."""
        config = self.config
        self.print(
            f"{data.summary()}\n"
            f"model: {config.pretrained_model_name_or_path or 'UNet size ' + str(config.unet_size)}, "
            f"setting {config.conditioning!r}\n"
            f"trained parameters (--train {config.train}): {trained}\n"
            f"run: {self.length} of {config.train_batch_size} x {config.gradient_accumulation_steps} images x "
            f"{self.accelerator.num_processes} process(es), learning rate {config.learning_rate:g}, "
            f"precision {config.mixed_precision}, EMA {'on' if config.use_ema else 'off'}, "
            f"{config.dataloader_num_workers} workers, on {self.accelerator.device}, {cores_in_words()}"
        )
        steps = self.length.steps
        if steps and config.lr_warmup_steps and config.lr_warmup_steps >= steps:
            self.print(
                f"warning: --lr_warmup_steps {config.lr_warmup_steps} of a run of {steps} steps: the learning rate "
                f"does not reach {config.learning_rate:g}"
            )
        if resumed.step:
            batch = config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
            changed = [
                f"{name} {before} -> {now}"
                for name, before, now in (
                    ("images a step", resumed.batch, batch),
                    ("processes", resumed.num_processes, self.accelerator.num_processes),
                )
                if before != now
            ] + notes
            self.print(
                f"resumed after step {resumed.step:,}, {resumed.position:,} images seen"
                + (f"; changed: {', '.join(changed)}" if changed else "")
            )

    def print(self, text: str) -> None:
        """On the main process, above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def step(self, progress: Progress, loss: Tensor, left_out: Tensor, lr: float, done: float) -> None:
        """Note one optimizer step; write a line when it is time.

        Args:
            left_out: 1 where the optimizer left the step out because its gradient was not finite, otherwise 0.

        Raises:
            TrainingFailure: `max_skipped_steps` in a row were left out.
        """
        finite = loss.isfinite()
        self.losses += torch.stack([torch.where(finite, loss, 0.0), finite.float()])
        self.left_out = torch.stack([self.left_out[0] + left_out, (self.left_out[1] + 1) * left_out])
        self.bar.update()
        if progress.step % self.config.logging_steps and done < 1:
            return
        total, count = self.accelerator.reduce(self.losses, "sum").tolist()
        left_out, in_a_row = (int(n) for n in self.left_out.tolist())
        loss_mean = total / count if count else float("nan")  # all of them were left out
        sec, images = time.perf_counter() - self.last[0], progress.position - self.last[1]
        self.losses.zero_()
        self.last = (time.perf_counter(), progress.position)
        line = {"step": progress.step, "images": progress.position, "loss": loss_mean if count else None, "lr": lr}
        line |= {"images_per_sec": round(images / sec, 1), "elapsed_sec": round(progress.elapsed_sec, 4)}
        line |= {"data_wait_sec": round(self.data_wait_sec, 4)}
        self.data_wait_sec = 0.0
        line |= {"skipped_steps": left_out} if left_out else {}
        self._write(line)
        if in_a_row >= self.config.max_skipped_steps:
            raise TrainingFailure(
                f"step {progress.step:,}: the last {in_a_row} gradients were not finite and their steps were left out; "
                f"try a smaller --learning_rate, or --mixed_precision no; {how_to_go_on(self.output_dir)}"
            )
        self.bar.set_postfix(loss=f"{loss_mean:.4f}", images_per_s=f"{images / sec:.0f}")
        if self.config.max_train_minutes:  # the bar's end is an estimate, of the time given
            self.bar.total = max(progress.step, round(progress.step / min(max(done, 1e-9), 1.0)))

    def unwritten(self) -> list[list[float]]:
        """The losses since the last line, of each process: a resumed run writes the line that this one would have."""
        if self.accelerator.is_main_process and self.path.is_file():
            sync_file(self.path)  # a checkpoint is nothing without the lines up to it
        return self.accelerator.gather(self.losses[None]).tolist()

    def skipped(self) -> list[float]:
        """The steps left out: all of them, and how many in a row up to now."""
        return self.left_out.tolist()

    def validation(self, progress: Progress, loss: float | None, grid: Image.Image) -> None:
        """Note a validation: the loss of held-out images (None: not measured), and a grid of samples."""
        if not self.accelerator.is_main_process:
            return
        if loss is not None:
            self._write({"step": progress.step, "images": progress.position, "held_out_loss": loss})
            self.print(f"step {progress.step:,}: held-out loss {loss:.4f}")
        (self.output_dir / "samples").mkdir(exist_ok=True)
        save_picture(grid, self.output_dir / "samples" / f"{progress.step:06d}.png", self.run)
        save_picture(grid, self.output_dir / "samples.png", self.run)
        pixels = np.asarray(grid)[None]  # (1, H, W, 3)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": pixels}, step=progress.step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": pixels}, step=progress.step)

    def evaluation(self, progress: Progress, values: dict[str, float]) -> None:
        """Note a small evaluation of samples."""
        if self.accelerator.is_main_process:
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
            self.run,
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
        found = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError, RecursionError):  # the last one of a run that was killed
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    found.append(line)
        return found

    def _write(self, line: dict) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        values = {k: v for k, v in line.items() if k not in ("step", "elapsed_sec", "data_wait_sec") and v is not None}
        self.accelerator.log(values, step=line["step"])
