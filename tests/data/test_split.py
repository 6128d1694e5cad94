"""Whole images are held out; what a run is made from is known by its content."""

import collections
import io

import datasets
import numpy as np
import pytest
from PIL import Image
from training_common import TrainingConfig

from cond_pipelines.data.load import load_data
from cond_pipelines.data.split import halves, hold_out, hold_out_rows, num_with_near_duplicate, thumbnail


def noise(seed, side=16):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def folder_of(folder, images, suffix=".png"):
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}{suffix}")
    return folder


def loaded(folder, tmp_path, conditioning="none", **options):
    places = {"train_data_dir": str(folder), "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "out")}
    return load_data(TrainingConfig(**{"conditioning": conditioning} | places | options))


@pytest.mark.parametrize(
    ("num_images", "fraction", "expected"),
    [(300, 0.03, 10), (1000, 0.03, 30), (40, 0.03, 10), (39, 0.5, 0), (100, 0.9, 25), (10_000, 0.9, 256), (400, 0, 0)],
)
def test_ten_to_256_and_at_most_a_quarter(num_images, fraction, expected):
    assert len(hold_out(range(num_images), None, fraction, seed=0)) == expected


def test_different_images_are_held_out_as_rows_were():
    for seed in range(3):
        assert (hold_out(range(1000), None, 0.03, seed) == hold_out_rows(1000, 0.03, seed)).all()


def test_all_rows_of_an_image_stay_together():
    images = [i % 100 for i in range(500)]
    held_out = hold_out(images, None, 0.03, seed=0)
    assert len(held_out) == 50
    assert not {images[i] for i in held_out} & {images[i] for i in range(500) if i not in held_out}


def test_one_image_of_each_class_stays_in_training():
    assert not len(hold_out(range(100), list(range(100)), 0.03, seed=0))
    classes = [i % 50 for i in range(100)]
    held_out = hold_out(range(100), classes, 0.9, seed=0)
    assert len(held_out) == 25 and {classes[i] for i in range(100) if i not in held_out} == set(range(50))
    several = [(i % 50, 50 + i % 3) for i in range(100)]
    assert len(hold_out(range(100), several, 0.2, seed=0)) == 20
    copies = hold_out([0] * 50 + list(range(1, 51)), [0] * 50 + [1] * 50, 0.2, seed=0)
    assert copies.min() >= 50  # the only image of class 0


@pytest.mark.parametrize("cache_images", [None, False])
def test_rows_of_one_image_and_copies(tmp_path, cache_images):
    """100 images of 5 captions each, of which 4 are copies of others under other names."""
    folder = folder_of(tmp_path / "a", {f"{i:03}": noise(i % 96) for i in range(100)})
    lines = [f'{{"file_name": "{i:03}.png", "text": "caption {j}"}}' for i in range(100) for j in range(5)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data = loaded(folder, tmp_path, "text", resolution=16, cache_images=cache_images)
    name = [str(value["path"])[-7:-4] for value in data.dataset.rows["image"]]
    content = [int(n) % 96 for n in name]
    assert not {content[i] for i in data.train} & {content[i] for i in data.held_out}
    assert len({content[i] for i in data.held_out}) == 10
    assert "rows with the same image as another row: 404" in data.summary()
    assert "rows of metadata.jsonl: 500, of 100 images" in data.summary()


def test_near_duplicates_are_counted(tmp_path):
    """Saved again as JPEG of other quality."""
    smooth = [np.asarray(Image.fromarray(noise(i, 4)).resize((64, 64), 3)) for i in range(60)]
    some = [thumbnail(pixels) for pixels in smooth]
    again = []
    for pixels in smooth[:20]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=70)
        again.append(thumbnail(np.asarray(Image.open(file))))
    assert num_with_near_duplicate(again, some) == 20
    assert num_with_near_duplicate(again[:10], some[20:]) == 0
    folder = folder_of(tmp_path / "a", {f"{i:02}": pixels for i, pixels in enumerate(smooth)})
    for i, pixels in enumerate(smooth):
        Image.fromarray(pixels).save(folder / f"{i:02} again.jpg", quality=90)
    assert "held-out images with a near-duplicate in training: " in loaded(folder, tmp_path).summary()


def test_a_random_part_has_all_classes(tmp_path):
    folder = folder_of(
        tmp_path / "a", {f"{c}/{i}": noise(i + 100 * (c == "dog")) for c in ("cat", "dog") for i in range(40)}
    )
    data = loaded(folder, tmp_path, "class", max_train_samples=30)
    counts = collections.Counter(data.dataset.conditions())
    assert sum(counts.values()) == 30 and min(counts.values()) > 5 and len(counts) == 2
    assert "--max_train_samples: 30 of 80 rows, drawn at random" in data.summary()


def test_repeats(tmp_path):
    folder = folder_of(tmp_path / "a", {"10_cat/1": noise(1), "3_dog/2": noise(2)})
    data = loaded(folder, tmp_path, folder_repeats=True)
    assert data.train.tolist() == [0] * 10 + [1] * 3
    assert loaded(folder, tmp_path).train.tolist() == [0, 1]
    assert loaded(folder, tmp_path, "class").id2label == {0: "10_cat", 1: "3_dog"}
    repeated = loaded(folder, tmp_path, "class", folder_repeats=True)
    assert repeated.id2label == {0: "cat", 1: "dog"} and repeated.train.tolist() == [0] * 10 + [1] * 3
    with pytest.raises(ValueError, match="--folder_repeats needs folders named such as 10_cat"):
        loaded(folder_of(tmp_path / "b", {"1": noise(1)}), tmp_path, folder_repeats=True)


# -------------------------------------------------------------------------------------- what is held is trained: J
@pytest.mark.parametrize("cache_images", [None, False])
@pytest.mark.parametrize("what", ["one image", "one caption"])
def test_the_fingerprint_is_of_every_row(tmp_path, cache_images, what):
    folder = folder_of(tmp_path / "a", {f"{i:03}": noise(i, 8) for i in range(600)}, ".bmp")
    for i in range(600):
        (folder / f"{i:03}.txt").write_text(f"caption {i}")
    before = loaded(folder, tmp_path, "text", cache_images=cache_images)
    times = before.dataset.times_of_files()
    if what == "one image":
        Image.fromarray(noise(7000, 8)).save(folder / "301.bmp")  # of the same size
    else:
        (folder / "301.txt").write_text("another")
    after = loaded(folder, tmp_path, "text", cache_images=cache_images)
    if cache_images is None or what == "one caption":
        assert before.content != after.content
    else:  # read in part only: the time of change says so
        assert times != after.dataset.times_of_files()
    assert loaded(folder, tmp_path, "text", cache_images=cache_images).content == after.content


# ------------------------------------------------------------------- decided from all images, not from the first: G
def test_some_images_of_colour_make_the_set_one_of_colour(tmp_path):
    gray = {f"{i:03}": noise(i)[..., 0] for i in range(70)}
    folder = folder_of(tmp_path / "a", gray | {f"{i:03}": noise(i) for i in range(70, 100)})
    assert loaded(folder, tmp_path).dataset.channels == 3
    many = folder_of(tmp_path / "b", {f"{i:03}": noise(i, 4)[..., 0] for i in range(300)} | {"150 b": noise(0, 4)})
    assert loaded(many, tmp_path).dataset.channels == 3
    assert loaded(folder_of(tmp_path / "c", gray), tmp_path).dataset.channels == 1


# ----------------------------------------------------------------------------------------- the same data anyhow
def test_streams_and_folders_agree(tmp_path):
    """As folder, .zip, tar shards, parquet and data set on disk: one summary, one first batch."""
    import tarfile
    import zipfile

    from cond_pipelines.data.batches import make_loader
    from cond_pipelines.data.shard import Shard

    folder = folder_of(tmp_path / "folder", {f"{i:02}": noise(i) for i in range(48)})
    for i in range(48):
        (folder / f"{i:02}.txt").write_text(f"caption {i}")
    paths = sorted(folder.iterdir())
    for kind in ("zip", "tar", "parquet"):
        (tmp_path / kind).mkdir()
    with zipfile.ZipFile(tmp_path / "zip" / "a.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    for shard in range(2):
        with tarfile.open(tmp_path / "tar" / f"{shard}.tar", "w") as tar:
            for path in paths[48 * shard : 48 * shard + 48]:
                tar.add(path, path.name)
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": p.read_bytes(), "path": None} for p in paths if p.suffix == ".png"],
            "text": [p.read_text() for p in paths if p.suffix == ".txt"],
        },
        features=datasets.Features(image=datasets.Image(), text=datasets.Value("string")),
    )
    rows.to_parquet(tmp_path / "parquet" / "a.parquet")
    rows.save_to_disk(str(tmp_path / "disk"))
    found = {}
    for kind in ("folder", "zip", "tar", "parquet", "disk", "by name"):
        of_name = {"train_data_dir": None, "dataset_name": str(tmp_path / "folder")} if kind == "by name" else {}
        data = loaded(tmp_path / kind, tmp_path, "text", **of_name)

        def lengths(captions):
            import torch

            return {"n": torch.tensor([int(caption.split()[-1]) for caption in captions])}

        batch = next(iter(make_loader(data.dataset, data.train, lengths, Shard(batch_size=8))))
        lines = [line for line in data.summary().splitlines() if not line.startswith("captions: 48 from")]
        found[kind] = ("\n".join(lines), batch.pixels.numpy().tobytes(), batch.inputs["n"].tolist())
    assert all(value == found["folder"] for value in found.values()), found


