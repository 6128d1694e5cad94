"""`cond-pipelines sample` and `sample_grid`: which image stands where, and what is refused in one line."""

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from cond_pipelines import (
    ClassConditionalPipeline,
    ClassLabelAdapter,
    ConditionalPipeline,
    EmbeddingAdapter,
    UnconditionalAdapter,
    UnconditionalPipeline,
    build_unet,
    sample_grid,
)
from cond_pipelines.cli import main
from cond_pipelines.grids import interpolation
from cond_pipelines.pictures import image_grid
from cond_pipelines.pipelines.guidance import ClassifierFree

STEPS = {"num_inference_steps": 2}


def shaken(adapter):
    """Without zero weights, so that each condition makes a difference."""
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet = build_unet("xxs", sample_size=8, block_out_channels=(32, 32))
    common = {"scheduler": FlowMatchEulerDiscreteScheduler(), "default_num_inference_steps": 2}
    label = shaken(ClassLabelAdapter.for_unet(unet, id2label={0: "cat", 1: "7"}))
    vector = shaken(EmbeddingAdapter.for_unet(unet, embedding_dim=2))
    ClassConditionalPipeline(unet, adapter=label, **common).save_pretrained(folder / "class")
    ConditionalPipeline(unet, adapter=vector, **common).save_pretrained(folder / "embedding")
    UnconditionalPipeline(unet, adapter=UnconditionalAdapter.for_unet(unet), **common).save_pretrained(folder / "none")
    return folder


@pytest.fixture(scope="module")
def pipe(models):
    pipe = ConditionalPipeline.from_pretrained(models / "class")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, label, seed, **sampling):
    return pipe([label], generator=[torch.Generator().manual_seed(seed)], **sampling).images[0]


def test_rows_are_conditions_columns_settings_and_noise_is_shared(pipe):
    grid = sample_grid(pipe, ["cat", None], {"guidance_scale": [1.0, 4.0]}, num_images=2, seed=5, **STEPS)
    images = [
        draw(pipe, label, seed, guidance_scale=scale, **STEPS)
        for label in ("cat", None)
        for scale in (1.0, 4.0)
        for seed in (5, 6)
    ]
    expected = image_grid(images, columns=4)
    left, top = grid.width - expected.width, grid.height - expected.height
    assert left > 0 and top > 0  # titles
    difference = np.asarray(grid, np.int16)[top:, left:] - np.asarray(expected, np.int16)
    assert np.abs(difference).max() <= 1  # rounding: another number of images at once


def test_the_batch_size_does_not_change_the_picture(pipe):
    whole, parts = (sample_grid(pipe, ["cat", "7"], num_images=3, batch_size=size, **STEPS) for size in (64, 2))
    assert np.abs(np.asarray(whole).astype(int) - np.asarray(parts)).max() <= 1


def test_every_combination_of_two_settings_is_a_column(pipe):
    one = sample_grid(pipe, ["cat"], {"guidance_scale": [1, 2]}, **STEPS)
    both = sample_grid(pipe, ["cat"], {"guidance_scale": [1, 2], "num_inference_steps": [1, 2, 3]})
    assert both.width > 2.5 * one.width - 200


def test_the_ends_of_an_interpolation_are_the_conditions_themselves(pipe):
    picture = interpolation(pipe, "cat", "7", num_steps=3, seed=2, guidance_scale=2.0, **STEPS)
    ends = [draw(pipe, label, 2, guidance=ClassifierFree(2.0), **STEPS) for label in ("cat", "7")]
    between = np.asarray(image_grid([ends[0], ends[0], ends[1]], columns=3)).astype(int)
    found = np.asarray(picture)[-between.shape[0] :].astype(int)
    third = found.shape[1] // 3
    assert np.abs(found - between)[:, :third].max() <= 1 and np.abs(found - between)[:, -third:].max() <= 1
    assert np.abs(found - between)[:, third:-third].max() > 1  # what lies between is neither


def test_the_command_writes_a_picture_that_says_how_it_was_made(models, tmp_path, capsys):
    out = tmp_path / "grid.png"
    command = ["sample", str(models / "class"), "cat", "7", "0", "--guidance_scale", "1", "3", "--num_images", "2"]
    main([*command, "--out", str(out)])
    with Image.open(out) as image:
        made_with = json.loads(image.info["Parameters"])
        assert made_with["condition"] == ["cat", "7", "0"] and made_with["guidance_scale"] == [1.0, 3.0]
        assert made_with["model"] == "class" and str(tmp_path) not in image.info["Parameters"]
        first = np.asarray(image)
    main([*command, "--out", str(out)])  # a picture of this command may be replaced
    assert np.array_equal(np.asarray(Image.open(out)), first)
    pipe = ConditionalPipeline.from_pretrained(models / "class")
    expected = sample_grid(pipe, ["cat", "7", 0], {"guidance_scale": [1.0, 3.0]}, num_images=2)
    assert np.array_equal(first, np.asarray(expected))
    assert capsys.readouterr().out.split() == [str(out)] * 2


def test_the_other_settings(models, tmp_path):
    main(["sample", str(models / "none"), "--num_images", "1", "--out", str(tmp_path / "none.png")])
    main(["sample", str(models / "embedding"), "0.5,-1", "", "--num_images", "1", "--out", str(tmp_path / "vec.png")])
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.jpg")
    edit = ["--image", str(tmp_path / "red.jpg"), "--strength", "0.5", "1.0", "--num_images", "1"]
    main(["sample", str(models / "class"), "cat", *edit, "--out", str(tmp_path / "edit.png")])
    assert all((tmp_path / name).is_file() for name in ("none.png", "vec.png", "edit.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "cat"], "unconditional"),
        (["class", "dog"], "dog"),
        (["embedding", "a,b"], "numbers separated by commas"),
        (["class", "cat", "--num_images", "0"], "1 or more"),
        (["class", "cat", "--seed", "-1"], "0 or more"),
        (["class", "cat", "--strength", "0.5"], "--strength needs --image"),
        (["class", "cat", "--interpolate"], "two conditions"),
        (["class", "cat", "dog", "--interpolate", "--guide_scale", "2"], "leave --guide_scale out"),
        (["class", "cat", "--image", "absent.png"], "absent.png"),
        (["class", "cat", "--out", "grid.jpg"], ".png"),
        (["class", "cat", "--out", "mine.png"], "did not write"),
        (["class", "cat", "--out", "no_folder/grid.png"], "no folder"),
        (["absent"], "absent"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, words, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(models / arguments[0]), *arguments[1:]])
    error = capsys.readouterr().err
    line = error.rstrip("\n").splitlines()[-1].rpartition("\r")[-1]  # progress bars stand before it
    assert ended.value.code == 2 and words in line and line.startswith("error: ")
    assert (tmp_path / "mine.png").read_bytes() == before and not (tmp_path / "samples.png").exists()
