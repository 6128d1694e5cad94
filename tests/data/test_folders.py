"""Folders as people have them: every image file is used, or one line says why it is not."""

import json
import os
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders_common import read, write

from cond_pipelines.data.account import Account, ReadOptions
from cond_pipelines.data.archives import open_path
from cond_pipelines.data.loading import as_files, find_columns, load_source
from cond_pipelines.settings import SETTINGS


# ------------------------------------------------------------------- names that hold the name of a split: A
@pytest.mark.parametrize(
    "classes",
    [
        ["apple", "bicycle", "train", "whale"],
        ["bus", "car", "freight train", "test tubes"],
        ["dev", "cat"],
        ["eval-set", "val_2"],
        ["train", "other"],
    ],
)
def test_classes_that_are_named_like_splits(tmp_path, classes):
    names = sorted(f"{name}/{i}.png" for name in classes for i in range(3))
    paths, found, _, account = read(write(tmp_path / "a", *names))
    assert paths == names and found == [name.split("/")[0] for name in names]
    assert account.lines() == []


def test_an_image_that_is_named_like_a_split(tmp_path):
    names = sorted(["street-train-3.png", "test.png", "my val 2.png", *(f"{i}.png" for i in range(37))])
    assert read(write(tmp_path / "a", *names))[0] == names


@pytest.mark.parametrize("second", ["test", "val", "validation"])
@pytest.mark.parametrize("inner", ["", "cat/", "cat/young/"])
def test_top_folders_that_are_splits_and_nothing_else(tmp_path, second, inner):
    folder = write(tmp_path / "a", *(f"train/{inner}{i}.png" for i in range(3)), f"{second}/{inner}9.png")
    paths, classes, _, account = read(folder)
    assert paths == [f"train/{inner}{i}.png" for i in range(3)]
    assert classes == (None if not inner else [inner.split("/")[-2]] * 3)
    left_out, splits = account.lines()
    assert left_out == f"1 of 4 images is left out: 1 in another split ({second}/{inner}9.png)"
    counts = ", ".join(sorted(["train 3", f"{second} 1"]))
    assert splits == f"splits, by the folders' names: {counts}; used: train"
    assert read(folder, split=second)[0] == [f"{second}/{inner}9.png"]
    with pytest.raises(ValueError, match="there is no split 'nothing'"):
        load_source(str(folder), split="nothing")


@pytest.mark.parametrize("name", ["photos [final]", "$HOME", "a::b", "100%", "ü 漢", "a*b?", "#1", "~x", "{a,b}"])
def test_folders_of_any_name(tmp_path, name):
    assert read(write(tmp_path / name, "cat/1.png", f"{name}/2.png"))[0] == sorted([f"{name}/2.png", "cat/1.png"])


@pytest.mark.parametrize("name", ["photos [final]", "$HOME", "a::b"])
def test_tables_in_folders_of_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    rows = datasets.Dataset.from_dict({"image": [b"x"]}, features=datasets.Features(image=datasets.Value("binary")))
    rows.to_parquet(tmp_path / "a.parquet")  # which reads a path as an address, too
    (tmp_path / "a.parquet").rename(tmp_path / name / "a.parquet")
    assert len(load_source(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))) == 1


