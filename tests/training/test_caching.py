"""What is kept between steps and runs: it changes nothing but the time, and it is never stale."""

import json
import os
import pickle

import numpy as np
import psutil
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from pipelines_common import tiny_vae
from training_common import largest_difference, log_of, many_images, run
from transformers import BertConfig, BertModel

from cond_pipelines import ConditionalPipeline
from cond_pipelines.data.array_file import stored
from cond_pipelines.data.dataset import ImageDataset
from cond_pipelines.data.loading import Columns
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.networks.text_encoders import train_tokenizer


@pytest.fixture()
def images(tmp_path):
    """A folder with images of several shapes, and captions, several of some."""
    (tmp_path / "images").mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        shape = (16 + 4 * (i % 3), 20, 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / f"images/{i:02}.png")
        lines.append({"file_name": f"{i:02}.png", "text": ["a red ring", f"a blue circle, number {i}"][: 1 + i % 2]})
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return tmp_path / "images"


@pytest.fixture()
def trained(tmp_path, images):
    """A run on them in a folder of its own: its networks, and the files that it kept."""
    count = iter(range(10))

    def run_on(**more):
        settings = {"train_data_dir": str(images), "dataset_name": None, "cache_dir": str(tmp_path / "cache")}
        settings |= {"resolution": 16, "validation_fraction": 0.0, "random_flip": True}
        folder = run(tmp_path / f"run-{next(count)}", **settings | more)
        kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache/cond_pipelines").glob("*/data.bin")}
        return folder, kept

    return run_on


def same(a, b, atol=0.0):
    a, b = (ConditionalPipeline.from_pretrained(folder) for folder in (a, b))
    assert largest_difference(a.unet, b.unet) <= atol
    assert largest_difference(a.adapter, b.adapter) <= atol


# ------------------------------------------------------------------------------------------------------- images
@pytest.mark.parametrize("center_crop", [True, False])
def test_images(trained, images, center_crop):
    """The same weights bit by bit; the second run decodes nothing; an image that changed is decoded again."""
    plain, _ = trained(center_crop=center_crop)
    first, kept = trained(center_crop=center_crop, cache_images=True)
    again, kept_again = trained(center_crop=center_crop, cache_images=True)
    same(plain, first)
    same(first, again)
    assert len(kept) == 1 and kept_again == kept
    Image.new("RGB", (20, 16), "red").save(images / "03.png")
    changed, kept = trained(center_crop=center_crop, cache_images=True)
    assert len(kept) == 2
    assert log_of(changed) != log_of(first)


@pytest.mark.parametrize(("cache_images", "in_file"), [(None, True), (False, False)])
def test_more_images_than_are_kept_in_memory_are_kept_in_a_file(tmp_path, cache_images, in_file):
    for count in (30, 2800):
        rows = many_images().select(range(count))
        dataset = ImageDataset(rows, Columns("image"), 64, 3, cache_dir=tmp_path, cache_images=cache_images)
        dataset.check()
        assert len(list(tmp_path.glob("*/data.bin"))) == int(in_file and count == 2800)
        assert dataset.decoded == (cache_images is None)  # or in the page cache: no workers are needed
        assert np.array_equal(dataset[0, count - 1].pixels, np.asarray(rows[0]["image"]))


def mapped_mib(read):
    """By how much the mapped files that count as this process's memory grow, at most, while `read` goes on."""
    shared = psutil.Process().memory_info
    before, most = shared().shared, 0
    for number, _ in enumerate(read):
        most = max(most, shared().shared - before) if number % 50 == 0 else most
    return most / 2**20


def test_what_was_read_of_a_file_does_not_stay_in_memory(tmp_path):
    """Files of 160 MB: decoded images, and the rows that they come from."""
    noise = np.random.default_rng(0).integers(0, 255, (2500, 2**16), dtype=np.uint8)
    kept = stored(tmp_path / "kept", lambda _: noise)
    assert mapped_mib(kept[number].sum() for number in range(2500)) < 80
    assert np.array_equal(pickle.loads(pickle.dumps(kept))[2499], noise[2499])
    images = [{"bytes": row.tobytes(), "path": None} for row in noise]
    Dataset.from_dict({"image": images}, Features(image=ImageFeature())).save_to_disk(str(tmp_path / "rows"))
    dataset = ImageDataset(Dataset.load_from_disk(str(tmp_path / "rows")), Columns("image"), 8, 3)
    assert mapped_mib(dataset.rows[number] for number in range(2500)) > 120  # as `datasets` has it
    dataset = ImageDataset(Dataset.load_from_disk(str(tmp_path / "rows")), Columns("image"), 8, 3)
    assert mapped_mib(dataset.undecoded(number) for number in range(2500)) < 80


