"""Image files to arrays with the channels and the size that a model takes: uint8, or float32 of a declared range."""

import io
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import describe
from .archives import open_path
from .formats import PILLOW_FORMATS

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "F")
# Of what is longer, and would be large, the middle is used: a spacer of 4,000 x 1 px at 256 px would take 2.9 GB.
_MOST_ELONGATED, _MOST_ELONGATED_PIXELS = 16, 2**22
ANIMATED = "is_animated"  # in the `info` of an image of which this is the first frame
MOST_PIXELS_VARIABLE = "COND_PIPELINES_MOST_PIXELS"  # of an image; more are taken for a decompression bomb


if MOST_PIXELS_VARIABLE in os.environ:
    Image.MAX_IMAGE_PIXELS = int(os.environ[MOST_PIXELS_VARIABLE])


def open_image(value: Any, deep: bool = False) -> Image.Image | np.ndarray:
    """What a `datasets` Image column holds, with or without decoding, to a fully read PIL image, of sRGB if of colour.

    The first frame of an animation. What PIL has no mode for (numpy's own files, TIFFs of several deep channels, ...)
    comes as an array. No other program is started, and nothing that a file holds is run.

    Args:
        deep: keep all bits of images of several channels of 16 bits, of which Pillow reads 8.

    Raises:
        OSError: missing, unreadable, truncated, or too large.
    """
    try:
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is None:
            raise OSError("there is none")
        if isinstance(value, bytes) and not value:
            raise OSError("it is empty")
        if isinstance(value, list):  # an Array3D column
            value = np.asarray(value)
        if isinstance(value, np.ndarray):
            return _as_pil(value)
        if isinstance(value, Image.Image):
            value.load()
            return _to_srgb(ImageOps.exif_transpose(value))
        with _opened(value) as file:
            return _read(file, deep)
    except OSError as error:
        text = str(error) or type(error).__name__
        raise (error if str(error) and "BytesIO" not in text else OSError(text)) from error
    except (Exception, MemoryError) as error:  # PIL and tifffile have no base class for what broken files raise
        raise OSError(_reason(error)) from error


def _opened(value: Any) -> BinaryIO:
    return io.BytesIO(value) if isinstance(value, bytes) else open_path(os.fspath(value))


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError | SyntaxError) or not str(error):
        return describe(error)
    return str(error)


def _read(file: BinaryIO, deep: bool) -> Image.Image | np.ndarray:
    head = file.read(32)
    file.seek(0)
    if head[:6] == b"\x93NUMPY":
        return _as_pil(_read_numpy(file))
    try:
        with _identified(file) as image:
            if deep and ";16" in str(image.tile) and image.mode in ("RGB", "RGBA", "LA"):
                if head[:4] in _TIFF:
                    return _read_tiff(file)
                raise OSError("it has several channels of 16 bits, of which Pillow reads 8: save it as TIFF or .npy")
            is_animated = bool(getattr(image, "is_animated", False))
            image.load()
            still = _to_srgb(ImageOps.exif_transpose(image))
            still.info[ANIMATED] = is_animated
            return still
    except UnidentifiedImageError as error:
        if head[:4] in _TIFF:
            return _read_tiff(file)
        raise OSError(_unknown(head)) from error


def _unknown(head: bytes) -> str:
    if _is_heif(head):
        return "it is HEIC or HEIF: pip install pillow-heif"
    if head[:4] in (b"%!PS", b"\xc5\xd0\xd3\xc6"):
        return "it is PostScript, which is a program and not opened: save it as PNG"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS to the file: git lfs pull"
    return "it is empty, or of no format that can be read"


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and re.match(b"hei|hev|mif1|msf1", head[8:12]) is not None


