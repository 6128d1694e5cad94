"""Four ways to a first picture, as four people walk them: the commands they type, and what lies in their folder after.

Research: a folder of images, a model, a figure, a report with numbers. Engineering: a Makefile with diffusers' flags,
translated by our messages alone, then a service with diffusers alone. Art: forty captioned pictures and a Stable
Diffusion, a LoRA, prompts by scale. Teaching is notebook 5, see test_notebooks.py.
"""

import json
import re
import shlex
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from parents_common import stable_diffusion
from PIL import Image
from pipelines_common import generators

from cond_pipelines import ConditionalPipeline, image_grid
from cond_pipelines.cli import main
from cond_pipelines.data.shapes import SHAPES, load_shapes


def type_in(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit code, output and errors of a command."""
    capsys.readouterr()
    code = 0
    try:
        main(shlex.split(line)[1:])
    except SystemExit as stop:
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def done(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The output of a command that succeeds."""
    code, out, err = type_in(line, capsys)
    assert code == 0, err
    return out


def draw_folder(folder: Path, count: int, *, classes: bool = False, captions: bool = False) -> None:
    for number, row in enumerate(load_shapes(count)):
        path = folder / (SHAPES[row["label"]] if classes else "") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
        if captions:
            path.with_suffix(".txt").write_text(row["caption"])


SMALL = "--unet_size xxs --max_train_steps 2 --train_batch_size 4 --default_num_inference_steps 2 --validation_steps 0"


def test_research(tmp_path, monkeypatch, capsys):
    """folder -> inspect -> train -> figure -> report -> table of a paper."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos", 60, classes=True)
    seen = done("cond-pipelines inspect --train_data_dir photos --conditioning class --resolution 16", capsys)
    assert "60" in seen and "ring" in seen
    done(
        f"cond-pipelines train --conditioning class --train_data_dir photos --resolution 16 --output_dir run {SMALL}",
        capsys,
    )
    assert {path.name for path in Path("run").iterdir()} >= {"model_index.json", "README.md", "samples.png", "loss.png"}
    line = "cond-pipelines sample run circle ring --guidance_scale 1 2 --num_images 2 --out figure.png"
    assert done(line, capsys).split() == ["figure.png"]
    figure = Image.open("figure.png")
    assert figure.width > 4 * 64 and figure.height > 2 * 64 and "ring" in str(figure.text)
    done(
        "cond-pipelines evaluate run --train_data_dir photos --feature_extractor pixels --num_samples 8 "
        "--num_likelihood 2",
        capsys,
    )
    report = json.loads(Path("run/evaluation/report.json").read_text())
    rows = {row["name"]: row for row in report["measures"]}
    assert all(
        len(rows[name]["interval"]) == 2
        for name in ("Frechet distance", "recall", "class read right by a linear probe")
    )
    assert "\\toprule" in Path("run/evaluation/report.tex").read_text()
    assert "Frechet distance" in Path("run/evaluation/report.md").read_text()


MAKEFILE = """
train:
    accelerate launch --mixed_precision=no train_text_to_image.py \\
      --pretrained_model_name_or_path=sd --train_data_dir=images --caption_column=text --use_ema \\
      --resolution=16 --center_crop --random_flip --train_batch_size=1 --gradient_accumulation_steps=2 \\
      --gradient_checkpointing --max_train_steps=2 --learning_rate=1e-05 --max_grad_norm=1 \\
      --lr_scheduler=constant --lr_warmup_steps=0 --enable_xformers_memory_efficient_attention \\
      --validation_epochs=5 --checkpoints_total_limit=1 --scale_lr --offload_ema --output_dir=out
"""


def as_the_message_says(command: list[str], error: str) -> list[str]:
    """The command after one message: a flag is added, or gets the name that is said, or goes with its value."""
    if needed := re.search(r"without (--\w+ \w+): add that", error):
        return [*command, *needed[1].split()]
    match = re.match(r"error: (--\w+): ", error) or re.search(r"leave (--\w+) out", error)
    assert match, error
    name, given = match[1], [flag.partition("=")[0] for flag in command]
    position = given.index(name)
    said = re.search(r"here it is (--\w+)", error)
    changed = [command[position].replace(name, said[1])] if said else []
    return [*command[:position], *changed, *command[position + 1 :]]


def test_engineering(tmp_path, monkeypatch, capsys):
    """diffusers' flags -> our messages -> a trained model -> the command it prints -> diffusers alone."""
    monkeypatch.chdir(tmp_path)
    stable_diffusion().save_pretrained("sd")
    draw_folder(tmp_path / "images", 6, captions=True)
    theirs = MAKEFILE.partition("train_text_to_image.py")[2].replace("\\\n", " ").split()
    command, messages = theirs, []
    for _ in theirs:
        code, out, err = type_in(shlex.join(["cond-pipelines", "train", *command]), capsys)
        if code == 0:
            break
        messages.append(err.strip().splitlines()[-1])
        command = as_the_message_says(command, messages[-1])
    assert code == 0 and len(messages) == 6, messages  # the other flags mean the same here
    printed = re.search(r"cond-pipelines export \S+ \S+ --to stable-diffusion", out + err)
    assert printed, out
    loading = done(printed[0], capsys)
    folder = Path(shlex.split(printed[0])[3])
    assert "cond_pipelines" not in (folder / "model_index.json").read_text()
    assert not list(folder.rglob("*.py"))
    arguments = dict(re.findall(r"(num_inference_steps|guidance_scale)=([\d.]+)", loading))
    service = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    sampling = {"num_inference_steps": 2, "guidance_scale": float(arguments["guidance_scale"]), "output_type": "np"}
    ours = ConditionalPipeline.from_pretrained("out")
    images = [
        pipe("a red circle", generator=torch.Generator().manual_seed(0), height=16, width=16, **sampling).images
        for pipe in (service, ours)
    ]
    assert np.array_equal(*images)


def test_art(tmp_path, monkeypatch, capsys):
    """40 pictures with captions in text files, and a Stable Diffusion -> a LoRA -> prompts by scale."""
    monkeypatch.chdir(tmp_path)
    stable_diffusion().save_pretrained("sd")
    draw_folder(tmp_path / "art", 40, captions=True)
    out = done(
        "cond-pipelines train --pretrained_model_name_or_path sd --conditioning text --train_data_dir art "
        "--resolution 16 --use_lora --rank 2 --learning_rate 0.05 --max_train_steps 4 --train_batch_size 4 "
        "--validation_steps 0 "
        "--default_num_inference_steps 2 --output_dir lora",
        capsys,
    )
    assert "40" in out
    parent = diffusers.StableDiffusionPipeline.from_pretrained("sd")
    pipe = ConditionalPipeline.from_pipe(parent)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights("lora", adapter_name="mine")
    scales, prompts, columns = (0.0, 0.5, 1.0), ["a red circle", "a small star"], []
    for scale in scales:
        pipe.set_adapters("mine", scale)
        columns.append([pipe(p, generator=generators(1), num_inference_steps=2).images[0] for p in prompts])
    rows = [column[row] for row in range(len(prompts)) for column in columns]
    grid = image_grid(rows, row_titles=prompts, column_titles=[f"scale {scale:g}" for scale in scales])
    grid.save("prompts_by_scale.png")
    pipe.unload_lora_weights()
    plain = [pipe(p, generator=generators(1), num_inference_steps=2).images[0] for p in prompts]
    pixels = [[np.asarray(image, dtype=int) for image in column] for column in (plain, *columns)]
    assert all(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[1], strict=True))  # at scale 0 nothing is added
    changes = [sum(np.abs(a - b).sum() for a, b in zip(pixels[0], column, strict=True)) for column in pixels[2:]]
    assert 0 < changes[0] < changes[1]
