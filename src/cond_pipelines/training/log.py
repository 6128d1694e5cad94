"""What a run tells: a progress bar, log.jsonl, a tracker, and the loss curve."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..pictures import loss_plot
from .checkpoints import Progress
from .config import TrainingConfig
from .setup import TrainingData


class TrainingLog:
    """One line of log.jsonl each `logging_steps`: the mean loss since the last one, over all processes.

    Args:
        output_dir: log.jsonl, samples.png and loss.png go here.
        progress: where the run starts; older lines of log.jsonl are kept when it is resumed.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, output_dir: Path, progress: Progress):
        self.accelerator, self.config, self.output_dir = accelerator, config, output_dir
        self.path = output_dir / "log.jsonl"
        self.sum = torch.zeros((), device=accelerator.device)  # read once a line: no synchronisation at each step
        self.count, self.last = 0, (time.perf_counter(), progress.position)
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            kept = [line for line in self._lines() if line["step"] <= progress.step] if progress.step else []
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        values = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str) and k != "hub_token"}
        accelerator.init_trackers(config.tracker_project_name, config=values)
        self.bar = tqdm(
            total=config.max_train_steps,
            initial=progress.step,
            desc="Training",
            unit="step",
            disable=not accelerator.is_local_main_process,
            dynamic_ncols=True,
        )

    def opening(self, data: TrainingData, num_parameters: int) -> None:
        """Print what was found and what was chosen."""
        config = self.config
        if data.train is None:
            found = f"images: streamed, {data.dataset.resolution} px, {data.dataset.channels} channel(s)"
        else:
            found = data.dataset.summary(data.id2label) + f"\nheld out for validation: {len(data.held_out):,}"
        length = [f"{config.max_train_steps:,} steps"] if config.max_train_steps else []
        length += [f"{config.max_train_minutes:g} minutes"] if config.max_train_minutes else []
        self.print(
            f"{found}\n"
            f"model: {config.pretrained_model_name_or_path or 'UNet size ' + str(config.unet_size)}, "
            f"{num_parameters / 1e6:.1f} M trained parameters, setting {config.conditioning!r}\n"
            f"run: {' or '.join(length)} of {config.train_batch_size} x {config.gradient_accumulation_steps} images x "
            f"{self.accelerator.num_processes} process(es), learning rate {config.learning_rate:g}, "
            f"precision {config.mixed_precision}, EMA {'on' if config.use_ema else 'off'}, "
            f"{config.dataloader_num_workers} workers, on {self.accelerator.device}"
        )

    def print(self, text: str) -> None:
        """On the main process, above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def step(self, progress: Progress, loss: Tensor, lr: float, done: float) -> None:
        """Note one optimizer step; write a line when it is time."""
        self.sum += loss
        self.count += 1
        self.bar.update()
        if progress.step % self.config.logging_steps and done < 1:
            return
        loss_mean = self.accelerator.reduce(self.sum / self.count, "mean").item()
        sec, images = time.perf_counter() - self.last[0], progress.position - self.last[1]
        self.sum.zero_()
        self.count, self.last = 0, (time.perf_counter(), progress.position)
        line = {"step": progress.step, "images": progress.position, "loss": loss_mean, "lr": lr}
        line |= {"images_per_sec": round(images / sec, 1), "elapsed_sec": round(progress.elapsed_sec, 4)}
        self._write(line)
        self.bar.set_postfix(loss=f"{loss_mean:.4f}", images_per_s=f"{images / sec:.0f}")
        if self.config.max_train_minutes:  # the bar's end is an estimate, of the time given
            self.bar.total = max(progress.step, round(progress.step / min(max(done, 1e-9), 1.0)))

    def validation(self, progress: Progress, loss: float | None, grid: Image.Image | None) -> None:
        """Note a validation: the loss of held-out images, and a grid of samples."""
        if not self.accelerator.is_main_process:
            return
        if loss is not None:
            self._write({"step": progress.step, "images": progress.position, "held_out_loss": loss})
            self.print(f"step {progress.step:,}: held-out loss {loss:.4f}")
        grid.save(self.output_dir / "samples.png")
        pixels = np.asarray(grid)[None]  # (1, H, W, 3)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": pixels}, step=progress.step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": pixels}, step=progress.step)

    def close(self) -> None:
        """Write loss.png and say where everything is."""
        self.bar.close()
        if not self.accelerator.is_main_process:
            return
        lines = self._lines()
        loss_plot(
            self.output_dir / "loss.png",
            [(line["step"], line["loss"]) for line in lines if "loss" in line],
            [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line],
        )
        print(f"saved to {self.output_dir}: load with ConditionalPipeline.from_pretrained({str(self.output_dir)!r})")

    def _lines(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []

    def _write(self, line: dict) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.accelerator.log({k: v for k, v in line.items() if k not in ("step", "elapsed_sec")}, step=line["step"])
