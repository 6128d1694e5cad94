import csv
import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from cond_pipelines.data.account import Account, ReadOptions
from cond_pipelines.data.images import open_image
from cond_pipelines.data.loading import Columns, as_files, find_columns, load_object, load_source
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.settings import SETTINGS

NUM_IMAGES = 6
CAPTIONS = [f"picture number {i}" for i in range(NUM_IMAGES)]


def picture(i):
    return Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8))


def number(row):
    return int(np.asarray(open_image(row["image"]))[0, 0, 0]) // 10


def write_images(folder, names=None):
    names = names or [f"{i}.png" for i in range(NUM_IMAGES)]
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
    return names


def table():
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]), text=datasets.Value("string")
    )
    rows = {"image": [picture(i) for i in range(NUM_IMAGES)], "label": [i % 2 for i in range(NUM_IMAGES)]}
    return datasets.Dataset.from_dict(rows | {"text": CAPTIONS}, features=features)


def shapes():
    return load_shapes(5)


def shape_splits():
    return datasets.DatasetDict(train=load_shapes(5), test=load_shapes(3, seed=1))


def not_working():
    raise ValueError("the disk\nis missing")


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


# ------------------------------------------------------------------------------------------------ image folders
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_folder_with_metadata(folder, cache, kind, streaming):
    names = write_images(folder)
    rows = [{"file_name": name, "text": text} for name, text in zip(names, CAPTIONS, strict=True)]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, reversed(rows))))
    else:
        with (folder / "metadata.csv").open("w") as file:
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
    found = load_source(str(folder), cache_dir=cache, streaming=streaming)
    assert isinstance(found, datasets.IterableDataset if streaming else datasets.Dataset)
    assert find_columns(found.features, SETTINGS["text"].column) == Columns("image", "text")
    assert sorted((number(row), row["text"]) for row in found) == list(enumerate(CAPTIONS))


@pytest.mark.parametrize("streaming", [False, True])
def test_class_sub_folders(folder, cache, streaming):
    write_images(folder, ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "emu/e.png", "emu/f.png"])
    found = load_source(str(folder), cache_dir=cache, streaming=streaming)
    columns = find_columns(found.features, SETTINGS["class"].column)
    assert columns == Columns("image", "label")
    names = found.features["label"].names
    assert [(number(row), names[row["label"]]) for row in found] == list(
        enumerate(["cat", "cat", "dog", "dog", "emu", "emu"])
    )


def test_flat_folder(folder, cache):
    write_images(folder)
    found = load_source(str(folder), cache_dir=cache)
    assert sorted(map(number, found)) == list(range(NUM_IMAGES))
    assert find_columns(found.features, SETTINGS["none"].column) == Columns("image")
    with pytest.raises(ValueError, match=r"no label column among image: .*--label_column .*sub-folder"):
        find_columns(found.features, SETTINGS["class"].column)
    with pytest.raises(ValueError, match=r"no caption column among image: .*--caption_column .*metadata.jsonl"):
        find_columns(found.features, SETTINGS["text"].column)


def test_a_changed_folder_is_read_again(folder, cache):
    write_images(folder)
    assert len(load_source(str(folder), cache_dir=cache)) == NUM_IMAGES
    picture(1).save(folder / "one more.png")
    assert len(load_source(str(folder), cache_dir=cache)) == NUM_IMAGES + 1