def test_links(tmp_path):
    """To a class folder elsewhere: followed. To what is read already, in a circle or to nothing: named."""
    write(tmp_path / "elsewhere", "1.png", "2.png")
    folder = write(tmp_path / "a", "dog/3.png", "dog/4.png")
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    (folder / "dog" / "loop").symlink_to(folder)
    (folder / "hound").symlink_to(folder / "dog")
    (folder / "dog" / "5.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "dog" / "self.png").symlink_to(folder / "dog" / "self.png")
    (folder / "dog" / "6.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    paths, classes, _, account = read(folder)
    assert paths == ["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png", "dog/6.png"]
    assert classes == ["cat"] * 2 + ["dog"] * 3
    assert account.lines() == [
        "2 of 7 images are left out: 2 link to nothing (dog/5.png, dog/self.png)",
        "not looked at: 2 link to a folder that is read already (dog/loop, hound)",
    ]


def test_hidden_files(tmp_path):
    _, _, _, account = read(write(tmp_path / "a", "1.png", "._1.png", ".thumbs/2.png", ".DS_Store"))
    assert account.lines() == [
        "1 of 2 images is left out: 1 hidden (._1.png)",
        "not looked at: 1 hidden folder (.thumbs)",
    ]


# --------------------------------------------------------------------------------------------------- classes: A
@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/1.png", "cat/2.png"], ["cat", "cat"]),
        (["images/cat/1.png", "images/dog/2.png"], ["cat", "dog"]),
        (["a/cat/1.png", "b/cat/2.png", "b/dog/3.png"], ["cat", "cat", "dog"]),
        (["cat/1.png", "cat/old/2.png", "dog/3.png"], ["cat", "cat", "dog"]),
        (["1.png", "cat/2.png", "dog/3.png"], [None, "cat", "dog"]),
        (["1.png", "2.png"], None),
    ],
    ids=["single", "wrapped", "one name twice", "mixed depths", "some without", "flat"],
)
def test_class_folders(tmp_path, names, classes):
    paths, found, _, _ = read(write(tmp_path / "a", *names))
    assert (paths, found) == (names, classes)


def test_digits_are_sorted_as_numbers(tmp_path):
    write(tmp_path / "a", *(f"{i}/x.png" for i in (10, 9, 1, 0)))
    rows = load_source(str(tmp_path / "a"))
    assert rows.features["label"].names == ["0", "1", "9", "10"]


def test_class_folders_and_captions_together(tmp_path):
    folder = write(tmp_path / "a", "cat/1.png", "dog/2.png")
    write(folder, "cat/1.txt", text="a cat")
    write(folder, "dog/2.txt", text="a dog")
    assert read(folder)[1:3] == (["cat", "dog"], ["a cat", "a dog"])
    (folder / "metadata.csv").write_text("file_name,text\ncat/1.png,one\ndog/2.png,two\n")
    rows = load_source(str(folder))
    assert rows.features["label"].int2str(rows["label"][:]) == ["cat", "dog"] and rows["text"][:] == ["one", "two"]
    assert find_columns(rows.features, SETTINGS["class"].column).condition == "label"
    assert find_columns(rows.features, SETTINGS["text"].column).condition == "text"
    (folder / "cat/1.txt").unlink()
    (folder / "dog/2.txt").unlink()
    (folder / "metadata.csv").write_text("file_name,what it shows\ncat/1.png,one\ndog/2.png,two\n")
    assert find_columns(load_source(str(folder)).features, SETTINGS["text"].column).condition == "what it shows"


@pytest.mark.parametrize("names", [["10_cat", "3_dog"], ["1950_ford", "1960_ford"], ["10_cat", "dog"]])
def test_numbered_folders_are_classes_unless_the_user_says_that_they_are_repeats(tmp_path, names):
    folder = write(tmp_path / "a", *(f"{name}/{i}.png" for name in names for i in range(2)))
    first, second = names
    _, classes, _, account = read(folder)
    assert classes == [first, first, second, second]
    line = (
        f"folders named such as {first} are taken for classes, and each image is drawn once; --folder_repeats draws "
        f"those of {first} {first.split('_')[0]} times, as kohya's scripts do"
    )
    assert account.lines() == ([line] if "_" in second else [])
    rows = load_source(str(folder), options=ReadOptions(folder_repeats=True), account=(account := Account()))
    plain = [name.split("_")[-1] for name in names]
    assert rows.features["label"].names == sorted(set(plain))
    assert rows["repeats"][:2] == [int(first.split("_")[0])] * 2
    (line,) = account.lines()
    assert line.startswith("--folder_repeats draws the images of ") and f"{first} {first.split('_')[0]} x" in line
    assert "_" in second or line.endswith("dog, which name no number, once")
    write(folder, f"{first}/0.txt", text="a cat")  # captions change nothing
    assert read(folder)[1] == classes


def test_folders_that_are_numbered_are_classes_without_a_word(tmp_path):
    _, classes, _, account = read(write(tmp_path / "b", "1_cat/1.png", "2_dog/2.png"))
    assert classes == ["1_cat", "2_dog"] and account.lines() == []


