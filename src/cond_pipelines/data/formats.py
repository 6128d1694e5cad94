"""Which files hold images, by suffix, and which names are names of splits."""

import posixpath
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
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTIONS = (".txt", ".caption")
TABLES = (".csv", ".tsv", ".jsonl", ".xlsx", ".xls", ".ods")  # which may say what images show, by a name of their own
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tbz2", ".txz")  # archives that are not read
# Folders that systems and programs make, of thumbnails, deleted files and the like; names as they are in lower case.
_SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "$recycle.bin", "lost+found"),
    *("system volume information", "__pycache__"),
}

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
_YEAR = re.compile(r"(?<=[a-z])(19|20)\d\d$")  # of COCO's train2017
_MASK = re.compile(r"-(masklabel|condlabel)$")
_REPEATS = re.compile(r"^([1-9]\d{0,4})_(.+)", re.DOTALL)


def kind_of(name: str) -> str | None:
    """What a file holds, one of `KINDS`, by its suffix; None: none of them."""
    return _KINDS.get(posixpath.splitext(name.rstrip("/"))[1].lower())


def is_metadata(name: str) -> bool:
    """Whether a file is a table that is read: metadata.csv, .jsonl or .parquet, in letters of any case."""
    return posixpath.basename(name.rstrip("/")).lower() in _METADATA


def is_hidden_folder(name: str) -> bool:
    """Whether a folder's name says that what lies in it is not the user's.

    Example:
        >>> is_hidden_folder(".git"), is_hidden_folder("@eaDir"), is_hidden_folder("cat")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS or name.lower().endswith(".lrdata")  # of Lightroom


def is_mask(name: str) -> bool:
    """Whether an image is the mask of another, as OneTrainer names them: `x-masklabel.png` of `x.png`."""
    return bool(_MASK.search(PurePath(name).stem))


def split_of(name: str) -> str | None:
    """The split that a folder's or a table's name is: not one that holds such a word.

    Example:
        >>> split_of("val2017"), split_of("train-00000-of-00002.parquet"), split_of("freight train")
        ('validation', 'train', None)
    """
    stem = name if kind_of(name) is None else PurePath(name).stem
    return _SPLITS.get(_YEAR.sub("", _SHARD.sub("", stem).lower()))


def repeats_of(folder: str) -> tuple[int, str] | None:
    """How often the images of a folder are to be drawn and its name, where that is one of kohya's: `10_cat`.

    Example:
        >>> repeats_of("10_cat"), repeats_of("cat")
        ((10, 'cat'), None)
    """
    match = _REPEATS.match(folder)
    return (int(match[1]), match[2]) if match else None


def are_repeats(folders: list[str]) -> bool:
    """Whether folders are named as kohya's, and not as ones that are numbered: `1_cat`, `2_dog`."""
    found = [repeats_of(name) for name in folders]
    numbers = sorted(pair[0] for pair in found if pair is not None)
    counted = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return bool(found) and None not in found and not counted
