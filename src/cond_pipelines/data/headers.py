"""What the headers of image files tell, without decoding the images."""

from collections.abc import Iterator
from contextlib import suppress

import datasets

from .account import Account
from .config import DataArguments
from .images import Header, is_gray, read_header


def say_8_bits(config: DataArguments, rows: datasets.Dataset, account: Account) -> None:
    """Note images of 8 bits where --value_range says that there is more: they would be nearly black."""
    low, high = config.value_range
    if high <= 255:
        return
    count = sum(header.is_8_bit for header in headers(rows))
    if count:
        account.notes.append(
            f"images of 8 bits: {count:,}, whose values end at 255 of --value_range {low:g} {high:g}: they are nearly "
            "black; save them in the range of the others, or train on them apart"
        )


def any_colour(rows: datasets.Dataset) -> bool:
    """Whether an image is of colour, by the files' headers."""
    return any(not is_gray(header.mode) for header in headers(rows))


def headers(rows: datasets.Dataset) -> Iterator[Header]:
    """Of each image; those without one, or with a damaged one, are passed over."""
    for start in range(0, len(rows), 256):
        for value in rows[start : start + 256][rows.column_names[0]]:
            with suppress(OSError):
                if (header := read_header(value)) is not None:
                    yield header
