import argparse
import configparser
import importlib
import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from cond_pipelines.cli import _COMMANDS, main
from cond_pipelines.completion import parsers, script

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


# ------------------------------------------------------------------------------------------------- completion
@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "cond-pipelines.bash"
    path.write_text(script("bash"))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sa"], {"sample"}),
        (["c"], {"card", "compare", "completion", "convert"}),
        (["sample", "--guida"], {"--guidance_scale"}),
        (["export", "model", "out", "--to", "st"], {"stable-diffusion"}),
        (["train", "--max_train_m"], {"--max_train_minutes"}),
        (["evaluate", "--num_s"], {"--num_samples"}),
        (["sample", "here"], {"here_is_a_model"}),
        (["train", "--train_data_dir", "here"], {"here_is_a_model"}),
    ],
)
def test_bash_completes(words, expected, bash_script, tmp_path):
    (tmp_path / "here_is_a_model").mkdir()
    line = ["cond-pipelines", *words]
    code = (
        f"source {bash_script}; COMP_WORDS=({' '.join(line)}); COMP_CWORD={len(line) - 1}; "
        f"COMP_LINE='{' '.join(line)}'; "
        "COMP_POINT=${#COMP_LINE}; _shtab_cond_pipelines; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    pipes = {"capture_output": True, "text": True}
    ended = subprocess.run(["bash", "-c", code], cwd=tmp_path, env=os.environ, timeout=60, **pipes)
    assert set(ended.stdout.split()) == expected, ended.stderr


def test_every_command_is_completed(capsys):
    assert set(parsers()) == set(_COMMANDS)
    main(["completion", "zsh"])
    shown = capsys.readouterr().out
    assert shown.startswith("#compdef cond-pipelines") and all(f"    {name})" in shown for name in _COMMANDS)


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_what_is_completed_is_what_is_read(command, capsys):
    """Some commands make their parser in another place: the flags are the same."""
    flags = {
        flag
        for action in parsers()[command]._actions
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
    }
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = set(re.findall(r"(?<![\w-])--[\w-]+", capsys.readouterr().out))
    assert {flag for flag in flags if flag.startswith("--") and flag not in shown} == set()
