import functools
import io
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from cond_pipelines.data.dataset import BadRow, ImageDataset
from cond_pipelines.data.labels import Captions, label_parser, parse_caption
from cond_pipelines.data.loading import Columns, load_source

BAD_IMAGES = (3, 70, 99)
NUM_IMAGES = 100


lazy_dataset = functools.partial(ImageDataset, cache_images=False)  # images are read when they are needed


def png(i, size=(8, 8)):
    file = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), i, np.uint8)).save(file, "PNG")
    return file.getvalue()


def make(images, conditions=None, cls=ImageDataset, **kwargs):
    rows = {"image": [{"bytes": image, "path": None} for image in images]}
    features = datasets.Features(image=datasets.Image())
    if conditions is not None:
        rows["condition"] = conditions
        features["condition"] = datasets.Dataset.from_dict({"x": conditions}).features["x"]
    columns = Columns("image", None if conditions is None else "condition")
    rows = datasets.Dataset.from_dict(rows, features=features)
    return cls(rows, columns, **{"resolution": 8, "channels": 3} | kwargs)


def with_bad_images(cls=ImageDataset, **kwargs):
    return make([png(i)[: 20 if i in BAD_IMAGES else None] for i in range(NUM_IMAGES)], cls=cls, **kwargs)


def shade(row):
    return int(row.pixels[0, 0, 0])


# ------------------------------------------------------------------------------------------------------- labels
CLASS_LABEL = datasets.ClassLabel(names=["ape", "bee", "cat"])
INT, STRING = datasets.Value("int64"), datasets.Value("string")


def test_class_label():
    id2label, parse = label_parser([], CLASS_LABEL)
    assert id2label == {0: "ape", 1: "bee", 2: "cat"}
    assert [parse(v) for v in (0, 2, None, -1)] == [0, 2, None, None]
    for bad in (3, -2):
        with pytest.raises(ValueError, match=rf"label {bad} is outside of 0 \.\. 2"):
            parse(bad)


def test_integer_labels():
    """A number is its class's id; one that no image has is no class."""
    id2label, parse = label_parser([4, 0, None, -1, 2], INT)
    assert id2label == {0: "0", 2: "2", 4: "4"}
    assert [parse(v) for v in (4, None, -1)] == [4, None, None]
    with pytest.raises(ValueError, match=r"label -7 is outside of 0 \.\. 4"):
        parse(-7)


def test_string_labels():
    id2label, parse = label_parser(["dog", "cat", "", None, "dog"], STRING)
    assert id2label == {0: "cat", 1: "dog"}
    assert [parse(v) for v in ("dog", "cat", "", None)] == [1, 0, None, None]


def test_boolean_labels():
    id2label, parse = label_parser([True, False, None], datasets.Value("bool"))
    assert id2label == {0: "False", 1: "True"}
    assert [parse(v) for v in (True, False, None)] == [1, 0, None]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1.0, 2.0, float("nan"), 3.0], {1: "1", 2: "2", 3: "3"}),
        (["NA", "None", "null", "x"], {0: "NA", 1: "None", 2: "null", 3: "x"}),
        (["10", "9", "1"], {0: "1", 1: "9", 2: "10"}),
        ([1.5, 2.0], {0: "1.5", 1: "2"}),
    ],
)
def test_labels_are_what_was_written(values, names):
    """Whole floats are whole numbers, text stays text, digit strings are sorted as numbers."""
    feature = datasets.Dataset.from_dict({"x": values}).features["x"]
    id2label, parse = label_parser(values, feature)
    assert id2label == names
    for value in values:
        assert parse(value) is None if value != value else id2label[parse(value)] in (str(value), str(value)[:-2])


def test_a_label_column_without_a_label_is_refused():
    with pytest.raises(ValueError, match="the label column holds no label"):
        label_parser([None, -1], CLASS_LABEL)


def test_several_labels_of_an_image():
    names, parse = label_parser([["b", "a"], None, [], ["b", None]], datasets.List(STRING))
    assert names == {0: "a", 1: "b"}
    assert [parse(v) for v in (["b", "a"], None, [], ["b", None, "b"])] == [(1, 0), None, None, (1,)]
    names, parse = label_parser([[1], [0, 1]], datasets.List(datasets.ClassLabel(names=["x", "y"])))
    assert names == {0: "x", 1: "y"} and parse([1, -1]) == (1,)
    with pytest.raises(ValueError, match=r"label 2 is outside of 0 .. 1"):
        parse([0, 2])


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([None, None], datasets.Value("null"), "holds no label"),
        (["", None, ""], STRING, "holds no label"),
        ([[[1, 2]], [[3]]], datasets.List(datasets.List(INT)), r"holds no labels but List.*--label_column"),
        ([[], None], datasets.List(STRING), "holds no label"),
        ([5, 10**9], INT, r"labels up to 1000000000, only 2 different: number them 0, 1, 2"),
    ],
)
def test_no_labels(values, feature, message):
    with pytest.raises(ValueError, match=message):
        label_parser(values, feature)


