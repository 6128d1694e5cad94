"""Folders with something odd in them: it is read in the one way that there is, or a line says what is not read."""

import io
import json
import re
import tarfile
import tracemalloc
import warnings
import zipfile

import datasets
import numpy as np
import pytest
from folders_common import read, write
from PIL import Image

from cond_pipelines.cli import main
from cond_pipelines.data.load import load_data
from cond_pipelines.data.loading import load_source
from cond_pipelines.inspection import InspectionConfig


def loaded(folder, tmp_path, conditioning="class", **options):
    places = {"train_data_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    return load_data(InspectionConfig(**places | {"conditioning": conditioning, "on_bad_image": "skip"} | options))


def table(folder, *rows, head="file_name,label", name="metadata.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([head, *rows]) + "\n")
    return folder


def png(number=0):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number * 9 % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


def pack(path, files, mode="w"):
    """A .zip or .tar of {name: bytes}, or of pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = files.items() if isinstance(files, dict) else files
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, mode) as archive, warnings.catch_warnings(action="ignore"):
            for name, content in pairs:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, mode) as archive:
        for name, content in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


CLASSES = {f"{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(3)}


# -------------------------------------------------------------------------------------------------------- classes
def test_a_class_without_a_usable_image_is_none(tmp_path):
    folder = write(tmp_path / "a", *CLASSES, "bird/0.png", "emu/1.png")
    (folder / "bird/0.png").write_bytes(b"broken")
    data = loaded(folder, tmp_path)
    assert sorted(data.id2label.values()) == ["cat", "dog", "emu"]
    summary = data.summary()
    assert "classes without an image that can be used are left out: 1 (bird)" in summary
    assert "classes (3): cat 3, dog 3, emu 1; without a label: 0" in summary
    (folder / "metadata.csv").write_text("file_name,label\nbird/0.png,bird\ncat/0.png,\n")
    with pytest.raises(ValueError, match=r"no image that can be used has a label; row 0 .*unreadable"):
        loaded(folder, tmp_path)


def test_classes_that_a_table_declares_stay(tmp_path):
    """Their numbers are the table's, and a stream of it has them all."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "emu", "dog"]))
    values = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 2, 0, 2]}
    (tmp_path / "a").mkdir()
    datasets.Dataset.from_dict(values, features=features).to_parquet(tmp_path / "a/a.parquet")
    data = loaded(tmp_path / "a", tmp_path)
    assert data.id2label == loaded(tmp_path / "a", tmp_path, streaming=True).id2label
    assert "classes without an image that can be used: 1 (emu)" in data.summary()


def test_labels_that_differ_in_spaces_or_in_the_coding_of_accents_are_one(tmp_path):
    names = [" cat", "cat", "cat ", "caf\u00e9", "cafe\u0301", "dog"]
    folder = write(tmp_path / "a", *(f"{name}/{i}.png" for i, name in enumerate(names)))
    _, classes, _, account = read(folder)
    assert classes == ["cat" if "cat" in n else "dog" if n == "dog" else "caf\u00e9" for n in sorted(names)]
    line = "labels that differ only in spaces around them or in how accents are coded are one: "
    assert account.lines()[0].startswith(line) and "' cat'; 'cat'; 'cat '" in account.lines()[0]
    flat = write(tmp_path / "b", *(f"{i}.png" for i in range(6)))
    rows = [json.dumps({"file_name": f"{i}.png", "label": name}) for i, name in enumerate(names)]
    (flat / "metadata.jsonl").write_text("\n".join(rows))
    data = loaded(flat, tmp_path)
    assert list(data.id2label.values()) == ["caf\u00e9", "cat", "dog"] and line in data.summary()


def test_numbers_of_a_column_with_text_are_written_in_one_way(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(5)))
    labels = [1, 1.0, "1", "a", 2.5]
    rows = [json.dumps({"file_name": f"{i}.png", "label": label}) for i, label in enumerate(labels)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert read(folder)[1] == ["1", "1", "1", "a", "2.5"]


def test_images_with_several_labels_are_named(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(4)))
    table(folder, "0.png,a", "0.png,b", "1.png,a", "1.png,a", "2.png,b", "3.png,b")
    lines = loaded(folder, tmp_path).summary()
    assert "rows of metadata.csv: 6, of 4 images" in lines
    assert "images with several labels, each trained with all of them: 1 (row 0 (" in lines and "): a; b)" in lines
    copies = write(tmp_path / "b", *CLASSES)
    (copies / "dog/copy.png").write_bytes((copies / "cat/1.png").read_bytes())
    assert "/cat/1.png): cat; dog)" in loaded(copies, tmp_path).summary()


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", ".ipynb_checkpoints", "lost+found", "#recycle"])
@pytest.mark.parametrize("packed", [False, True])
def test_folders_of_systems_are_no_classes(tmp_path, name, packed):
    files = CLASSES | {f"cat/{name}/x.png": png(), f"{name}/y.png": png()}
    folder = tmp_path / "a"
    if packed:
        pack(folder / "a.zip", files)
    else:
        write(folder, *files)
    _, classes, _, account = read(folder)
    assert classes == ["cat"] * 3 + ["dog"] * 3
    (line,) = account.lines()
    assert line.startswith("not looked at: 2 hidden folder (")


