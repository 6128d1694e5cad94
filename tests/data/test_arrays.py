"""Images that are not of 8 bits or have other channels than PIL knows: what goes in comes out."""

import io
import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from training_common import run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.data.images import open_image, to_array
from cond_pipelines.data.loading import load_source


def file_of(array, kind):
    """The bytes of a file that holds `array`."""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, array)
    elif kind == "png":
        Image.fromarray(array).save(file, "PNG")
    else:
        tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig" if array.ndim == 3 else None)
    return {"bytes": file.getvalue(), "path": None}


def deep(channels, dtype=np.uint16, top=4095):
    rng = np.random.default_rng(0)
    shape = (8, 8) if channels == 1 else (8, 8, channels)
    return (rng.random(shape) * top).astype(dtype)


@pytest.mark.parametrize(
    ("channels", "dtype", "kind"),
    [
        (1, np.uint16, "png"),
        (1, np.uint16, "tiff"),
        (1, np.float32, "tiff"),
        (3, np.uint16, "tiff"),
        (5, np.uint16, "tiff"),
        (5, np.float64, "npy"),
        (2, np.int32, "npy"),
        (16, np.uint16, "npy"),
    ],
)
def test_no_value_is_lost(channels, dtype, kind):
    """From file to [-1, 1] and back: exactly the values that were written."""
    array = deep(channels, dtype)
    found = to_array(open_image(file_of(array, kind)), channels, 8, value_range=(0, 4095))
    assert found.dtype == np.float32 and found.shape == (8, 8, channels)
    assert found.min() >= -1 and found.max() <= 1
    back = (found.astype(np.float64) + 1) / 2 * 4095
    assert np.abs(back - array.reshape(8, 8, channels)).max() < 1e-3


def test_planes_first():
    array = np.moveaxis(deep(5), -1, 0)
    found = to_array(open_image(file_of(array, "npy")), 5, 8, value_range=(0, 4095))
    assert np.allclose((found + 1) / 2 * 4095, deep(5), atol=1e-3)


def test_it_is_resized_as_images_are():
    array = np.repeat(np.repeat(deep(5), 4, axis=0), 4, axis=1)
    found = to_array(open_image(file_of(array, "npy")), 5, 8, "box", (0, 4095))
    assert np.allclose((found + 1) / 2 * 4095, deep(5), atol=1e-2)
    wide = to_array(deep(5).repeat(3, axis=1), 5, 4, value_range=(0, 4095))
    assert wide.shape == (4, 12, 5)


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (deep(5), {}, "say with --value_range LOW HIGH what it holds"),
        (deep(5), {"value_range": (0, 255)}, "are outside of --value_range 0 255"),
        (deep(4), {"value_range": (0, 4095)}, r"its shape is \(8, 8, 4\), not \(height, width, 5\): see --channels"),
        (np.full((8, 8, 5), np.nan), {"value_range": (0, 1)}, "are outside of --value_range 0 1"),
    ],
)
def test_arrays_that_cannot_be_used(array, options, words):
    with pytest.raises(OSError, match=words):
        to_array(open_image(file_of(array, "npy")), 5, 8, **options)


def test_a_file_of_pickled_objects_is_not_read():
    with pytest.raises(OSError, match="allow_pickle"):
        open_image(file_of(np.array([{"run": "me"}], dtype=object), "npy"))


def test_folders_of_arrays(tmp_path):
    """Sub-folders are classes; metadata.jsonl wins."""
    for name in ("water/a", "water/b", "town/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", deep(5))
    found = load_source(str(tmp_path))
    assert found.features["label"].names == ["town", "water"] and found["label"] == [0, 1, 1]
    lines = [{"file_name": f"{name}.npy", "text": name} for name in ("water/b", "town/c")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = load_source(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert found["text"][:] == ["water/b", "town/c"] and found["label"][:] == [1, 0]


@pytest.mark.parametrize("cache_images", [False, True])
def test_from_file_to_sample_to_file(tmp_path, cache_images):
    """Five channels of 12 bits: trained, saved, sampled, and written in the values of the files."""
    (tmp_path / "data").mkdir()
    for i in range(8):
        np.save(tmp_path / f"data/{i}.npy", deep(5) // (i + 1))
    settings = {"train_data_dir": str(tmp_path / "data"), "dataset_name": None, "cache_dir": str(tmp_path / "cache")}
    settings |= {"resolution": None, "channels": 5, "value_range": [0, 4095.0], "cache_images": cache_images}
    folder = run(tmp_path / "model", validation_steps=4, **settings)
    assert Image.open(folder / "samples.png").mode == "RGB"
    pipe = ConditionalPipeline.from_pretrained(folder)
    assert pipe.unet.config.in_channels == 5 and pipe.config.value_range == {"low": 0, "high": 4095.0}
    with pytest.raises(ValueError, match="5 channels make no PIL image: pass output_type='np' or 'pt'"):
        pipe(batch_size=1)
    images = pipe(batch_size=2, output_type="np").images  # (2, 8, 8, 5)
    values = pipe.to_values(images)
    assert values.shape == (2, 8, 8, 5) and values.min() >= 0 and 255 < values.max() <= 4095
    np.save(tmp_path / "sample.npy", values.astype(np.uint16)[0])
    again = to_array(open_image(str(tmp_path / "sample.npy")), 5, 8, value_range=(0, 4095))
    assert np.abs((again + 1) / 2 - images[0]).max() < 1 / 4095
    pipe.save_pretrained(tmp_path / "again")
    assert ConditionalPipeline.from_pretrained(tmp_path / "again").config.value_range == pipe.config.value_range
