"""python benchmarks/train_throughput.py --data png32 | jpeg512 | text [--text_encoder_name_or_path FOLDER]

Images a second of three loops on the same UNet, batch, data and precision, which take turns within one run:

    ours    `train`, as a user would start it (text: with a frozen text encoder)
    plain   the semantics of diffusers' train_unconditional.py / train_text_to_image.py: images decoded by PIL in the
            main process at every step, captions padded to the longest that the tokenizer takes and encoded at every
            step, AdamW and EMAModel as they are by default, `loss.item()` at every step
    bare    forward, backward and fused AdamW on one random batch: the limit

png32: 32 px PNGs; jpeg512: 512 px JPEGs, parts of scikit-learn's two photographs, trained at 32 px; text: 32 px PNGs
with captions. The ratios are of medians of the means of five steps, between two lines of our log (as a rule there are
fifty). On CUDA it also prints the share of the device's peak that the UNet's own operations make up.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from sklearn.datasets import load_sample_images
from train_overhead import LOG_EVERY, bare_steps, by_fives, means_of_log, no_condition

from cond_pipelines import TextAdapter, TrainingConfig, build_unet, train
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.networks.text_encoders import load_text_encoder
from cond_pipelines.training.dtypes import fast_precision

_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16


def write_data(
    kind: str, folder: Path, count: int, size_px: int = 32, mode: str = "RGB", photographs: list | None = None
) -> None:
    """An image folder, with captions for `text`; jpeg512 are parts of `photographs`, by default scikit-learn's two."""
    if kind == "jpeg512" and photographs is None:
        photographs = [Image.fromarray(image) for image in load_sample_images().images]  # two of 640 x 427 px
    rng, lines = np.random.default_rng(0), []
    for number, row in enumerate(load_shapes(count, image_size_px=size_px)):
        image = row["image"].convert(mode)
        if kind == "jpeg512":  # drawn shapes would be decoded quicker than photographs
            photograph, side = photographs[number % 2], int(rng.integers(380, 427))
            left, top = rng.integers(photograph.width - side), rng.integers(photograph.height - side)
            image = photograph.crop((left, top, left + side, top + side)).resize((512, 512), Image.Resampling.BICUBIC)
        name = f"{number:05}.{'jpg' if kind == 'jpeg512' else 'png'}"
        image.save(folder / name, quality=90)
        lines.append(json.dumps({"file_name": name, "text": row["caption"]}))
    if kind == "text":
        (folder / "metadata.jsonl").write_text("\n".join(lines))