def test_a_folder_that_is_called_as_an_archive_keeps_its_name(tmp_path):
    assert read(write(tmp_path / "a", "a.zip/0.png", "b.tar/1.png"))[1] == ["a.zip", "b.tar"]
    assert read(write(tmp_path / "b", "a.zip/0.png", "a.zip/1.png"))[1] == ["a.zip", "a.zip"]


def test_levels_of_folders(tmp_path):
    """A level at which all folders have one name is no class; splits may lie within the classes."""
    names = [f"{c}/images/{i}.png" for c in ("cat", "dog") for i in range(2)]
    assert read(write(tmp_path / "a", *names))[1] == ["cat", "cat", "dog", "dog"]
    names = [f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("test", "train") for i in range(2)]
    paths, classes, _, account = read(write(tmp_path / "b", *names))
    assert classes == ["cat", "cat", "dog", "dog"] and all("/train/" in path for path in paths)
    assert account.lines()[1] == "splits, by the folders' names: test 4, train 4; used: train"
    names = [f"data/{s}/{c}/{i}.png" for s in ("test", "train") for c in ("cat", "dog") for i in range(2)]
    assert read(write(tmp_path / "c", *names))[1] == ["cat", "cat", "dog", "dog"]
    _, classes, _, account = read(write(tmp_path / "d", "animals/cat/0.png", "animals/dog/1.png", "things/car/2.png"))
    assert classes == ["cat", "dog", "car"]
    (line,) = account.lines()
    assert line == "of several levels of folders the last one is taken for the classes: of animals/cat cat"


# ------------------------------------------------------------------------------------------------------- captions
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_captions_of_any_unicode(tmp_path, encoding):
    folder = write(tmp_path / "a", "0.png", "1.png")
    for i in range(2):
        (folder / f"{i}.txt").write_bytes("a cat".encode(encoding))
    _, _, captions, account = read(folder)
    assert captions == ["a cat", "a cat"] and account.lines() == ["captions: 2 from .txt files"]


def test_caption_files_that_are_odd(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(7)), "same.png", "same.jpg")
    texts = {"0.txt": "a", "0.caption": "b", "1.txt": "", "2.TXT": "c", "3.png.txt": "d", "same.txt": "e"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "4.txt").write_bytes(b"\x89PNG\r\n\x00\x01\xff")
    _, _, captions, account = read(folder)
    assert captions == ["a", "", "c", "d", None, None, None, "e", "e"]
    assert account.lines() == [
        "captions: 5 from .txt files",
        "images without a caption file: 2",
        "images with several text files, of which the first is read: 1 (0.txt 0.caption)",
        "empty caption files: 1 (1.txt)",
        "caption files that are no text, and not read: 1 (4.txt)",
        "caption files of several images each: 1 (same.txt)",
    ]


def test_metadata_of_some_classes_only(tmp_path):
    folder = write(tmp_path / "a", *CLASSES)
    table(folder / "cat", "0.png,a cat", head="file_name,text")
    words = r"no label column among image, text: .*; 5 of 6 images are left out: 5 without a row in metadata.csv"
    with pytest.raises(ValueError, match=words):
        loaded(folder, tmp_path)


def test_text_files_of_no_image_are_named(tmp_path):
    folder = write(tmp_path / "a", "0.png", "list_attr.txt")
    assert read(folder)[3].lines() == ["text files without an image: 1 (list_attr.txt)"]


