import io
import itertools
import multiprocessing

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from cond_pipelines.data.batches import PositionSampler, _draw_blocks, draw_generators, draw_noise, make_loader
from cond_pipelines.data.dataset import BadRow, ImageDataset
from cond_pipelines.data.loading import Columns

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
    loader = make_loader(make(), np.arange(NUM_IMAGES), preprocess, **{"batch_size": 8, "seed": 5} | options)
    return flat(itertools.islice(loader, count // loader.batch_sampler.batch_size))


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
    loader = make_loader(make(), np.array([2, 3, 7]), preprocess, batch_size=3)
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
    sampler = PositionSampler(np.arange(1000), 4, start=10**12)
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
    batch = next(iter(make_loader(make(), np.arange(NUM_IMAGES), preprocess, batch_size=4)))
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
    loader = make_loader(dataset, np.array([4]), preprocess, batch_size=1, num_workers=num_workers)
    with pytest.raises(BadRow) as error:
        next(iter(loader))
    assert str(error.value).startswith("row 4 (4.png): unreadable image: ")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------- streaming
def stream(count, num_images=40, bad=(), num_shards=4, on_bad_image="error", num_workers=0, **options):
    source = rows(num_images, bad).to_iterable_dataset(num_shards=num_shards)
    dataset = make(source, on_bad_image=on_bad_image)
    loader = make_loader(dataset, None, preprocess, batch_size=4, seed=5, num_workers=num_workers, **options)
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


# -------------------------------------------------------------------------------------------------------- noise
def test_noise_is_a_function_of_seed_and_position():
    together = draw_noise(3, torch.arange(8), (2, 4, 4), "cpu")
    apart = [draw_noise(3, torch.tensor(p), (2, 4, 4), "cpu") for p in ([6, 7], [0, 1, 2], [3], [4, 5])]
    order = torch.tensor([6, 7, 0, 1, 2, 3, 4, 5])
    for whole, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert torch.equal(whole[order], torch.cat(parts))
    other = draw_noise(4, torch.arange(8), (2, 4, 4), "cpu")
    assert not any(torch.isclose(a, b).any() for a, b in zip(together[1:], other[1:], strict=True))


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_noise_drawn_in_blocks_is_a_function_of_the_position(rows):
    """As a GPU draws it: whatever batch a position is in, in any order, its row is the same."""
    whole = _draw_blocks(3, torch.arange(40), (2, 4, 4), torch.device("cpu"), 2, rows)
    for positions in ([0, 1, 2], [7, 8, 9, 10, 11], [39, 3, 4, 20, 0], [*range(4, 36)], [5, 5]):
        part = _draw_blocks(3, torch.tensor(positions), (2, 4, 4), torch.device("cpu"), 2, rows)
        assert all(torch.equal(a[positions], b) for a, b in zip(whole, part, strict=True))
    noise, coins = _draw_blocks(0, torch.arange(2000), (1, 6, 6), torch.device("cpu"), 1, rows)
    assert noise.flatten(1).unique(dim=0).shape == (2000, 36) and coins.unique().shape == (2000,)
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5 and abs(coins.mean() - 0.5) < 4 / (12 * 2000) ** 0.5


def test_a_gpu_draws_a_batch_with_few_kernels():
    """256 images of 32 px were 512 kernels. Counted as the operations that PyTorch is asked for."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.number += 1
            return func(*args, **(kwargs or {}))

    with Count():
        _draw_blocks(0, torch.arange(1000, 1256), (3, 32, 32), torch.device("cpu"), 1, 64)
    assert Count.number < 60


def test_noise_is_standard_normal_and_independent():
    noise, u, coins = draw_noise(0, torch.arange(2000), (1, 6, 6), "cpu", num_coins=3)
    assert coins.shape == (2000, 3)
    assert torch.equal(coins[:, :1], draw_noise(0, torch.arange(2000), (1, 6, 6), "cpu")[2])
    coin, other_coin = coins[:, 0], coins[:, 2]
    assert noise.dtype == u.dtype == coin.dtype == torch.float32
    assert noise.shape == (2000, 1, 6, 6)
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(noise.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    flat = noise.flatten(1)
    assert abs((flat[1:] * flat[:-1]).mean()) < 4 / n**0.5  # from image to image
    assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 4 / n**0.5  # from pixel to pixel
    assert flat.unique(dim=0).shape == flat.shape
    for one, other in ((u, coin), (u, flat[:, 0]), (coin, flat[:, 0]), (coin, other_coin)):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 4 / 2000**0.5


@pytest.mark.parametrize("start", [0, 12345, 10**9])
def test_quantiles_and_coins_are_uniform(start):
    positions = torch.arange(start, start + 1000)
    _, u, coins = draw_noise(1, positions, (1,), "cpu")
    coin = coins[:, 0]
    assert 0 < u.min() < u.max() < 1
    assert 0 <= coin.min() < coin.max() < 1
    ideal = (torch.arange(1000) + 0.5) / 1000
    assert (u.sort().values - ideal).abs().max() < 0.005  # the golden ratio: far more even than chance
    assert (coin.sort().values - ideal).abs().max() < 1.95 / 1000**0.5  # Kolmogorov and Smirnov, 0.1 %


def test_any_batch_covers_the_times():
    for start in (0, 64, 6400):
        u = draw_noise(0, torch.arange(start, start + 64), (1,), "cpu")[1].sort().values
        assert (u[1:] - u[:-1]).max() < 3 / 64


def test_generators_of_a_vae_are_not_those_of_the_noise():
    positions = torch.arange(4)
    noise = draw_noise(0, positions, (1, 4, 4), "cpu")[0]
    other = [torch.randn(1, 4, 4, generator=g) for g in draw_generators(0, positions, "cpu")]
    assert not any(torch.equal(a, b) for a, b in itertools.product(noise, other))
    assert torch.equal(other[2], torch.randn(1, 4, 4, generator=draw_generators(0, torch.tensor([2]), "cpu")[0]))