# ---------------------------------------------------------------------------------------------- tables and disk
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet(folder, cache, streaming):
    table().to_parquet(folder / "data.parquet")
    found = load_source(str(folder), cache_dir=cache, streaming=streaming)
    assert [(number(row), row["label"], row["text"]) for row in found] == [
        (i, i % 2, CAPTIONS[i]) for i in range(NUM_IMAGES)
    ]
    assert found.features["label"].names == ["even", "odd"]


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(folder, cache, streaming):
    """Tar shards with files of one name and several endings: an image, its caption, its class."""
    for shard in range(2):
        with tarfile.open(folder / f"{shard:04}.tar", "w") as tar:
            for i in range(3 * shard, 3 * shard + 3):
                file = io.BytesIO()
                picture(i).save(file, "PNG")
                for ending, content in (("png", file.getvalue()), ("txt", CAPTIONS[i].encode()), ("cls", b"%d" % i)):
                    entry = tarfile.TarInfo(f"{i:05}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    found = load_source(str(folder), cache_dir=cache, streaming=streaming)
    assert find_columns(found.features, SETTINGS["text"].column) == Columns("png", "txt")
    assert find_columns(found.features, SETTINGS["class"].column) == Columns("png", "cls")
    assert [(number({"image": row["png"]}), row["txt"], row["cls"]) for row in found] == [
        (i, CAPTIONS[i], i) for i in range(6)
    ]
    assert not streaming or found.num_shards == 2


def test_arrow(folder, cache):
    with datasets.arrow_writer.ArrowWriter(path=str(folder / "data.arrow"), features=table().features) as writer:
        writer.write_table(table().data.table)
        writer.finalize()
    found = load_source(str(folder), cache_dir=cache)
    assert list(map(number, found)) == list(range(NUM_IMAGES))
    assert found["text"][:] == CAPTIONS


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_to_disk(folder, streaming):
    table().save_to_disk(str(folder / "one"))
    found = load_source(str(folder / "one"), streaming=streaming)
    assert isinstance(found, datasets.IterableDataset if streaming else datasets.Dataset)
    assert [row["text"] for row in found] == CAPTIONS


def test_splits_saved_to_disk(folder):
    datasets.DatasetDict(train=table(), test=table().select([5])).save_to_disk(str(folder))
    assert len(load_source(str(folder))) == NUM_IMAGES
    assert load_source(str(folder), split="test")["text"][:] == CAPTIONS[5:]
    with pytest.raises(ValueError, match=r"no split 'val', only train, test: give --dataset_split"):
        load_source(str(folder), split="val")


def test_the_only_split_is_taken_whatever_its_name(folder):
    datasets.DatasetDict(everything=table()).save_to_disk(str(folder))
    assert len(load_source(str(folder))) == NUM_IMAGES


def test_split_of_a_folder(folder, cache):
    write_images(folder, ["train/a.png", "train/b.png", "train/c.png", "test/d.png", "test/e.png"])
    assert sorted(map(number, load_source(str(folder), cache_dir=cache))) == [0, 1, 2]
    assert sorted(map(number, load_source(str(folder), split="test", cache_dir=cache))) == [3, 4]


# ---------------------------------------------------------------------------------------------------- functions
def test_function():
    found = load_source(dataset_name=f"{__name__}:shapes")
    assert found["caption"][:] == load_shapes(5)["caption"][:]


def test_function_with_splits_and_streaming():
    found = load_source(dataset_name=f"{__name__}:shape_splits", split="test", streaming=True)
    assert isinstance(found, datasets.IterableDataset)
    assert len(list(found)) == 3


def test_load_object():
    assert load_object(f"{__name__}:shapes") is shapes
    for path in ("nowhere:x", f"{__name__}:x"):
        with pytest.raises(ValueError, match=f"cannot import '{path}'"):
            load_object(path)


# ---------------------------------------------------------------------------------------------- nothing to load
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, r"give --train_data_dir .* or --dataset_name"),
        ({"train_data_dir": "a", "dataset_name": "b"}, r"give --train_data_dir .* or --dataset_name"),
        ({"train_data_dir": "nowhere"}, r"--train_data_dir nowhere is not a folder"),
        ({"dataset_name": "nobody/nothing"}, r"cannot load nobody/nothing: "),
        ({"dataset_name": f"{__name__}:nothing"}, r"cannot import .*:nothing"),
    ],
)
def test_nothing_to_load(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        load_source(**kwargs)
    assert "\n" not in str(error.value)


def test_an_error_of_the_users_function_is_theirs():
    """A command names it in one line, with its file: test_wrong_inputs.py."""
    with pytest.raises(ValueError, match=r"the disk\s+is missing"):
        load_source(dataset_name=f"{__name__}:not_working")


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["deep/er/notes.md"], ["labels.json"], ["a.npz"]])
def test_folder_without_images(folder, cache, content):
    for name in content:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=f"cannot load {folder}: .*no images") as error:
        load_source(str(folder), cache_dir=cache)
    assert "\n" not in str(error.value)


def test_metadata_that_names_a_missing_file(folder, cache):
    """One line that names the row; with skip the row is left out, and counted once."""
    write_images(folder)
    (folder / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{name}", "text": "a"}}\n' for name in ("1.png", "7.png", "0.PNG"))
    )
    with pytest.raises(ValueError, match=r"row 1 of metadata.jsonl: 7.png is not there; mend it, or --on_bad_image"):
        load_source(str(folder), cache_dir=cache)
    account = Account()
    assert len(load_source(str(folder), account=account, options=ReadOptions(on_bad_image="skip"))) == 1
    assert account.lines() == [
        "5 of 6 images are left out: 5 without a row in metadata.jsonl (0.png, 2.png, 3.png, ...)",
        "rows of metadata.jsonl whose file is not there are left out: 2 (7.png, 0.PNG)",
    ]