def test_captions_next_to_metadata(tmp_path):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(4)))
    for i in range(3):
        (folder / f"{i}.txt").write_text("of a file")
    table(folder, "0.png,m0", "1.png,m1", head="file_name,text")
    _, _, captions, account = read(folder)
    assert captions == ["m0", "m1"]
    line = "images whose .txt or .caption file is not read, since metadata.csv has a column text: 2 (0.png, 1.png)"
    assert line in account.lines()
    table(folder, "0.png,a", "3.png,b")  # which says nothing of captions
    _, classes, captions, account = read(folder)
    assert classes == ["a", "b"] and captions == ["of a file", None]
    assert "captions: 1 from .txt files" in account.lines()


# ---------------------------------------------------------------------------------------------- tables and archives
@pytest.mark.parametrize("name", ["images.zip", "images.tar"])
@pytest.mark.parametrize("named", ["{}.png", "images/{}.png", "inner/{}.png"])
def test_metadata_next_to_an_archive(tmp_path, name, named):
    inner = "inner/" if "inner" in named else ""
    folder = table(tmp_path / "a", *(f"{named.format(i)},{'ab'[i % 2]}" for i in range(6)))
    (folder / "README.md").write_text("x")
    pack(folder / name, {f"{inner}{i}.png": png(i) for i in range(7)} | {f"{inner}x/9.png": png()})
    paths, classes, _, account = read(folder)
    assert paths == [f"{name}/{inner}{i}.png" for i in range(6)] and classes == list("ababab")
    assert account.lines()[0].startswith(f"2 of 8 images are left out: 2 without a row in metadata.csv ({name}/")
    assert account.lines()[1:] == ["files of other kinds, not read: 1 .md"]


def test_a_tar_of_folders_is_read_as_a_zip(tmp_path):
    as_zip = read(pack(tmp_path / "z/a.zip", CLASSES).parent)
    as_tar = read(pack(tmp_path / "t/a.tar", {f"./{name}": content for name, content in CLASSES.items()}).parent)
    assert as_tar[1] == as_zip[1] == ["cat"] * 3 + ["dog"] * 3
    assert as_tar[0] == [path.replace(".zip", ".tar") for path in as_zip[0]]
    folder = tmp_path / "several"
    for name, first in (("n0144", 0), ("n0275", 5)):  # as ImageNet's
        pack(folder / f"{name}.tar", {f"{first + i}.png": png(i) for i in range(2)})
    assert read(folder)[1] == ["n0144", "n0144", "n0275", "n0275"]
    data = loaded(folder, tmp_path)
    assert len(data.dataset) == 4 and not data.dataset.skipped


def test_a_tar_reads_no_file_of_the_machine(tmp_path):
    secret = write(tmp_path / "secret", "x.png") / "x.png"
    names = ("cat/0.png", "dog/1.png", str(secret), "../secret/x.png")
    pack(tmp_path / "a/a.tar", {name: png(i) for i, name in enumerate(names)})
    with tarfile.open(tmp_path / "a/a.tar", "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "l"), (tarfile.LNKTYPE, "h"), (tarfile.FIFOTYPE, "p")):
            info = tarfile.TarInfo(f"cat/{name}.png")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    paths, classes, _, account = read(tmp_path / "a")
    assert paths == ["a.tar/cat/0.png", "a.tar/dog/1.png"] and classes == ["cat", "dog"]
    assert account.lines()[0].startswith("5 of 7 images are left out: 2 path that is not one below the archive")
    assert "3 link within an archive (a.tar/cat/l.png, a.tar/cat/h.png, a.tar/cat/p.png)" in account.lines()[0]


def test_samples_of_webdataset_stay_what_they_are(tmp_path):
    samples = {f"x/{i}.{kind}": png(i) if kind == "png" else b"1" for i in range(3) for kind in ("png", "cls")}
    rows = load_source(str(pack(tmp_path / "a/0.tar", samples).parent), cache_dir=str(tmp_path / "cache"))
    assert {"png", "cls"} <= set(rows.column_names)


def test_two_members_of_one_name(tmp_path):
    first, second = png(1), png(20)
    pack(tmp_path / "a/a.zip", [("cat/0.png", first), ("dog/1.png", first), ("cat/0.png", second)])
    paths, _, _, account = read(tmp_path / "a")
    assert paths == ["a.zip/cat/0.png", "a.zip/dog/1.png"]
    line = (
        "1 of 3 images is left out: 1 file that a later one of the same name in the archive replaces (a.zip/cat/0.png)"
    )
    assert account.lines() == [line]


def test_members_named_by_windows(tmp_path):
    pack(tmp_path / "a/a.zip", {name.replace("/", "\\"): content for name, content in CLASSES.items()})
    assert read(tmp_path / "a")[1] == ["cat"] * 3 + ["dog"] * 3


@pytest.mark.parametrize("name", ["labels.csv", "metadata.tsv", "metadata.json", "annotations.json", "labels.xlsx"])
def test_tables_of_other_names_are_named(tmp_path, name):
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(3)), name, "0.png.json", "1.json")
    words = rf"no label column among image: .*; not read: 1 table \({name}\): one that says what the images show needs"
    with pytest.raises(ValueError, match=words):
        loaded(folder, tmp_path)
    assert f"not read: 1 table ({name})" in "\n".join(read(folder)[3].lines())


