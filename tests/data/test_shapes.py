import itertools

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFilter

from cond_pipelines.data import shapes
from cond_pipelines.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    COMBINATIONS,
    SHAPES,
    caption,
    draw,
    load_shapes,
    make_example,
    read_attributes,
    split_combinations,
)

NOTHING = {"shape": None, "colour": None, "background": None}


def attributes(example):
    return {name: example[name] for name in NOTHING}


def share_read(examples, spoil):
    return np.mean([read_attributes(spoil(example["image"])) == attributes(example) for example in examples])


@pytest.fixture(scope="module")
def examples():
    return [make_example(i, seed=1) for i in range(300)]


# ------------------------------------------------------------------------------------------------------ drawing
@pytest.mark.parametrize("shape", SHAPES)
def test_ink_is_the_area_of_the_shape(shape):
    # Closed forms in a unit box; the ring's hole has half its diameter, the cross is five of nine squares.
    area = {"circle": np.pi / 4, "square": 1, "triangle": 1 / 2, "cross": 5 / 9, "ring": np.pi / 4 * 3 / 4}[shape]
    red = np.asarray(draw(shape, "red", "black", image_size_px=128, size=0.7))[..., 0] / COLOURS["red"][0]
    assert red.mean() == pytest.approx(area * 0.7**2, rel=0.01)


def test_centre_moves_the_shape_and_colours_are_exact():
    at = {x: np.asarray(draw("square", "cyan", "grey", size=0.5, centre=(x, 0.5))) for x in (0.5, 0.625)}
    assert np.array_equal(at[0.625], np.roll(at[0.5], 2, axis=1))
    assert tuple(at[0.5][8, 8]) == COLOURS["cyan"] and tuple(at[0.5][0, 0]) == BACKGROUNDS["grey"]


def test_drawing_is_anti_aliased_and_continuous_in_size():
    images = [np.asarray(draw("circle", "red", "black", size=size)) for size in (0.6, 0.61)]
    assert len(np.unique(images[0][..., 0])) > 4
    assert 0 < np.abs(images[0].astype(int) - images[1]).max() < 100


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("hexagon", "red", "black"), {}, "'hexagon'.*circle"),
        (("circle", "black", "red"), {}, "'black'.*red, green"),
        (("circle", "red", "cyan"), {}, "'cyan'.*black, grey, white"),
        (("circle", "red", "black"), {"size": 0}, "size=0"),
        (("circle", "red", "black"), {"image_size_px": 8}, "image_size_px=8"),
    ],
)
def test_draw_names_what_is_wrong(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments, **options)


def test_named_colours_are_twice_the_reading_tolerance_apart():
    pairs = itertools.combinations([*COLOURS.values(), *BACKGROUNDS.values()], 2)
    assert min(np.linalg.norm(np.subtract(a, b, dtype=float)) for a, b in pairs) >= 2 * shapes._MAX_COLOUR_DISTANCE


# ----------------------------------------------------------------------------------------------------- captions
def test_captions_tell_the_truth_and_vary(examples):
    names = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS}
    for example in examples:
        words = example["caption"].replace(",", "").split()
        for kind, known in names.items():
            assert [word for word in words if word in known] == [example[kind]], example["caption"]
        if "small" in words:
            assert example["size"] < shapes.SMALL_BELOW
        if "large" in words:
            assert example["size"] > shapes.LARGE_ABOVE
    texts = [example["caption"] for example in examples]
    assert len(set(texts)) > 200
    assert 0.1 < np.mean(["small" in text or "large" in text for text in texts]) < 0.5


def test_every_template_is_used_and_names_all_attributes():
    rng = np.random.default_rng(0)
    plain = {caption("ring", "blue", "grey", rng=rng) for _ in range(300)}
    assert len(plain) == len(set(shapes.CAPTION_TEMPLATES)) >= 8
    assert all({"ring", "blue", "grey"} <= set(text.replace(",", "").split()) for text in plain)
    assert caption("ring", "blue", "grey") == "a blue ring on a grey background"


