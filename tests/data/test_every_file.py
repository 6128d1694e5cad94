"""Any tree of folders: images on disk = used + left out with a reason. And any damaged file is its row's line."""

import io
import json
import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cond_pipelines.data.account import Account, ReadOptions
from cond_pipelines.data.dataset import BadRow, ImageDataset
from cond_pipelines.data.formats import kind_of
from cond_pipelines.data.images import open_image, to_array
from cond_pipelines.data.loading import Columns, load_source

FOLDERS = st.sampled_from(
    [
        "train",
        "test",
        "val",
        "cat",
        "dog 1",
        "3_cat",
        "10_dog",
        ".hidden",
        "a[b]",
        "$x",
        "a::b",
        "ü",
        "freight train",
        "@eaDir",
    ]
)
NAMES = st.sampled_from(["1", "2", "street-train-3", "x-masklabel", ".dot", "ä é", "a'b", "10", "$HOME", "[q]", "test"])
SUFFIXES = st.sampled_from([".png", ".JPG", ".bmp", ".txt", ".caption", ".json", ".npy", ".parquet", ".png.json", ""])
FILES = st.tuples(st.lists(FOLDERS, max_size=3), NAMES, SUFFIXES)
LINKS = st.tuples(st.lists(FOLDERS, max_size=2), NAMES, st.lists(FOLDERS, max_size=2), st.booleans())
METADATA = st.tuples(st.sampled_from(["metadata.csv", "metadata.jsonl"]), st.lists(FILES, max_size=4), st.booleans())


def on_disk(root):
    """Every path to an image file: of each real folder once, without what lies in hidden folders."""
    found, seen = 0, set()
    to_read = [root]
    links = []
    while to_read or links:
        folder = to_read.pop() if to_read else links.pop(0)
        if os.path.realpath(folder) in seen:
            continue
        seen.add(os.path.realpath(folder))
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not name.startswith(".") and name != "@eaDir":
                (links if os.path.islink(path) else to_read).append(path)
            elif not os.path.isdir(path):
                found += kind_of(name) == "images"
        links.sort()
    return found


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(st.lists(FILES, max_size=12), st.lists(LINKS, max_size=3), st.none() | METADATA)
def test_images_on_disk_are_used_or_left_out_with_a_reason(files, links, metadata):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        root.mkdir()
        for folders, name, suffix in files:
            path = root.joinpath(*folders, name + suffix)
            with suppress(NotADirectoryError, FileExistsError):  # one of the folders is a file already
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.write_bytes(b"x")
        for folders, name, target, to_folder in links:
            path = root.joinpath(*folders, name + ("" if to_folder else ".png"))
            with suppress(NotADirectoryError, FileExistsError):
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists() and not path.is_symlink():
                    path.symlink_to(root.joinpath(*target) if to_folder else root.joinpath(*target, "1.png"))
        if metadata is not None:
            table, rows, in_first = metadata
            at = next((p for p in sorted(root.iterdir()) if p.is_dir()), root) if in_first else root
            names = ["/".join([*folders, name + suffix]) for folders, name, suffix in rows]
            lines = [json.dumps({"file_name": name, "text": "a"}) for name in names]
            if table == "metadata.csv":
                lines = ["file_name,text", *(f'"{name}",a' for name in names)]
            (at / table).write_text("\n".join(lines))
        account = Account()
        try:
            loaded = load_source(
                str(root), account=account, options=ReadOptions(data_format="images", on_bad_image="skip")
            )
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            values = loaded.cast_column("image", datasets.Image(decode=False))["image"]
            paths = {os.path.normpath(value["path"]) for value in values}
            assert all(os.path.isfile(path) for path in paths)
            named = [path for path in paths if kind_of(path) != "images"]  # by metadata
            assert len(paths) + account.num_excluded == account.num_images, account.lines()
            assert account.num_images == on_disk(root) + len(named), account.lines()
            assert all(line and "\n" not in line for line in account.lines())


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(st.lists(FILES, min_size=1, max_size=12), st.booleans())
def test_a_folder_and_its_zip_agree(files, with_metadata):
    """The same images with the same labels and captions, and as many left out."""
    with tempfile.TemporaryDirectory() as temporary:
        root, packed = Path(temporary) / "data", Path(temporary) / "packed"
        root.mkdir()
        packed.mkdir()
        for folders, name, suffix in files:
            path = root.joinpath(*folders, name + suffix)
            with suppress(NotADirectoryError, FileExistsError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"a word")
        if with_metadata:
            rows = [f'"{"/".join([*folders, name + suffix])}",{name}' for folders, name, suffix in files[::2]]
            (root / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
        with zipfile.ZipFile(packed / "a.zip", "w") as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(root))
        found = []
        for folder, below in ((root, f"{root}/"), (packed, f"{packed}/a.zip/")):
            account = Account()
            options = ReadOptions(data_format="images" if folder == root else None, on_bad_image="skip")
            try:
                rows = load_source(str(folder), account=account, options=options)
            except ValueError:
                found.append(None)
                continue
            images = rows.cast_column("image", datasets.Image(decode=False))["image"]
            paths = [value["path"].removeprefix(below) for value in images]
            columns = {name: rows[name][:] for name in rows.column_names if name != "image"}
            found.append((paths, columns, rows.features, account.num_images, account.num_excluded))
        if found[1] is not None and not any(kind_of(name) == "images" for name in found[1][0]):
            return  # .npy files alone, which --data_format images does not read
        assert found[0] == found[1]