# -------------------------------------------------------------------------------------------------- captions
@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_captions_in_files_of_the_images_names(tmp_path, suffix):
    folder = write(tmp_path / "a", "1.png", "2.png", "3.png", "3-masklabel.png", "3.png.json", "b/4.png")
    for name, text in {"1": "\ufeffa cat\r\n", "2": "a dog", "b/4": "", "README": "x"}.items():
        (folder / f"{name}{suffix}").write_text(text)
    paths, _, captions, account = read(folder)
    assert paths == ["1.png", "2.png", "3.png", "b/4.png"] and captions == ["a cat", "a dog", None, ""]
    assert account.lines() == [
        "1 of 5 images is left out: 1 with the name of a mask (3-masklabel.png)",
        f"captions: 2 from {suffix} files",
        "images without a caption file: 1",
        f"empty caption files: 1 (b/4{suffix})",
        f"text files without an image: 1 (README{suffix})",
        "files of other kinds, not read: 1 .json",
    ]


def test_several_captions_one_a_line(tmp_path):
    folder = write(tmp_path / "a", "1.png", "2.png")
    (folder / "1.txt").write_text("a cat\none cat\n")
    (folder / "2.txt").write_bytes("ein Löwe".encode("latin-1"))
    _, _, captions, account = read(folder)
    assert captions == [["a cat", "one cat"], ["ein Löwe"]]
    assert account.lines()[-1] == "captions that are not UTF-8, read as Latin-1 (save them as UTF-8): 1 (2.txt)"


# --------------------------------------------------------------------------------------------------- metadata: D
def test_images_without_a_row_are_counted(tmp_path):
    folder = write(tmp_path / "a", *(f"{i:02}.png" for i in range(12)))
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{i:02}.png", "text": str(i)}) for i in (3, 1, 2, 3)) + "\n\n"
    )
    paths, _, captions, account = read(folder)
    assert paths == ["03.png", "01.png", "02.png", "03.png"] and captions == ["3", "1", "2", "3"]
    assert account.lines() == [
        "9 of 12 images are left out: 9 without a row in metadata.jsonl (00.png, 04.png, 05.png, ...)",
        "rows of metadata.jsonl: 4, of 3 images",
    ]


