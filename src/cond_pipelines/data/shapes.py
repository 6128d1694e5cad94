"""An embedded data set: one coloured shape on a plain background, drawn on the fly, with a label and a caption.

draw: attributes -> image, caption: attributes -> sentence, read_attributes: image -> attributes. Since every attribute
can be read back from the pixels, a model trained here can be graded without a classifier.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import datasets
import numpy as np
from PIL import Image

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (225, 35, 35),
    "green": (25, 165, 50),
    "blue": (25, 45, 235),
    "yellow": (245, 220, 30),
    "magenta": (220, 45, 205),
    "cyan": (0, 215, 225),
}
BACKGROUNDS = {"black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255)}
# No name is both a colour and a background, so every combination is visible.
COMBINATIONS = tuple(product(SHAPES, COLOURS, BACKGROUNDS))

CAPTION_TEMPLATES = (
    "a {size}{colour} {shape} on a {background} background",
    "there is a {size}{colour} {shape} on {background}",
    "on a {background} background, a {size}{colour} {shape}",
    "a {background} background with a {size}{colour} {shape}",
    "a picture of a {size}{colour} {shape} on {background}",
    "a drawing that shows a {size}{colour} {shape} against a {background} background",
    "the background is {background} and there is a {size}{colour} {shape} on it",
    "a {size}{shape} in {colour} on a {background} background",
    "a plain {background} image of a {size}{colour} {shape}",
    "one {size}{colour} {shape}, {background} background",
)

SIZE_RANGE = (0.64, 0.82)  # side of the shape's bounding box / side of the image
SMALL_BELOW, LARGE_ABOVE = 0.69, 0.77  # the captions' size words
_MAX_SHIFT = 0.08  # of the centre from the middle / side of the image
_MARGIN = 0.06  # background left around the shape: about one pixel at 16 px


# --------------------------------------------------------------------------------------------------- attributes
def draw(
    shape: str,
    colour: str,
    background: str,
    *,
    image_size_px: int = 16,
    size: float = 0.7,
    centre: tuple[float, float] = (0.5, 0.5),
) -> Image.Image:
    """Draw one anti-aliased shape as an RGB image of (image_size_px, image_size_px).

    `size` is the side of the shape's bounding box and `centre` its middle (x, y), as fractions of the image's side.
    Raises ValueError for an unknown name or a size outside (0, 1].

        image = draw("ring", "blue", "grey", image_size_px=32)
        image.size                      # (32, 32)
        read_attributes(image)          # {"shape": "ring", "colour": "blue", "background": "grey"}
    """
    for value, known in ((shape, SHAPES), (colour, COLOURS), (background, BACKGROUNDS)):
        if value not in known:
            raise ValueError(f"unknown name {value!r}: use one of {', '.join(known)}")
    if not 0 < size <= 1:
        raise ValueError(f"size={size} is a fraction of the image's side: use a number in (0, 1]")
    _check_image_size(image_size_px)
    ink = _coverage(shape, image_size_px, size, *centre)[..., None]  # (H, W, 1)
    pixels = (1 - ink) * np.array(BACKGROUNDS[background]) + ink * np.array(COLOURS[colour])  # (H, W, 3)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def caption(
    shape: str,
    colour: str,
    background: str,
    *,
    size: float | None = None,
    rng: np.random.Generator | None = None,
) -> str:
    """Say what an image shows, in one English sentence.

    With `rng` the wording varies, and where `size` is given and notable, half of the sentences say "small" or "large".
    Without `rng` it is the plainest wording, for prompts.

        caption("circle", "red", "black")                              # "a red circle on a black background"
        rng = np.random.default_rng(0)
        caption("circle", "red", "black", size=0.5, rng=rng)           # for instance "one small red circle, black ..."
    """
    if rng is None:
        return CAPTION_TEMPLATES[0].format(size="", colour=colour, shape=shape, background=background)
    template = CAPTION_TEMPLATES[rng.integers(len(CAPTION_TEMPLATES))]
    say_size = rng.random() < 0.5  # drawn always, so that the random stream does not depend on the size
    word = ""
    if size is not None and say_size:
        word = "small " * (size < SMALL_BELOW) + "large " * (size > LARGE_ABOVE)
    return template.format(size=word, colour=colour, shape=shape, background=background)


def split_combinations(held_out_fraction: float = 0.2, *, seed: int = 0) -> tuple[list[tuple], list[tuple]]:
    """Split COMBINATIONS into (seen, unseen) lists of (shape, colour, background).

    Every pair of two attribute values (so every single value too) stays in `seen`: an unseen combination is a new
    composition of familiar parts. Raises ValueError where `held_out_fraction` leaves too few for that.

        seen, unseen = split_combinations(0.2)
        len(seen), len(unseen)                  # (72, 18)
        set(seen) & set(unseen)                 # set()
    """
    num_held_out = round(held_out_fraction * len(COMBINATIONS))
    left = Counter(pair for combination in COMBINATIONS for pair in _pairs(combination))
    unseen = set()
    for i in np.random.default_rng(seed).permutation(len(COMBINATIONS)):
        pairs = _pairs(COMBINATIONS[i])
        if len(unseen) < num_held_out and all(left[pair] > 1 for pair in pairs):
            unseen.add(COMBINATIONS[i])
            left.subtract(pairs)
    if held_out_fraction < 0 or len(unseen) < num_held_out:
        raise ValueError(f"held_out_fraction={held_out_fraction} leaves pairs of attributes unseen: use 0 to 0.5")
    return [c for c in COMBINATIONS if c not in unseen], [c for c in COMBINATIONS if c in unseen]


def _pairs(combination: tuple) -> list[tuple]:
    shape, colour, background = combination
    return [(shape, colour), (shape, background), (colour, background)]


# ----------------------------------------------------------------------------------------------------- data set
def make_example(
    index: int, *, seed: int = 0, image_size_px: int = 16, combinations: Sequence[tuple] = COMBINATIONS
) -> dict[str, object]:
    """Make example `index` of the set `seed`; it depends on nothing but the arguments.

    Returns image (RGB PIL), label (index in SHAPES), caption, shape, colour, background (strings) and size (float).

        example = make_example(7, seed=0)
        example["caption"]              # a sentence about example["image"]
        make_example(7, seed=0) == example
    """
    rng = np.random.default_rng([seed, index])
    shape, colour, background = combinations[rng.integers(len(combinations))]
    size = rng.uniform(*SIZE_RANGE)
    max_shift = min(_MAX_SHIFT, 0.5 - size / 2 - _MARGIN)
    x, y = 0.5 + max_shift * rng.uniform(-1, 1, 2)
    return {
        "image": draw(shape, colour, background, image_size_px=image_size_px, size=size, centre=(x, y)),
        "label": SHAPES.index(shape),
        "caption": caption(shape, colour, background, size=size, rng=rng),
        "shape": shape,
        "colour": colour,
        "background": background,
        "size": size,
    }


def load_shapes(
    num_images: int,
    *,
    seed: int = 0,
    image_size_px: int = 16,
    combinations: str = "all",
    held_out_fraction: float = 0.2,
    split_seed: int = 0,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Serve the drawn shapes as an ordinary `datasets` data set.

    Columns: image (Image), label (ClassLabel of SHAPES), caption, shape, colour, background (string), size (float64).
    `combinations` is "all", or "seen" / "unseen" by `split_combinations(held_out_fraction, seed=split_seed)`. Another
    `seed` gives other images with the same split. The set lies in memory (about 0.3 kB an image at 16 px), nothing is
    cached on disk; with `streaming` the same examples are drawn as they are read.

        train = load_shapes(10_000, combinations="seen")
        train[0]["caption"], train.features["label"].names
        test = load_shapes(256, combinations="unseen", seed=1)
    """
    if num_images < 1:
        raise ValueError(f"num_images={num_images}: ask for at least one image")
    _check_image_size(image_size_px)
    seen, unseen = split_combinations(held_out_fraction, seed=split_seed)
    chosen = {"all": list(COMBINATIONS), "seen": seen, "unseen": unseen}.get(combinations)
    if not chosen:
        reason = "held_out_fraction holds out none" if combinations == "unseen" else 'use "all", "seen" or "unseen"'
        raise ValueError(f"combinations={combinations!r}: {reason}")
    strings = {name: datasets.Value("string") for name in ("caption", "shape", "colour", "background")}
    label = datasets.ClassLabel(names=list(SHAPES))
    features = datasets.Features(image=datasets.Image(), label=label, **strings, size=datasets.Value("float64"))
    options = {"seed": seed, "image_size_px": image_size_px, "combinations": chosen}
    if streaming:
        indices = datasets.Dataset.from_dict({"index": range(num_images)})
        indices = indices.to_iterable_dataset(num_shards=min(16, num_images))  # DataLoader workers share the shards
        return indices.map(_row, input_columns="index", remove_columns="index", fn_kwargs=options).cast(features)
    rows = [_row(index, **options) for index in range(num_images)]
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def _row(index: int, **options) -> dict:
    example = make_example(index, **options)
    png = io.BytesIO()
    example["image"].save(png, "PNG", compress_level=1)
    return example | {"image": {"bytes": png.getvalue(), "path": None}}


