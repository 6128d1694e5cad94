"""cond-pipelines sample: a model, conditions and settings to one picture, a row for each condition."""

import json
from argparse import ArgumentTypeError, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .console import for_terminal, say
from .errors import OneLineParser, UserError
from .files import whole_file

if TYPE_CHECKING:
    from PIL import Image

    from .pipelines.conditional import ConditionalPipeline

_SOFTWARE = "cond_pipelines"  # in each picture's text; a picture that has it may be replaced
_IN_COLUMNS = ("guidance_scale", "guide_scale", "num_inference_steps", "strength")


def parser() -> OneLineParser:
    """The arguments of `cond-pipelines sample`."""
    arguments = OneLineParser(
        prog="cond-pipelines sample",
        description="Draw samples of a model into one picture: a row for each condition, a column for each setting. "
        "All rows and columns start from the same noise.",
    )
    arguments.add_argument("model", help="folder or Hub id of a model, or builtin:shapes-text, builtin:shapes-class")
    arguments.add_argument(
        "condition", nargs="*", help="a class's name or id, a caption, numbers separated by commas; none: p(x)"
    )
    arguments.add_argument("--num_images", type=_count, default=4, help="of each condition and setting (4)")
    arguments.add_argument("--seed", type=_seed, default=0, help="of the first image; the next ones count up (0)")
    arguments.add_argument("--guidance_scale", type=float, nargs="+", help="one or several (default: the model's)")
    arguments.add_argument(
        "--guide_scale",
        type=float,
        nargs="+",
        help="of autoguidance, by the model's guide; --guidance_scale is then of classifier-free guidance",
    )
    arguments.add_argument(
        "--num_inference_steps", type=_count, nargs="+", help="one or several (default: the model's)"
    )
    arguments.add_argument("--negative_condition", help="what guidance leads away from, such as a negative prompt")
    arguments.add_argument("--height", type=_count, help="pixels (default: the model's)")
    arguments.add_argument("--width", type=_count, help="pixels (default: the model's)")
    arguments.add_argument("--image", type=Path, help="start from this image")
    arguments.add_argument("--mask_image", type=Path, help="with --image: paint only where this one is white")
    arguments.add_argument("--strength", type=float, nargs="+", help="with --image: how much it changes, 0 to 1 (0.8)")
    arguments.add_argument(
        "--interpolate", action=BooleanOptionalAction, default=False, help="draw --num_images between two conditions"
    )
    arguments.add_argument("--batch_size", type=_count, default=64, help="images sampled together (64)")
    arguments.add_argument("--device", help="such as cuda or cpu (default: a GPU where there is one)")
    arguments.add_argument("--out", type=Path, default=Path("samples.png"), help="the picture (samples.png)")
    return arguments


def main(args: list[str] | None = None) -> None:
    """Load the model, draw, write the picture."""
    options = parser().parse_args(args)
    _check_out(options.out)
    import torch

    from .networks.pretrained import load_pipeline

    pipe = load_pipeline(options.model)
    conditions = [read_condition(pipe, text) for text in options.condition]
    pipe.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if getattr(pipe, "tokenizer", None) is not None and hasattr(pipe.adapter, "lost_words"):
        for line in pipe.adapter.lost_words(conditions, pipe.tokenizer):
            say(f"warning: {line}")
    _write(draw(pipe, conditions, options), options)
    print(for_terminal(str(options.out)))


