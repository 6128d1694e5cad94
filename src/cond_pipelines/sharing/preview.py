"""What a push would upload, before it does."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .leaks import refuse_secrets
from .push import Push, known_secrets, stage_model


@dataclass(frozen=True)
class Preview:
    """What a push would upload: the card, sizes of files in bytes by name, and what of the folder stays.

    Args:
        problem: why it would be refused, in one line; None: it would not be.
    """

    card: str
    files: dict[str, int]
    stays: list[str]
    problem: str | None


def preview(folder: str | Path, repo_id: str, **how: Any) -> Preview:
    """What `push_folder` with the same arguments would upload; nothing is sent, and the folder stays as it is.

    Raises:
        ValueError: `folder` is no model of this library.

    Example:
        >>> preview("flowers", "me/flowers").files["model_index.json"]
        812
    """
    folder, options = Path(folder), Push(**how)
    with tempfile.TemporaryDirectory() as name:
        stage, problem = Path(name, "model"), None
        private = stage_model(folder, folder, stage, repo_id, options)
        try:
            refuse_secrets(stage, known_secrets(folder, repo_id, options))
        except ValueError as error:
            problem = str(error)
        sizes = {p.relative_to(stage).as_posix(): p.stat().st_size for p in sorted(stage.rglob("*")) if p.is_file()}
        tops = {name.partition("/")[0] for name in sizes}
        stays = [path.name for path in sorted(folder.iterdir()) if path.name not in tops and path.name[0] != "."]
        return Preview((stage / "README.md").read_text(encoding="utf-8"), sizes, [*private, *stays], problem)
