"""cond-pipelines export: a model's folder to another one that works without this package."""

from argparse import Namespace
from pathlib import Path

from ..console import for_terminal
from ..errors import OneLineParser, UserError
from ..files import whole_folder
from ..folders import check_new_folder

TARGETS = ("stable-diffusion", "ddpm", "onnx")


def parser() -> OneLineParser:
    """The arguments of `cond-pipelines export`."""
    arguments = OneLineParser(
        prog="cond-pipelines export",
        description="Write a model so that it works without cond_pipelines. stable-diffusion and ddpm: a folder that "
        "diffusers alone loads, with the same images. onnx: networks for onnxruntime, compared with PyTorch.",
    )
    arguments.add_argument("model", help="folder or Hub id of a model, or builtin:shapes-text")
    arguments.add_argument("out", type=Path, help="a new folder")
    arguments.add_argument("--to", required=True, choices=TARGETS, help="what it becomes")
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
    check_new_folder(out, "name a new folder")
    from ..networks.pretrained import load_pipeline

    pipe = load_pipeline(options.model)
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