# -------------------------------------------------------------------------------------------------------- halves
def test_halves_are_disjoint_and_hold_whole_images_and_half_of_each_class():
    images = [f"image {i // 2}" for i in range(200)]  # each in two rows
    classes = [(i // 2) % 5 for i in range(200)]
    rows = np.setdiff1d(np.arange(200), [6, 7])
    first, second = halves(images, classes, rows, seed=3)
    assert np.array_equal(np.union1d(first, second), rows) and len(first) + len(second) == len(rows)
    assert not {images[i] for i in first} & {images[i] for i in second}
    for label in range(5):
        counts = [sum(classes[i] == label for i in half) for half in (first, second)]
        assert abs(counts[0] - counts[1]) <= 2
    assert not np.array_equal(first, halves(images, classes, rows, seed=4)[0])
    with pytest.raises(ValueError, match="two different images at least, and there are 1"):
        halves(["a", "a"], None, np.arange(2), seed=0)


def test_a_run_on_a_half_sees_it_alone(tmp_path):
    """Same held-out images, the other half's never, not even in place of a bad image."""
    folder = folder_of(tmp_path / "images", {f"{i:03d}": noise(i) for i in range(60)})
    both = loaded(folder, tmp_path)
    one, two = (loaded(folder, tmp_path, half=half) for half in (1, 2))
    assert np.array_equal(one.held_out, both.held_out) and np.array_equal(two.held_out, both.held_out)
    assert np.array_equal(np.union1d(one.train, two.train), both.train) and not set(one.train) & set(two.train)
    assert np.array_equal(one.other_half, two.train) and np.array_equal(one.both_halves, both.train)
    assert np.array_equal(both.both_halves, both.train)
    stand_ins = set(one.dataset._stand_ins(int(one.train[0])))
    assert stand_ins == set(one.train.tolist())
    assert "--half 1: 25 of 50 images for training" in one.summary()
