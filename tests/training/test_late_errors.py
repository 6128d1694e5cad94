"""What is found wrong late, or by others: rows in the middle of a run, trackers, tokens."""

import re
import sys

import datasets
import numpy as np
import pytest
from angle_adapter import AngleAdapter
from PIL import Image
from training_common import flags, run

from cond_pipelines.training.__main__ import main
from cond_pipelines.training.failures import TrainingFailure
from cond_pipelines.training.trackers import hide_token


class WordAngle(AngleAdapter):
    """An angle as text."""

    def preprocess(self, raw, processor=None):
        return super().preprocess([None if angle is None else float(angle) for angle in raw])


CUSTOM = {"conditioning": "custom", "adapter": "test_late_errors:WordAngle", "condition_column": "angle"}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_condition_that_the_adapter_cannot_take_names_its_row(tmp_path, num_workers, streaming):
    settings = CUSTOM | {"dataset_name": "training_common:odd_angle", "max_train_steps": 50, "validation_fraction": 0}
    settings |= {"streaming": streaming, "dataloader_num_workers": num_workers}
    with pytest.raises(TrainingFailure) as error:
        run(tmp_path, **settings)
    text = str(error.value)
    name = "part 0 of the stream" if streaming else "row 5"
    assert re.match(r"step \d+: ", text) and name in text and "\n" not in text, text
    assert "the adapter cannot take its condition: " in text and "north" in text


BAD_ARRAYS = {
    "empty": np.zeros((0, 8, 3), np.float32),
    "text": np.full((8, 8, 3), "x"),
    "records": np.zeros((8, 8), [("r", "f4"), ("g", "f4")]),
    "many dimensions": np.zeros((2, 2, 2, 2, 2), np.float32),
    "a point": np.float32(3),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_no_images_are_named(tmp_path, kind):
    """Read at every use, by the run and by a worker alike; one of them in the middle."""
    (tmp_path / "images").mkdir()
    for i in range(40):
        np.save(tmp_path / f"images/{i:02}.npy", np.full((8, 8, 3), i, np.float32))
    np.save(tmp_path / "images/36.npy", BAD_ARRAYS[kind])
    settings = {"dataset_name": None, "train_data_dir": str(tmp_path / "images"), "value_range": [0.0, 40.0]}
    settings |= {"cache_images": False, "max_train_steps": 50, "channels": 3, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(
        (TrainingFailure, ValueError), match=r"36\.npy\): unreadable image: .*mend it, or --on_bad"
    ) as e:
        run(tmp_path / "out", **settings)
    assert "\n" not in str(e.value)


def test_a_stream_that_breaks_off_names_the_place(tmp_path):
    """The second of two files is damaged: it is read in the middle of the run."""
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 40})
    (tmp_path / "data").mkdir()
    for number in range(2):
        rows.to_parquet(tmp_path / f"data/{number}.parquet", batch_size=10)
    content = bytearray((tmp_path / "data/1.parquet").read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    (tmp_path / "data/1.parquet").write_bytes(content)
    settings = {"dataset_name": None, "train_data_dir": str(tmp_path / "data"), "streaming": True}
    for channels, kind, words in ((3, TrainingFailure, "part [01] of the stream"), (None, ValueError, "the data set")):
        with pytest.raises(kind, match=rf"image \d+ of {words} cannot be read: ") as error:
            run(tmp_path / "out", max_train_steps=50, channels=channels, **settings)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ("wandb", "--report_to wandb needs the package wandb: pip install wandb, or --report_to none"),
        ("comet_ml", "--report_to comet_ml needs the package comet-ml: pip install comet-ml, or --report_to none"),
        ("mlflow", "--report_to mlflow needs the package mlflow: pip install mlflow, or --report_to none"),
        ("papyrus", "--report_to papyrus is not one of aim, comet_ml, mlflow, tensorboard, wandb, "),
    ],
)
def test_a_tracker_that_is_not_there(tmp_path, capsys, tracker, words):
    with pytest.raises(SystemExit) as stop:
        main(flags(report_to=tracker, output_dir=tmp_path / "out"))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, capsys):
    """It is installed, and the place of its files is taken."""
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        main(flags(report_to="tensorboard", logging_dir="logs", output_dir=tmp_path))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert re.match(r"error: --report_to tensorboard does not start: (FileExists|NotADirectory)Error: ", line)
    assert line.endswith("; mend that, or --report_to none")


@pytest.mark.parametrize("form", [["--hub_token", "hf_x1"], ["--hub_token=hf_x1"]])
def test_a_token_is_gone_from_the_command_line(tmp_path, monkeypatch, hub, form):
    """Trackers record sys.argv; tensorboard, which can be had here, records nothing of it either."""
    args = flags(report_to="tensorboard", output_dir=tmp_path, max_train_steps=1)
    monkeypatch.setattr(sys, "argv", ["train.py", *args, "--push_to_hub", "--hub_model_id", "me/x", *form])
    main()
    assert not any("hf_x1" in word for word in sys.argv)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hf_x1" not in path.read_bytes(), path


def test_no_token_hides_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3"])
    hide_token(None)
    hide_token("")
    assert sys.argv == ["train.py", "--seed", "3"]
