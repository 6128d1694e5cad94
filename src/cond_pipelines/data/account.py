"""What becomes of each image file of a folder: used, or left out for a reason that the user is shown."""

from dataclasses import dataclass, field

_NUM_EXAMPLES = 3


@dataclass
class Account:
    """Counts of the image files of a data set, and lines on how it was read.

    Args:
        num_images: image files in all; None where they are not counted, as of parquet files.
        left_out: by reason, the names of image files that are not used.
        notes: lines on how the rest was read.
        root: the folder that the names are relative to.
    """

    num_images: int | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    root: str = ""

    def leave_out(self, reason: str, *names: str) -> None:
        """Note image files that are not used."""
        if names:
            self.left_out.setdefault(reason, []).extend(names)

    @property
    def num_left_out(self) -> int:
        """Image files that are not used."""
        return sum(map(len, self.left_out.values()))

    def lines(self) -> list[str]:
        """One line on the image files that are not used, if there are any, then the notes."""
        if not self.left_out:
            return self.notes
        of_all = " image(s)" if self.num_images is None else f" of {self.num_images:,} images"
        reasons = [f"{len(names):,} {reason} ({examples(names)})" for reason, names in self.left_out.items()]
        verb = "is" if self.num_left_out == 1 else "are"
        return [f"{self.num_left_out:,}{of_all} {verb} left out: {'; '.join(reasons)}", *self.notes]


def examples(names: list[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:_NUM_EXAMPLES]) + (", ..." if len(names) > _NUM_EXAMPLES else "")