# ------------------------------------------------------------------------------------------------------- reader
_READ_SIZE_PX = 16  # larger images are reduced to this: it bounds the time, and averages noise out
_DECOYS = ("diamond", "blob")  # fitted too, so that what resembles them more than any shape is not called a circle
_MAX_COLOUR_DISTANCE = 65.0  # Euclidean, RGB 0..255; half the least distance between any two named colours
_MIN_CONTRAST = 60.0
_MAX_OFF_SEGMENT, _MAX_OFF_SHARE = 0.3, 0.08  # of the contrast; of the ink's area
_MAX_ERROR = 0.07  # squared error per pixel of ink
_MIN_ERROR_RATIO = 1.6  # the second best shape must fit this much worse


def read_attributes(image: Image.Image | np.ndarray) -> dict[str, str | None]:
    """Read {"shape", "colour", "background"} off a square image; None for what cannot be told.

    `image` is a PIL image or an (H, H, 3) array, uint8 or float in [0, 1], H >= 16. Exact on the examples of the data
    set; tolerant of a little noise, blur and wobble. Noise, blank images, blobs, cut shapes, several shapes and mixed
    colours give shape None. Raises ValueError for another layout or range.

        read_attributes(draw("cross", "cyan", "grey"))      # {"shape": "cross", "colour": "cyan", "background": "grey"}
        read_attributes(np.zeros((16, 16, 3)))              # {"shape": None, "colour": None, "background": "black"}
        read_attributes(pipe(...).images[0])["shape"]
    """
    pixels = _as_pixels(image)  # (16, 16, 3) float, 0..255
    answer: dict[str, str | None] = {"shape": None, "colour": None, "background": None}
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])  # (60, 3)
    backdrop = np.median(border, axis=0)
    if np.mean(np.linalg.norm(border - backdrop, axis=-1) < _MIN_CONTRAST) < 0.7:
        return answer
    answer["background"] = _nearest_name(backdrop, BACKGROUNDS)

    distance = np.linalg.norm(pixels - backdrop, axis=-1)  # (16, 16)
    core = distance >= 0.8 * np.sort(distance, axis=None)[-8]
    ink = np.median(pixels[core], axis=0)
    contrast = np.linalg.norm(ink - backdrop)
    if contrast < _MIN_CONTRAST:
        return answer
    mask = (pixels - backdrop) @ (ink - backdrop) / contrast**2  # (16, 16): 0 backdrop, 1 ink
    # Anti-aliasing mixes backdrop and ink, nothing else: what lies off that segment is a third colour.
    blended = backdrop + np.clip(mask, 0, 1)[..., None] * (ink - backdrop)  # (16, 16, 3)
    off_segment = np.linalg.norm(pixels - blended, axis=-1)
    if np.sum(off_segment > _MAX_OFF_SEGMENT * contrast) > _MAX_OFF_SHARE * mask.sum():
        return answer
    answer["colour"] = _nearest_name(ink, COLOURS)
    answer["shape"] = _match_shape(mask)
    return answer