def draw(pipe: "ConditionalPipeline", conditions: list[object], options: Namespace) -> "Image.Image":
    """The picture that the arguments describe. Raises ValueError in one line for those that do not go together."""
    from .grids import interpolation, sample_grid

    given = {name: getattr(options, name) for name in _IN_COLUMNS if getattr(options, name)}
    columns = {name: values for name, values in given.items() if len(values) > 1}
    sampling: dict[str, object] = {name: values[0] for name, values in given.items() if len(values) == 1}
    sampling |= {name: value for name in ("height", "width") if (value := getattr(options, name)) is not None}
    for name in ("image", "mask_image"):
        if (path := getattr(options, name)) is not None:
            sampling[name] = picture_of(f"--{name} {path}", path, 3 if name == "image" else 1)
    for flag in ("mask_image", "strength"):
        if getattr(options, flag) and options.image is None:
            raise UserError(f"--{flag} needs --image")
    if options.interpolate:
        if len(conditions) != 2 or columns or options.image or options.negative_condition is not None:
            raise UserError("--interpolate needs two conditions and one value of each setting, and no image")
        if options.guide_scale:
            raise UserError("--interpolate uses classifier-free guidance: leave --guide_scale out")
        return interpolation(pipe, *conditions, num_steps=options.num_images, seed=options.seed, **sampling)
    if options.negative_condition is not None:
        sampling["negative_condition"] = read_condition(pipe, options.negative_condition)
    return sample_grid(
        pipe,
        conditions or [None],
        columns,
        num_images=options.num_images,
        seed=options.seed,
        batch_size=options.batch_size,
        **sampling,
    )


def read_condition(pipe: "ConditionalPipeline", text: str) -> object:
    """A condition as the model's adapter takes it, from a word of the command line; "" is no condition.

    A class is its name, or its id where no class has that name. Numbers separated by commas are a vector. Conditions of
    several kinds are a JSON object, such as {"label": "cat", "size": 3}.

    Raises:
        UserError: the model has no conditions, or this is none of its kind.
    """
    from .adapters.unconditional import UnconditionalAdapter

    adapter = pipe.adapter
    if not text:
        return None
    if isinstance(adapter, UnconditionalAdapter):
        raise UserError(f"{text!r}: this model is unconditional, p(x): give no condition")
    if text.startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{text}: {error}: a condition of several kinds is a JSON object") from None
    if hasattr(adapter, "id2label"):
        return int(text) if text.isdecimal() and text not in adapter.id2label.values() else text
    if hasattr(adapter.config, "embedding_dim"):
        try:
            return [float(number) for number in text.split(",")]
        except ValueError:
            raise UserError(f"{text!r}: this model takes vectors: numbers separated by commas") from None
    return text


def picture_of(what: str, source: object, channels: int = 3) -> "Image.Image":
    """An image of any format that training reads, upright, in sRGB; with one channel its brightness.

    Args:
        what: its name, for errors. source: a path, or {"bytes": ...}.
    """
    from PIL import Image

    from .data.images import convert, open_image
    from .errors import reading

    with reading(what):
        image = open_image(source)
        if not isinstance(image, Image.Image):
            raise UserError(f"{what} has channels that make no picture: save it as PNG")
        return convert(image, channels)


def _check_out(path: Path) -> None:
    """Raise UserError where the picture would replace a file that is not one of this command's."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {path}: the picture is a PNG, so its name ends in .png")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out {path}: {'it is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")
    if path.exists() and not _is_ours(path):
        raise UserError(f"--out {path}: a file is there that this command did not write: give another name")


def _is_ours(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError):
        return False


def _write(picture: "Image.Image", options: Namespace) -> None:
    """Write the PNG with the arguments that made it, so that the picture can be made again; of paths the last part."""
    from PIL.PngImagePlugin import PngInfo

    from . import __version__

    made_with = {name: value for name, value in vars(options).items() if value is not None and name != "out"}
    made_with = {name: value.name if isinstance(value, Path) else value for name, value in made_with.items()}
    if Path(options.model).exists():
        made_with["model"] = Path(options.model).resolve().name
    info = PngInfo()
    info.add_text("Software", _SOFTWARE)
    info.add_itxt("Parameters", json.dumps({"version": __version__} | made_with, ensure_ascii=False))
    with whole_file(options.out) as unfinished:
        picture.save(unfinished, "PNG", pnginfo=info)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} must be a whole number, 1 or more")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text} must be a whole number, 0 or more")
    return int(text)