def test_metadata_in_capitals(tmp_path):
    folder = table(write(tmp_path / "a", "0.png", "1.png"), "0.png,a", "1.png,b", name="Metadata.CSV")
    assert read(folder)[1] == ["a", "b"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.7z", "a.rar"])
def test_archives_that_are_not_read_are_named(tmp_path, name):
    folder = write(tmp_path / "a", name)
    with pytest.raises(ValueError, match=rf"there are no images in it .*archive \({name}\): unpack them, or make a"):
        load_source(str(folder))
    write(folder, "0.png")
    assert read(folder)[3].lines() == [f"not read: 1 archive ({name}): unpack them, or make a .zip"]


@pytest.mark.parametrize("name", ["metadata.csv", "laion.tsv"])
@pytest.mark.parametrize("head", ["url,label", "file_name,label", "text,URL"])
def test_a_table_of_addresses_alone(tmp_path, head, name):
    rows = [
        ",".join("https://x.org/1.png" if "l" not in c.lower()[:2] and c != "text" else "a" for c in head.split(","))
    ]
    folder = table(tmp_path / "a", *rows, head=head)
    with pytest.raises(ValueError, match=r"img2dataset --url_list TABLE --url_col (url|file_name|URL) "):
        load_source(str(folder))


def test_a_column_that_may_hold_the_names(tmp_path):
    folder = table(write(tmp_path / "a", "0.png"), "0.png,a", head="image,label")
    with pytest.raises(ValueError, match=r"has no column file_name, .*: rename image to file_name"):
        load_source(str(folder))


def test_columns_that_may_be_meant_are_said(tmp_path):
    folder = table(write(tmp_path / "a", "0.png", "1.png"), "0.png,a,x", "1.png,b,y", head="file_name,Class,label")
    assert "--label_column is label; other columns with a usual name: Class" in loaded(folder, tmp_path).summary()
    assert "usual name" not in loaded(folder, tmp_path, label_column="Class").summary()
    (folder / "metadata.csv").unlink()
    rows = [{"file_name": "0.png", "label": ["a", "b"]}, {"file_name": "1.png", "label": {"x": 1}}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"no label column .*with values of several kinds are not read: label"):
        loaded(folder, tmp_path)


def test_a_file_that_metadata_names_is_no_other_file(tmp_path):
    folder = write(tmp_path / "a", "0.png", "1.png")
    (folder / "n.dat").write_bytes(png(3))
    table(folder, "0.png,a", "1.png,b", "n.dat,b")
    paths, _, _, account = read(folder)
    assert paths == ["0.png", "1.png", "n.dat"] and account.num_images == 3 and account.lines() == []


# -------------------------------------------------------------------------------------------------- lines of inspect
def test_lines_of_skip_mode_and_of_other_libraries(tmp_path, capfd, caplog):
    """No line tells to skip what is skipped, and what decoders warn of is the row's line."""
    import tifffile

    folder = write(tmp_path / "a", "cat/0.png", "dog/1.png")
    (folder / "cat/2.png").write_bytes(b"broken")
    tifffile.imwrite(folder / "dog/3.tif", np.zeros((9, 9, 5), np.uint16))
    content = bytearray((folder / "dog/3.tif").read_bytes())
    content[10:14], content[22:26] = b"\xff\xee\xdd\xcc", b"\x01\x02\xf0\xf1"
    (folder / "dog/3.tif").write_bytes(content)
    Image.new("1", (9500, 9500)).save(folder / "dog/4.png")  # more than Pillow's limit, less than twice that
    args = ["--on_bad_image", "skip", "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out")]
    with warnings.catch_warnings(record=True) as seen:
        main(["inspect", str(folder), "--conditioning", "class", "--resolution", "8", *args])
    printed = capfd.readouterr()
    assert "skipped: 2" in printed.out and "mend it" not in printed.out
    assert not seen and not [record for record in caplog.records if record.name in ("tifffile", "PIL")]
    assert "Tiff" not in printed.err and "Warning" not in printed.err


