"""Bad input from the command line: one line on stderr that names the row or file and the remedy; exit code 2."""

import io
import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.utils.logging import disable_progress_bar, enable_progress_bar
from PIL import Image
from training_common import flags

from cond_pipelines import UnconditionalAdapter, UnconditionalPipeline, build_unet
from cond_pipelines.training.__main__ import main


@pytest.fixture(autouse=True)
def quiet():
    """Progress bars are written to stderr too."""
    datasets.disable_progress_bars()
    disable_progress_bar()
    yield
    datasets.enable_progress_bars()
    enable_progress_bar()


@pytest.fixture
def refused(capsys, tmp_path):
    """Run with these arguments; returns the one line of the refusal."""

    def refuse(**arguments):
        arguments = {"dataset_name": None, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "out"} | arguments
        with pytest.raises(SystemExit) as stop:
            main(flags(**arguments))
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert not (tmp_path / "out" / "model_index.json").exists()
        return error.removeprefix("error: ").strip()

    return refuse


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "--hub_model_id a/b/c: Repo id must be in the form"),
        (
            {"push_to_hub": True, "output_dir": "two words"},
            "the name of --output_dir, for want of --hub_model_id: two w",
        ),
        (
            {"evaluation_steps": 2},
            "--evaluation_steps needs more than 5 images to train on, and as many --num_evaluati",
        ),
    ],
)
def test_what_would_fail_late_is_refused_before_the_first_step(refused, folder, tmp_path, arguments, message):
    if "output_dir" in arguments:
        arguments = arguments | {"output_dir": tmp_path / arguments["output_dir"]}
    assert refused(train_data_dir=folder, **arguments).startswith(message)


def captioned(folder, captions):
    rows = [{"file_name": f"{i}.png", "text": caption} for i, caption in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


# --------------------------------------------------------------------------------------------------------- data
def test_missing_folder(refused):
    assert refused(train_data_dir="nowhere") == "--train_data_dir nowhere is not a folder"


def test_nothing_given(refused):
    assert refused() == "give --train_data_dir (a folder) or --dataset_name (a Hub id, or module:function)"


def test_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(train_data_dir=tmp_path / "empty")
    assert line.startswith(f"cannot load {tmp_path / 'empty'}: there are no images in it")


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("class", "no label column among image: name it with --label_column (or put the images into one sub-folder"),
        ("text", "no caption column among image: name it with --caption_column (or add metadata.jsonl"),
    ],
)
def test_missing_column(refused, folder, setting, remedy):
    assert refused(train_data_dir=folder, conditioning=setting).startswith(remedy)


def test_wrong_column(refused, folder):
    captioned(folder, "abcd")
    line = refused(train_data_dir=folder, conditioning="text", caption_column="said")
    assert line == "--caption_column 'said' is not among the columns: image, text"
    line = refused(train_data_dir=folder, image_column="text")
    assert (
        line == "row 0 (a): unreadable image: [Errno 2] No such file or directory: 'a'; mend it, or --on_bad_image skip"
    )


@pytest.mark.parametrize("keep", [0, 40], ids=["empty", "truncated"])
@pytest.mark.parametrize("resolution", [8, None])
def test_unreadable_image(refused, folder, keep, resolution):
    path = folder / "2.png"
    path.write_bytes(path.read_bytes()[:keep])
    line = refused(train_data_dir=folder, resolution=resolution)
    assert line.startswith(f"row 2 ({path}): unreadable image: ")
    assert line.endswith("; mend it, or --on_bad_image skip")


@pytest.mark.parametrize("resolution", [8, None])
@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_no_readable_image(refused, folder, resolution, on_bad_image):
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    line = refused(train_data_dir=folder, resolution=resolution, on_bad_image=on_bad_image)
    assert str(folder / "0.png") in line
    if on_bad_image == "skip":
        assert line.startswith(("no usable image among 4 rows; row 0 (", "none of the first 4 images can be read; "))


@pytest.mark.parametrize(
    ("caption", "reason"),
    [("", "the caption is empty"), ("  ", "the caption is empty"), (None, "there is no caption")],
)
def test_empty_caption(refused, folder, caption, reason):
    captioned(folder, ["a", "b", "c", caption])
    line = refused(train_data_dir=folder, conditioning="text")
    assert line == f"row 3 ({folder / '3.png'}): {reason}; mend it, or --on_bad_image skip"


