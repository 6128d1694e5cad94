"""The command line and YAML recipes of a training run, to a TrainingConfig."""

import sys
from pathlib import Path
from typing import Any

from ..command_line import Parser, form_of, unknown_name, with_underscores
from ..console import say
from ..errors import read_yaml
from ..flags import check_needs, hints_of, kinds_of, settings_of
from .arguments import DataArguments, ModelArguments, OptimizationArguments, OutputArguments
from .config import TrainingConfig
from .other_flags import answer, same_here

_KNOWN = [setting.name for setting in settings_of(TrainingConfig)]


def parse_args(args: list[str] | None = None, **defaults: object) -> TrainingConfig:
    """The command line to a TrainingConfig; `--config recipe.yaml` is read first, and the command line wins.

    Args:
        args: default: sys.argv[1:].
        defaults: lower than both, such as a script's `conditioning="class"`.

    Raises:
        SystemExit: with one line, for an unknown flag or key (naming the nearest one), a bad value, or a flag without
            effect.
    """
    parser = training_parser()
    args = [_translated(arg) for arg in (sys.argv[1:] if args is None else args)]
    try:
        given, unknown = parser.parse(args)
        if unknown:
            name = unknown[0].split("=")[0].lstrip("-")
            _refuse(name, f"--{name}" if unknown[0].startswith("-") else name, "argument ")
        path = given.pop("config", None)
        recipe = read_recipe(path) if path else {}
        lower = defaults | _as_numbers(recipe, parser)
        for name, other in (("max_train_steps", "num_train_epochs"), ("num_train_epochs", "max_train_steps")):
            if name in given and other not in given:
                lower.pop(other, None)  # the length given on the command line is instead of the recipe's
        values: dict[str, Any] = lower | given
        config = TrainingConfig(**values)
        check_needs(config, given)
    except ValueError as error:
        parser.error(str(error))
    return config


_GROUPS = [ModelArguments, DataArguments, OptimizationArguments, OutputArguments]


def training_form() -> list[dict[str, Any]]:
    """The same for a form: see `command_line.form_of`."""
    return form_of(TrainingConfig, _GROUPS, hidden=("hub_token", "resume_from_checkpoint"))


def training_parser() -> Parser:
    """The arguments of `cond-pipelines train`."""
    parser = Parser(
        "cond-pipelines train",
        TrainingConfig,
        _GROUPS,
        "Train p(x), p(x|y) or p(x|text) on your images. Settings that are not given are chosen, printed and saved.",
        usage="cond-pipelines train --train_data_dir FOLDER [--conditioning class] [--flag value ...]",
    )
    parser.common.add_argument(
        "--config", metavar="FILE", help="Read settings from a YAML file; the command line wins."
    )
    return parser


def _translated(arg: str) -> str:
    """An argument in our words: `--network_dim=8` of kohya's scripts is `--rank=8`; the change is printed."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = with_underscores(arg).removeprefix("--").partition("=")
    ours = same_here(name, _KNOWN)
    if ours is None:
        return arg
    say(f"--{name} is --{ours} here")
    return f"--{ours}{equals}{value}"


def _refuse(name: str, written: str, what: str) -> None:
    """Raise ValueError for a flag or key that is not known: what it is here, or the nearest one."""
    known = answer(name)
    raise ValueError(f"{written}: {known}" if known else unknown_name(written, _KNOWN, what))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A YAML recipe as a dictionary. Raises ValueError for an unknown key, naming the nearest one."""
    recipe: dict[str, Any] = {}
    for key, value in read_yaml(path).items():
        name = str(key)
        ours = same_here(name, _KNOWN)
        if ours is not None:
            say(f"{path}: {name} is {ours} here")
        elif name not in _KNOWN:
            _refuse(name, name, f"key in {path}: ")
        if (ours or name) in recipe:
            raise ValueError(f"{path}: {ours or name} is given twice")
        recipe[ours or name] = value
    if recipe.get("mixed_precision") is False:  # `no` is a boolean in YAML
        recipe["mixed_precision"] = "no"
    if isinstance(recipe.get("validation_prompts"), list):  # class labels may be numbers
        recipe["validation_prompts"] = [str(prompt) for prompt in recipe["validation_prompts"]]
    if isinstance(recipe.get("class_prompt"), int):
        recipe["class_prompt"] = str(recipe["class_prompt"])
    if recipe.get("max_train_steps") and recipe.get("num_train_epochs"):
        # Both stand in what runs saved formerly: the epochs that were given, and the steps that these came to.
        say(f"{path}: max_train_steps wins over num_train_epochs")
        recipe["num_train_epochs"] = None
    return recipe


def _as_numbers(recipe: dict[str, Any], parser: Parser) -> dict[str, Any]:
    """A recipe with text where a number or a boolean is wanted read as one: YAML 1.1 takes 1e-4 for text."""
    hints = hints_of(TrainingConfig)
    return {
        name: parser.parse([f"--{name}={value}"])[0][name]
        if isinstance(value, str) and kinds_of(hints[name])[0][0] in (int, float, bool)
        else value
        for name, value in recipe.items()
    }
