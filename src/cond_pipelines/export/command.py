"""cond-pipelines export: a model's folder to another one that works without this package."""

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import for_terminal
from ..errors import OneLineParser, UserError
from ..files import whole_folder
from ..folders import check_new_folder

if TYPE_CHECKING:
    from ..pipelines.conditional import ConditionalPipeline

TARGETS = ("stable-diffusion", "ddpm", "onnx", "web")


def parser() -> OneLineParser:
    """The arguments of `cond-pipelines export`."""
    arguments = OneLineParser(
        prog="cond-pipelines export",
        description="Write a model so that it works without cond_pipelines. stable-diffusion and ddpm: a folder that "
        "diffusers alone loads, with the same images. onnx: networks for onnxruntime, compared with PyTorch. web: a "
        "page that draws in the reader's browser.",
    )
    arguments.add_argument("model", help="folder or Hub id of a model, or builtin:shapes-text")
    arguments.add_argument("out", type=Path, help="a new folder")
    arguments.add_argument("--to", required=True, choices=TARGETS, help="what it becomes")
    arguments.add_argument(
        "--onnxruntime_web",
        type=Path,
        metavar="PACKAGE",
        help="with web: the package onnxruntime-web as `npm pack` writes it, or its folder (default: downloaded once)",
    )
    return arguments


def main(args: list[str] | None = None) -> None:
    """Load the model, convert it, write the folder, and say how to load that."""
    options = parser().parse_args(args)
    print(for_terminal(export(options)))


def export(options: Namespace) -> str:
    """Write `options.out`; returns the line that says how to load it.

    Raises:
        UserError: the folder is there already, or the model has no equal of that kind; the line says why.
    """
    out: Path = options.out
    if options.onnxruntime_web is not None and options.to != "web":
        raise UserError("--onnxruntime_web is of --to web: leave it out")
    check_new_folder(out, "name a new folder")
    from ..networks.pretrained import load_pipeline

    pipe = load_pipeline(options.model)
    if options.to == "web":
        return _export_page(pipe, options)
    if options.to == "onnx":
        from .onnx_folder import write_onnx

        with whole_folder(out) as unfinished:
            difference = write_onnx(pipe, unfinished)
        return f"saved to {out}: onnxruntime and PyTorch differ by {difference:.1e} at most; model.json describes it"
    from .diffusers_folder import CONVERSIONS, loading_line

    try:
        converted = CONVERSIONS[options.to](pipe)
    except ValueError as error:
        raise UserError(f"{options.model}: {error}") from error
    with whole_folder(out) as unfinished:
        converted.save_pretrained(unfinished)
    return f"saved to {out}: {loading_line(pipe, converted, out)}"


def _export_page(pipe: "ConditionalPipeline", options: Namespace) -> str:
    from .web_folder import write_web

    is_folder = Path(options.model).is_dir()
    name = Path(options.model).resolve().name if is_folder else options.model.removeprefix("builtin:").split("/")[-1]
    source = f"path/to/{name}" if is_folder else options.model
    with whole_folder(options.out) as unfinished:
        size = write_web(pipe, unfinished, name=name, source=source, runtime=options.onnxruntime_web)
    folder = shlex.quote(str(options.out))
    return (
        f"saved to {options.out}, {size / 1e6:.1f} MB; to look at it: python -m http.server --directory {folder} 8000, "
        "then http://localhost:8000"
    )