# ----------------------------------------------------------------------------------------------------- captions
def test_captions():
    assert parse_caption("a cat") == "a cat"
    assert parse_caption(["a cat", "", None, "  ", "one cat"]) == Captions(["a cat", "one cat"])


@pytest.mark.parametrize("value", ["", "  \n", None, [], ["", None]])
def test_empty_captions(value):
    with pytest.raises(ValueError, match="caption"):
        parse_caption(value)


@pytest.mark.parametrize("value", [5, 1.5, [1, 2]])
def test_captions_that_are_no_text(value):
    with pytest.raises(ValueError, match=r"is not text .*--caption_column"):
        parse_caption(value)


def test_one_of_several_captions_is_drawn_by_position():
    captions = [["one", "two", "three"]] * 4
    dataset = make([png(i) for i in range(4)], captions, parse_condition=parse_caption)
    dataset.check()
    drawn = [dataset[position, 0].condition for position in range(300)]
    assert drawn == [dataset[position, 0].condition for position in range(300)]
    assert all(70 < drawn.count(word) < 130 for word in captions[0])


def test_a_list_is_drawn_from_only_when_it_holds_captions():
    """A third party's condition may be a vector."""
    dataset = make([png(0), png(1)], [[1.0, 2.0], [3.0, 4.0]])
    dataset.check()
    assert [dataset[position, 1].condition for position in range(5)] == [[3.0, 4.0]] * 5


# ----------------------------------------------------------------------------------------------------- bad rows
def test_a_bad_image_is_named():
    with pytest.raises(BadRow, match=r"^row (3|70|99): unreadable image: .*; mend it, or --on_bad_image skip$"):
        with_bad_images().check()


