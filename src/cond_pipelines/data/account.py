"""What becomes of each image file of a folder: used, or left out for a reason that the user is shown."""

from dataclasses import dataclass, field

_NUM_EXAMPLES = 3


@dataclass
class Account:
    """Counts of the image files of a data set, and lines on how it was read.

    Args:
        num_images: image files in all; None where they are not counted, as of parquet files.
        excluded: by reason, the names of image files that are not used.
        notes: lines on how the rest was read.
        root: the folder that the names are relative to.
    """

    num_images: int | None = None
    excluded: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    root: str = ""

    def exclude(self, reason: str, *names: str) -> None:
        """Note image files that are not used."""
        if names:
            self.excluded.setdefault(reason, []).extend(names)

    @property
    def num_excluded(self) -> int:
        """Image files that are not used."""
        return sum(map(len, self.excluded.values()))

    def lines(self) -> list[str]:
        """One line on the image files that are not used, if there are any, then the notes."""
        if not self.excluded:
            return self.notes
        of_all = " image(s)" if self.num_images is None else f" of {self.num_images:,} images"
        reasons = [f"{len(names):,} {reason} ({examples(names)})" for reason, names in self.excluded.items()]
        verb = "is" if self.num_excluded == 1 else "are"
        return [f"{self.num_excluded:,}{of_all} {verb} left out: {'; '.join(reasons)}", *self.notes]


def examples(names: list[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:_NUM_EXAMPLES]) + (", ..." if len(names) > _NUM_EXAMPLES else "")
