import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cond_pipelines.fonts import Font
from cond_pipelines.pictures import animation, image_grid, loss_plot, wrapped

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def solid(colour, size=(8, 8), mode="RGB"):
    return Image.new(mode, size, colour)


def share(grid, colour):
    return (np.asarray(grid) == colour).all(axis=-1).mean()


def test_every_image_is_shown_once_and_whole():
    grid = image_grid([solid(c) for c in COLOURS], columns=3)
    pixels = 64 * 64 / (grid.width * grid.height)
    assert all(share(grid, c) == pytest.approx(pixels) for c in COLOURS)
    assert share(grid, (255, 255, 255)) == pytest.approx(1 - 5 * pixels)


def test_images_are_laid_out_by_rows():
    array = np.asarray(image_grid([solid(c) for c in COLOURS], columns=2))
    first = {c: np.argwhere((array == c).all(axis=-1))[0].tolist() for c in COLOURS}
    order = sorted(COLOURS, key=lambda c: first[c])
    assert order == COLOURS


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (16, 4), (40, 2), (64, 1), (100, 1)])
def test_small_images_are_enlarged_by_whole_pixels(side, scale):
    checks = Image.fromarray((np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8))
    grid = np.asarray(image_grid([checks]).convert("L"))
    gap = (grid.shape[0] - side * scale) // 2
    inside = grid[gap : gap + side * scale, gap : gap + side * scale]
    assert (inside[::scale, ::scale] == np.asarray(checks)).all()
    assert (np.kron(np.asarray(checks), np.ones((scale, scale), np.uint8)) == inside).all()


def test_modes():
    grid = image_grid([solid((0, 0, 0, 0), mode="RGBA"), solid(0, mode="L"), solid((255, 0, 0, 255), mode="RGBA")])
    assert grid.mode == "RGB"
    assert share(grid, (0, 0, 0)) == pytest.approx(share(grid, (255, 0, 0)))  # the transparent one shows white


@pytest.mark.parametrize("caption", ["circle", "", "two\nlines and a tab\t", "word " * 50, "日本 🙂 naïve", "x" * 500])
def test_any_caption_fits_under_its_image(caption):
    plain, grid = image_grid([solid(COLOURS[0])]), image_grid([solid(COLOURS[0])], captions=[caption])
    assert grid.width == plain.width
    assert grid.height > plain.height
    below = np.asarray(grid.convert("L"))[plain.height - 2 :]
    assert (below < 128).any() == bool(caption)
    edge = np.asarray(grid.convert("L"))[:, -2:]
    assert (edge == 255).all()


LONG = {
    "a word of a million letters": "x" * 10**6,
    "a million words": "red circle " * 10**6,
    "970 characters": "one two three four five six seven " * 29,
    "newlines": "a\nb\r\nc\td\x00e\x1b[31mf" * 100,
    "wide characters": "\u65e5\u672c\U0001f642" * 1000,
    "marks without a width": "e" + "\u0301" * 10**5,
    "half of a character": "caf\ud83d caf\xe9 " * 100,
}


@pytest.mark.parametrize("width_px", [10, 64, 512])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_captions_of_any_length_are_cut_with_few_measurements(text, width_px, monkeypatch):
    calls = []
    textlength = ImageDraw.ImageDraw.textlength
    monkeypatch.setattr(ImageDraw.ImageDraw, "textlength", lambda *a, **k: calls.append(a) or textlength(*a, **k))
    lines = wrapped(text, width_px, 4)
    assert 1 <= len(lines) <= 4
    assert len(calls) <= (4 + 1) * (math.log2(16 * (width_px + 1)) + 2)  # a bisection a line, and one for the end
    font = Font(10, [text])
    assert all(font.width(line) <= width_px for line in lines) or width_px == 10


def test_captions_break_between_words_and_end_in_an_ellipsis():
    words = [f"word{i}" for i in range(300)]
    lines = wrapped(" ".join(words), 200, 5)
    assert len(lines) == 5 and lines[-1].endswith("...")
    shown = " ".join(lines).removesuffix("...").split()
    assert shown == words[: len(shown)] and len(shown) > 15
    assert wrapped("a red circle", 200, 5) == ["a red circle"]
    assert wrapped("a red circle", 200, 1) == ["a red circle"]
    assert wrapped(" ", 200, 5) == []
    assert "".join(wrapped("x" * 60, 64, 50)) == "x" * 60


def test_a_long_caption_is_shown_on_several_lines():
    image = solid(COLOURS[0], size=(256, 256))
    heights = [image_grid([image], captions=["word " * n]).height for n in (1, 30, 100_000)]
    assert heights[0] < heights[1] < heights[2] <= 256 * 1.6


def test_empty_places_stay_white():
    grid = image_grid([solid(COLOURS[0]), None, None, None])
    assert grid.size == image_grid([solid(COLOURS[0])] * 4).size
    assert share(grid, COLOURS[0]) == pytest.approx(64 * 64 / (grid.width * grid.height))