# ------------------------------------------------------------------------------------------------ damaged files
def picture(rng):
    return Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))


FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS", "DDS"),
    *("BLP", "PCX", "QOI", "SGI", "XBM", "IM", "MSP", "PDF", "EPS", "SPIDER", "MPO", "HEIF"),
)
OTHERS = ("NPY", "NPY16", "TIFF16", "TIFF5", "DEFLATE", "APNG")


def file_of(kind, rng):
    """The bytes of a picture in a format; of a mode that it can hold."""
    import tifffile

    file, image = io.BytesIO(), picture(rng)
    if kind in ("NPY", "NPY16"):
        np.save(file, rng.integers(0, 255, (12, 16, 3)).astype(np.uint8 if kind == "NPY" else np.uint16))
    elif kind in ("TIFF16", "TIFF5"):
        shape = (12, 16) if kind == "TIFF16" else (12, 16, 5)
        tifffile.imwrite(file, rng.integers(0, 65535, shape).astype(np.uint16))
    elif kind == "DEFLATE":
        image.save(file, "TIFF", compression="tiff_adobe_deflate")
    elif kind == "APNG":
        image.save(file, "PNG", save_all=True, append_images=[picture(rng)])
    elif kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
        image.resize((64, 64)).save(file, "HEIF")
    else:
        mode = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P", "DIB": "RGB"}.get(kind, "RGB")
        (image.resize((32, 32)) if kind in ("ICNS", "ICO") else image).convert(mode).save(file, kind)
    return file.getvalue()


def damaged(content, rng):
    """Cut, with flipped bits, with another length in its header, with a part of zeros, or of something else."""
    data = bytearray(content)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        for at in rng.integers(0, len(data), 8):
            data[at] ^= 1 << rng.integers(8)
    elif kind == 2:
        for at in rng.integers(0, min(64, len(data)), 4):
            data[at] = rng.integers(256)
    elif kind == 3:
        start = rng.integers(len(data))
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    else:
        at = rng.integers(len(data))
        data[at:at] = rng.bytes(32)
    return bytes(data)


@pytest.fixture(scope="module")
def broken():
    """1,000 rows in 32 formats."""
    rng = np.random.default_rng(16)
    files = [file_of(kind, rng) for kind in (*FORMATS, *OTHERS)]
    assert len(files) > 30
    return [damaged(files[i % len(files)], rng) for i in range(1000)]


@pytest.mark.parametrize("value_range", [None, (0.0, 65535.0)])
def test_a_damaged_file_is_its_rows_line(broken, value_range):
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in broken]},
        features=datasets.Features(image=datasets.Image()),
    )
    dataset = ImageDataset(rows, Columns("image"), 8, 3, on_bad_image="skip", value_range=value_range)
    dataset.check()
    assert len(dataset) + len(dataset.skipped) == 1000 and len(dataset.skipped) > 100
    assert all(line.startswith("row ") and "\n" not in line for line in dataset.skipped)
    assert all(dataset[0, i].pixels.shape == (8, 8, 3) for i in range(len(dataset)))
    with pytest.raises(BadRow, match=r"^row \d+: unreadable image: .+; mend it, or --on_bad_image skip$"):
        ImageDataset(rows, Columns("image"), 8, 3, value_range=value_range).check()


def header_of(shape, dtype="<f4", body=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header_of((1_000_000, 2_000_000)), "truncated: it says that it has 8,000,000,000,000 bytes"),
        (header_of((0, 3)), r"its shape is \(0, 3\), not that of an image"),
        (header_of((512,), body=bytes(2048)), r"its shape is \(512,\), not that of an image"),
        (header_of((2, 2), "<U1", bytes(16)), "its values are of type <U1, not numbers"),
        (header_of((2, 2), "|O", bytes(64)), "allow_pickle"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, which is a program and not opened"),
    ],
)
def test_what_no_image_can_be(data, reason):
    with pytest.raises(OSError, match=reason):
        open_image(data)


def test_a_spacer_takes_no_gigabytes():
    """4,000 x 1 px at 256 px would be 1,024,000 px wide; the middle of it is used."""
    strip = Image.fromarray(np.arange(12_000, dtype=np.uint32).astype(np.uint8).reshape(1, 4000, 3))
    assert to_array(strip, 3, 256).shape == (256, 4096, 3)
    assert to_array(strip.rotate(90, expand=True), 3, 256).shape == (4096, 256, 3)
    assert to_array(Image.new("RGB", (60_000, 1)), 3, 512).shape[0] == 512
    assert to_array(Image.new("RGB", (100, 4)), 3, 8).shape == (8, 200, 3)  # a small one as it is
