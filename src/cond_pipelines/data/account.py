"""What becomes of each image file of a folder: used, or left out for a reason that the user is shown."""

from dataclasses import dataclass, field

_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class ReadOptions:
    """What the user says of how a source is read.

    Args:
        split: which of its splits.
        data_format: which files of a folder; None: the kind of most of its images.
        folder_repeats: a folder `10_cat` is ten times the class cat, as for kohya's scripts, and not the class 10_cat.
        on_bad_image: "skip" leaves out rows of metadata whose file is not there; "error" refuses them.
        image_column: the column of images of tables; None: the one that is an image by its type or name.
    """

    split: str = "train"
    data_format: str | None = None
    folder_repeats: bool = False
    on_bad_image: str = "error"
    image_column: str | None = None


@dataclass
class Account:
    """Counts of the image files of a data set, and lines on how it was read.

    Args:
        num_images: image files in all; None where they are not counted, as of parquet files.
        excluded: by reason, the names of image files that are not used.
        notes: lines on how the rest was read.
        unread: lines on files and columns that are not read.
        folders: how many images each folder that may be a class has.
        named: files that a table says are images, whatever they are called.
        root: the folder that the names are relative to.
    """

    num_images: int | None = None
    excluded: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    folders: dict[str, int] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    root: str = ""

    def exclude(self, reason: str, *names: str) -> None:
        """Note image files that are not used."""
        if names:
            self.excluded.setdefault(reason, []).extend(names)

    def exclude_rows_outside(self, table: str, names: list[str]) -> None:
        """Note rows of a table that name files outside of the folder, which are not read."""
        if names:
            self.notes.append(
                f"rows of {table} whose file is outside of the folder are left out: {len(names):,} "
                f"({examples(sorted(set(names)))}); copy the files into the folder"
            )

    @property
    def num_excluded(self) -> int:
        """Image files that are not used."""
        return sum(map(len, self.excluded.values()))

    def lines(self) -> list[str]:
        """One line on the image files that are not used, if there are any, then the notes, then what is not read."""
        return [*self._left_out(), *self.notes, *self.unread]

    def not_read(self) -> list[str]:
        """Those of `lines` that may be why something lacks."""
        return [*self._left_out(), *self.unread]

    def _left_out(self) -> list[str]:
        if not self.excluded:
            return []
        of_all = " image(s)" if self.num_images is None else f" of {self.num_images:,} images"
        reasons = [f"{len(names):,} {reason} ({examples(names)})" for reason, names in self.excluded.items()]
        verb = "is" if self.num_excluded == 1 else "are"
        return [f"{self.num_excluded:,}{of_all} {verb} left out: {'; '.join(reasons)}"]


def counted(count: int, one: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "archive"), counted(2000, "archive")
        ('1 archive', '2,000 archives')
    """
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def examples(names: list[str], most: int = _NUM_EXAMPLES) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
