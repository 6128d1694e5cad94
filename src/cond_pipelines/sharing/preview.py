"""What a push would upload, before it does."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from .leaks import refuse_secrets
from .push import Push, known_secrets, stage_model


@dataclass(frozen=True)
class Preview:
    """What a push would upload: the card, the files, each with its name and bytes, and what of the folder stays.

    Args:
        problem: why it would be refused, in one line; None: it would not be.
    """

    card: str
    files: list[dict[str, str | int]]
    stays: list[str]
    problem: str | None


def preview(folder: str | Path, repo_id: str) -> Preview:
    """What `push_folder` of the same would upload; nothing is sent, and the folder stays as it is.

    Raises:
        ValueError: `folder` is no model of this library.

    Example:
        >>> preview("flowers", "me/flowers").files[0]
        {"name": "README.md", "bytes": 2812}
    """
    folder, options = Path(folder), Push()
    with tempfile.TemporaryDirectory() as name:
        stage, problem = Path(name, "model"), None
        private = stage_model(folder, folder, stage, repo_id, options)
        try:
            refuse_secrets(stage, known_secrets(folder, repo_id, options))
        except ValueError as error:
            problem = str(error)
        paths = [path for path in sorted(stage.rglob("*")) if path.is_file()]
        files: list[dict[str, str | int]] = [
            {"name": path.relative_to(stage).as_posix(), "bytes": path.stat().st_size} for path in paths
        ]
        tops = {path.relative_to(stage).parts[0] for path in paths}
        stays = [path.name for path in sorted(folder.iterdir()) if path.name not in tops and path.name[0] != "."]
        return Preview((stage / "README.md").read_text(encoding="utf-8"), files, [*private, *stays], problem)