def test_animations_and_near_duplicates_are_said_each_time(tmp_path):
    """Also where the decoded images come from the file of an earlier run."""
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i in range(6):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
        picture.save(tmp_path / f"a/{i}.png")
        if i < 2:
            picture.save(tmp_path / f"a/{i}.jpg", quality=95)
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a/x.gif", save_all=True, append_images=frames[1:])
    for cache_images in (None, True, True):
        data = loaded(tmp_path / "a", tmp_path, "none", cache_images=cache_images)
        assert "files of several frames or pages, of which the first is used: 1" in data.summary()
        assert "images that are nearly the same as another one: 2 (row 1 (" in data.summary()
    main(["inspect", str(tmp_path / "a"), "--no_cache_images", "--output_dir", str(tmp_path / "out")])


def test_folders_that_are_no_condition_are_said(tmp_path):
    folder = write(tmp_path / "a", *(f"{name}/{i}.png" for name in ("images", "masks") for i in range(3)))
    assert "images of all folders are used: images 3, masks 3" in loaded(folder, tmp_path, "none").summary()
    assert "all folders" not in loaded(folder, tmp_path).summary()
    one = write(tmp_path / "b", *(f"img_align_celeba/{i}.png" for i in range(3)))
    assert "there is one class only (img_align_celeba): labels tell nothing apart" in loaded(one, tmp_path).summary()


def test_splits_of_coco(tmp_path):
    names = [f"{split}2017/{i}.png" for split in ("train", "val") for i in range(2)]
    folder = write(tmp_path / "a", *names, "annotations/captions_train2017.json")
    paths, classes, _, account = read(folder)
    assert paths == names[:2] and classes is None
    assert account.lines()[-1].startswith("not read: 1 table (annotations/captions_train2017.json): one that says")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
            r"pointer of Git LFS .*git lfs pull",
        ),
        (b"<html>404</html>", "of no format that can be read"),
    ],
)
def test_files_that_stand_for_images(tmp_path, content, reason):
    folder = write(tmp_path / "a", "0.png")
    (folder / "1.png").write_bytes(content)
    (folder / ".2.png.icloud").write_bytes(b"")
    summary = loaded(folder, tmp_path, "none").summary()
    assert re.search(reason, summary)
    assert "1 of 3 images is left out: 1 that iCloud has not downloaded (2.png)" in summary


def test_one_array_of_many_images(tmp_path):
    folder = write(tmp_path / "a", "x.npy")
    np.save(folder / "x.npy", np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"shape is \(10, 8, 8, 3\), not that of an image, but of several: save each"):
        loaded(folder, tmp_path, "none")


@pytest.mark.parametrize("name", ["metadata.csv", "0.png", "a.tar.gz"])
def test_a_file_in_place_of_a_folder(tmp_path, name):
    folder = write(tmp_path / "a", name)
    with pytest.raises(ValueError, match=rf"{name} is a file: give the folder that it lies in, or a \.zip, \.tar"):
        load_source(str(folder / name))


def test_captions_in_files_of_no_known_kind(tmp_path):
    """What is not read is part of the error where the captions lack."""
    folder = write(tmp_path / "a", "0.png", "0.json", "notes.txt", text="{}")
    words = (
        r"no caption column among image: .*; text files without an image: 1 \(notes.txt\); files of other .* 1 .json"
    )
    with pytest.raises(ValueError, match=words):
        loaded(folder, tmp_path, "text")


def test_folders_that_hold_nothing_that_is_read(tmp_path):
    folder = write(tmp_path / "a", *CLASSES)
    (folder / "bird").mkdir()
    assert read(folder)[3].lines() == ["not looked at: 1 empty folder (bird)"]
    write(tmp_path / "b", ".0.png", ".1.png")
    (tmp_path / "b/.git").mkdir()
    with pytest.raises(
        ValueError, match=r"there are no images in it .*; 2 of 2 images are left out: 2 hidden \(.0.png"
    ):
        load_source(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1.1", "1.10", "1.2", "1.20"], ["1.1", "1.10", "1.2", "1.20"]),  # versions, or numbers of chapters
        (["3", "\u0663", "4", "\u06f4"], ["3", "4", "\u0663", "\u06f4"]),  # digits of other scripts
        (["1.0", "1", "2.5", "3"], ["1", "2.5", "3"]),
    ],
)
def test_labels_of_digits_that_are_different_stay_different(tmp_path, labels, classes):
    write(tmp_path, *(f"{i}.png" for i in range(4)))
    table(tmp_path, *(f"{i}.png,{label}" for i, label in enumerate(labels)))
    assert list(loaded(tmp_path, tmp_path).id2label.values()) == classes