def test_bad_images_are_known_from_the_file_as_long_as_they_are_bad(trained, images, capsys):
    path = images / "05.png"
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    kept = []
    for _ in range(2):
        kept.append(trained(cache_images=True, on_bad_image="skip")[1])
        assert "images: 23 usable of 24" in capsys.readouterr().out
    assert len(kept[0]) == 1 and kept[0] == kept[1]
    with pytest.raises(ValueError, match=r"row 5 \(.*05.png\): unreadable image"):
        trained(cache_images=True)
    path.write_bytes(whole)  # the reason goes while size and time stay, as that of a missing package does
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        kept.append(trained(cache_images=True)[1])
        assert "images: 24" in capsys.readouterr().out
    assert kept[2] != kept[1] and kept[2] == kept[3]


# ------------------------------------------------------------------------------------------------------ latents
@pytest.mark.parametrize(("kind", "random_flip"), [("kl", True), ("tiny", False)])
def test_latents(trained, tmp_path, kind, random_flip):
    """The same flips and draws from the posterior; another VAE has a file of its own."""
    tiny_vae(kind).save_pretrained(tmp_path / "vae")
    settings = {"pretrained_vae_model_name_or_path": str(tmp_path / "vae"), "random_flip": random_flip}
    plain, _ = trained(**settings)
    first, kept = trained(**settings, cache_latents=True)
    again, kept_again = trained(**settings, cache_latents=True)
    assert np.allclose(log_of(plain), log_of(first), rtol=1e-4)
    same(first, again)
    assert len(kept) == 1 and kept_again == kept
    other = tiny_vae(kind)
    next(other.parameters()).data.mul_(1.5)
    other.save_pretrained(tmp_path / "vae")
    changed, kept = trained(**settings, cache_latents=True)
    assert len(kept) == 2
    assert not np.allclose(log_of(changed), log_of(first), rtol=1e-4)


def test_latents_that_cannot_be_kept(trained, tmp_path):
    with pytest.raises(ValueError, match="--cache_latents has no effect without --pretrained_vae_"):
        trained(cache_latents=True)
    tiny_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="--cache_latents has no effect without --center_crop"):
        trained(cache_latents=True, center_crop=False, pretrained_vae_model_name_or_path=str(tmp_path / "vae"))


# --------------------------------------------------------------------------------------------------------- text
def bert(folder, seed_scale=1.0):
    tokenizer = train_tokenizer(["a red ring", "a blue circle, number 1 2 3 4 5 6 7 8 9 0"] * 4)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertModel(config)
    model.embeddings.word_embeddings.weight.data.mul_(seed_scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_text(trained, tmp_path):
    """Captions are drawn at each step as before; another encoder, or another caption, has a file of its own."""
    settings = {"conditioning": "text", "text_encoder_name_or_path": bert(tmp_path / "bert"), "max_train_steps": 6}
    plain, _ = trained(**settings)
    first, kept = trained(**settings, cache_text_embeddings=True)
    again, kept_again = trained(**settings, cache_text_embeddings=True)
    assert np.allclose(log_of(plain), log_of(first), rtol=1e-4)
    same(first, again)
    assert len(kept) == 1 and kept_again == kept
    bert(tmp_path / "bert", seed_scale=2.0)
    assert len(trained(**settings, cache_text_embeddings=True)[1]) == 2


def test_text_that_cannot_be_kept(trained, tmp_path):
    for conditioning in ("text", "none"):
        with pytest.raises(ValueError, match="--cache_text_embeddings has no effect without --text_"):
            trained(conditioning=conditioning, cache_text_embeddings=True)
    encoder = {"text_encoder_name_or_path": bert(tmp_path / "bert"), "train_text_encoder": True}
    with pytest.raises(ValueError, match="--cache_text_embeddings has no effect with --train_text_encoder"):
        trained(conditioning="text", cache_text_embeddings=True, **encoder)


# ----------------------------------------------------------------------------------------------------- streamed
@pytest.mark.parametrize("flag", ["cache_images", "cache_latents", "aspect_buckets"])
def test_streams_are_not_kept(tmp_path, flag):
    load_shapes(8).save_to_disk(str(tmp_path / "data"))
    assert isinstance(Dataset.load_from_disk(str(tmp_path / "data")), Dataset)
    settings = {"dataset_name": None, "train_data_dir": str(tmp_path / "data"), "streaming": True}
    tiny_vae().save_pretrained(tmp_path / "vae")
    if flag == "cache_latents":
        settings["pretrained_vae_model_name_or_path"] = str(tmp_path / "vae")
    with pytest.raises(ValueError, match=rf"--{flag} has no effect with --streaming"):
        run(tmp_path / "out", resolution=16, **{flag: True}, **settings)
    assert not os.path.exists(tmp_path / "out/model_index.json")