# ------------------------------------------------------------------------------------------------- combinations
def test_split_holds_out_compositions_of_familiar_pairs():
    assert len(COMBINATIONS) == len(SHAPES) * len(COLOURS) * len(BACKGROUNDS)
    for seed in range(5):
        seen, unseen = split_combinations(0.2, seed=seed)
        assert len(unseen) == round(0.2 * len(COMBINATIONS))
        assert not set(seen) & set(unseen) and set(seen) | set(unseen) == set(COMBINATIONS)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert {(c[i], c[j]) for c in seen} == {(c[i], c[j]) for c in COMBINATIONS}
    assert split_combinations(0.2, seed=0)[1] != split_combinations(0.2, seed=1)[1]
    assert split_combinations(0.0)[1] == []


@pytest.mark.parametrize("fraction", [-0.1, 0.9])
def test_split_refuses_fractions_it_cannot_keep(fraction):
    with pytest.raises(ValueError, match=f"held_out_fraction={fraction}"):
        split_combinations(fraction)


# ----------------------------------------------------------------------------------------------------- data set
def test_example_depends_on_seed_and_index_only():
    assert make_example(5, seed=3) == make_example(5, seed=3)
    assert make_example(5, seed=3)["image"] != make_example(6, seed=3)["image"]
    assert make_example(5, seed=3)["image"] != make_example(5, seed=4)["image"]
    # The resolution changes the pixels and nothing else.
    small, large = make_example(5, seed=3), make_example(5, seed=3, image_size_px=64)
    assert (small.pop("image").size, large.pop("image").size) == ((16, 16), (64, 64))
    assert small == large


def test_dataset_has_ordinary_features_and_a_longer_set_begins_with_a_shorter_one():
    dataset = load_shapes(30, seed=2, image_size_px=24)
    assert isinstance(dataset.features["image"], datasets.Image)
    assert dataset.features["label"].names == list(SHAPES)
    assert all(dataset.features[name] == datasets.Value("string") for name in ("caption", *NOTHING))
    assert dataset.cache_files == []
    for i, row in enumerate(dataset):
        assert row | {"image": row["image"].copy()} == make_example(i, seed=2, image_size_px=24)
        assert dataset.features["label"].int2str(row["label"]) == row["shape"]
    assert list(load_shapes(10, seed=2, image_size_px=24)) == list(dataset.select(range(10)))


def test_streaming_equals_map_style():
    options = {"seed": 7, "combinations": "seen"}
    stream, dataset = load_shapes(50, streaming=True, **options), load_shapes(50, **options)
    assert isinstance(stream, datasets.IterableDataset)
    assert stream.features == dataset.features
    assert stream.num_shards > 1
    assert list(stream) == list(dataset)


def test_seen_and_unseen_sets_hold_their_combinations():
    def found(name):
        columns = load_shapes(1500, combinations=name, held_out_fraction=0.3)
        return set(zip(columns["shape"], columns["colour"], columns["background"], strict=True))

    seen, unseen = split_combinations(0.3)
    assert (found("seen"), found("unseen"), found("all")) == (set(seen), set(unseen), set(COMBINATIONS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images=0"),
        ({"num_images": 4, "combinations": "test"}, "combinations='test'"),
        ({"num_images": 4, "combinations": "unseen", "held_out_fraction": 0.0}, "holds out none"),
        ({"num_images": 4, "image_size_px": 8, "streaming": True}, "image_size_px=8"),
    ],
)
def test_load_shapes_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        load_shapes(**options)


# ------------------------------------------------------------------------------------------------------- reader
@pytest.mark.parametrize(("image_size_px", "num_images"), [(16, 1000), (24, 300), (32, 300), (64, 300)])
def test_reader_is_exact_on_drawn_images(image_size_px, num_images):
    for i in range(num_images):
        example = make_example(i, seed=11, image_size_px=image_size_px)
        assert read_attributes(example["image"]) == attributes(example), (i, example)


def test_reader_takes_pil_uint8_and_float_arrays_alike():
    image = draw("triangle", "magenta", "white", image_size_px=24)
    expected = {"shape": "triangle", "colour": "magenta", "background": "white"}
    pixels = np.asarray(image)
    for form in (image, image.convert("RGBA"), pixels, pixels / 255, (pixels / 255).astype(np.float32)):
        assert read_attributes(form) == expected


def test_reader_tolerates_noise_blur_and_shift(examples):
    rng = np.random.default_rng(0)

    def noisy(image):
        return np.clip(np.asarray(image) + rng.normal(0, 10, (16, 16, 3)), 0, 255).round().astype(np.uint8)

    assert share_read(examples, noisy) >= 0.98
    assert share_read(examples, lambda image: image.filter(ImageFilter.GaussianBlur(0.6))) >= 0.98
    assert share_read(examples, lambda image: np.roll(np.asarray(image), 1, axis=1)) >= 0.97


