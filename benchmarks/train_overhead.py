"""python benchmarks/train_overhead.py --unet_size s --resolution 32 --train_batch_size 64

What `train` costs over a bare loop (forward, backward, fused AdamW) of the same UNet, batch and precision. The two
take turns within one run, several times, and the ratio is that of the medians of the means of five steps, between two
lines of the log (as a rule there are fifty).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cond_pipelines import TrainingConfig, build_unet, train
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.training.device import tune_network
from cond_pipelines.training.dtypes import fast_precision

LOG_EVERY = 5


def no_condition(unet: torch.nn.Module, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Zeros for both inputs of the UNet's socket."""
    return {
        "encoder_hidden_states": torch.zeros(batch_size, 1, unet.config.cross_attention_dim, device=device),
        "class_labels": torch.zeros(batch_size, unet.config.projection_class_embeddings_input_dim, device=device),
    }


def bare_steps(
    options: argparse.Namespace,
    precision: str,
    device: torch.device,
    channels_last: bool | None = None,
    change: Callable[[torch.nn.Module], object] | None = None,
) -> list[float]:
    """Seconds of each step of a loop that does nothing but train the UNet on one random batch in memory.

    On a GPU only the means of `LOG_EVERY` steps are right: it is waited for as often as `train` does.

    Args:
        channels_last: the layout of the weights. None: as `train` has it.
        change: is called with the network before the first step, to compile it, say.
    """
    torch.set_flush_denormal(True)  # as `train` on a CPU, so that the loop alone is compared
    torch.backends.cuda.matmul.allow_tf32 = True  # as `train`
    channels, size, batch = getattr(options, "channels", 3), options.resolution, options.train_batch_size
    with torch.device(device):  # made where it is used: an SD-sized network takes 10 s on a CPU
        unet = build_unet(options.unet_size, sample_size=size, channels=channels)
    if channels_last is None:
        tune_network(unet, TrainingConfig(), device)
    elif channels_last:
        unet.to(memory_format=torch.channels_last)
    if getattr(options, "gradient_checkpointing", False):
        unet.enable_gradient_checkpointing()
    if change:
        change(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    x_t, target = torch.randn(2, batch, channels, size, size, device=device)  # (B, C, H, W) each
    inputs = no_condition(unet, batch, device)
    t, sec = torch.rand(batch, device=device) * 1000, []
    for _ in range(options.steps + options.warmup):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            prediction = unet(x_t, t, **inputs).sample
        loss = (prediction.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda" and len(sec) % LOG_EVERY == LOG_EVERY - 1:
            torch.cuda.synchronize()
        sec.append(time.perf_counter() - start)
    return sec[options.warmup :]


def by_fives(sec: list[float]) -> list[float]:
    """Means of as many steps as `train` has between two lines of its log here."""
    return list(np.reshape(sec, (-1, LOG_EVERY)).mean(axis=1))


def means_of_log(folder: Path, warmup: int) -> tuple[list[float], float]:
    """The same of a run's log, after the first steps, and the share of that time spent waiting for data."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line][warmup // LOG_EVERY - 1 :]
    sec = np.diff([line["elapsed_sec"] for line in lines])
    return list(sec / LOG_EVERY), sum(line["data_wait_sec"] for line in lines[1:]) / sum(sec)


def train_steps(options: argparse.Namespace, precision: str, data_dir: Path) -> list[float]:
    """Seconds of a step of the real `train`, from its own log: means of `LOG_EVERY` steps."""
    with tempfile.TemporaryDirectory() as folder:
        train(
            TrainingConfig(
                train_data_dir=str(data_dir),
                resolution=options.resolution,
                unet_size=options.unet_size,
                train_batch_size=options.train_batch_size,
                mixed_precision=precision,
                max_train_steps=options.steps + options.warmup,
                logging_steps=LOG_EVERY,
                validation_steps=0,
                default_num_inference_steps=1,
                optimizer="adamw",  # as the bare step
                output_dir=folder,
            )
        )
        return means_of_log(Path(folder), options.warmup)[0]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet_size", default="s")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--mixed_precision", default=None)
    parser.add_argument("--steps", type=int, default=15, help="counted, in each turn; by fives")
    parser.add_argument("--warmup", type=int, default=5, help="not counted, in each turn; by fives")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    precision = options.mixed_precision or fast_precision(torch.device("cpu"))
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "images"
        data_dir.mkdir()
        for number, image in enumerate(load_shapes(1000, image_size_px=max(16, options.resolution))["image"]):
            image.save(data_dir / f"{number:05}.png")
        for _ in range(options.turns):
            bare += by_fives(bare_steps(options, precision, torch.device("cpu")))
            ours += train_steps(options, precision, data_dir)
    result = {
        **{k: getattr(options, k) for k in ("unet_size", "resolution", "train_batch_size")},
        "precision": precision,
        "threads": torch.get_num_threads(),
        "bare_step_ms": round(1e3 * float(np.median(bare)), 1),
        "train_step_ms": round(1e3 * float(np.median(ours)), 1),
        "ratio_of_medians": round(float(np.median(ours) / np.median(bare)), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
