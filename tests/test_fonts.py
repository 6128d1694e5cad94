"""Text in pictures: every language is drawn, and what no font has is said."""

import re

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image, ImageDraw

from cond_pipelines import fonts
from cond_pipelines.evaluation.pictures import confusion_plot, per_class_sheet
from cond_pipelines.fonts import Font
from cond_pipelines.pictures import image_grid, short_title, wrapped

ESCAPE = r"\\u[0-9a-f]{4}|\\U[0-9a-f]{8}"


@pytest.fixture(autouse=True)
def fonts_of_matplotlib(monkeypatch):
    """As on a machine that has no other."""
    own = [entry for entry in fontManager.ttflist if entry.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "_file_of", {})


@pytest.fixture
def flower_font(tmp_path):
    """A font of this machine that has one character, a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0)), pen.lineTo((100, 800)), pen.lineTo((900, 800)), pen.lineTo((900, 0)), pen.closePath()
    box, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "flower"])
    builder.setupCharacterMap({ord("花"): "flower"})
    builder.setupGlyf({".notdef": empty, "flower": box})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "flower": (1000, 100)})
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": "One Flower", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=700)  # of which matplotlib would warn
    builder.setupPost()
    builder.save(tmp_path / "one_flower.ttf")
    fontManager.addfont(tmp_path / "one_flower.ttf")


def ink(character: str, font: Font) -> bytes:
    image = Image.new("L", (40, 40), 255)
    font.draw(ImageDraw.Draw(image), (4, 4), character)
    return image.tobytes()


def test_letters_of_many_languages_are_no_boxes():
    """Of Latin, Greek and Cyrillic: each has a shape of its own, which is not that of a character without one."""
    letters = "AÜöéßŁğñжЯщλΩ"
    font = Font(20, [letters])
    assert font.shown(letters) == letters
    box = Image.new("L", (40, 40), 255)
    ImageDraw.Draw(box).text((4, 4), "\U00012345", font=fonts._face(font.file, 20))
    shapes = {ink(letter, font) for letter in letters}
    assert len(shapes) == len(letters) and box.tobytes() not in shapes
    assert ink(" ", font) not in shapes
    assert font.shown("U\u0308ber") == "Über"  # as a Mac names its folders


def test_the_caption_of_a_picture_is_what_the_font_draws():
    """The pixels below an image, which Pillow's own font would fill with boxes."""
    white = Image.new("RGB", (64, 64), "white")
    rows = [np.asarray(image_grid([white], captions=[text]))[66:] for text in ("ÜÜÜ", "ééé", "жжж")]
    assert not any(np.array_equal(a, b) for a, b in zip(rows, rows[1:] + rows[:1], strict=True))


def test_a_font_of_this_machine_draws_what_others_lack(flower_font):
    font = Font(20, ["Blüte 花"])
    assert font.shown("Blüte 花") == "Blüte 花" and font.families == ["DejaVu Sans", "One Flower"]
    assert font.width("花") == 20 and font.width("Blüte 花") == pytest.approx(font.width("Blüte ") + 20)
    image = Image.new("L", (120, 40), 255)
    font.draw(ImageDraw.Draw(image), (4, 4), "Blüte 花")
    square = np.asarray(image)[:, 4 + round(font.width("Blüte ")) :]
    assert (square < 128).sum() == pytest.approx(16 * 16, rel=0.1)
    for width in (20, 45, 70, 200):
        assert all(font.width(line) <= width for line in wrapped("花 Blüte 花花花花花花花花花 Blüten", width, 9, font))


def test_what_no_font_has_is_named_whole():
    text = "Blüte 花が咲いている庭園 " * 3
    font = Font(10, [text])
    shown = font.shown(text)
    assert shown.startswith(r"Blüte \u82b1\u304c") and "花" not in shown and font.families == ["DejaVu Sans"]
    for width in (40, 64, 100, 333):
        lines = wrapped(text, width, 50, font)
        assert all(font.width(line) <= width for line in lines)
        assert "".join(lines).replace(" ", "") == shown.replace(" ", "")
        assert not any("\\" in re.sub(ESCAPE, "", line) for line in lines), lines


@pytest.mark.parametrize("has_font", [False, True])
def test_class_names_of_any_language_in_a_plot_without_a_warning(has_font, request, tmp_path, recwarn, caplog, capfd):
    if has_font:
        request.getfixturevalue("flower_font")
    names = ["Ünïcödé", "花", "花が咲いている庭園の写真", "роза", "a very long class name that is unreasonably long"]
    confusion_plot({"": {"confusion": np.eye(5, dtype=int), "names": names}}, tmp_path / "a.png")
    rows = [(name, i, range(5)) for i, name in enumerate(names)]
    per_class_sheet([Image.new("RGB", (8, 8))] * 5, rows).save(tmp_path / "b.png")
    assert [str(w.message) for w in recwarn] == [] and caplog.text == "" and capfd.readouterr().err == ""


def test_titles_of_a_plot_are_cut_between_words():
    font = Font(10)
    assert short_title("a very long class name that is unreasonably long", font) == "a very long class..."
    assert short_title("Donaudampfschifffahrtsgesellschaft", font) == "Donaudampfschifffahrt..."
    assert re.fullmatch(rf"({ESCAPE})+\.\.\.", short_title("花が咲いている庭園の写真", font))