def test_cells_of_a_csv_stay_what_was_written(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(4)))
    lines = [
        "\ufefffile_name;label;number;size;code",
        "0.png;NA;1;1.5;007",
        "1.png;null;2;;010",
        '2.png;"a;b";;2;3',
        "3.png;;3;1e3;x",
    ]
    (folder / "metadata.csv").write_text("\r\n".join(lines))
    rows = load_source(str(folder))
    assert rows["label"][:] == ["NA", "null", "a;b", None]
    assert rows["number"][:] == [1, 2, None, 3] and rows.features["number"].dtype == "int64"
    assert rows["size"][:] == [1.5, None, 2, 1000] and rows["code"][:] == ["007", "010", "3", "x"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "name,text\n0.png,a\n", "has no column file_name, which names the images, but name, text"),
        ("metadata.csv", "file_name,text\n0.png,a,b\n", "row 0 has 3 cells, and the first line names 2 columns"),
        ("metadata.csv", "", "is empty"),
        ("metadata.csv", "file_name,text,text\n0.png,a,b", "two columns have one name"),
        ("metadata.csv", "file_name,text\n,a\n", "row 0 names no file"),
        ("metadata.csv", 'file_name,text\n0.png,"a\n', "cannot read"),
        ("metadata.jsonl", '{"file_name": "0.png"}\n{"file', "line 2 is not JSON"),
        ("metadata.jsonl", "[1]", "line 1 is no object in braces"),
        ("metadata.jsonl", '{"file_name": 3}', "row 0 names no file"),
        ("metadata.parquet", "text", "cannot read"),
        ("metadata.csv", b"file_name,text\n0.png,\xff\n", "is not UTF-8 text"),
        ("metadata.jsonl", "[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_metadata_that_cannot_be_read(tmp_path, name, text, message):
    folder = write(tmp_path / "a", "0.png")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_source(str(folder))
    assert "\n" not in str(error.value) and str(folder / name) in str(error.value)


def test_metadata_in_several_folders(tmp_path):
    folder = write(tmp_path / "a", "x/1.png", "y/2.png", "y/3.png")
    (folder / "x/metadata.csv").write_text("file_name,text\n1.png,one\n")
    (folder / "y/metadata.csv").write_text("file_name,size\n2.png,5\n")
    rows = load_source(str(folder), account=(account := Account()))
    assert rows["text"][:] == ["one", None] and rows["size"][:] == [None, 5]
    assert account.lines()[0] == "1 of 3 images is left out: 1 without a row in metadata.csv (y/3.png)"


def test_metadata_within_splits(tmp_path):
    folder = write(tmp_path / "a", "train/1.png", "test/2.png")
    for split, name in (("train", "1.png"), ("test", "2.png")):
        (folder / split / "metadata.csv").write_text(f"file_name,text\n{name},{split}\n")
    assert read(folder)[2] == ["train"] and read(folder, split="test")[2] == ["test"]


# ------------------------------------------------------------------------------------------- stray files: B
def test_a_stray_file_does_not_decide(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    for stray in ("mean.npy", "metadata.json", "notes.tar", "x.zip", "scores.parquet", "old.arrow"):
        folder = write(tmp_path / stray, *names)
        write(folder, stray)
        if stray.endswith("parquet"):
            datasets.Dataset.from_dict({"id": [1] * 99}).to_parquet(folder / stray)
        paths, _, _, account = read(folder)
        assert sorted(paths) == sorted(names), stray
        assert stray in account.lines()[0] or account.lines() == ["files of other kinds, not read: 1 .json"]


def test_an_archive_beside_what_was_in_it(tmp_path):
    folder = write(tmp_path / "a", *(f"cat/{i}.png" for i in range(5)))
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"deep/{path.name}")
        archive.writestr("deep/more.png", b"x")
    paths, _, _, account = read(folder)
    assert len(paths) == 5 and account.lines() == ["not read: 1 zip file (all.zip); see --data_format"]
    assert len(load_source(str(folder), options=ReadOptions(data_format="zip"))) == 6


def test_a_picture_beside_tables(tmp_path):
    folder = write(tmp_path / "a", "logo.png")
    png = (folder / "logo.png").read_bytes()
    images = datasets.Dataset.from_dict(
        {"image": [png] * 5}, features=datasets.Features(image=datasets.Value("binary"))
    )
    images.to_parquet(folder / "a.parquet")
    datasets.Dataset.from_dict({"score": [1.0]}).to_parquet(folder / "scores.parquet")
    account = Account()
    assert len(load_source(str(folder), cache_dir=str(tmp_path / "cache"), account=account)) == 5
    assert account.lines() == [
        "1 image(s) is left out: 1 next to the parquet files that are read (logo.png)",
        "not read: 1 parquet file without images (scores.parquet)",
    ]


def test_two_kinds_of_about_as_many_images_are_refused(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(4)), *(f"{i}.npy" for i in range(5)))
    with pytest.raises(ValueError, match="5 images in arrays files and 4 images: say with --data_format which"):
        load_source(str(folder))
    assert len(load_source(str(folder), options=ReadOptions(data_format="images"))) == 4
    assert len(load_source(str(folder), options=ReadOptions(data_format="arrays"))) == 5
    with pytest.raises(ValueError, match="--data_format tar: there are no such files"):
        load_source(str(folder), options=ReadOptions(data_format="tar"))


def test_vectors_beside_images_are_no_images(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(4)))
    for i in range(6):
        np.save(folder / f"{i}.npy", np.zeros(512, np.float32))
    assert len(load_source(str(folder))) == 4


# -------------------------------------------------------------------------------------------------- archives: C
@pytest.fixture
def zipped(tmp_path):
    folder = write(tmp_path / "source", "cat/1.png", "cat/2.png", "dog/3.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/cat/._1.png", b"x")
    return folder, tmp_path / "a.zip"


@pytest.mark.parametrize("lies_in_a_folder", [False, True])
def test_a_zip_is_read_as_its_folder(tmp_path, zipped, lies_in_a_folder):
    folder, archive = zipped
    given = archive
    if lies_in_a_folder:
        (tmp_path / "b").mkdir()
        given = archive.rename(tmp_path / "b" / "a.zip").parent
    rows, same = load_source(str(given), account=(account := Account())), load_source(str(folder))
    assert rows.features == same.features and rows["label"][:] == same["label"][:]
    from cond_pipelines.data.images import open_image

    for row, other in zip(*(r.cast_column("image", datasets.Image(decode=False)) for r in (rows, same)), strict=True):
        assert (np.asarray(open_image(row["image"])) == np.asarray(open_image(other["image"]))).all()
    assert account.lines() == ["not looked at: 1 hidden folder (a.zip/__MACOSX)"]