def test_an_animation_shows_the_first_and_the_last_and_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (900, 700, 3), dtype=np.uint8)) for _ in range(40)]
    frames = [(f"step {i}", picture) for i, picture in enumerate(pictures)]
    animation(frames, tmp_path / "all.gif")
    animation(frames[:1] + frames[-1:], tmp_path / "ends.gif")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".gif"] == []
    with Image.open(tmp_path / "all.gif") as long, Image.open(tmp_path / "ends.gif") as ends:
        assert long.n_frames == 12 and ends.n_frames == 2
        assert max(long.size) <= 500 and (tmp_path / "all.gif").stat().st_size < 4e6
        for index, same in ((0, 0), (11, 1)):
            long.seek(index), ends.seek(same)
            assert (np.asarray(long.convert("RGB")) == np.asarray(ends.convert("RGB"))).all()


def test_wide_images():
    grid = image_grid([solid(COLOURS[0], size=(32, 8)), solid(COLOURS[1], size=(32, 8))], columns=1)
    assert grid.width > grid.height
    assert share(grid, COLOURS[0]) == share(grid, COLOURS[1]) > 0.2


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        image_grid([])


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ([(50, 1.0), (100, 0.5)], [(100, 0.6)]),
        ([(1, 1.0)], []),
        ([], []),
        ([(1, 1.0), (2, math.nan), (3, math.inf), (4, 0.5)], [(2, math.nan)]),
        ([(1, math.nan)], []),
        ([(1, 0.0), (2, 0.0)], []),
    ],
)
def test_loss_plot(tmp_path, train, held_out):
    loss_plot(tmp_path / "loss.png", train, held_out)
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("L"))
    assert pixels.shape == (480, 840)
    assert pixels.std() > 0


def test_more_losses_more_ink(tmp_path):
    loss_plot(tmp_path / "empty.png", [], [])
    loss_plot(tmp_path / "full.png", [(i, 1 / (i + 1)) for i in range(50)], [(25, 0.5)])
    empty, full = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("empty", "full"))
    assert (full < 200).sum() > (empty < 200).sum()


def test_the_only_loss_of_a_short_run_is_seen(tmp_path):
    """One line of the log, as of 30 steps: its point is within the axes, in the colour of the training loss."""
    loss_plot(tmp_path / "loss.png", [(30, 0.5)], [])
    colour = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    blue = (np.abs(colour - (31, 119, 180)).max(axis=-1) < 20)[20:420, 440:475]  # the middle, where no legend is
    assert blue.sum() > 4


def test_titles_stand_at_their_rows_and_columns():
    images = [solid(c) for c in COLOURS[:4]]
    plain = image_grid(images, columns=2)
    titled = image_grid(images, row_titles=["circle", "ring"], column_titles=["scale 1", "scale 4"])
    left, top = titled.width - plain.width, titled.height - plain.height
    assert left > 0 and top > 0
    array = np.asarray(titled)
    assert (array[top:, left:] == np.asarray(plain)).all()
    for half in (slice(left, left + plain.width // 2), slice(left + plain.width // 2, None)):
        assert (array[:top, half] < 128).any()
    for half in (slice(top, top + plain.height // 2), slice(top + plain.height // 2, None)):
        assert (array[half, :left] < 128).any()


@pytest.mark.parametrize("titles", [{"row_titles": ["a"] * 3}, {"column_titles": ["a"] * 3}])
def test_titles_that_fit_no_row_or_column_are_refused(titles):
    with pytest.raises(ValueError, match=r"3 (row|column)_titles for 2"):
        image_grid([solid(c) for c in COLOURS[:4]], columns=2, **titles)


@pytest.mark.parametrize("where", ["captions", "column_titles"])
def test_small_images_are_enlarged_until_no_word_is_cut(where, monkeypatch):
    """ "guidance_scale" is wider than an image of 64 px."""
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: drawn.append(a[2]) or text(*a, **k))
    titles = ["guidance_scale 2.5", "num_inference_steps 24"]
    image_grid([solid(c) for c in COLOURS[:2]], columns=2, **{where: titles})
    assert [word for line in drawn for word in line.split()] == " ".join(titles).split()


def test_large_images_have_large_text():
    def ink(side):
        image = solid((255, 255, 255), size=(side, side))
        return (np.asarray(image_grid([image], captions=["circle"]).convert("L")) < 128).any(axis=1).sum()

    assert ink(1024) > 2.5 * ink(64)


def test_a_usual_caption_is_shown_whole(monkeypatch):
    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: drawn.append(a[2]) or text(*a, **k))
    image_grid([solid(COLOURS[0])], captions=["a red circle on a black background"])
    assert " ".join(drawn) == "a red circle on a black background"