@pytest.mark.parametrize(("named", "like"), [("0.PNG", "0.png"), ("0", "0.png"), ("x/0.png", "0.png")])
def test_the_file_that_a_row_may_mean(folder, cache, named, like):
    write_images(folder)
    (folder / "metadata.csv").write_text(f"file_name,text\n{named},a\n")
    with pytest.raises(ValueError, match=f"{named} is not there, but {like} is; mend it"):
        load_source(str(folder), cache_dir=cache)


# ------------------------------------------------------------------------------------------------------ columns
STRING, INT, IMAGE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
LABEL = datasets.ClassLabel(names=["a", "b"])


def columns_of(setting, /, **features_and_flags):
    flags = {k: v for k, v in features_and_flags.items() if k.endswith("_column")}
    features = {k: v for k, v in features_and_flags.items() if k not in flags}
    column = SETTINGS[setting].column
    named = None if column is None else flags.get(column.flag)
    return find_columns(datasets.Features(features), column, flags.get("image_column"), named)


def test_image_by_type_then_by_name():
    assert columns_of("none", text=STRING, scan=IMAGE).image == "scan"
    assert columns_of("none", mask=IMAGE, image=IMAGE).image == "image"
    assert columns_of("none", png=datasets.Value("binary")).image == "png"
    assert columns_of("none", mask=IMAGE, image=IMAGE, image_column="mask").image == "mask"


def test_label_by_type_then_by_name():
    assert columns_of("class", image=IMAGE, label=INT, breed=LABEL).condition == "breed"
    assert columns_of("class", image=IMAGE, category=STRING).condition == "category"
    assert columns_of("class", image=IMAGE, breed=LABEL, label=LABEL).condition == "label"
    assert columns_of("class", image=IMAGE, breed=LABEL, size=INT, label_column="size").condition == "size"


def test_caption_by_name_or_the_only_text():
    assert columns_of("text", image=IMAGE, source=STRING, caption=STRING).condition == "caption"
    assert columns_of("text", image=IMAGE, said=STRING, size=INT).condition == "said"
    assert columns_of("text", image=IMAGE, said=datasets.List(STRING)).condition == "said"
    with pytest.raises(ValueError, match=r"no caption column among image, said, written: .*--caption_column"):
        columns_of("text", image=IMAGE, said=STRING, written=STRING)


def test_custom_condition_is_named():
    assert columns_of("custom", image=IMAGE, angle=INT, condition_column="angle") == Columns("image", "angle")
    with pytest.raises(ValueError, match=r"no condition column among image, angle: .*--condition_column"):
        columns_of("custom", image=IMAGE, angle=INT)


@pytest.mark.parametrize(
    ("setting", "flag"),
    [("none", "image_column"), ("class", "label_column"), ("text", "caption_column"), ("custom", "condition_column")],
)
def test_a_named_column_that_is_not_there(setting, flag):
    with pytest.raises(ValueError, match=f"--{flag} 'tag' is not among the columns: image, label, text"):
        columns_of(setting, image=IMAGE, label=LABEL, text=STRING, **{flag: "tag"})


def test_no_image_column():
    with pytest.raises(ValueError, match=r"no image column among a, b: name it with --image_column"):
        columns_of("none", a=STRING, b=INT)


def test_as_files_takes_paths_bytes_and_images(folder):
    write_images(folder)
    path = str(folder / "3.png")
    content = (folder / "3.png").read_bytes()
    assert as_files(datasets.Dataset.from_dict({"x": [path]}), "x")[0]["x"] == {"bytes": None, "path": path}
    for value in (content, {"bytes": content, "path": None}):
        assert as_files(datasets.Dataset.from_dict({"x": [value]}), "x")[0]["x"]["bytes"] == content
    assert set(as_files(table(), "image")[0]["image"]) == {"bytes", "path"}


@pytest.mark.parametrize("values", [[1, 2], [[1.0], [2.0]], [{"a": 1}]])
def test_as_files_refuses_what_holds_no_images(values):
    with pytest.raises(ValueError, match=r"column 'x' holds no images but .*--image_column"):
        as_files(datasets.Dataset.from_dict({"x": values}), "x")
