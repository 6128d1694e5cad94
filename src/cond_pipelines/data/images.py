"""Image files to uint8 arrays of the channels and the size asked for."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "F")


def open_image(value: Any) -> Image.Image:
    """What a `datasets` Image column holds, with or without decoding, to a fully read PIL image.

    Raises:
        OSError: missing, unreadable or truncated.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise OSError("there is none")
    if isinstance(value, bytes) and not value:
        raise OSError("it is empty")
    try:
        if isinstance(value, np.ndarray):
            value = Image.fromarray(value)
        image = value
        if not isinstance(value, Image.Image):
            image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise OSError("it is empty, or of no format that can be read") from error
    except Exception as error:  # PIL has no base class for what broken files raise
        raise OSError(str(error) or type(error).__name__) from error


def is_gray(image: Image.Image) -> bool:
    """True where one channel loses nothing."""
    return image.mode in ("1", "L", *_DEEP_MODES)


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Any PIL image to L, RGB or RGBA, 8 bits.

    Alpha is composited on white where the result has none. 16-bit values are scaled, not cut. Palettes are resolved.
    """
    if image.mode in _DEEP_MODES:
        values = np.asarray(image).astype(np.float32)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max(initial=1.0)))
        top = 255.0 if image.mode == "I" and values.max(initial=0.0) <= 255 else top
        image = Image.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(_MODES[channels])


def resize(image: Image.Image, resolution: int, interpolation: str = "lanczos") -> Image.Image:
    """The shorter side to `resolution` pixels, keeping the aspect ratio."""
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    return image if size == image.size else image.resize(size, Image.Resampling[interpolation.upper()])


def crop(array: np.ndarray, resolution: int, rng: np.random.Generator | None) -> np.ndarray:
    """A square (resolution, resolution, C) of (H, W, C): the centre, or a random place where `rng` is given."""
    spare = np.array(array.shape[:2]) - resolution
    top, left = spare // 2 if rng is None else rng.integers(0, spare + 1)
    return array[top : top + resolution, left : left + resolution]


def to_array(image: Image.Image, channels: int, resolution: int, interpolation: str = "lanczos") -> np.ndarray:
    """A PIL image to (H, W, channels) uint8 with min(H, W) = resolution."""
    array = np.asarray(resize(convert(image, channels), resolution, interpolation))
    return array.reshape(*array.shape[:2], channels)