def test_label_out_of_range(refused, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    rows = {"image": [{"bytes": file.getvalue(), "path": None}] * 3, "label": [0, -5, 1]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "a.parquet")
    line = refused(train_data_dir=tmp_path / "data", conditioning="class")
    assert line == "row 1: label -5 is outside of 0 .. 1; mend it, or --on_bad_image skip"


def test_missing_split(refused, tmp_path, folder):
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    datasets.DatasetDict(a=rows, b=rows).save_to_disk(str(tmp_path / "data"))
    assert "there is no split 'train', only a, b: give --dataset_split" in refused(train_data_dir=tmp_path / "data")


# -------------------------------------------------------------------------------------------------------- model
def test_pictures_of_the_run_become_no_images(refused, tmp_path):
    """They took the place of samples.png and images/00.png of the user's, and were trained on by the next run."""
    for name in ("samples.png", "images/00.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name)
    before = (tmp_path / "photos/samples.png").read_bytes()
    for place in ("photos", "photos/model", "photos/images/../model"):
        line = refused(train_data_dir=tmp_path / "photos", output_dir=tmp_path / place)
        assert f"is in --train_data_dir {tmp_path / 'photos'}: the run's pictures would be images of the data" in line
    assert (tmp_path / "photos/samples.png").read_bytes() == before and not (tmp_path / "photos/model").exists()


def test_resolution_too_small_for_the_unet(refused, folder):
    line = refused(train_data_dir=folder, resolution=2, unet_size="s")
    assert line == "UNet size 's' halves 2 times: sample_size 2 is too small"


@pytest.fixture
def vae(tmp_path):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    AutoencoderKL(**blocks, block_out_channels=(8, 8, 8), norm_num_groups=8).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_resolution_that_does_not_fit_the_vae(refused, folder, vae):
    line = refused(train_data_dir=folder, resolution=18, pretrained_vae_model_name_or_path=vae)
    assert line == "--resolution 18 must be a multiple of 4, the VAE's scale factor"


def test_channels_that_do_not_fit_the_vae(refused, folder, vae):
    line = refused(train_data_dir=folder, resolution=16, channels=1, pretrained_vae_model_name_or_path=vae)
    assert line == "--channels 1, but the pretrained model takes 3: leave it out"


@pytest.fixture
def parent(tmp_path):
    unet = build_unet("xxs", sample_size=8)
    pipe = UnconditionalPipeline(unet, FlowMatchEulerDiscreteScheduler(), UnconditionalAdapter.for_unet(unet))
    pipe.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def test_pretrained_models_that_do_not_fit(refused, folder, parent):
    given = {"train_data_dir": folder, "unet_size": None, "pretrained_model_name_or_path": parent}
    assert refused(**given, resolution=1).startswith("--resolution 1 is too small for the pretrained UNet")


@pytest.mark.parametrize(
    "flag", ["pretrained_model_name_or_path", "text_encoder_name_or_path", "pretrained_vae_model_name_or_path"]
)
def test_no_such_pretrained_model(refused, folder, flag, tmp_path):
    line = refused(train_data_dir=captioned(folder, "abcd"), unet_size=None, conditioning="text", **{flag: tmp_path})
    assert str(tmp_path) in line


FLOW = "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler": "Euler"}, "--scheduler Euler is not a scheduler of diffusers, such as FlowMatch"),
        ({"prediction_type": "epsilon", "scheduler": FLOW}, f"--prediction_type has no meaning for {FLOW}"),
        ({"snr_gamma": 5.0, "scheduler": FLOW}, f"--snr_gamma has no meaning for {FLOW}: leave it"),
        (
            {"logit_std": 2.0, "scheduler": "DDPMScheduler"},
            "--logit_std has no meaning for DDPMScheduler: ",
        ),
        ({"scheduler": "ScoreSdeVeScheduler"}, "no objective for ScoreSdeVeScheduler: use a flow-matching, EDM or "),
    ],
)
def test_objectives_that_do_not_exist(refused, folder, arguments, message):
    assert refused(train_data_dir=folder, **arguments).startswith(message)


def test_a_validation_prompt_that_is_no_class(refused):
    line = refused(dataset_name="training_common:shapes", conditioning="class", validation_prompts="square dance")
    assert line.startswith("unknown class label 'square dance'")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"adapter": "nowhere:Adapter"}, "cannot import 'nowhere:Adapter' (module:name): "),
        ({"adapter_config": "{num: 3}"}, "--adapter_config {num: 3}: "),
        ({"adapter_config": '{"waves": 3}'}, '--adapter_config {"waves": 3}: '),
        ({"condition_column": "tilt"}, "--condition_column 'tilt' is not among the columns: image, "),
    ],
)
def test_bad_adapters(refused, adapter, message):
    chosen = {"adapter": "angle_adapter:AngleAdapter", "condition_column": "angle"} | adapter
    assert refused(dataset_name="training_common:angles", conditioning="custom", **chosen).startswith(message)


def test_a_stream_without_a_length(refused):
    line = refused(dataset_name="training_common:shapes", max_train_steps=None, streaming=True)
    assert line.startswith("a streaming data set has no length: give --max_train_steps")


def test_as_a_person_sees_it(folder, tmp_path, subprocess_env):
    """In a process of its own: nothing else on stderr, no traceback."""
    (folder / "1.png").write_bytes(b"")
    env = subprocess_env | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    args = ["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "c")]
    done = subprocess.run(
        [sys.executable, "-m", "cond_pipelines.training", *args], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    reason = "it is empty, or of no format that can be read"
    row = f"row 1 ({folder / '1.png'}): unreadable image: {reason}"
    assert done.stderr == f"error: {row}; mend it, or --on_bad_image skip\n"
