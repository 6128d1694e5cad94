"""The training images that are nearest to an image, in pixels: is a sample new, or one of them?"""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..data.labels import condition_name
from ..data.load import TrainingData
from ..errors import UserError
from .measures import nearest
from .reader import real_image

_MOST = 20_000  # images that are compared


class TrainingImages:
    """The images that a run was trained on, to search among.

    Args:
        data: of the run. Raises UserError for a stream.

    Example:
        >>> TrainingImages(data).nearest(image, count=1)
        [{"image": <PIL.Image.Image ...>, "distance": 0.07, "name": "flowers/rose/3.png", "condition": "rose"}]
    """

    def __init__(self, data: TrainingData):
        if data.train is None:
            raise UserError("the data of this model are a stream: there is nothing to search")
        self.data, self.rows = data, data.train[:_MOST]
        self.size = real_image(data, self.rows[0]).size
        self.pixels = np.stack([self._pixels(real_image(data, row)) for row in self.rows])  # (N, H * W * 3)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """(H * W * 3,) in [0, 1], of the middle of an image."""
        fitted = ImageOps.fit(image.convert("RGB"), self.size)
        return np.asarray(fitted, dtype=np.float32).ravel() / 255

    def nearest(self, image: Image.Image, count: int = 6) -> list[dict[str, Any]]:
        """The `count` nearest, nearest first; "distance" is the root mean square of the pixels' difference, 0 to 1."""
        distances, indices = nearest(self._pixels(image)[None], self.pixels, k=min(count, len(self.rows)))
        items = []
        for distance, index in zip(distances[0], indices[0], strict=True):
            row = self.rows[index]
            condition = self.data.conditions(np.array([row]))[0]
            items.append(
                {
                    "image": real_image(self.data, row),
                    "distance": float(distance) / self.pixels.shape[1] ** 0.5,
                    "name": self.data.dataset.name(int(self.data.dataset.usable[row])),
                    "condition": None if condition is None else condition_name(condition, self.data.id2label),
                }
            )
        return items
