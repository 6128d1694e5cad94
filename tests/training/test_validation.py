"""When samples are drawn during a run, how many, and what is kept of them."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_common import largest_difference, log_of, run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.sharing.contents import copy_page
from cond_pipelines.training import validation

# A twentieth of 60 steps of 32 images is three samples of 12 unguided steps, four times.
LOOK = {"conditioning": "class", "validation_steps": None, "max_train_steps": 60, "train_batch_size": 32}
LOOK |= {"num_validation_images": 4, "checkpointing_steps": 30, "logging_steps": 10, "validation_fraction": 0.05}


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").glob("*"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("whole") / "run", **LOOK)


def test_pictures_from_the_first_step_on(whole):
    assert list(pictures(whole)) == [f"{step:06d}.png" for step in (0, 15, 30, 45, 50, 60)]
    sizes = {Image.open(whole / "samples" / name).size for name in pictures(whole)}
    assert len(sizes) == 1
    with Image.open(whole / "samples.gif") as animation:
        assert animation.n_frames == 6
    assert len(log_of(whole, "held_out_loss")) == 4  # as before: early samples come without


def test_a_resumed_run_has_the_same_pictures_weights_and_log(whole, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-60")
    (resumed / "samples" / "000090.png").write_bytes(b"of a longer run")
    for name in ("samples.gif", "samples.png"):
        (resumed / name).unlink()
    run(resumed, resume_from_checkpoint="latest", **LOOK)
    assert pictures(resumed) == pictures(whole)
    assert (resumed / "samples.gif").read_bytes() == (whole / "samples.gif").read_bytes()
    assert log_of(resumed) == log_of(whole)
    a, b = (ConditionalPipeline.from_pretrained(folder) for folder in (whole, resumed))
    assert largest_difference(a.unet, b.unet) == 0


def test_looking_changes_nothing_and_can_be_turned_off(whole, tmp_path):
    blind = run(tmp_path, **LOOK | {"validation_steps": 0, "num_validation_images": None})
    assert not (blind / "samples").exists() and not (blind / "samples.gif").exists()
    assert (blind / "samples.png").is_file()
    assert log_of(blind) == log_of(whole)
    a, b = (ConditionalPipeline.from_pretrained(folder) for folder in (whole, blind))
    assert largest_difference(a.unet, b.unet) == 0


def test_a_new_run_forgets_the_pictures_of_the_last(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("000000.png", "000002.png", "mine.png"):
        (tmp_path / "samples" / name).write_bytes(b"")
    (tmp_path / "samples.gif").write_bytes(b"")
    run(tmp_path, max_train_steps=2)
    assert list(pictures(tmp_path)) == ["mine.png"]
    assert not (tmp_path / "samples.gif").exists()


def test_a_damaged_picture_does_not_end_a_run(whole, tmp_path, capsys):
    shutil.copytree(whole / "samples", tmp_path / "samples")
    (tmp_path / "samples" / "000015.png").write_bytes(b"")
    validation.write_animation(tmp_path)
    assert "without" in capsys.readouterr().err
    with Image.open(tmp_path / "samples.gif") as animation:
        assert animation.n_frames == 5


@pytest.mark.parametrize("optimizer", ["adamw", "schedulefree"])
def test_a_short_run_spends_its_time_on_training(tmp_path, optimizer):
    """Four steps of eight images: less than a sample's worth may go into early pictures."""
    folder = run(tmp_path, validation_steps=2, optimizer=optimizer)
    assert list(pictures(folder)) == ["000002.png", "000004.png"]


def test_a_run_of_minutes_is_not_spent_on_pictures(tmp_path):
    """However slow the machine: what early pictures and the four grids may take is a share of the time."""
    minutes = {"max_train_steps": None, "max_train_minutes": 0.05, "validation_fraction": 0.0}
    folder = run(tmp_path, **LOOK | minutes | {"num_validation_images": 512, "checkpointing_steps": None})
    shown = [Image.open(folder / "samples" / name).convert("L") for name in pictures(folder)]
    assert shown
    # Of 512 places nearly all stayed white.
    assert all(sum(image.histogram()[:250]) < 0.2 * image.width * image.height for image in shown)


class _Draws:
    """Draws random numbers where no one expects it, as an adapter of somebody else may."""

    def __call__(self, *_args):
        torch.rand(3)


def test_sampling_does_not_move_the_random_numbers_of_the_training(whole):
    from accelerate import Accelerator

    pipe = ConditionalPipeline.from_pretrained(whole)
    pipe.adapter.register_forward_pre_hook(_Draws())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = validation.sample_images(pipe, [0, 1, 2], Accelerator(), num_inference_steps=1, batch_size=2)
    assert len(images) == 3 and torch.equal(torch.get_rng_state(), before)


def test_words_where_it_takes_long(whole, capsys, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(validation, "_SILENCE_SEC", 0.0)
    pipe = ConditionalPipeline.from_pretrained(whole)
    pipe.set_progress_bar_config(disable=True)
    desc, labels = "Sampling the final 66 images", [i % 5 for i in range(66)]  # so small that 64 make a batch
    validation.sample_images(pipe, labels, Accelerator(), num_inference_steps=2, desc=desc, batch_size=2)
    shown = capsys.readouterr().err
    assert "Sampling the final 66 images (1 to 64)" in shown and "(65 to 66)" in shown
    assert pipe._progress_bar_config == {"disable": True}  # as it was


def test_the_animation_is_pushed_and_shown_and_the_folder_stays(whole, tmp_path):
    copy_page(whole, tmp_path)
    assert (tmp_path / "samples.gif").is_file() and not (tmp_path / "samples").exists()
    assert (tmp_path / "samples.gif").stat().st_size < 4e6
    assert "![Samples during training](samples.gif)" in (whole / "README.md").read_text(encoding="utf-8")
