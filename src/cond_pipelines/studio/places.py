"""The folders that the studio shows, and what may be opened in them."""

from pathlib import Path

from ..errors import UserError
from ..folders import is_within


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
        for folder in self.folders:
            if is_within(path, folder):
                return str(Path(folder.name) / path.relative_to(folder)) if path != folder else folder.name
        return str(path)
