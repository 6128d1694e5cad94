"""A row of the tables of other scripts' flags; see `other_flags`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Flags of another script.

    Args:
        theirs: names, without dashes. scripts: which scripts have them; see `SCRIPTS`.
        here: the flag or flags here, as they are written; "same", or "none".
        note: for whoever comes from there.
        synonym: `here` is one flag of exactly this meaning and these values, so theirs is accepted for it.
    """

    theirs: tuple[str, ...]
    scripts: str
    here: str
    note: str = ""
    synonym: bool = False


def answered(theirs: str, scripts: str, here: str, note: str = "") -> Row:
    """Flags that are refused with what to give instead, or that are the same here."""
    return Row(tuple(theirs.split()), scripts, here, note)


def synonym(theirs: str, scripts: str, ours: str, note: str = "") -> Row:
    """Flags that are accepted for ours."""
    return Row(tuple(theirs.split()), scripts, f"--{ours}", note, synonym=True)
