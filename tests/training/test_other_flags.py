"""Flags of other training scripts: taken where they mean the same, else answered; the document is made from them."""

import re
from pathlib import Path

import pytest

from cond_pipelines.flags import settings_of
from cond_pipelines.training.config import TrainingConfig, parse_args
from cond_pipelines.training.other_flags import DIFFUSERS, SD_SCRIPTS, TRAINER, answer, same_here, table

README = (Path(__file__).parents[2] / "training" / "README.md").read_text(encoding="utf-8")
KNOWN = [setting.name for setting in settings_of(TrainingConfig)]
TABLES = {"diffusers": DIFFUSERS, "sd-scripts": SD_SCRIPTS, "trainer": TRAINER}
ROWS = [row for rows in TABLES.values() for row in rows]
VALUES = {int: "3", float: "0.5", str: "x", bool: "true"}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_the_document_is_made_from_the_tables(rows):
    assert table(rows) in README


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.theirs[0])
def test_every_row_is_true(row):
    """A flag that is the same is there; one that is named to be given instead is there; no other is."""
    here = [name.removeprefix("no_") for name in re.findall(r"--(\w+)", f"{row.here} {row.note}")]
    assert set(here) <= {*KNOWN, "config"}
    for name in row.theirs:
        assert (name in KNOWN) == (row.here == "same"), name
        if row.here == "same":
            assert answer(name) is None and same_here(name, KNOWN) is None
        elif row.synonym:
            assert row.here == f"--{same_here(name, KNOWN)}"
        else:
            assert same_here(name, KNOWN) is None


def refused(args, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(args)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "name", [name for row in ROWS if row.here != "same" and not row.synonym for name in row.theirs]
)
def test_a_flag_that_is_not_here_is_answered(name, capsys, tmp_path):
    line = refused([f"--{name}", "3"], capsys)
    assert line.startswith(f"error: --{name}: ") and ("here it is --" in line or "there is no" in line)
    assert "did you mean" not in line
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{name}: 3\n")
    assert refused(["--config", str(recipe)], capsys) == line.replace(f"--{name}: ", f"{name}: ", 1)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--use_8bit_adam"], "error: --use_8bit_adam: here it is --optimizer adamw8bit"),
        (["--scale_lr"], "error: --scale_lr: there is no such flag here; give the --learning_rate that you mean"),
        (["--save_images_epochs", "3"], "error: --save_images_epochs: here it is --validation_steps (in steps; "),
        (["--noise_offset=0.1"], "error: --noise_offset: there is nothing like it here"),
        (["--mixed_precison", "no"], "error: unknown argument --mixed_precison; did you mean mixed_precision?"),
        (["--use_emma"], "error: unknown argument --use_emma; did you mean use_ema?"),
        (["--frobnicate"], "error: unknown argument --frobnicate"),
        (["--gradient_clip"], "error: unknown argument --gradient_clip"),
        (["images"], "error: unknown argument images"),
    ],
)
def test_answers(args, line, capsys):
    found = refused(args, capsys)
    assert found == line or (line.endswith(" ") and found.startswith(line))


def test_synonyms_are_taken_and_said(capsys, tmp_path):
    args = ["--use_lora", "--pretrained_model_name_or_path", "parent", "--network_dim", "8", "--network-alpha=2"]
    config = parse_args([*args, "--max_train_epochs", "3", "--flip_aug", "--batch_size=5"])
    assert (config.rank, config.lora_alpha, config.num_train_epochs) == (8, 2, 3)
    assert (config.random_flip, config.train_batch_size) == (True, 5)
    assert "--network_dim is --rank here" in capsys.readouterr().err.splitlines()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_epochs: 3\nlogger: none\n")
    config = parse_args(["--config_file", str(recipe)])
    assert (config.num_train_epochs, config.report_to) == (3, "none")
    assert f"{recipe}: num_epochs is num_train_epochs here" in capsys.readouterr().err
    recipe.write_text("num_epochs: 3\nnum_train_epochs: 4\n")
    with pytest.raises(SystemExit):
        parse_args(["--config", str(recipe)])
    assert capsys.readouterr().err.endswith("num_train_epochs is given twice\n")
