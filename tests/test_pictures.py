import math

import numpy as np
import pytest
from PIL import Image

from cond_pipelines.pictures import image_grid, loss_plot

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