def test_a_bad_image_is_named_by_its_file(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i) if i != 1 else png(i)[:30])
    rows = load_source(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(BadRow, match=re.escape(f"row 1 ({tmp_path / '1.png'}): unreadable image")):
        ImageDataset(rows, Columns("image"), 8, 3).check()


@pytest.mark.parametrize("cls", [ImageDataset, lazy_dataset])
def test_skipped_images_are_named_and_the_rest_is_kept(cls):
    dataset = with_bad_images(cls, on_bad_image="skip")
    dataset.check()
    good = [i for i in range(NUM_IMAGES) if i not in BAD_IMAGES]
    if cls is ImageDataset:
        assert dataset.decoded
        assert dataset.usable.tolist() == good
        assert [shade(dataset[0, i]) for i in range(len(dataset))] == good
    else:
        assert not dataset.decoded
        seen = {shade(dataset[0, i]) for i in range(len(dataset))}
        assert seen == set(good)
    assert {int(re.match(r"row (\d+): unreadable", line)[1]) for line in dataset.skipped} == set(BAD_IMAGES)
    shown = dataset.summary().splitlines()[-len(BAD_IMAGES) - 1 :]
    assert shown == [f"skipped: {len(BAD_IMAGES)}", *(f"  {line}" for line in dataset.skipped)]


def test_a_long_list_of_bad_rows_is_cut():
    dataset = make([png(i) if i % 2 else b"broken" for i in range(40)], on_bad_image="skip")
    dataset.check()
    assert len(dataset.skipped) == 20
    assert dataset.summary().endswith("\n  and 10 more")


def test_a_bad_image_found_later_stops_or_is_replaced(caplog):
    bad = 60  # not among the few that are looked at first
    images = [png(i) if i != bad else b"broken" for i in range(NUM_IMAGES)]
    strict, lenient = make(images, cls=lazy_dataset), make(images, cls=lazy_dataset, on_bad_image="skip")
    for dataset in (strict, lenient):
        dataset.check()
        assert len(dataset) == NUM_IMAGES
        assert dataset.skipped == []
    with pytest.raises(BadRow, match=f"row {bad}: unreadable image"):
        strict[0, bad]
    assert [shade(lenient[p, bad]) for p in range(3)] == [bad + 1] * 3
    assert len(lenient.skipped) == 1
    (warning,) = caplog.messages
    assert warning.startswith(f"skipped row {bad}: unreadable image")


def test_a_stand_in_comes_from_the_same_split():
    """Otherwise a bad image would let a held-out one into training."""
    images = [png(i) for i in range(NUM_IMAGES)]
    held_out = make(images, cls=lazy_dataset).split(0.25)[1]
    before = next(i - 1 for i in held_out if i - 1 not in held_out)
    images[before] = images[held_out[-1]] = b"broken"
    dataset = make(images, cls=lazy_dataset, on_bad_image="skip")
    train, _ = dataset.use_split(held_out)
    assert not {shade(dataset[0, i]) for i in train} & set(held_out.tolist())
    assert {shade(dataset[0, i]) for i in held_out} <= set(held_out.tolist())
    assert len(dataset.skipped) == 2


def test_no_image_left():
    with pytest.raises(ValueError, match=r"no usable image among 5 rows; row 0: unreadable"):
        make([b"broken"] * 5, on_bad_image="skip").check()
    late = make([png(0)] * 40, cls=lazy_dataset, on_bad_image="skip")
    late.rows = datasets.Dataset.from_dict({"image": [{"bytes": b"broken", "path": None}] * 40})
    with pytest.raises(BadRow, match=r"no usable image is left; row \d+: unreadable"):
        late[0, 0]


def test_bad_conditions_are_named_or_skipped():
    images, captions = [png(i) for i in range(5)], ["a", "", "c", None, "e"]
    with pytest.raises(BadRow, match=r"^row 1: the caption is empty; mend it, or --on_bad_image skip$"):
        make(images, captions, parse_condition=parse_caption).check()
    dataset = make(images, captions, parse_condition=parse_caption, on_bad_image="skip")
    dataset.check()
    assert [(shade(r), r.condition) for r in (dataset[0, i] for i in range(3))] == [(0, "a"), (2, "c"), (4, "e")]
    assert [line.split(";")[0] for line in dataset.skipped] == [
        "row 1: the caption is empty",
        "row 3: there is no caption",
    ]


def test_label_out_of_range_is_named():
    labels = [0, 2, 1, 9]
    dataset = make([png(i) for i in range(4)], labels, parse_condition=label_parser(labels, CLASS_LABEL)[1])
    with pytest.raises(BadRow, match=r"row 3: label 9 is outside of 0 \.\. 2"):
        dataset.check()


def test_other_columns_are_not_touched():
    """A second image column may be broken: it is none of our business."""
    files = {name: [{"bytes": data, "path": None}] for name, data in (("image", png(1)), ("mask", b"broken"))}
    rows = datasets.Dataset.from_dict(files, features=datasets.Features(image=datasets.Image(), mask=datasets.Image()))
    dataset = ImageDataset(rows, Columns("image"), 8, 3)
    dataset.check()
    assert shade(dataset[0, 0]) == 1


def test_the_message_survives_a_worker():
    wrapped = (
        "Caught BadRow in DataLoader worker process 0.\nOriginal Traceback ...\nx.BadRow: row 3: unreadable image\n"
    )
    assert str(BadRow(wrapped)) == "row 3: unreadable image"


# ----------------------------------------------------------------------------------------- what comes out of it
@pytest.mark.parametrize("cls", [ImageDataset, lazy_dataset])
def test_pixels_are_the_images(cls):
    dataset = make([png(i, size=(12, 9)) for i in range(40)], cls=cls)
    dataset.check()
    for i in range(40):
        row = dataset[i, i]
        assert row.pixels.shape == (8, 8, 3)
        assert row.pixels.dtype == np.uint8
        assert row.condition is None
        assert (row.pixels == i).all()


def test_crops_and_flips_are_functions_of_seed_and_position():
    gradient = np.zeros((8, 24, 3), np.uint8)
    gradient[:] = 10 * np.arange(24)[:, None]
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, "PNG")

    def draws(seed):
        dataset = make([file.getvalue()], seed=seed, center_crop=False, random_flip=True)
        return [dataset[position, 0].pixels[0, :, 0].tolist() for position in range(200)]

    assert draws(0) == draws(0) != draws(1)
    flipped = [row[0] > row[-1] for row in draws(0)]
    places = [min(row) // 10 for row in draws(0)]
    assert 70 < sum(flipped) < 130
    assert set(places) == set(range(17))
    assert abs(np.corrcoef(flipped, places)[0, 1]) < 0.25


def test_split_is_disjoint_complete_and_fixed():
    dataset = make([png(i % 200) for i in range(200)])
    train, held_out = dataset.split(0.1)
    assert len(held_out) == 20
    assert sorted([*train, *held_out]) == list(range(200))
    assert (dataset.split(0.1)[1] == held_out).all()
    assert len(dataset.split(0.9)[1]) == 50  # a quarter
    assert len(dataset.split(0.01)[1]) == 10
    assert len(dataset.split(0.9, most=20)[1]) == 20
    assert len(dataset.split(0.0)[1]) == 0
    assert len(make([png(i) for i in range(39)]).split(0.5)[1]) == 0


# ------------------------------------------------------------------------------------------------------ summary
def test_summary_of_classes():
    labels = [0, 1, 1, None, 2, 2, 2]
    id2label, parse = label_parser(labels, CLASS_LABEL)
    dataset = make([png(i) for i in range(7)], labels, parse_condition=parse)
    dataset.check()
    summary = dataset.summary(id2label)
    assert "images: 7 usable of 7, 8 px, 3 channel(s)" in summary
    assert "classes (3): ape 1, bee 2, cat 3; without a label: 1" in summary
    assert "skipped" not in summary


def test_summary_of_captions():
    captions = [["one"], ["one two", "one two three"], ["one"]]
    dataset = make([png(i) for i in range(3)], captions, parse_condition=parse_caption)
    dataset.check()
    assert "captions: 4 (3 different), 1 to 3 words, median 1; for example 'one'" in dataset.summary()
