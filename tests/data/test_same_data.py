"""The same images as a folder, in archives, in tables and on the Hub give the same summary and the same first batch."""

import io
import json
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from folders_common import write
from PIL import Image

from cond_pipelines.adapters import ClassLabelAdapter
from cond_pipelines.data.account import Account
from cond_pipelines.data.batches import make_loader
from cond_pipelines.data.load import load_data
from cond_pipelines.data.loading import load_source
from cond_pipelines.data.shard import Shard
from cond_pipelines.inspection import InspectionConfig

NAMES = [f"{label}/{i:02}.png" for label in ("0", "1") for i in range(6)]
SOURCES = ["folder", "zip", "tar", "webdataset", "parquet", "arrow", "hub", "hub zip", "hub parquet"]


def as_shards(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Arguments for each source of the same twelve images of two classes, and the files of those on the Hub."""
    root = tmp_path_factory.mktemp("same")
    folder = write(root / "folder", *NAMES)
    files = {name: (folder / name).read_bytes() for name in NAMES}
    for name in ("zip", "tar", "webdataset", "parquet", "arrow"):
        (root / name).mkdir()
    with zipfile.ZipFile(root / "zip/a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"photos/{name}", content)
    as_shards(root / "tar/a.tar", {f"./photos/{name}": content for name, content in files.items()})
    samples = {}
    for number, (name, content) in enumerate(files.items()):
        samples |= {f"{number:03}.png": content, f"{number:03}.cls": name[0].encode()}
    as_shards(root / "webdataset/00000.tar", samples)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["0", "1"]))
    values = {"image": [{"bytes": content, "path": None} for content in files.values()]}
    table = datasets.Dataset.from_dict(values | {"label": [int(name[0]) for name in NAMES]}, features=features)
    table.to_parquet(root / "parquet/a.parquet")
    table.save_to_disk(str(root / "arrow"))
    return root, {
        "hub": files | {"README.md": b"---\nlicense: mit\n---\n", "script.py": b"raise SystemExit('run')"},
        "hub zip": {"data.zip": (root / "zip/a.zip").read_bytes()},
        "hub parquet": {"data/train-00000-of-00001.parquet": (root / "parquet/a.parquet").read_bytes()},
    }


def first_batch(data):
    adapter = ClassLabelAdapter(id2label=data.id2label, token_dim=4)
    loader = make_loader(data.dataset, data.train, adapter.preprocess, Shard(batch_size=8, seed=3))
    batch = next(iter(loader))
    return batch.pixels.numpy(), batch.inputs["label"].numpy()


def loaded(sources, name, hub, tmp_path, streaming):
    root, on_hub = sources
    place = {"train_data_dir": str(root / name)}
    if name in on_hub:
        place = {"dataset_name": f"me/{name.replace(' ', '-')}-{streaming}"}
        hub.add(place["dataset_name"], on_hub[name])
    config = InspectionConfig(
        conditioning="class", cache_dir=str(tmp_path / "cache"), streaming=streaming, on_bad_image="skip", **place
    )
    return load_data(config)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_summary_and_first_batch(sources, hub, tmp_path, name, streaming):
    expected = loaded(sources, "folder", hub, tmp_path, streaming)
    found = loaded(sources, name, hub, tmp_path, streaming)
    lines = [line for line in found.summary().splitlines() if not line.startswith("files of other kinds, not read: 1 ")]
    assert lines == expected.summary().splitlines()
    assert "classes (2): 0" in found.summary()
    for mine, theirs in zip(first_batch(found), first_batch(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# -------------------------------------------------------------------------------------------------------- the Hub
def png(number):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_images_on_the_hub_are_read_as_a_folder_is(hub, tmp_path):
    """Without the guesses of `datasets`: a class called train, links of metadata, images without a row."""
    names = [f"{label}/{i}.png" for label in ("apple", "train", "whale") for i in range(2)]
    hub.add("me/classes", {name: png(i) for i, name in enumerate(names)})
    rows = load_source(dataset_name="me/classes", cache_dir=str(tmp_path))
    assert rows.features["label"].names == ["apple", "train", "whale"] and len(rows) == 6
    table = "\n".join(json.dumps({"file_name": f"{i}.png", "text": f"t{i}"}) for i in range(3))
    hub.add("me/captions", {f"{i}.png": png(i) for i in range(4)} | {"metadata.jsonl": table.encode()})
    rows = load_source(dataset_name="me/captions", cache_dir=str(tmp_path), account=(account := Account()))
    assert rows["text"][:] == ["t0", "t1", "t2"]
    assert account.lines() == ["1 of 4 images is left out: 1 without a row in metadata.jsonl (3.png)"]
    assert not [line for line in hub.requests if line.endswith(".py")]


def test_an_earlier_copy_is_used_where_the_hub_does_not_answer(hub, tmp_path):
    hub.add("me/kept", {f"cat/{i}.png": png(i) for i in range(2)})
    assert len(load_source(dataset_name="me/kept", cache_dir=str(tmp_path))) == 2
    hub.fail("me/kept")
    rows = load_source(dataset_name="me/kept", cache_dir=str(tmp_path), account=(account := Account()))
    assert len(rows) == 2 and "an earlier copy is used, which may lack some" in account.lines()[0]


def test_what_a_readme_says_of_the_files_is_not_followed_in_silence(hub, tmp_path):
    readme = b"---\nconfigs:\n- config_name: small\n  data_files: cat/0.png\n---\n"
    hub.add("me/configs", {f"cat/{i}.png": png(i) for i in range(2)} | {"README.md": readme})
    load_source(dataset_name="me/configs", cache_dir=str(tmp_path), account=(account := Account()))
    assert "configurations of README.md are not followed" in account.lines()[0]


def test_a_repository_that_is_not_there(hub, tmp_path):
    with pytest.raises(ValueError, match="cannot load me/nothing") as error:
        load_source(dataset_name="me/nothing", cache_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_pictures_of_a_readme_are_no_data(hub, tmp_path, sources):
    _, on_hub = sources
    hub.add("me/tables", on_hub["hub parquet"] | {"assets/logo.png": png(1)})
    assert len(load_source(dataset_name="me/tables", cache_dir=str(tmp_path))) == 12
