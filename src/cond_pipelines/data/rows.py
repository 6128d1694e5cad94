"""One row of a data set, and what is wrong with it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError


class BadRow(UserError):
    """A row that cannot be used; the message names it and says why."""

    def __init__(self, message: str):
        # A DataLoader's worker wraps the message in its traceback: keep the line that matters.
        super().__init__(message.rsplit("BadRow: ", 1)[-1].strip())


@dataclass
class Row:
    """One training example.

    Args:
        pixels: (H, W, C) uint8, or float32 in [-1, 1].
        condition: what the adapter's `preprocess` takes, or None.
        latents: (c, h, w) float32, what a VAE made of the pixels, where that was kept.
        source: for messages: the row of the data set, or the name of an image of a stream.
    """

    pixels: np.ndarray
    condition: Any
    flipped: bool = False
    latents: np.ndarray | None = None
    source: int | str = ""


def row_name(row: str, image: Any) -> str:
    """How a user finds a row: its number, and its file where there is one."""
    path = image.get("path") if isinstance(image, dict) else None
    return f"{row} ({path})" if path else row
