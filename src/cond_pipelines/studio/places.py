"""The folders that the studio shows: nothing outside of them is opened, written or named to a command."""

import os
from pathlib import Path
from typing import Any

from ..command_line import arguments_of
from ..errors import UserError
from ..folders import is_within

_FOLDERS = ("train_data_dir", "class_data_dir", "output_dir")  # always paths; others may be ids of the Hub
_PATH_ENDS = ("_dir", "_or_path", "_captions", "config", "_web", "_file", "dataset_name")
# Of a configuration that a folder brings: what may name code of this machine.
_CODE = ("dataset_name", "adapter", "conditioning", "objective", "feature_extractor", "unet_size", "optimizer")


class Places:
    """The folders that `cond-pipelines studio` was given. Nothing outside of them is read or written.

    Example:
        >>> places = Places(["work"])
        >>> places.path("/home/me/work/flowers")  # the same path, resolved; UserError where it leads out
    """

    def __init__(self, folders: list[str]):
        self.folders = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is no folder: give folders of data, runs and models")

    def path(self, text: object, must_exist: bool = True) -> Path:
        """A path that the page named, with links resolved. Raises UserError where it is not within the folders."""
        if not isinstance(text, str) or not text or "\0" in text:
            raise UserError(f"{str(text)[:100]!r} is no path")
        path = Path(text)
        path = path if path.is_absolute() else self.folders[0] / path
        if not any(is_within(path, folder) for folder in self.folders):
            raise PermissionError(f"{path} is not in the folders of the studio: start it with that folder too")
        if must_exist and not path.exists():
            raise FileNotFoundError(f"{path} is not there any more")
        return path.resolve()

    def name(self, path: Path) -> str:
        """The path as it is shown: from the name of the given folder on."""
        folder = next((folder for folder in self.folders if is_within(path, folder)), Path("/"))
        return str(folder.name / path.relative_to(folder))


def flags_of(values: object, places: Places) -> list[str]:
    """A form's values as arguments of a command, with absolute paths.

    Raises:
        UserError: they are no values by name. PermissionError: a path leads out of the studio's folders.
    """
    if not isinstance(values, dict):
        raise UserError("args must be an object: names of flags, and their values")
    paths = {n: str(places.path(v, must_exist=False)) for n, v in values.items() if _is_path(n, v)}
    return arguments_of(values | paths)


def _is_path(name: str, value: object) -> bool:
    looks_like_one = isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", ".")) or ".." in value)
    return bool(value) and (name in _FOLDERS or (looks_like_one and name.endswith(_PATH_ENDS)))


def check_recorded(config: dict[str, Any], places: Places) -> None:
    """Whether a run's own configuration may be followed: a folder may come from somebody else.

    Raises:
        UserError: it names code. PermissionError: it names a path outside of the studio's folders.
    """
    for name in _CODE:
        if ":" in str(config.get(name) or ""):
            raise UserError(f"{name} {config[name]} names code, which the studio does not run on a folder's own word")
    for name, value in config.items():
        is_id_or_path = isinstance(value, str) and name.endswith(("_or_path", "dataset_name"))
        if (is_id_or_path and os.path.exists(value)) or (name != "output_dir" and _is_path(name, value)):
            places.path(os.path.abspath(value), must_exist=False)  # a command reads it from where it is started
