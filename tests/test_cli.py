import configparser
import importlib
from importlib.metadata import version
from pathlib import Path

import pytest

from cond_pipelines.cli import _COMMANDS, main

ROOT = Path(__file__).parents[1]
SCRIPTS = {"train_unconditional": "none", "train_class_conditional": "class", "train_text_to_image": "text"}


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help(args, capsys):
    main(args)
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in _COMMANDS) and "default: None" not in shown


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"cond-pipelines {version('cond_pipelines')}\n"


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tarin"])
    assert stop.value.code == 2
    assert "invalid choice: 'tarin'" in capsys.readouterr().err


def test_train_is_the_training_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--train_data_dir", "nowhere", "--report_to", "none"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --train_data_dir nowhere is not a folder\n"


@pytest.mark.parametrize(("command", "flag"), [("train", "--train_data_dir"), ("demo", "--output_dir")])
def test_help_of_a_command(command, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert flag in capsys.readouterr().out


def test_console_script_is_this_one():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, _, path = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = path.partition(":")
    assert name == "cond-pipelines"
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_thin_and_of_their_setting(name, warm, tmp_path):
    script = ROOT / "training" / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 20
    image_only = ["--dataset_name", "test_cli:images_only", "--report_to", "none", "--output_dir", str(tmp_path)]
    # Without a condition the setting shows in what is missed.
    process = warm.start([script, *image_only, "--max_train_steps", "1", "--resolution", "1"])
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 2, told[-2000:]
    missed = {"none": "UNet size 'xs' halves 1 times", "class": "no label column", "text": "no caption column"}
    assert missed[SCRIPTS[name]] in told


def images_only():
    from cond_pipelines.data.shapes import load_shapes

    return load_shapes(2).select_columns(["image"])
