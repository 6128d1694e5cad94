"""Aspect-ratio buckets: every image once an epoch, every batch of one size, nothing stretched."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image
from pipelines_common import tiny_vae
from training_common import largest_difference, log_of, run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.data.batches import BucketSampler
from cond_pipelines.data.buckets import bucket_sizes, nearest_size
from cond_pipelines.data.images import open_image, size_px, to_array
from cond_pipelines.data.shard import Shard


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 256, 512])
def test_sizes(resolution):
    """About as many pixels as the square, up to 1:2, in steps that a UNet can halve; the square is among them."""
    sizes = bucket_sizes(resolution)
    assert (resolution, resolution) in sizes
    for height, width in sizes:
        assert 0.6 * resolution**2 <= height * width <= resolution**2
        assert 0.5 <= width / height <= 2
        assert height % 4 == width % 4 == 0
    assert resolution < 32 or {(w, h) for h, w in sizes} == set(sizes)


def test_nearest():
    sizes = bucket_sizes(64)
    assert nearest_size(100, 100, sizes) == (64, 64)
    for height, width in ((30, 300), (300, 30)):  # more elongated than any
        found = nearest_size(height, width, sizes)
        assert found == max(sizes, key=lambda s: s[1] / s[0] if width > height else s[0] / s[1])


BUCKETS = [np.arange(0, 12), np.arange(12, 40), np.arange(40, 47), np.array([], dtype=int)]


def batches(count, **options):
    return list(itertools.islice(BucketSampler(BUCKETS, Shard(**{"batch_size": 4, "seed": 3} | options)), count))


def test_every_image_as_often_as_any_other():
    """Within a bucket once an epoch; over all buckets about as often."""
    found = [index for batch in batches(470) for _, (_, index) in batch]
    counts = np.bincount(found, minlength=47)
    assert counts.sum() == 4 * 470 and counts.min() >= 38 and counts.max() <= 42
    for bucket in BUCKETS[:3]:
        mine = [i for i in found if i in bucket]
        for start in range(0, len(mine) - len(bucket), len(bucket)):
            assert sorted(mine[start : start + len(bucket)]) == bucket.tolist()


def test_every_batch_is_of_one_bucket_also_over_processes():
    parts = [batches(60, rank=rank, world_size=2) for rank in range(2)]
    whole = batches(60, batch_size=8)
    for a, b, both in zip(*parts, whole, strict=True):
        assert a + b == both
        assert sum(any(index in bucket for _, (_, index) in both) for bucket in BUCKETS) == 1


def test_resumed_it_goes_on():
    assert batches(30, start=80) == batches(50)[20:]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "npy"])
def test_size_is_read_from_the_beginning(tmp_path, orientation, kind):
    path = tmp_path / "image"
    if kind == "npy":
        np.save(path.with_suffix(".npy"), np.zeros((5, 30, 20)))
        path = path.with_suffix(".npy")
    else:
        image = Image.new("RGB", (20, 30))
        image.getexif()[0x0112] = orientation
        image.save(path, kind, exif=image.getexif())
    found = size_px({"path": str(path), "bytes": None})
    if kind == "JPEG":
        assert found == open_image(str(path)).size[::-1] == ((30, 20) if orientation == 1 else (20, 30))
    else:
        assert found == (30, 20)


def test_nothing_is_stretched():
    """A circle in a wide image is as wide as high afterwards."""
    y, x = np.mgrid[:100, :180]
    circle = Image.fromarray((((y - 50) ** 2 + (x - 90) ** 2 < 40**2) * 255).astype(np.uint8))
    array = to_array(circle, 1, (48, 80))[..., 0]
    height, width = (np.ptp(np.nonzero((array > 127).any(axis=axis))[0]) for axis in (1, 0))
    assert array.shape[0] >= 48 and array.shape[1] >= 80 and min(array.shape[0] - 48, array.shape[1] - 80) == 0
    assert abs(int(height) - int(width)) <= 1


@pytest.fixture()
def folder(tmp_path):
    """Wide, tall and square images."""
    (tmp_path / "images").mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(30):
        shape = [(40, 64, 3), (64, 40, 3), (50, 50, 3)][0 if i < 16 else 1 if i < 26 else 2]
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / f"images/{i:02}.png")
        lines.append({"file_name": f"{i:02}.png", "text": f"number {i}"})
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "images"


def trained(folder, name, **more):
    settings = {"train_data_dir": str(folder), "dataset_name": None, "cache_dir": str(folder.parent / "cache")}
    settings |= {"resolution": 32, "aspect_buckets": True, "train_batch_size": 4, "random_flip": True}
    return run(folder.parent / name, **settings | more)


def test_training(folder):
    """The default size is the commonest; any other is drawn too."""
    model = trained(folder, "model", conditioning="text", validation_steps=4, validation_fraction=0.0)
    pipe = ConditionalPipeline.from_pretrained(model)
    assert pipe("number 3").images[0].size == (40, 24)
    assert pipe("number 3", height=40, width=24).images[0].size == (24, 40)
    assert "draws 40 x 24 px" in (model / "README.md").read_text()


def test_resumed(folder):
    settings = {"max_train_steps": 6, "checkpointing_steps": 3, "lr_scheduler": "constant"}
    whole = trained(folder, "whole", **settings)
    trained(folder, "parts", **settings | {"max_train_steps": 3})
    parts = trained(folder, "parts", **settings, resume_from_checkpoint="latest")
    networks = [ConditionalPipeline.from_pretrained(model).unet for model in (whole, parts)]
    assert largest_difference(*networks) == 0


@pytest.mark.parametrize("flag", ["cache_images", "cache_latents"])
def test_kept(folder, flag):
    more = {}
    if flag == "cache_latents":
        tiny_vae().save_pretrained(folder.parent / "vae")
        more["pretrained_vae_model_name_or_path"] = str(folder.parent / "vae")
    plain = trained(folder, "plain", **more)
    kept = trained(folder, "kept", **more, **{flag: True})
    again = trained(folder, "again", **more, **{flag: True})
    assert np.allclose(log_of(plain), log_of(kept), rtol=1e-4)
    assert log_of(kept) == log_of(again)
