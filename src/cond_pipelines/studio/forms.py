"""A form's values as a command line, and what is followed of a run's own configuration."""

import os
import shlex
from typing import Any

from ..errors import UserError
from .places import Places

_FOLDERS = ("train_data_dir", "class_data_dir", "output_dir")  # always paths; others may be ids of the Hub
_PATH_ENDS = ("_dir", "_or_path", "_captions", "config", "_web", "_file")
# Of a configuration that a folder brings: what may name code of this machine.
_CODE = ("dataset_name", "adapter", "conditioning", "objective", "feature_extractor", "unet_size")


def flags_of(values: object, places: Places, positional: list[str] | None = None) -> list[str]:
    """A form's values as arguments of a command; those that are empty are left open.

    Raises:
        UserError: they are no values by name. PermissionError: a path leads out of the studio's folders.
    """
    if not isinstance(values, dict):
        raise UserError("args must be an object: names of flags, and their values")
    args = list(positional or [])
    for name, value in values.items():
        if not str(name).isidentifier():
            raise UserError(f"{str(name)[:60]!r} is no name of a flag")
        if value is None or value == "" or value == []:
            continue
        if isinstance(value, bool):
            args.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            args += [f"--{name}", *map(str, value)]
        else:
            args.append(f"--{name}={_checked(name, value, places)}")
    return args


def _checked(name: str, value: object, places: Places) -> object:
    """A value as it is; of a path an absolute one, within the folders of the studio."""
    is_path = isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", ".")) or ".." in value)
    if name in _FOLDERS or (is_path and name.endswith(_PATH_ENDS)):
        return places.path(value, must_exist=False)
    return value


def check_recorded(config: dict[str, Any], places: Places) -> None:
    """Whether a run's own configuration may be followed: a folder may come from somebody else.

    Raises:
        UserError: it names code. PermissionError: it reads data outside of the studio's folders.
    """
    for name in _CODE:
        if ":" in str(config.get(name) or ""):
            raise UserError(f"{name} {config[name]} names code, which the studio does not run on a folder's own word")
    for name in ("train_data_dir", "class_data_dir"):
        if config.get(name):
            places.path(config[name], must_exist=False)


def command_line(args: list[str]) -> str:
    """As a user would type it."""
    return shlex.join(["cond-pipelines", *args])