def _identified(file: BinaryIO) -> Image.Image:
    """An image whose pixels are not read yet. Raises OSError where it has none or too many."""
    if _is_heif(file.read(12)):
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    file.seek(0)
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in PILLOW_FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        allowed = f"; {MOST_PIXELS_VARIABLE}={pixels[0] if pixels else ''} allows it"
        raise OSError(str(error).rstrip(".") + allowed) from error
    if not image.width * image.height:
        raise OSError("it has no pixels")
    return image


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours of another profile, such as Display P3, Adobe RGB or a printer's CMYK, as sRGB; others as they are."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(theirs) and image.mode != "CMYK":
            return image
        mode = "RGB" if image.mode == "CMYK" else image.mode
        converted = ImageCms.profileToProfile(image, theirs, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a profile that is damaged or of another mode
        return image
    return converted or image


def _as_pil(array: np.ndarray) -> Image.Image | np.ndarray:
    """8-bit gray, RGB and RGBA as images; others as they are. Raises OSError for what is no image."""
    if array.dtype.kind not in "biuf":
        raise OSError(f"its values are of type {array.dtype}, not numbers")
    if array.ndim not in (2, 3) or not array.size:
        several = ", but of several: save each as a file of its own" if array.ndim == 4 else ""
        raise OSError(f"its shape is {array.shape}, not that of an image{several}")
    known = array.dtype == np.uint8 and array.shape[2:] in ((), (3,), (4,))
    return Image.fromarray(array) if known else array


def array_shape(head: bytes) -> tuple[int, ...]:
    """The shape that the first 4 KiB of a .npy file declare. Raises ValueError where they are none."""
    return _numpy_header(io.BytesIO(head))[0]


def _numpy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_numpy(file: BinaryIO) -> np.ndarray:
    shape, dtype = _numpy_header(file)
    start = file.tell()
    needed, there = math.prod(map(int, shape)) * dtype.itemsize, file.seek(0, 2) - start
    if needed > there and not dtype.hasobject:
        raise OSError(f"it is truncated: it says that it has {needed:,} bytes of numbers, and it has {there:,}")
    file.seek(0)
    return np.load(file, allow_pickle=False)  # objects would be code


def _read_tiff(file: BinaryIO) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise OSError("a TIFF that Pillow cannot read: pip install tifffile") from error
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        shape, limit = tiff.series[0].shape, 16 * 2 * (Image.MAX_IMAGE_PIXELS or 2**40)
        if math.prod(map(int, shape)) > limit:
            raise OSError(f"it says that its shape is {shape}, more numbers than {MOST_PIXELS_VARIABLE} allows")
        return _as_pil(tiff.asarray())


def num_channels(image: Image.Image | np.ndarray) -> int:
    """How many are needed to lose nothing but transparency."""
    if isinstance(image, np.ndarray):
        return 1 if image.ndim == 2 else min(image.shape[0], image.shape[-1])
    return 1 if is_gray(image.mode) else 3


def is_gray(mode: str) -> bool:
    """Whether one of Pillow's modes has one channel."""
    return mode in ("1", "L", *_DEEP_MODES)


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
    if scale**2 * image.width * image.height > _MOST_ELONGATED_PIXELS:
        image = _middle(image)
    sides = tuple(max(a, round(b * scale)) for a, b in zip(least, image.size, strict=True))
    return image if sides == image.size else image.resize(sides, Image.Resampling[interpolation.upper()])


def _middle(image: Image.Image) -> Image.Image:
    """The image without the ends of what is more than `_MOST_ELONGATED` times as long as it is wide."""
    width, height = image.size
    longest = _MOST_ELONGATED * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


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
    header = read_header(value)
    if header is not None:
        return header.height, header.width
    if not isinstance(value, Image.Image | np.ndarray):
        value = open_image(value)
    if isinstance(value, Image.Image):
        return value.size[::-1]
    return value.shape[1:] if value.ndim == 3 and value.shape[0] < value.shape[-1] else value.shape[:2]


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say: its size as it is shown, Pillow's mode, frames, and bits a channel."""

    height: int
    width: int
    mode: str
    num_frames: int = 1
    has_profile: bool = False
    is_8_bit: bool = True


def read_header(value: Any) -> Header | None:
    """Of an image file, undecoded; None for what Pillow does not open. Raises OSError where it cannot be read."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(value, str | bytes):
        return None
    try:
        with _opened(value) as file, _identified(file) as image:
            height, width = image.size[:: 1 if image.getexif().get(0x0112, 1) >= 5 else -1]  # EXIF's orientation
            frames = image.n_frames if getattr(image, "is_animated", False) else 1
            is_deep = image.mode in _DEEP_MODES or ";16" in str(image.tile)  # colour of 16 bits has the mode of 8
            return Header(height, width, image.mode, frames, "icc_profile" in image.info, not is_deep)
    except UnidentifiedImageError:
        return None
    except OSError:
        raise
    except (Exception, MemoryError) as error:
        raise OSError(_reason(error)) from error


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
