"""A command line made from the fields of a dataclass (see `flags`): flags, their help by group, one-line errors.

It imports nothing heavy: help and a typo are answered before torch is loaded.
"""

import argparse
import difflib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn, get_args, get_origin

from .console import for_terminal
from .errors import UserError
from .flags import default_of, hints_of, kinds_of, settings_of

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_FORM_TYPES: dict[object, str] = {int: "int", float: "float", bool: "bool"}


class _Help(argparse.RawDescriptionHelpFormatter):
    """One line a flag where the terminal is wide enough; `--no_...` of what is on by default stands with it."""

    def __init__(self, prog: str):
        width = min(max(80, shutil.get_terminal_size((132, 24)).columns), 132)
        super().__init__(prog, max_help_position=36, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == "?":  # a boolean
            name = action.option_strings[0]
            return f"{name}, --no_{name[2:]}" if getattr(action, "default_on", False) else name
        return super()._format_action_invocation(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage of all flags; exit code 2.

    Example:
        >>> parser = Parser("cond-pipelines train", TrainingConfig, [DataArguments, ModelArguments], "Train a model.")
        >>> values, unknown = parser.parse(["--resolution", "32"])  # {"resolution": 32}, []
    """

    def __init__(self, prog: str, config: type, groups: Sequence[type], description: str, usage: str | None = None):
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=_Help,
        )
        hints = hints_of(config)
        self.known = [setting.name for setting in settings_of(config)]
        self.common = self.add_argument_group("most used")
        declared = [(setting, group) for group in groups for setting in fields(group)]
        for setting in sorted((s for s, _ in declared if s.metadata["common"]), key=lambda s: s.metadata["common"]):
            _add(self.common, setting, hints[setting.name])
        for group in groups:
            is_all = len(groups) == 1
            title = (group.__doc__ or group.__name__).splitlines()[0].rstrip(".").lower()
            section = self.add_argument_group("more" if is_all else title)
            for setting in fields(group):
                if not setting.metadata["common"]:
                    _add(section, setting, hints[setting.name])

    def parse(self, args: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
        """(the values given, arguments that are not known); `--some-flag` is `--some_flag`."""
        values, unknown = self.parse_known_args([with_underscores(arg) for arg in args])
        return vars(values), unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {for_terminal(message)}\n")

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        """End with one line where an argument is not known, naming the nearest flag."""
        if unknown:
            self.error(unknown_name(unknown[0].split("=")[0], self.known, "argument "))


def arguments_of(values: Mapping[str, object]) -> list[str]:
    """Values by name as arguments that a `Parser` reads back; those that are None or empty are left out.

    Raises:
        UserError: a name that no flag can have.

    Example:
        >>> arguments_of({"resolution": 32, "random_flip": True, "validation_prompts": ["cat", "dog"], "seed": None})
        ['--resolution=32', '--random_flip', '--validation_prompts', 'cat', 'dog']
    """
    args: list[str] = []
    for name, value in values.items():
        if not name.isidentifier():
            raise UserError(f"{name[:60]!r} is no name of a flag")
        if isinstance(value, bool):
            args.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            args += [f"--{name}", *map(str, value)] if value else []
        elif value is not None and value != "":
            args.append(f"--{name}={value}")
    return args


def form_of(config: type, groups: Sequence[type], hidden: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The fields of a configuration for a form: groups of {"name", "help", "type", "choices", "default", "item"}.

    The groups are those of the help: the most used first.

    Args:
        hidden: names of fields that the form does not have.

    Example:
        >>> form_of(InspectionConfig, [InspectionConfig])[0]["fields"][0]["name"]
        'train_data_dir'
    """
    hints, hidden = hints_of(config), set(hidden)
    declared = [(s, group) for group in groups for s in fields(group) if s.name not in hidden]
    common = sorted((s for s, _ in declared if s.metadata["common"]), key=lambda s: s.metadata["common"])
    titled = [("Most used", common)]
    for group in groups:
        title = "More" if len(groups) == 1 else (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")
        titled.append((title, [s for s, of in declared if of is group and not s.metadata["common"]]))
    return [{"title": title, "fields": [_in_form(s, hints[s.name]) for s in settings]} for title, settings in titled]


def _in_form(setting: Field[object], hint: object) -> dict[str, Any]:
    kinds, _ = kinds_of(hint)
    is_list = get_origin(kinds[0]) is list
    is_choice = not is_list and not isinstance(kinds[0], type)
    item = get_args(kinds[0])[0] if is_list else kinds[0]
    known = _FORM_TYPES.get(item, "text")
    values = {"name": setting.name, "help": setting.metadata["help"], "default": default_of(setting)}
    values |= {"type": "list" if is_list else "choice" if is_choice else known, "item": known if is_list else None}
    return values | {"choices": kinds if is_choice else None, "common": bool(setting.metadata["common"])}


def with_underscores(arg: str) -> str:
    """`--max-train-steps=5` as `--max_train_steps=5`; anything else as it is."""
    name, equals, value = arg.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if re.match(r"--[a-zA-Z]", name) else arg


def unknown_name(name: str, known: Sequence[str], what: str) -> str:
    """The line for a name that is not known, with the nearest one that is, where one is near enough to be meant."""
    near = difflib.get_close_matches(name.lstrip("-"), known, n=1, cutoff=0.8)
    return f"unknown {what}{name}" + (f"; did you mean {near[0]}?" if near else "")


def _add(section: argparse._ArgumentGroup, setting: Field[object], hint: object) -> None:
    kinds, _ = kinds_of(hint)
    name, default = setting.name, default_of(setting)
    text = setting.metadata["help"].replace("%", "%%")
    if kinds == [bool]:
        action: Any = section.add_argument(f"--{name}", nargs="?", const=True, type=_truth, help=text)
        action.default_on = default
        off: dict[str, Any] = {"dest": name, "action": "store_const", "const": False, "default": argparse.SUPPRESS}
        section.add_argument(f"--no_{name}", help=argparse.SUPPRESS, **off)
        return
    if default not in (None, "", []) and "Default:" not in text and "default" not in text:
        text += f" (default {' '.join(map(str, default)) if isinstance(default, list) else default})"
    kind, is_list = kinds[0], get_origin(kinds[0]) is list
    if is_list:
        kind = get_args(kind)[0]
    if not isinstance(kind, type):  # values of a Literal
        kind = type(kind)
    # A list that is given twice is one list: nothing of it is dropped.
    more: dict[str, Any] = {"nargs": "+", "action": "extend"} if is_list else {}
    section.add_argument(f"--{name}", type=kind, metavar=_METAVARS[kind], help=text, **more)


def _truth(value: str) -> bool:
    if value.lower() in ("true", "yes", "y", "t", "1", "on"):
        return True
    if value.lower() in ("false", "no", "n", "f", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{value} is neither true nor false")
