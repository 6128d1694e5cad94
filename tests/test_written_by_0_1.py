"""What code of 0.1 wrote before the package had folders: models of each kind, a run's checkpoint, its configuration.

tests/written_by_0_1 holds them, made on drawn shapes of 8 px with a UNet of 70,000 parameters, and the images that they
drew then (images.npz).
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines_common import generators, quiet
from safetensors.torch import load_file

from cond_pipelines import ConditionalPipeline, TrainingConfig, train
from cond_pipelines.cli import main
from cond_pipelines.training.config import read_recipe

OLD = Path(__file__).parent / "written_by_0_1"
CALLS = {
    "none": {"batch_size": 2},
    "class": {"class_labels": ["circle", None]},
    "text": {"prompt": ["a red circle", ""]},
    "composite": {"condition": [{"label": "cat"}, {"size": 4.0}]},
    "lora": {"class_labels": ["circle", "ring"]},
}


@pytest.mark.parametrize("kind", CALLS)
def test_old_models_draw_what_they_drew(kind):
    folder = OLD / kind
    networks = {"unet": ConditionalPipeline.from_pretrained(OLD / "parent").unet} if kind == "lora" else {}
    pipe = quiet(ConditionalPipeline.from_pretrained(folder, **networks))
    if kind == "lora":
        pipe.load_lora_weights(folder)
    sampling = {"num_inference_steps": 3, "guidance_scale": 2.0, "generator": generators(2), "output_type": "np"}
    images = pipe(**CALLS[kind], **sampling).images
    # Processors round differently, by about 1e-6; a weight in the wrong place shows in the second digit.
    then = np.load(OLD / "images.npz")[kind]
    same = slice(0, 1) if kind == "text" else slice(None)  # an empty prompt is no prompt since
    assert np.abs(images - then)[same].max() < 1e-4


def test_an_old_run_goes_on(tmp_path):
    shutil.copytree(OLD / "checkpoint/checkpoint-3", tmp_path / "checkpoint-3")
    shutil.copy(OLD / "checkpoint/log.jsonl", tmp_path)
    recipe = read_recipe(OLD / "checkpoint/training_config.yaml")
    recipe |= {"pretrained_model_name_or_path": str(OLD / "parent"), "output_dir": str(tmp_path)}
    config = TrainingConfig(**recipe | {"resume_from_checkpoint": "latest"})
    with pytest.raises(ValueError, match=r"pickled a part of it: `cond-pipelines (convert .*checkpoint-3)`") as error:
        train(config)
    command = re.search("`cond-pipelines (.*)`", str(error.value)).group(1)
    main(command.split())
    train(config)
    now = load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    then = load_file(OLD / "checkpoint/unet_after_6_steps.safetensors")
    largest = max((now[name] - then[name]).abs().max().item() for name in then)
    assert set(now) == set(then) and largest < recipe["learning_rate"] / 10  # of one step of the three
    assert torch.cat([(now[name] - then[name]).flatten() for name in then]).abs().mean() < recipe["learning_rate"] / 1e3
