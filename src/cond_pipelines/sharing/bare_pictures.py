"""PNG and GIF with what draws them, and of which run they are: nothing that a camera or an editor left in them."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

_PNG = b"\x89PNG\r\n\x1a\n"
# What draws (PNG specification, sections 11 and 14: animations); not eXIf, tIME, and chunks of programs.
_DRAWS = re.compile(rb"IHDR|PLTE|IDAT|IEND|tRNS|gAMA|cHRM|sRGB|iCCP|sBIT|bKGD|pHYs|acTL|fcTL|fdAT")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_OURS = b"run\0"  # of which run a picture is, see `provenance`
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


def copy_picture(source: Path, target: Path) -> None:
    """Copy a .png or .gif without what does not draw. Raises UserError where it is not whole."""
    data = source.read_bytes()
    try:
        parts = _of_png(data) if source.suffix == ".png" else _of_gif(data)
        target.write_bytes(b"".join(parts))
    except (IndexError, ValueError) as error:
        raise UserError(f"{source} is no {source.suffix[1:].upper()} that can be read: {error}") from error


def _of_png(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_PNG):
        raise ValueError("it does not begin as one")
    yield _PNG
    start, kind = len(_PNG), b""
    while kind != b"IEND":  # what follows is of no picture
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        if end > len(data):
            raise ValueError("it is cut off")
        if _DRAWS.fullmatch(kind) or (kind in _TEXTS and data[start + 8 : end].startswith(_OURS)):
            yield data[start:end]
        start = end


def _of_gif(data: bytes) -> Iterator[bytes]:
    """GIF89a: a header, then images and extensions, each in blocks of up to 255 bytes."""
    if data[:6] not in (b"GIF87a", b"GIF89a"):
        raise ValueError("it does not begin as one")
    start = 13 + _table_bytes(data[10])
    yield data[:start]
    while data[start] != 0x3B:
        if data[start] == 0x2C:  # an image: 9 bytes, its table of colours, the size of a code, blocks
            end = _end_of_blocks(data, start + 11 + _table_bytes(data[start + 9]))
            yield data[start:end]
        elif data[start] == 0x21:  # an extension: one for the next image's time, or the one for its loop, draws
            end = _end_of_blocks(data, start + 2)
            if data[start + 1] == 0xF9 or (data[start + 1] == 0xFF and data[start + 3 : start + 14] in _LOOPS):
                yield data[start:end]
        else:
            raise ValueError("it is damaged")
        start = end
    yield b"\x3b"


def _table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_blocks(data: bytes, start: int) -> int:
    while data[start]:
        start += 1 + data[start]
    return start + 1