def test_zips_of_classes_and_metadata_within(tmp_path):
    folder = write(tmp_path / "source", "1.png")
    for name in ("cat", "dog"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.write(folder / "1.png", "1.png")
    (tmp_path / "both").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / f"{name}.zip").rename(tmp_path / "both" / f"{name}.zip")
    assert load_source(str(tmp_path / "both")).features["label"].names == ["cat", "dog"]
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(folder / "1.png", "x/1.png")
        archive.writestr("x/metadata.csv", "file_name,text\n1.png,one\n")
    assert load_source(str(tmp_path / "m.zip"))["text"][:] == ["one"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"x" * 500])
def test_a_damaged_zip_is_one_line(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot (read|load) .*x\.zip") as error:
        load_source(str(tmp_path / "a"))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- addresses
@pytest.mark.parametrize("column", ["image", "url", "image_url", "URL"])
def test_columns_of_addresses_are_refused(tmp_path, column):
    from cond_pipelines.data.loading import as_files

    (tmp_path / "a").mkdir()
    datasets.Dataset.from_dict({column: [None, "https://x.org/1.png"], "caption": ["a", "b"]}).to_parquet(
        tmp_path / "a" / "t.parquet"
    )
    rows = load_source(str(tmp_path / "a"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=rf"img2dataset --url_list TABLE --url_col {column} "):
        as_files(rows, find_columns(rows.features, None).image)


# ------------------------------------------------------------------- nothing outside is read, nothing is waited for
def test_a_zip_reads_no_file_of_the_machine(tmp_path):
    """A member or a row with an absolute path, or one that leaves the archive, is left out by name."""
    secret = write(tmp_path / "secret", "x.png") / "x.png"
    folder = write(tmp_path / "a", "cat/0.png", "dog/1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat/0.png", "dog/1.png"):
            archive.write(folder / name, name)
        for name in (str(secret), "../secret/x.png", "cat/../../secret/x.png", "cat//2.png"):
            archive.writestr(zipfile.ZipInfo(name), (folder / "cat/0.png").read_bytes())
    (tmp_path / "b").mkdir()
    paths, classes, _, account = read((tmp_path / "a.zip").rename(tmp_path / "b" / "a.zip").parent)
    assert classes == ["cat", "dog"] and paths == ["a.zip/cat/0.png", "a.zip/dog/1.png"] and str(secret) not in paths
    assert "4 path that is not one below the archive" in account.lines()[0]


@pytest.mark.parametrize("absolute", [True, False])
def test_metadata_names_no_file_outside(tmp_path, absolute):
    write(tmp_path, "out.png")
    folder = write(tmp_path / "a", "0.png", "1.png")
    outside = str(tmp_path / "out.png") if absolute else "../out.png"
    lines = ["file_name,text", f"{folder}/0.png,inside", f"{outside},no", "1.png,too"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    paths, _, captions, account = read(folder)
    assert paths == ["0.png", "1.png"] and captions == ["inside", "too"]
    (line,) = account.lines()
    assert "outside of the folder are left out: 1" in line and "out.png" in line


@pytest.mark.parametrize("kind", ["parquet", "arrow", "text", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
def test_tables_name_no_file_outside(tmp_path, kind, streaming, caplog, monkeypatch):
    """A path without bytes is read below the folder, wherever the program runs; another is left out with a line."""
    write(tmp_path, "out.png", "0.png")
    folder = write(tmp_path / "a", "0.png", "1.png", "2.png")
    monkeypatch.chdir(tmp_path)  # which has a 0.png, too
    paths = [f"{folder}/2.png", f"{tmp_path}/out.png", "../out.png", "0.png", f"{folder}/../out.png", "1.png"]
    images = [{"bytes": None, "path": path} for path in paths]
    images.append({"bytes": (folder / "1.png").read_bytes(), "path": "/elsewhere/bytes.png"})
    feature = datasets.Value("string") if kind == "text" else datasets.Image(decode=False)
    values = paths if kind == "text" else images
    rows = datasets.Dataset.from_dict({"image": values}, datasets.Features(image=feature))
    if kind == "saved":
        state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "a", "_split": None}
        state |= {"_format_type": None, "_format_columns": None, "_format_kwargs": {}, "_output_all_columns": False}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text(json.dumps({"features": rows.features.to_dict()}))
    if kind in ("arrow", "saved"):
        with datasets.arrow_writer.ArrowWriter(path=str(folder / "data.arrow"), features=rows.features) as writer:
            writer.write_table(rows.data.table)
            writer.finalize()
    else:
        pq.write_table(rows.data.table.cast(rows.features.arrow_schema), folder / "a.parquet")
    account = Account()
    options = ReadOptions(data_format=None if kind == "saved" else kind.replace("text", "parquet"))
    found = load_source(
        str(folder), account=account, options=options, streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    left = [row["image"] for row in as_files(found, "image")]
    assert [image["path"] for image in left[:3]] == [f"{folder}/{i}.png" for i in (2, 0, 1)]
    assert [image["bytes"] is None for image in left[3:]] == ([] if kind == "text" else [False])
    said = caplog.text if streaming else "; ".join(account.notes)
    assert "outside of the folder are left out" in said and "out.png" in said
    assert streaming or "left out: 3 (" in said


def test_folders_that_are_not_looked_at_are_said(tmp_path):
    folder = write(tmp_path / "a", "cat/0.png", ".bird/1.png", "cat/.sub/2.png")
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    (folder / "owl").symlink_to(folder / "gone")
    (folder / "feline").symlink_to(folder / "cat")
    lines = "\n".join(read(folder)[3].lines())
    for words in ("2 hidden folder (.bird, cat/.sub)", "name that is not UTF-8 (caf", "link to nothing (owl)"):
        assert words in lines
    assert "1 link to a folder that is read already (feline)" in lines


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = write(tmp_path / "a", "cat/0.png", "dog/1.png")
    os.mkfifo(folder / "cat/p.png")
    assert "1 not a file (cat/p.png)" in read(folder)[3].lines()[0]
    with pytest.raises(OSError, match="is not a file"):
        open_path(str(folder / "cat/p.png"))


def test_splits_that_a_loose_file_turns_off_are_said(tmp_path):
    folder = write(tmp_path / "a", "test/cat/0.png", "train/cat/1.png", "train/dog/2.png", "logo.png")
    paths, _, _, account = read(folder)
    assert len(paths) == 4
    line = "test, train are not taken as splits, since other images are next to them (logo.png): all are used"
    assert line in account.lines()
    (folder / "logo.png").unlink()
    assert len(read(folder)[0]) == 2


def test_several_parquet_files(tmp_path):
    """Files of other columns are named, and so is a file with a split's name that is none."""
    folder = write(tmp_path / "a", "0.png")
    image = {"bytes": (folder / "0.png").read_bytes(), "path": None}
    (folder / "0.png").unlink()
    pq.write_table(pa.table({"image": [image], "label": [1]}), folder / "train.parquet")
    pq.write_table(pa.table({"image": [image], "label": [2]}), folder / "extra.parquet")
    account = Account()
    rows = load_source(str(folder), account=account, cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["label"]) == [1, 2]
    assert account.notes == [
        "train.parquet is not taken as a split, since extra.parquet is of none: the rows of all files are used"
    ]
    for label in ("two", ["2"]):
        pq.write_table(pa.table({"image": [image], "label": [label]}), folder / "extra.parquet")
        for streaming in (False, True):
            with pytest.raises(ValueError, match=r"extra.parquet and train.parquet have other columns: label is"):
                load_source(str(folder), cache_dir=str(tmp_path / "cache"), streaming=streaming)
    pq.write_table(pa.table({"image": [image], "text": ["a"]}), folder / "extra.parquet")
    with pytest.raises(ValueError, match=r"extra.parquet and train.parquet have other columns: text is text in the f"):
        load_source(str(folder), cache_dir=str(tmp_path / "cache"))
