"""Text in pictures, in every language: which font has a character, and what is shown where none has it."""

import functools
import itertools
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

_file_of: dict[str, str | None] = {}  # the file of a font that has the character; None: none on this machine
_MOST_LOOKED_AT = 2000  # characters of a text; others are looked for when they are drawn
_ESCAPE = re.compile(r"(\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})")
_CUT_ESCAPE = re.compile(r"\\(x[0-9a-f]?|u[0-9a-f]{0,3}|U[0-9a-f]{0,7})?$")  # at the end of a line


class Font:
    """A font for the given texts.

    Pillow's own has ASCII only, and is taken where that is all. Otherwise it is DejaVu Sans, which matplotlib brings
    and which has Latin, Greek and Cyrillic. Fonts of this machine draw what it lacks, such as Chinese and Japanese.
    What no font has is shown as its escape: a box would say nothing, and be the same for all.

    Args:
        size_px: of its letters.
        texts: all that it is to draw.

    Example:
        >>> font = Font(10, ["Füchse"])
        >>> font.draw(ImageDraw.Draw(image), (4, 4), font.shown("Füchse"))
    """

    def __init__(self, size_px: int, texts: Iterable[str] = ()):
        self.size_px = size_px
        characters = set().union(*(_drawable(text[:_MOST_LOOKED_AT]) for text in texts))
        self.file = None if all(c.isascii() for c in characters) else _dejavu()
        self._widths: dict[tuple[str | None, str], float] = {}
        self._measure = ImageDraw.Draw(Image.new("L", (1, 1)))
        _look_for(characters)  # at once: each search goes through all fonts

    def shown(self, text: str) -> str:
        """One line of characters that can all be drawn."""
        line = " ".join(_drawable(text).split())
        _look_for(set(line))
        return "".join(c if c.isascii() or _file_of[c] else c.encode("unicode_escape").decode() for c in line)

    def width(self, shown: str) -> float:
        """In px."""
        width = 0.0
        for run in self._runs(shown):
            if run not in self._widths:
                self._widths[run] = self._measure.textlength(run[1], font=_face(run[0], self.size_px))
            width += self._widths[run]
        return width

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[float, float], shown: str) -> None:
        """In black, with the upper left corner at `at`; different fonts stand on one line."""
        left, base = at[0], at[1] + _face(self.file, self.size_px).getmetrics()[0]
        for file, run in self._runs(shown):
            draw.text((left, base), run, fill="black", font=_face(file, self.size_px), anchor="ls")
            left += self.width(run)

    @property
    def families(self) -> list[str]:
        """For matplotlib, which takes the first that has a character."""
        names = {entry.fname: entry.name for entry in _fonts_of_this_machine()}
        more = dict.fromkeys(names[file] for file in _file_of.values() if file in names)
        if more:  # a family without the weight 400 is no news
            logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        return ["DejaVu Sans", *more]

    def _runs(self, shown: str) -> Iterator[tuple[str | None, str]]:
        """(file of the font, text), as long as they can be."""
        for file, run in itertools.groupby(shown, lambda c: self.file if c.isascii() else _file_of[c]):
            yield file, "".join(run)


def parts_of(shown: str) -> list[str]:
    """The parts of a word between which a line may end: each escape by itself."""
    return [part for part in _ESCAPE.split(shown) if part]


def whole_characters(shown: str, count: int) -> int:
    """`count`, or less, so that the first `count` characters do not end within an escape."""
    cut = _CUT_ESCAPE.search(shown[max(0, count - 9) : count]) if count < len(shown) else None
    return count if cut is None else count - len(cut[0])


def _drawable(text: str) -> str:
    """Spaces for controls and newlines; a letter with its marks is one character, where there is such a one."""
    text = re.sub("[\ufe00-\ufe0f]", "", unicodedata.normalize("NFC", text))  # variation selectors have no shape
    return "".join(c if c.isprintable() else " " for c in text)


@functools.lru_cache(64)
def _face(file: str | None, size_px: int) -> ImageFont.FreeTypeFont:
    """None: Pillow's own."""
    font = ImageFont.load_default(size_px) if file is None else ImageFont.truetype(file, size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow without FreeType has bitmaps, and no `load_default(size)`
    return font


@functools.cache
def _dejavu() -> str | None:
    """The file that is installed with matplotlib; None where a distribution has left it out."""
    import matplotlib

    file = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return str(file) if file.is_file() else None


def _look_for(characters: set[str]) -> None:
    """Find a font for each that is not known yet."""
    missing = {c for c in characters if not c.isascii() and c not in _file_of}
    for file in _files() if missing else ():
        drawn = _in_font(file, missing)
        _file_of.update(dict.fromkeys(drawn, file))
        missing -= drawn
        if not missing:
            break
    _file_of.update(dict.fromkeys(missing))


def _files() -> Iterator[str]:
    """Of fonts, each once: those in use, then all others. The list of all is made only where it is needed."""
    first = dict.fromkeys(file for file in (_dejavu(), *_file_of.values()) if file)
    yield from first
    yield from (entry.fname for entry in _fonts_of_this_machine() if entry.fname not in first)


def _in_font(file: str, characters: set[str]) -> set[str]:
    """Those that the font has; none of a font that cannot be drawn with, such as one of colour bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        _face(file, 10)
        font = FT2Font(file)
        return {c for c in characters if font.get_char_index(ord(c))}
    except (OSError, RuntimeError):
        return set()


def _fonts_of_this_machine() -> "list[FontEntry]":
    """One upright font of usual weight of each family, sans serif first; see `matplotlib.font_manager.FontEntry`."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    own = matplotlib.get_data_path()  # formulas, and "Last Resort", which has a box for every character
    entries = [e for e in fontManager.ttflist if not e.fname.startswith(own) and "Last" not in e.name.split()]
    entries.sort(key=lambda e: (e.style != "normal", abs(int(e.weight) - 400)), reverse=True)
    families = {entry.name: entry for entry in entries}.values()  # the best one is the last
    return sorted(families, key=lambda e: (not e.name.startswith("Noto Sans"), "Sans" not in e.name, e.name))
