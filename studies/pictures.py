"""Real pictures for a study: a folder with a folder of images for each class. Used as `Shapes` of common.py is.

One half trains models. The other half stands for real images, and trains the reader, a support vector machine on the
pixels. It reads photographs and drawings badly, so each study shows its share on real images too.
"""

import hashlib
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

SIDE_PX = 16
_FEWEST = 4  # images of a class in each half


class Pictures:
    """The classes of a folder, the largest first, in images of 16 px on white.

    Args:
        folder: FOLDER/CLASS/IMAGE, such as `quality/icons/train` of `benchmarks/quality_data.py`.
        num_classes: how many of them are used. count: images of each class that a study trains on at most.

    Raises:
        ValueError: there are fewer classes or images, or a file is no image of 8 bits.
    """

    def __init__(self, folder: Path, num_classes: int, count: int):
        from sklearn.svm import SVC

        classes = {path.name: _files(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        largest = sorted(classes, key=lambda name: (-len(classes[name]), name))[:num_classes]
        if len(largest) < num_classes:
            raise ValueError(f"{folder} has {len(largest)} folders of images, and the study needs {num_classes}")
        for name in largest:
            if len(classes[name]) < 2 * max(count, _FEWEST):
                raise ValueError(
                    f"{folder / name} has {len(classes[name])} images, and the study needs {2 * max(count, _FEWEST)}: "
                    "one half of them stands for real ones"
                )
        self.kinds, rng = tuple(largest), np.random.default_rng(0)
        halves: list[list[tuple[Image.Image, int]]] = [[], []]  # to train, real
        digest = hashlib.sha256()
        for label, name in enumerate(self.kinds):
            images = [_on_white(file) for file in classes[name]]
            digest.update(b"".join([name.encode(), *(image.tobytes() for image in images)]))
            order = rng.permutation(len(images))
            for half, part in zip(halves, (order[: len(order) // 2], order[len(order) // 2 :]), strict=True):
                half += [(images[i], label) for i in part]
        self.content = digest.hexdigest()[:16]  # names and pixels
        self.trained, self.others = halves
        self.reader = SVC(C=10).fit(self._pixels(self.others), [label for _, label in self.others])

    def rows(self, count: int, seed: int) -> datasets.Dataset:
        """All of the half that trains, in an order of the seed; `count`, which the other data need, changes nothing."""
        return self._dataset([self.trained[i] for i in np.random.default_rng(seed).permutation(len(self.trained))])

    def real(self) -> datasets.Dataset:
        return self._dataset(self.others)

    def read(self, image: Image.Image) -> tuple[str]:
        return (self.kinds[int(self.reader.predict(self._pixels([(image, 0)]))[0])],)

    def share_of_real(self) -> float:
        """The share of the images that train models whose class the reader reads; it was trained on the others."""
        return float(np.mean(self.reader.predict(self._pixels(self.trained)) == [label for _, label in self.trained]))

    def _dataset(self, images: list[tuple[Image.Image, int]]) -> datasets.Dataset:
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(self.kinds)))
        columns = {"image": [image for image, _ in images], "label": [label for _, label in images]}
        return datasets.Dataset.from_dict(columns, features=features)

    def _pixels(self, images: list[tuple[Image.Image, int]]) -> np.ndarray:
        return np.stack([np.asarray(image, dtype=np.float64).reshape(-1) / 255 for image, _ in images])


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _on_white(file: Path) -> Image.Image:
    """Whole, with white at its sides and behind it."""
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # Pillow would make all of it white
                raise ValueError(f"{file} has more than 8 bits a channel: convert it first")
            image = opened.convert("RGBA")
    except OSError as error:
        raise ValueError(f"{file} is no image that can be read: {error}") from error
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE_PX, SIDE_PX), "white")
    canvas.alpha_composite(image, ((SIDE_PX - image.width) // 2, (SIDE_PX - image.height) // 2))
    return canvas.convert("RGB")