def our_steps(
    options: argparse.Namespace, precision: str, data_dir: Path, more_steps: int = 0
) -> tuple[list[float], float]:
    """Seconds of a step, means of `LOG_EVERY`, and the share of them spent waiting for data.

    `more_steps` after them (by fives) are made and not counted; what they are for is up to the caller.
    """
    text = {"conditioning": "text", "text_encoder_name_or_path": options.text_encoder_name_or_path}
    with tempfile.TemporaryDirectory() as folder:
        train(
            TrainingConfig(
                **(text if options.data == "text" else {}),
                train_data_dir=str(data_dir),
                cache_dir=str(data_dir.parent / "cache"),
                resolution=options.resolution,
                unet_size=options.unet_size,
                train_batch_size=options.train_batch_size,
                mixed_precision=precision,
                compile=options.compile,
                gradient_checkpointing=getattr(options, "gradient_checkpointing", False),
                random_flip=True,
                max_train_steps=options.steps + options.warmup + more_steps,
                logging_steps=LOG_EVERY,
                validation_steps=0,
                default_num_inference_steps=1,
                report_to="none",
                optimizer="adamw",  # as the other loop
                output_dir=folder,
            )
        )
        sec, waited = means_of_log(Path(folder), options.warmup)
        return sec[: len(sec) - more_steps // LOG_EVERY], waited


class _Folder(torch.utils.data.Dataset):
    """As `datasets` with a transform: opened, converted, resized, cropped, flipped at every access."""

    def __init__(self, folder: Path, resolution: int, mode: str):
        self.paths = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg"))
        self.resolution, self.mode = resolution, mode
        metadata = folder / "metadata.jsonl"
        lines = metadata.read_text().splitlines() if metadata.exists() else []
        self.captions = [json.loads(line)["text"] for line in lines] or [""] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
        image = Image.open(self.paths[i]).convert(self.mode)
        image = image.resize((self.resolution,) * 2, Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1, self.captions[i]


def plain_steps(options: argparse.Namespace, precision: str, data_dir: Path) -> tuple[list[float], float]:
    """Seconds of each step, and the share of them spent waiting for data."""
    # accelerate holds one precision for a process, and `train` has been here: autocast is by hand.
    accelerator = Accelerator()
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16")
    channels = getattr(options, "channels", 3)
    with torch.device(accelerator.device):
        unet = build_unet(options.unet_size, sample_size=options.resolution, channels=channels)
    if getattr(options, "gradient_checkpointing", False):
        unet.enable_gradient_checkpointing()
    encoder = tokenizer = adapter = None
    if options.data == "text":
        encoder, tokenizer = load_text_encoder(options.text_encoder_name_or_path)
        encoder.requires_grad_(False).to(accelerator.device)
        adapter = TextAdapter.for_unet(unet, text_encoder=encoder).to(accelerator.device)
    ema = EMAModel(unet.parameters(), use_ema_warmup=True)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    images = _Folder(data_dir, options.resolution, "RGBA" if channels == 4 else "RGB")
    loader = torch.utils.data.DataLoader(images, batch_size=options.train_batch_size, shuffle=True, drop_last=True)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=10, num_training_steps=1000)
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    sec, waited = [], []
    batches = iter(loader)
    for _ in range(options.steps + options.warmup):
        start = time.perf_counter()
        try:
            images, captions = next(batches)  # (B, 3, H, W)
        except StopIteration:
            batches = iter(loader)
            images, captions = next(batches)
        waited.append(time.perf_counter() - start)
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),), device=images.device).long()  # (B,)
        x_t = scheduler.add_noise(images, noise, t)
        with accelerator.accumulate(unet):
            inputs = no_condition(accelerator.unwrap_model(unet), len(images), images.device)
            if encoder is not None:
                words = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
                words = {name: x.to(images.device) for name, x in words.items()}
                words.pop("token_type_ids", None)
                with torch.no_grad():
                    inputs = adapter(adapter.encode(words, encoder)).unet_kwargs()
            with autocast:
                prediction = unet(x_t, t, **inputs).sample
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
            accelerator.gather(loss.repeat(options.train_batch_size)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        ema.step(unet.parameters())
        loss.detach().item()
        sec.append(time.perf_counter() - start)
    return by_fives(sec[options.warmup :]), sum(waited[options.warmup :]) / sum(sec[options.warmup :])


def model_flops(options: argparse.Namespace) -> float:
    """Of one forward and backward pass of the UNet, per batch."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        channels = getattr(options, "channels", 3)
        unet = build_unet(options.unet_size, sample_size=options.resolution, channels=channels)
        x = torch.zeros(options.train_batch_size, channels, options.resolution, options.resolution)
        inputs = no_condition(unet, options.train_batch_size, torch.device("meta"))
        with FlopCounterMode(display=False) as counter:
            unet(x, torch.zeros(options.train_batch_size), **inputs).sample.sum().backward()
    return counter.get_total_flops()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("png32", "jpeg512", "text"), default="png32")
    parser.add_argument("--text_encoder_name_or_path", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--unet_size", default="s")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--mixed_precision", default=None)
    parser.add_argument("--compile", action="store_true", help="of ours")
    parser.add_argument("--steps", type=int, default=10, help="counted, in each turn; by fives")
    parser.add_argument("--warmup", type=int, default=5, help="not counted, in each turn; by fives")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = options.mixed_precision or fast_precision(device)
    sec: dict[str, list[float]] = {"ours": [], "plain": [], "bare": []}
    waits: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "images"
        data_dir.mkdir()
        write_data(options.data, data_dir, 600)
        for _ in range(options.turns):
            sec["bare"] += by_fives(bare_steps(options, precision, device))
            for name, steps in (("plain", plain_steps), ("ours", our_steps)):
                found, waited = steps(options, precision, data_dir)
                sec[name] += found
                waits[name].append(waited)
    step = {name: float(np.median(values)) for name, values in sec.items()}
    result = {
        **{k: getattr(options, k) for k in ("data", "unet_size", "resolution", "train_batch_size", "compile")},
        "precision": precision,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "images_per_sec": {name: round(options.train_batch_size / value, 1) for name, value in step.items()},
        "ours_over_plain": round(step["plain"] / step["ours"], 3),
        "ours_over_bare": round(step["bare"] / step["ours"], 3),
        "waiting_for_data": {name: round(float(np.median(values)), 4) for name, values in waits.items()},
        "peak_memory_gib": round(
            (
                torch.cuda.max_memory_allocated()
                if device.type == "cuda"
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
            / 2**30,
            2,
        ),
    }
    peak = next((v for k, v in _PEAK_FLOPS.items() if k in result["device"]), None)
    if peak:
        result["model_flop_utilisation"] = {
            n: round(model_flops(options) / value / peak, 3) for n, value in step.items()
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
