"""The demo's report, on images instead of trained models; `make demo` itself takes minutes."""

import pytest
from PIL import Image

from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.demo import demo_shapes, evaluate_demo, gallery, right


@pytest.fixture(scope="module")
def rows():
    """Of new drawn shapes, of copies of the training set, and of gray images."""
    new = load_shapes(200, seed=5, combinations="seen")["image"]
    copies = load_shapes(200, combinations="seen")["image"]
    gray = [Image.new("RGB", (16, 16), (100 + i % 50,) * 3) for i in range(200)]
    found = evaluate_demo({"new": new, "copies": copies, "gray": gray}, num_real=1000)
    return {name: {row["name"]: row for row in rows} for name, rows in found.items()}


def test_copies_are_seen_as_copies(rows):
    name = "closer to a training image than 99 % of held-out ones"
    assert rows["new"][name]["value"] < 0.05 and rows["copies"][name]["value"] == 1


def test_gray_images_are_far_away(rows):
    assert rows["gray"]["precision"]["value"] == 0
    assert rows["gray"]["kernel distance"]["value"] > 10 * rows["new"]["kernel distance"]["interval"][1]
    low, high = rows["new"]["kernel distance"]["interval"]
    assert low <= 0 <= high  # new shapes are drawn from the same distribution


def test_the_training_set_is_the_one_evaluated_against():
    assert load_shapes(3, combinations="seen")["caption"] == demo_shapes().select(range(3))["caption"]


def test_right_counts_what_the_reader_sees():
    shapes = load_shapes(20)
    asked = [{"shape": row["shape"], "colour": row["colour"]} for row in shapes]
    assert right(list(shapes["image"]), asked) == 1
    assert right(list(shapes["image"]), asked[1:] + asked[:1]) < 0.3


def test_the_gallery_holds_every_panel():
    sheet = gallery([("a", Image.new("RGB", (50, 20))), ("b", Image.new("RGB", (80, 30)))])
    assert sheet.size == (80, 20 + 30 + 2 * 28)
