"""Three small trained models of drawn shapes that are installed with the package. They need no network."""

from pathlib import Path

from .errors import UserError

FOLDER = Path(__file__).parent / "builtin_models"
NAMES = ("shapes-unconditional", "shapes-class", "shapes-text")
_PREFIX = "builtin:"


def builtin_model(name: str) -> str:
    """The folder of a model that is installed with the package: images of 16 px, one coloured shape each.

    Args:
        name: "shapes-unconditional" for p(x), "shapes-class" for p(x|y), "shapes-text" for p(x|text). Commands
            take it as "builtin:shapes-text".

    Raises:
        UserError: there is no model of that name.

    Example:
        >>> pipe = ConditionalPipeline.from_pretrained(builtin_model("shapes-text"))
        >>> pipe("a red circle on a black background").images[0].save("a.png")
    """
    if name not in NAMES:
        raise UserError(f"there is no builtin model {name!r}: use one of {', '.join(NAMES)}")
    return str(FOLDER / name)


def with_builtin(name_or_path: str | Path) -> str | Path:
    """What a command was given for a model, where "builtin:NAME" is the folder of a builtin one."""
    name = str(name_or_path)
    return builtin_model(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else name_or_path
