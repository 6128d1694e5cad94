"""Which files hold images, by suffix, and which names are names of splits."""

import re
from pathlib import PurePath

# What Pillow opens without running another program: not PostScript, for which it would start Ghostscript, whatever the
# suffix says, nor formats of which it knows the header only.
PILLOW_FORMATS = (
    *(
        "PNG",
        "JPEG",
        "MPO",
        "WEBP",
        "GIF",
        "BMP",
        "DIB",
        "TIFF",
        "AVIF",
        "HEIF",
        "JPEG2000",
        "PPM",
        "TGA",
        "ICO",
        "ICNS",
    ),
    *(
        "DDS",
        "BLP",
        "FTEX",
        "PCX",
        "DCX",
        "PSD",
        "QOI",
        "SGI",
        "SUN",
        "XBM",
        "XPM",
        "IM",
        "MSP",
        "PIXAR",
        "FITS",
        "FLI",
    ),
    *("CUR", "GBR", "SPIDER"),
)
_IMAGES = (
    "png apng jpg jpeg jpe jfif webp gif bmp dib tif tiff avif avifs heic heics heif heifs hif jp2 j2k jpc jpf jpx j2c "
    "ppm pgm pbm pnm pfm tga icb vda vst ico icns cur dds blp ftc ftu pcx dcx psd qoi sgi bw rgb rgba ras xbm xpm im "
    "msp pxr fit fits fli flc gbr"
)
_KINDS = {f".{suffix}": "images" for suffix in _IMAGES.split()}
_KINDS |= {".npy": "arrays", ".parquet": "parquet", ".arrow": "arrow", ".tar": "tar", ".zip": "zip"}
KINDS = ("images", "arrays", "parquet", "arrow", "tar", "zip")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTIONS = (".txt", ".caption")

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
_MASK = re.compile(r"-(masklabel|condlabel)$")
_REPEATS = re.compile(r"^([1-9]\d*)_.+")


def kind_of(name: str) -> str | None:
    """What a file holds, one of `KINDS`, by its suffix; None: none of them."""
    return _KINDS.get(PurePath(name).suffix.lower())


def is_mask(name: str) -> bool:
    """Whether an image is the mask of another, as OneTrainer names them: `x-masklabel.png` of `x.png`."""
    return bool(_MASK.search(PurePath(name).stem))


def split_of(name: str) -> str | None:
    """The split that a folder's or a table's name is: not one that holds such a word.

    Example:
        >>> split_of("val"), split_of("train-00000-of-00002.parquet"), split_of("freight train")
        ('validation', 'train', None)
    """
    stem = name if kind_of(name) is None else PurePath(name).stem
    return _SPLITS.get(_SHARD.sub("", stem).lower())


def repeats_of(names: list[str]) -> dict[str, int]:
    """How often each folder's images are to be drawn, where the names are kohya's: `10_cat` is 10 times.

    Numbers that count the folders, such as `1_cat`, `2_dog`, are no repeats.
    """
    found = {name: int(match[1]) for name in names if (match := _REPEATS.match(name))}
    numbers = sorted(found.values())
    counts = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return found if found and len(found) == len(names) and not counts else {}
