"""The recipes in the settings of papers: what they say, and three steps of each on stand-ins of the right shape."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from parents_common import stable_diffusion
from PIL import Image

from cond_pipelines import ConditionalPipeline
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.networks import paper_sizes
from cond_pipelines.networks.unet_sizes import find_size
from cond_pipelines.training.command_line import parse_args, read_recipe
from cond_pipelines.training.loop import train

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "training/recipes"
_SPEC = importlib.util.spec_from_file_location("fid", ROOT / "benchmarks/fid.py")
fid = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fid)
# EDM, table 7: images of a step, millions of images in all and of the warm-up, half-life of the average in millions,
# and millions of parameters (of its table and its code).
EDM = {
    "cifar10": (512, 200, 10, 0.5, 55.7),
    "ffhq64": (256, 200, 10, 0.5, 61.8),
    "imagenet64": (4096, 2500, 10, 50, 295.9),
}


def narrow(size):
    """The same layers, with an eighth or less of the channels."""
    channels = size.arguments["block_out_channels"]
    fewer = {"block_out_channels": tuple(c // (max(channels) // 16) for c in channels), "attention_head_dim": 8}
    return replace(size, arguments={**size.arguments, **fewer, "norm_num_groups": 4, "time_embedding_dim": 16})


CIFAR10, FFHQ64, IMAGENET64 = map(narrow, (paper_sizes.CIFAR10, paper_sizes.FFHQ64, paper_sizes.IMAGENET64))


@pytest.mark.parametrize("name", EDM)
def test_the_settings_of_edm(name):
    batch, millions, warmup, half_life, parameters = EDM[name]
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    processes = batch / recipe["train_batch_size"]
    assert processes in (8, 32) and "gradient_accumulation_steps" not in recipe
    assert recipe["max_train_steps"] == pytest.approx(millions * 1e6 / batch, abs=1)
    assert recipe["lr_warmup_steps"] == pytest.approx(warmup * 1e6 / batch, abs=1)
    assert math.log(0.5) / math.log(recipe["ema_max_decay"]) * batch / 1e6 == pytest.approx(half_life, rel=0.01)
    with torch.device("meta"):
        network = find_size(recipe["unet_size"]).build(recipe["resolution"], 3)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(parameters, rel=0.08)
    assert find_size(recipe["unet_size"]).millions == round(count)


@pytest.mark.parametrize("name", [*EDM, "sd15_lora"])
def test_they_say_that_no_number_is_measured(name):
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# Waits for a GPU: no number of this recipe has been measured."
    assert f"`recipes/{name}.yaml`" in (FOLDER.parent / "README.md").read_text()


def of_cifar10():
    """As the Hub has it: the columns img and label."""
    return load_shapes(40, image_size_px=32).rename_column("image", "img").select_columns(["img", "label"])


def of_captions():
    return datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (40, 30), "red")] * 8, "text": ["a red sheet"] * 8}
    ).cast_column("image", datasets.Image())


def folder_of(place, classes):
    """Images of 64 px, in a folder of each class where there are classes."""
    rows = load_shapes(40, image_size_px=64)
    for i, (image, label) in enumerate(zip(rows["image"], rows["label"], strict=True)):
        file = place / (f"n{label:08d}" if classes else "00000") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return str(place)


@pytest.mark.parametrize("name", [*EDM, "sd15_lora"])
def test_three_steps_on_a_stand_in(name, tmp_path, capsys):
    """All settings but the width, the batch, the precision and the length."""
    data = {
        "cifar10": lambda: ["--dataset_name", "test_recipes:of_cifar10"],
        "ffhq64": lambda: ["--train_data_dir", folder_of(tmp_path / "data", classes=False)],
        "imagenet64": lambda: ["--train_data_dir", folder_of(tmp_path / "data", classes=True)],
        "sd15_lora": lambda: ["--dataset_name", "test_recipes:of_captions", "--resolution", "32"],
    }[name]()
    if name in EDM:
        own = ["--unet_size", f"test_recipes:{name.upper()}", "--default_num_inference_steps", "2"]
    else:
        stable_diffusion().save_pretrained(tmp_path / "sd")
        own = ["--pretrained_model_name_or_path", str(tmp_path / "sd"), "--default_num_inference_steps", "2"]
    small = ["--train_batch_size", "2", "--max_train_steps", "3", "--mixed_precision", "no", "--report_to", "none"]
    small += ["--validation_steps", "0", "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    config = parse_args(["--config", str(FOLDER / f"{name}.yaml"), *data, *own, *small])
    out = train(config)
    if name == "sd15_lora":
        assert (out / "pytorch_lora_weights.safetensors").is_file()
        return
    pipe = ConditionalPipeline.from_pretrained(out)
    assert type(pipe.scheduler).__name__ == config.scheduler and pipe.config.objective["name"] == "edm"
    assert pipe.config.objective["P_mean"] == -1.2 and type(pipe.unet).__name__ == "UNet2DModel"
    condition = [None] if config.conditioning == "none" else [0]
    (image,) = pipe.sample(condition, num_inference_steps=2).images
    assert image.size == (config.resolution, config.resolution)
    if name == "cifar10":
        measure = ["--dataset_name", "test_recipes:of_cifar10", "--num_samples", "8", "--num_seeds", "2"]
        fid.main([str(out), *measure, "--feature_extractor", "training_common:few_pixels"])
        shown, kept = capsys.readouterr().out.splitlines()[-1], json.loads((out / "fid.json").read_text())
        assert len(set(kept["of_each_seed"])) == 2 and kept["lowest"] == min(kept["of_each_seed"]) < kept["mean"]
        assert shown == f"lowest of 2: {kept['lowest']:g}; mean: {kept['mean']:g}"