def test_labels_of_minus_one_and_columns_of_splits_are_said(tmp_path):
    write(tmp_path, *(f"{i}.png" for i in range(4)))
    table(tmp_path, "0.png,-1,train", "1.png,0,train", "2.png,1,val", "3.png,-1,test", head="file_name,label,split")
    lines = loaded(tmp_path, tmp_path).summary()
    assert "labels of -1 mean no label: 2; where it is a class, number it from 0 or name it" in lines
    assert "column split of metadata.csv chooses no rows: those of test, train, val are all used" in lines


def test_one_caption_and_several_in_a_column(tmp_path):
    write(tmp_path, *(f"{i}.png" for i in range(3)))
    rows = [{"file_name": "0.png", "text": "a"}, {"file_name": "1.png", "text": ["b", "c"]}, {"file_name": "2.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = loaded(tmp_path, tmp_path, "text")
    assert [list(c) for c in data.dataset.conditions()] == [["a"], ["b", "c"]]


def test_masks_are_not_taken_for_the_images(tmp_path):
    write(tmp_path, *(f"{kind}{i}.png" for kind in "im" for i in range(2)))
    table(tmp_path, "m0.png,i0.png,a", "m1.png,i1.png,b", head="mask_file_name,image_file_name,label")
    paths, _, _, account = read(tmp_path)
    assert paths == ["i0.png", "i1.png"] and "column mask_file_name of metadata.csv is not read" in account.notes


# ------------------------------------------------------------------------------------------------ sizes in archives
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_what_a_member_of_an_archive_unpacks_to_is_bounded(tmp_path, method):
    """By the declared size, and by the real one, which a header may hide."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression=method) as archive:
        archive.writestr("0.png", png())
        with archive.open("metadata.csv", "w") as table:
            table.write(b"file_name,text\n0.png,")
            for _ in range(256):
                table.write(b"a" * 2**20)
    with pytest.raises(ValueError, match=r"metadata.csv: it has 268,435,477 bytes .*268,435,456 are read.*: unpack"):
        load_source(str(tmp_path / "a.zip"))
    content = (tmp_path / "a.zip").read_bytes()  # the central directory, at the end, says 10 bytes
    size = (268_435_477).to_bytes(4, "little")
    at = content.rindex(size)
    (tmp_path / "a.zip").write_bytes(content[:at] + (10).to_bytes(4, "little") + content[at + 4 :])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"metadata.csv"):
        load_source(str(tmp_path / "a.zip"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27


# -------------------------------------------------------------------------------------------------- tars and streams
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("lacking", [0, 2])
def test_a_sample_without_its_caption_is_as_in_a_folder(tmp_path, lacking, streaming):
    files = {f"{i}.png": png(i) for i in range(6)} | {f"{i}.txt": b"a cat" for i in range(6) if i != lacking}
    pack(tmp_path / "a" / "a.tar", dict(sorted(files.items())))
    without = loaded(tmp_path / "a", tmp_path, "none", streaming=streaming)
    with_captions = loaded(tmp_path / "a", tmp_path, "text", streaming=streaming)
    if not streaming:
        assert len(without.dataset) == 6 and len(with_captions.dataset) == 5
        assert "there is no caption" in with_captions.summary()
        with pytest.raises(ValueError, match=f"row {lacking} .*there is no caption; .*--on_bad_image skip"):
            loaded(tmp_path / "a", tmp_path, "text", on_bad_image="error")
        return
    for data, count in ((without, 6), (with_captions, 5)):
        rows = [data.dataset.read(row, i, str(i)) for i, row in enumerate(data.dataset.rows)]
        assert sum(row is not None for row in rows) == count


def test_images_of_8_bits_in_a_range_of_more(tmp_path):
    """They are nearly black there; every header is looked at, since one image in a thousand may be the one."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(70):
        Image.fromarray(np.full((8, 8), 900 * i, np.uint16)).save(folder / f"{i:02}.png")
    options = {"value_range": [0, 65535], "channels": 1, "resolution": 8}
    assert "8 bits" not in loaded(folder, tmp_path, "none", **options).summary()
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(folder / "33.png")
    line = "images of 8 bits: 1, whose values end at 255 of --value_range 0 65535: they are nearly black"
    assert line in loaded(folder, tmp_path, "none", **options).summary()
