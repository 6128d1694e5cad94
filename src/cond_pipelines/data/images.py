"""Image files to arrays of the channels and the size asked for: uint8, or float32 where a value range is declared."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "F")


def open_image(value: Any) -> Image.Image | np.ndarray:
    """What a `datasets` Image column holds, with or without decoding, to a fully read PIL image.

    What PIL has no mode for (numpy's own files, TIFFs of several deep channels, ...) comes as an array.

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
        if isinstance(value, list):  # an Array3D column
            value = np.asarray(value)
        if isinstance(value, np.ndarray):
            return _as_pil(value)
        image = value
        if not isinstance(value, Image.Image):
            image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        if (head := _head(value)) == b"\x93NUMPY":
            return _as_pil(_read_numpy(value))
        if head[:4] in (b"II*\0", b"MM\0*"):
            return _read_tiff(value)
        raise OSError("it is empty, or of no format that can be read") from error
    except Exception as error:  # PIL has no base class for what broken files raise
        raise OSError(str(error) or type(error).__name__) from error


def _head(value: Any) -> bytes:
    if isinstance(value, str | Path):
        with open(value, "rb") as file:
            return file.read(6)
    return value[:6] if isinstance(value, bytes) else b""


def _as_pil(array: np.ndarray) -> Image.Image | np.ndarray:
    """8-bit gray, RGB and RGBA as images; others as they are."""
    known = array.dtype == np.uint8 and array.ndim in (2, 3) and array.shape[2:] in ((), (3,), (4,))
    return Image.fromarray(array) if known else array


def _read_numpy(value: Any) -> np.ndarray:
    try:
        return np.load(io.BytesIO(value) if isinstance(value, bytes) else value, allow_pickle=False)
    except ValueError as error:  # truncated, or objects, which would be code
        raise OSError(str(error)) from error


def _read_tiff(value: Any) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise OSError("a TIFF that Pillow cannot read: pip install tifffile") from error
    try:
        return tifffile.imread(io.BytesIO(value) if isinstance(value, bytes) else value)
    except Exception as error:  # tifffile has no base class for what broken files raise
        raise OSError(str(error) or type(error).__name__) from error


def num_channels(image: Image.Image | np.ndarray) -> int:
    """How many are needed to lose nothing but transparency."""
    if isinstance(image, np.ndarray):
        return 1 if image.ndim == 2 else min(image.shape[0], image.shape[-1])
    return 1 if image.mode in ("1", "L", *_DEEP_MODES) else 3


def shorter_side_px(image: Image.Image | np.ndarray) -> int:
    """Of arrays (H, W), (H, W, C) and (C, H, W) alike."""
    return sorted(image.shape)[-2] if isinstance(image, np.ndarray) else min(image.size)


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


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def resize(image: Image.Image, size: int | tuple[int, int], interpolation: str = "lanczos") -> Image.Image:
    """To the smallest that covers `size` pixels, a side or (height, width), keeping the aspect ratio."""
    least = _sides(size)[::-1]  # (width, height)
    scale = max(a / b for a, b in zip(least, image.size, strict=True))
    sides = tuple(max(a, round(b * scale)) for a, b in zip(least, image.size, strict=True))
    return image if sides == image.size else image.resize(sides, Image.Resampling[interpolation.upper()])


def crop(array: np.ndarray, size: int | tuple[int, int], rng: np.random.Generator | None) -> np.ndarray:
    """`size`, a side or (height, width), of (H, W, C): the centre, or a random place where `rng` is given."""
    height, width = _sides(size)
    spare = np.array(array.shape[:2]) - (height, width)
    top, left = spare // 2 if rng is None else rng.integers(0, spare + 1)
    return array[top : top + height, left : left + width]


def size_px(value: Any) -> tuple[int, int]:
    """(height, width) of what an Image column holds, or `open_image` gave; of files only the beginning is read.

    Raises:
        OSError: missing or unreadable.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str | bytes):
        try:
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
                turned = image.getexif().get(0x0112, 1) >= 5  # EXIF's orientation
                return image.size if turned else image.size[::-1]
        except UnidentifiedImageError:
            pass
    if not isinstance(value, Image.Image | np.ndarray):
        value = open_image(value)
    if isinstance(value, Image.Image):
        return value.size[::-1]
    return value.shape[1:] if value.ndim == 3 and value.shape[0] < value.shape[-1] else value.shape[:2]


def to_array(
    image: Image.Image | np.ndarray,
    channels: int,
    size: int | tuple[int, int],
    interpolation: str = "lanczos",
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """What `open_image` gave to (H, W, channels) that just covers `size`: uint8, or float32 in [-1, 1].

    Args:
        value_range: the values that become -1 and 1. None: an image of 8 bits, or one that is brought to 8 bits.

    Raises:
        OSError: it has another number of channels, or values outside of the range.
    """
    if value_range is not None:
        return _scaled(image, channels, size, interpolation, *value_range)
    if isinstance(image, np.ndarray):
        raise OSError(
            f"an array of {image.dtype} and shape {image.shape}: say with --value_range LOW HIGH what it holds"
        )
    array = np.asarray(resize(convert(image, channels), size, interpolation))
    return array.reshape(*array.shape[:2], channels)


def _scaled(
    image: Image.Image | np.ndarray, channels: int, size: Any, interpolation: str, low: float, high: float
) -> np.ndarray:
    array = np.asarray(image.convert("RGB") if getattr(image, "mode", "") == "P" else image).astype(np.float32)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[-1] != channels and array.shape[0] == channels:
        array = np.moveaxis(array, 0, -1)  # (C, H, W), as satellite images often are
    if array.ndim != 3 or array.shape[-1] != channels:
        raise OSError(f"its shape is {array.shape}, not (height, width, {channels}): see --channels")
    if not (array.min() >= low and array.max() <= high):  # also where a value is not a number
        raise OSError(f"its values, {array.min():g} to {array.max():g}, are outside of --value_range {low:g} {high:g}")
    planes = [np.asarray(resize(Image.fromarray(plane), size, interpolation)) for plane in np.moveaxis(array, -1, 0)]
    scaled = (np.stack(planes, axis=-1) - low) / (high - low) * 2 - 1  # (H, W, C)
    return np.clip(scaled, -1, 1, dtype=np.float32)  # the interpolation may overshoot
