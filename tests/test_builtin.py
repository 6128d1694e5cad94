"""The models that are installed with the package: what they are, and that they draw what is asked."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from setuptools import Distribution

from cond_pipelines import ConditionalPipeline, builtin_model
from cond_pipelines.builtin import FOLDER, NAMES
from cond_pipelines.cli import main
from cond_pipelines.data.shapes import SHAPES, caption, read_attributes, split_combinations
from cond_pipelines.export.web_folder import PAGE

ROOT = Path(__file__).parents[1]
_MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def pipes():
    found = {name: ConditionalPipeline.from_pretrained(builtin_model(name)) for name in NAMES}
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


def draw(pipe, conditions):
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(conditions))]
    return [read_attributes(image) for image in pipe.sample(conditions, generator=generator).images]


def test_a_wheel_holds_them(monkeypatch):
    """As setuptools builds it: every file, and less than 3 MB a model; the page of `export --to web` too."""
    monkeypatch.chdir(ROOT)
    build = Distribution()
    build.parse_config_files(["setup.cfg"])
    command = build.get_command_obj("build_py")
    command.ensure_finalized()
    held = {Path(source, name) for _, source, _, names in command.data_files for name in names}
    assert {os.path.relpath(path, ROOT) for path in PAGE.iterdir()} <= {os.path.relpath(path, ROOT) for path in held}
    for name in NAMES:
        files = [path for path in (FOLDER / name).rglob("*") if path.is_file()]
        assert {os.path.relpath(path, ROOT) for path in files} <= {os.path.relpath(path, ROOT) for path in held}
        assert 1_000_000 < sum(path.stat().st_size for path in files) < _MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_they_are_data_in_half_precision_with_a_card(name):
    folder = FOLDER / name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".yaml"}
    weights = [x for path in folder.rglob("*.safetensors") for x in load_file(path).values()]
    assert {x.dtype for x in weights if x.is_floating_point()} == {torch.float16}
    card = (folder / "README.md").read_text()
    assert "training/make_builtin.py" in card and "16" in card and str(Path.home()) not in card


def test_text(pipes):
    seen, _ = split_combinations()
    wanted = [dict(zip(("shape", "colour", "background"), one, strict=True)) for one in seen[::6]]
    found = draw(pipes["shapes-text"], [caption(**attributes) for attributes in wanted])
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 0.9 * len(wanted)


def test_class(pipes):
    labels = list(SHAPES) * 4
    found = draw(pipes["shapes-class"], labels)
    assert sum(a["shape"] == label for a, label in zip(found, labels, strict=True)) >= 0.85 * len(labels)


def test_unconditional(pipes):
    found = [a["shape"] for a in draw(pipes["shapes-unconditional"], [None] * 24)]
    assert sum(shape is not None for shape in found) >= 0.75 * len(found) and len(set(found)) > 3


def test_from_the_command_line(tmp_path):
    out = tmp_path / "a.png"
    prompt = "a red circle on a black background"
    main(["sample", "builtin:shapes-text", prompt, "--num_images", "1", "--out", str(out)])
    with Image.open(out) as picture:
        whole = np.asarray(picture.convert("RGB"))
    side = 16 * (64 // 16)
    image = whole[-side - 2 : -2, -side - 2 : -2]  # the image, without its title and the gap around it
    assert read_attributes(image) == {"shape": "circle", "colour": "red", "background": "black"}


def test_another_name_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sample", "builtin:shapes-texts", "--out", str(tmp_path / "a.png")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: there is no builtin model 'shapes-texts': use one of shapes-unconditional, shapes-class, shapes-text\n"
    )
