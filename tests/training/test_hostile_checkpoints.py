"""--resume_from_checkpoint of a folder that somebody else made, checksums and all: no code of it runs."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_common import run

from cond_pipelines.cli import main
from cond_pipelines.files import write_checked_json
from cond_pipelines.training.checkpoints import Manifest, _write_manifest, read_manifest

SETTINGS = {"conditioning": "class", "max_train_steps": 2, "checkpointing_steps": 1}


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return run(tmp_path_factory.mktemp("saved"), **SETTINGS)


@pytest.mark.parametrize(
    "name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scaler.pt", "model.bin", "../x.pkl"]
)
@pytest.mark.parametrize("command", ["resume", "convert"])
def test_nothing_is_unpickled(saved, name, command, tmp_path, capsys):
    folder, canary = tmp_path / "checkpoint-1", tmp_path / "canary"
    shutil.copytree(saved / "checkpoint-1", folder)
    torch.save({"values": [Canary(canary)], "num_steps": 1}, folder / name)
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    if command == "convert" and name != "custom_checkpoint_0.pkl":  # so that it looks like one to convert
        torch.save({"values": [], "num_steps": 0}, folder / "custom_checkpoint_0.pkl")
    _write_manifest(folder, manifest)
    if name == "../x.pkl":
        files = read_manifest(folder).files | {name: "0" * 64}
        write_checked_json(folder / "manifest.json", {**vars(read_manifest(folder)), "files": files})
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if command == "resume":
        with pytest.raises(ValueError) as error:
            run(tmp_path, **SETTINGS, resume_from_checkpoint="checkpoint-1")
        text = str(error.value)
    else:
        with pytest.raises(SystemExit):
            main(["convert", str(folder)])
        text = capsys.readouterr().err.strip()
    assert "\n" not in text and text
    assert not canary.exists()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_link_out_of_a_checkpoint_is_refused(saved, tmp_path):
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(saved / "checkpoint-1", folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is a link, which is not followed"):
        run(tmp_path, **SETTINGS, resume_from_checkpoint="checkpoint-1")


def test_a_checkpoint_is_data(saved):
    names = {p.name for p in (saved / "checkpoint-2").iterdir()}
    assert names == {
        *("model.safetensors", "averages.safetensors", "random_states_0.safetensors"),
        *("optimizer.bin", "progress.json", "manifest.json"),
    }
    assert isinstance(read_manifest(saved / "checkpoint-2"), Manifest)
    assert set(torch.load(saved / "checkpoint-2/optimizer.bin", weights_only=True)) == {"state", "param_groups"}
    assert load_file(saved / "checkpoint-2/averages.safetensors")