def _as_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"image has shape {image.shape}: expected (H, W, 3)")
        if image.dtype != np.uint8:
            if not (image.min() >= -0.01 and image.max() <= 1.01):  # also refuses NaN
                raise ValueError(f"float image ranges over {image.min():.3g} to {image.max():.3g}: expected [0, 1]")
            image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(image)
    if image.width != image.height or image.width < _READ_SIZE_PX:
        raise ValueError(f"image is {image.width}x{image.height} px: expected a square of at least {_READ_SIZE_PX} px")
    image = image.convert("RGB").resize((_READ_SIZE_PX, _READ_SIZE_PX), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64)


def _nearest_name(rgb: np.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> str | None:
    distances = {name: np.linalg.norm(rgb - np.array(value)) for name, value in palette.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] < _MAX_COLOUR_DISTANCE else None


def _match_shape(mask: np.ndarray) -> str | None:
    """Fit every shape to the soft mask (16, 16), whose area and centroid give each shape's size and place."""
    area = mask.mean()
    if area <= 0.03:
        return None
    x, y = ((mask * axis).mean() / area for axis in _pixel_grid(_READ_SIZE_PX))
    clipped = np.clip(mask, 0, 1)
    errors = {}
    for shape in SHAPES + _DECOYS:
        unit_area, unit_centroid = _UNIT_MOMENTS[shape]
        size = np.sqrt(area / unit_area)
        if shape in SHAPES and not 0.8 * SIZE_RANGE[0] < size < 1.2 * SIZE_RANGE[1]:
            continue
        scale, dx, dy = _FIT_GRID
        sharp = _coverage(shape, _READ_SIZE_PX, size * scale, x + dx, y + dy - unit_centroid * size * scale)
        soft = _BLUR @ sharp @ _BLUR  # (27, 16, 16)
        templates = np.stack([sharp, soft, _BLUR @ soft @ _BLUR])  # (3, 27, 16, 16)
        errors[shape] = ((clipped - templates) ** 2).mean(axis=(-2, -1)).min() / area
    best, second = sorted(errors, key=errors.get)[:2]  # the decoys are always there
    clear = errors[best] < _MAX_ERROR and errors[second] > _MIN_ERROR_RATIO * errors[best]
    return best if clear and best in SHAPES else None


# ----------------------------------------------------------------------------------------------------- geometry
def _coverage(shape, image_size_px, size, x, y) -> np.ndarray:
    """Share of each pixel that the shape covers, (..., H, W) in [0, 1]; size, x, y broadcast as (..., 1, 1).

    Signed distance functions (negative inside) as in https://iquilezles.org/articles/distfunctions2d/.
    """
    grid_x, grid_y = _pixel_grid(image_size_px)
    x, y, half = grid_x - x, grid_y - y, size / 2
    if shape == "circle":
        distance = np.hypot(x, y) - half
    elif shape == "square":
        distance = np.maximum(abs(x), abs(y)) - half
    elif shape == "triangle":  # apex (0, -half), base from (-half, half) to (half, half)
        distance = np.maximum((2 * abs(x) - y - half) / np.sqrt(5), y - half)
    elif shape == "cross":  # two bars, each a third as wide as long
        x, y = abs(x), abs(y)
        distance = np.minimum(np.maximum(x - half / 3, y - half), np.maximum(x - half, y - half / 3))
    elif shape == "ring":  # its hole has half its diameter
        distance = abs(np.hypot(x, y) - 0.75 * half) - 0.25 * half
    elif shape == "diamond":
        distance = (abs(x) + abs(y) - half) / np.sqrt(2)
    else:  # blob: a Gaussian, without an edge
        return np.exp(-(x**2 + y**2) / (2 * (half / 2) ** 2))
    return np.clip(0.5 - distance * image_size_px, 0, 1)


def _pixel_grid(image_size_px: int) -> tuple[np.ndarray, np.ndarray]:
    middles = (np.arange(image_size_px) + 0.5) / image_size_px
    return middles[None, :], middles[:, None]


def _check_image_size(image_size_px: int) -> None:
    if image_size_px < _READ_SIZE_PX:
        raise ValueError(f"image_size_px={image_size_px}: shapes cannot be told apart below {_READ_SIZE_PX} px")


def _unit_moments(shape: str) -> tuple[float, float]:
    mask = _coverage(shape, 128, 0.5, 0.5, 0.5)
    return 4 * mask.mean(), 2 * ((mask * _pixel_grid(128)[1]).sum() / mask.sum() - 0.5)


_UNIT_MOMENTS = {shape: _unit_moments(shape) for shape in SHAPES + _DECOYS}  # area and centroid y at size 1
_FIT_GRID = np.stack(np.meshgrid((0.94, 1.0, 1.06), (-0.02, 0.0, 0.02), (-0.02, 0.0, 0.02))).reshape(3, -1, 1, 1)
_BLUR = np.eye(_READ_SIZE_PX) / 2 + (np.eye(_READ_SIZE_PX, k=1) + np.eye(_READ_SIZE_PX, k=-1)) / 4  # about 0.7 px
