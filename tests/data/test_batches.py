import io
import itertools
import multiprocessing

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from cond_pipelines.data.batches import PositionSampler, make_loader
from cond_pipelines.data.dataset import BadRow, ImageDataset
from cond_pipelines.data.loading import Columns
from cond_pipelines.data.shard import Shard

NUM_IMAGES = 10


def preprocess(conditions):
    return {"condition": torch.tensor(conditions)}


def rows(num_images=NUM_IMAGES, bad=()):
    images = []
    for i in range(num_images):
        file = io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, "PNG")
        images.append({"bytes": b"broken" if i in bad else file.getvalue(), "path": f"{i}.png"})
    features = datasets.Features(image=datasets.Image(), number=datasets.Value("int64"))
    return datasets.Dataset.from_dict({"image": images, "number": list(range(num_images))}, features=features)


def make(source=None, **kwargs):
    options = {"resolution": 8, "channels": 3, "center_crop": False, "random_flip": True, "seed": 5}
    dataset = ImageDataset(source or rows(), Columns("image", "number"), **options | kwargs)
    if isinstance(dataset.rows, datasets.Dataset):
        dataset.check()
    return dataset


def take(count, **options):
    """The first images: (position, number, pixels) of each."""
    num_workers = options.pop("num_workers", 0)
    shard = Shard(**{"batch_size": 8, "seed": 5} | options)
    loader = make_loader(make(), np.arange(NUM_IMAGES), preprocess, shard, num_workers=num_workers)
    return flat(itertools.islice(loader, count // shard.batch_size))


def flat(batches):
    return [
        (position, number, pixels.numpy().tobytes())
        for batch in batches
        for position, number, pixels in zip(
            batch.positions.tolist(), batch.inputs["condition"].tolist(), batch.pixels, strict=True
        )
    ]


# -------------------------------------------------------------------------------------------------------- order
def test_every_image_once_an_epoch():
    epochs = np.array([number for _, number, _ in take(80)]).reshape(-1, NUM_IMAGES)
    assert (np.sort(epochs) == np.arange(NUM_IMAGES)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each in an order of its own


def test_positions_count_the_images():
    assert [position for position, _, _ in take(80)] == list(range(80))


def test_only_the_indices_given_are_used():
    loader = make_loader(make(), np.array([2, 3, 7]), preprocess, Shard(3))
    assert {number for _, number, _ in flat(itertools.islice(loader, 5))} == {2, 3, 7}


def test_order_depends_on_the_seed():
    assert [n for _, n, _ in take(40)] != [n for _, n, _ in take(40, seed=6)]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batch_size_changes_nothing(batch_size):
    assert take(80, batch_size=batch_size) == take(80)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_the_images_of_one(world_size):
    """One process with batch 8 sees the batches that several see together, step by step."""
    batch_size = 8 // world_size
    parts = [
        take(40 // world_size, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    steps = [part[i : i + batch_size] for i in range(0, len(parts[0]), batch_size) for part in parts]
    assert list(itertools.chain(*steps)) == take(40)


@pytest.mark.parametrize("start", [8, 24, 40])
def test_a_start_in_the_middle_goes_on(start):
    assert take(40, start=start) == take(80)[start : start + 40]


def test_a_start_reads_nothing_of_what_came_before():
    sampler = PositionSampler(np.arange(1000), Shard(4, start=10**12))
    assert [position for position, _ in next(iter(sampler))] == [10**12 + i for i in range(4)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_change_nothing(method):
    """Whatever Python starts processes with: since 3.14 it is no longer fork."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert take(24, num_workers=2) == take(24)
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_batch_contents():
    batch = next(iter(make_loader(make(), np.arange(NUM_IMAGES), preprocess, Shard(4))))
    assert batch.pixels.shape == (4, 3, 8, 8)
    assert batch.pixels.dtype == torch.uint8
    images = batch.images("cpu")
    assert images.dtype == torch.float32
    assert torch.equal(((images + 1) * 127.5).round().to(torch.uint8), batch.pixels)
    assert images.min() >= -1
    assert images.max() <= 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_row_stops_with_one_line(num_workers):
    """Also out of a worker, whose errors come wrapped in a traceback."""
    dataset = make()
    dataset.rows = ImageDataset(rows(bad=[4]), Columns("image", "number"), 8, 3).rows
    dataset.kept.arrays.clear()
    loader = make_loader(dataset, np.array([4]), preprocess, Shard(1), num_workers=num_workers)
    with pytest.raises(BadRow) as error:
        next(iter(loader))
    assert str(error.value).startswith("row 4 (4.png): unreadable image: ")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------- streaming
def stream(count, num_images=40, bad=(), num_shards=4, on_bad_image="error", num_workers=0, **options):
    source = rows(num_images, bad).to_iterable_dataset(num_shards=num_shards)
    dataset = make(source, on_bad_image=on_bad_image)
    loader = make_loader(dataset, None, preprocess, Shard(4, seed=5, **options), num_workers=num_workers)
    return flat(itertools.islice(loader, count // 4)), dataset


def test_stream_gives_every_image_once_an_epoch():
    epochs = np.array([number for _, number, _ in stream(120)[0]]).reshape(3, 40)
    assert (np.sort(epochs) == np.arange(40)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(epochs[0]) != tuple(range(40))


@pytest.mark.parametrize("num_shards", [1, 4])
def test_stream_is_split_by_process_without_overlap(num_shards):
    parts = [stream(20, num_shards=num_shards, rank=rank, world_size=2)[0] for rank in range(2)]
    numbers = [{number for _, number, _ in part} for part in parts]
    assert numbers[0] | numbers[1] == set(range(40))
    assert not numbers[0] & numbers[1]
    assert sorted(p for part in parts for p, _, _ in part) == list(range(40))


def test_stream_in_a_worker():
    found = stream(80, num_workers=3)[0]  # of which it uses one
    assert [position for position, _, _ in found] == list(range(80))
    assert sorted(number for _, number, _ in found) == sorted([*range(40), *range(40)])


@pytest.mark.parametrize("num_shards", [1, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_stream_is_a_function_of_the_position(num_shards, world_size):
    """Resumed anywhere, by any number of processes, it gives what it would have given: image, crop and flip."""
    whole = stream(120, num_shards=num_shards)[0]
    for start in (0, 8, 52):
        parts = [
            stream(16, num_shards=num_shards, start=start, rank=rank, world_size=world_size)[0]
            for rank in range(world_size)
        ]
        assert sorted(item for part in parts for item in part) == whole[start : start + 16 * world_size]


def test_a_resumed_stream_decodes_nothing_that_was_seen():
    """A broken image before the position is read over, one behind it is found."""
    order = [number for _, number, _ in stream(40, num_shards=1)[0]]
    assert len(stream(20, num_shards=1, start=20, bad=order[:20])[0]) == 20
    with pytest.raises(BadRow):
        stream(20, num_shards=1, start=20, bad=order[39:])


def test_stream_with_bad_images():
    found, dataset = stream(76, bad=(7, 20), on_bad_image="skip")
    assert [position for position, _, _ in found] == list(range(76))
    assert {number for _, number, _ in found} == set(range(40)) - {7, 20}
    assert {line.split("(")[1].split(")")[0] for line in dataset.skipped} == {"7.png", "20.png"}
    with pytest.raises(BadRow, match=r"\(7.png\): unreadable image"):
        stream(40, bad=(7,))
    with pytest.raises(BadRow, match="gave no usable image"):
        stream(40, bad=range(40), on_bad_image="skip")
