"""Scripts that let a shell complete `cond-pipelines`: its commands, their flags, folders and files."""

import argparse
from pathlib import Path

from . import small_parsers
from .command_line import Parser
from .demo_arguments import demo_parser
from .errors import UserError
from .evaluation.config import EvaluationConfig
from .export.command import parser as export_parser
from .halves.arguments import parser as halves_parser
from .inspection import InspectionConfig
from .sample import parser as sample_parser
from .training.command_line import training_parser

# Arguments that name a file or a folder.
_FOLDERS = ("model", "folder", "checkpoint", "reports", "config")
_FOLDER_ENDINGS = ("_dir", "_name_or_path", "_file")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The arguments of each command, by its name."""
    return {
        "inspect": Parser("cond-pipelines inspect", InspectionConfig, [InspectionConfig], ""),
        "studio": small_parsers.studio_parser(),
        "train": training_parser(),
        "distill": training_parser(),
        "demo": demo_parser(),
        "sample": sample_parser(),
        "evaluate": Parser("cond-pipelines evaluate", EvaluationConfig, [EvaluationConfig], ""),
        "halves": halves_parser(),
        "compare": small_parsers.compare_parser(),
        "card": small_parsers.card_parser(),
        "push": small_parsers.push_parser(),
        "export": export_parser(),
        "completion": small_parsers.completion_parser(),
        "ema": small_parsers.ema_parser(),
        "convert": small_parsers.convert_parser(),
    }


def script(shell: str) -> str:
    """The script for "bash" or "zsh".

    Raises:
        UserError: the package shtab is not installed.

    Example:
        >>> Path("cond-pipelines.bash").write_text(script("bash"))
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs the package shtab: pip install shtab") from error
    whole = argparse.ArgumentParser(prog="cond-pipelines")
    commands = whole.add_subparsers()
    for name, parser in parsers().items():
        for action in parser._actions:
            name_of_files = action.type is Path or action.dest in _FOLDERS or action.dest.endswith(_FOLDER_ENDINGS)
            if name_of_files and not action.choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        commands.add_parser(name, parents=[parser], add_help=False, help=parser.description, conflict_handler="resolve")
    return str(shtab.complete(whole, shell))