def test_reader_tells_the_background_of_blank_images_and_nothing_of_noise():
    for name, rgb in BACKGROUNDS.items():
        assert read_attributes(Image.new("RGB", (16, 16), rgb)) == NOTHING | {"background": name}
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert read_attributes(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) == NOTHING


def test_reader_tells_the_shape_but_not_an_unnamed_colour_or_background():
    orange, navy = np.array([235, 130, 30]), np.array([10, 20, 110])
    ink = np.asarray(draw("cross", "red", "black"))[..., :1] / COLOURS["red"][0]  # (16, 16, 1)
    image = np.rint(ink * orange + (1 - ink) * navy).astype(np.uint8)
    assert read_attributes(image) == NOTHING | {"shape": "cross"}


def spoilt(examples, spoil):
    """Share of spoilt images in which the reader still sees a shape, colour and background."""
    return np.mean([None not in read_attributes(spoil(example)).values() for example in examples])


def test_reader_rejects_two_colours_in_one_shape(examples):
    def two_coloured(example):
        other = next(name for name in COLOURS if name != example["colour"])
        left, right = (
            np.asarray(draw(example["shape"], colour, example["background"])) for colour in (example["colour"], other)
        )
        return np.concatenate([left[:, :8], right[:, 8:]], axis=1)

    assert spoilt(examples, two_coloured) == 0


def test_reader_rejects_the_average_of_two_images(examples):
    def averaged(example):
        index = SHAPES.index(example["shape"])
        other = draw(SHAPES[(index + 1) % len(SHAPES)], example["colour"], example["background"], size=example["size"])
        return np.asarray(Image.blend(example["image"], other, 0.5))

    assert spoilt(examples, averaged) <= 0.02


def test_reader_rejects_halves(examples):
    def left_half(example):
        pixels = np.array(example["image"])
        inked = np.flatnonzero(np.any(pixels != pixels[0, 0], axis=(0, 2)))
        pixels[:, round(inked.mean()) :] = pixels[0, 0]
        return pixels

    assert spoilt(examples, left_half) <= 0.01


def test_reader_rejects_two_shapes(examples):
    def two(example):
        size = 0.42
        coverages = [shapes._coverage(example["shape"], 16, size, x, y) for x, y in ((0.27, 0.4), (0.73, 0.6))]
        return blend(example, np.maximum(*coverages))

    assert spoilt(examples, two) == 0


def test_reader_rejects_blobs(examples):
    rng = np.random.default_rng(0)
    x, y = (axis - 0.5 for axis in shapes._pixel_grid(16))

    def gaussian(example):
        return blend(example, np.exp(-(x**2 + y**2) / (2 * rng.uniform(0.12, 0.25) ** 2)))

    def irregular(example):  # a circle whose radius wanders by a quarter
        angle, phases = np.arctan2(y, x), rng.uniform(0, 2 * np.pi, 2)
        radius = 0.3 * (1 + 0.25 * np.sin(2 * angle + phases[0]) + 0.15 * np.sin(3 * angle + phases[1]))
        return blend(example, np.clip(0.5 - 16 * (np.hypot(x, y) - radius), 0, 1))

    def diamond(example):
        return blend(example, shapes._coverage("diamond", 16, example["size"], 0.5, 0.5))

    assert spoilt(examples, gaussian) <= 0.05
    assert spoilt(examples, irregular) <= 0.05
    assert spoilt(examples, diamond) == 0


def blend(example, mask):
    ink, backdrop = np.array(COLOURS[example["colour"]]), np.array(BACKGROUNDS[example["background"]])
    return np.rint(backdrop + mask[..., None] * (ink - backdrop)).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((16, 16)), r"\(16, 16\)"),
        (np.full((16, 16, 3), 255.0), r"255: expected \[0, 1\]"),
        (np.full((16, 16, 3), np.nan), "nan"),
        (np.zeros((16, 20, 3), np.uint8), "20x16"),
        (Image.new("RGB", (8, 8)), "8x8"),
    ],
)
def test_reader_names_what_is_wrong(image, message):
    with pytest.raises(ValueError, match=message):
        read_attributes(image)
