"""What a GPU machine cannot fetch: digits, a reader that judges them, photographs, icons; about 9 MB."""

import argparse
import shutil
import tempfile
from pathlib import Path

import datasets
import mnist_digits
import sklearn.datasets
from PIL import Image

_NUM_DIGITS = 20_000


def prepare(folder: Path) -> None:
    """Write mnist, its reader, photographs and icons into `folder`; what is there is kept.

    The icons are of the folder that quality_data.py wrote: quality/icons/train, where that is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader, digits = folder / "mnist_reader.safetensors", folder / "mnist/train.parquet"
    if not digits.is_file():
        digits.parent.mkdir(exist_ok=True)
        write_digits(digits, *(x[:_NUM_DIGITS] for x in mnist_digits.read_package()))
    if not reader.is_file():
        with tempfile.TemporaryDirectory() as images:
            mnist_digits.prepare(argparse.Namespace(out_dir=Path(images)))
            mnist_digits.fit_reader(argparse.Namespace(data_dir=Path(images), out_file=reader))
    photographs = folder / "photographs"
    photographs.mkdir(exist_ok=True)
    for path in sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg")):
        shutil.copy(path, photographs)
    if Path("quality/icons/train").is_dir():
        shutil.copytree("quality/icons/train", folder / "icons", dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")


def write_digits(path: Path, images: "mnist_digits.np.ndarray", labels: "mnist_digits.np.ndarray") -> None:
    """Images (N, 28, 28) uint8 and labels (N,) as one parquet file, which `--train_data_dir` takes."""
    names = datasets.ClassLabel(names=mnist_digits.DIGIT_NAMES)
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = {"image": [Image.fromarray(image) for image in images], "label": [int(label) for label in labels]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
