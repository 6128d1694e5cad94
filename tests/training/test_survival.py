"""Runs that are killed, told to stop, or fail, each for real: what they say, and what they lose (nothing)."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_test import result
from safetensors.torch import load_file
from training_common import INFINITE, flags, largest_difference, log_of, run
from warm import WarmStart

from cond_pipelines import ConditionalPipeline, TrainingConfig
from cond_pipelines.training.checkpoints import all_checkpoints, broken
from cond_pipelines.training.failures import TrainingFailure
from cond_pipelines.training.loop import train

pytestmark = pytest.mark.timeout(600)  # a test starts up to four runs in processes of their own
STEPS = {
    "max_train_steps": 12,
    "checkpointing_steps": 3,
    "logging_steps": 2,
    "gradient_accumulation_steps": 2,
    "train_batch_size": 4,
    "random_flip": True,
}


def python_path(env):
    """That also finds training_common."""
    return env | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), env["PYTHONPATH"]])}


def start(folder, warm, num_processes=1, settings=STEPS, conditioning="class", at=None, env=None):
    """A run in processes of its own, that resumes what is there; `at` an event a signal reaches it, see at_an_event."""
    settings = dict(settings)
    flip = ["--random_flip"] if settings.pop("random_flip", False) else []
    args = flags(output_dir=folder, conditioning=conditioning, resume_from_checkpoint="latest", **settings)
    module = ["at_an_event", at, "cond_pipelines.training"] if at else ["cond_pipelines.training"]
    return warm.start(["-m", *module, *args, *flip], env, num_processes)


def assert_same(a, b):
    assert largest_difference(a[0], b[0]) == 0
    assert a[1] == b[1]


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, warm, request.param, of_precision(request.param))
    output = "".join(process.communicate(timeout=300))
    assert process.returncode == 0, output[-2000:]
    assert f"x {request.param} process(es)" in output  # not two runs of one
    return request.param, result(folder)


def of_precision(num_processes):
    """Two processes with the precision that suits the machine, which is another way through accelerate."""
    return STEPS | ({"mixed_precision": None} if num_processes == 2 else {})


# ------------------------------------------------------------------------------------------------------- killed
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, warm):
    """SIGKILL of all processes; log, weights and EMA are the same bit by bit, and nothing is left lying about.

    One process after a step, two during a save; benchmarks/kill_test.py does both to both, twenty times.
    """
    num_processes, expected = whole
    # The log is opened to be made and synced, for step 2, to be synced by the checkpoint of step 3, for step 4, for 6.
    after_a_step, in_a_save = "open:log.jsonl:6:SIGKILL", "open:unfinished-checkpoint-6/progress.json:1:SIGKILL"
    at = after_a_step if num_processes == 1 else in_a_save
    process = start(tmp_path, warm, num_processes, of_precision(num_processes), at=at)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-3"]
    assert log_of(tmp_path, "step") == ([2, 4] if at == after_a_step else [2, 4, 6])
    assert (tmp_path / "unfinished-checkpoint-6").is_dir() == (at == in_a_save)
    process = start(tmp_path, warm, num_processes, of_precision(num_processes))
    output = process.communicate(timeout=240)
    assert process.returncode == 0, output[1][-2000:]
    assert "resumed after step" in output[0] + output[1]
    assert_same(result(tmp_path), expected)
    assert not list(tmp_path.glob("unfinished*"))


@pytest.mark.parametrize("which", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, warm, which):
    """It comes while the line of step 4 is written."""
    settings = STEPS | {"max_train_steps": 500, "checkpointing_steps": 400}
    process = start(tmp_path, warm, settings=settings, at=f"open:log.jsonl:4:{which}")
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0
    (saved,) = all_checkpoints(tmp_path)
    assert saved.name == "checkpoint-4" and broken(saved) is None
    assert f"{which}: step 4 is done and saved in {saved}; go on with the same command" in told
    assert "Traceback" not in told
    # Gone on with, to a few steps more: as if nothing had been.
    settings = settings | {"max_train_steps": 6, "lr_scheduler": "constant"}
    process = start(tmp_path, warm, settings=settings)
    output = process.communicate(timeout=240)
    assert process.returncode == 0, output[1][-2000:]
    assert log_of(tmp_path, "step") == [2, 4, 6]


def test_quit_stops_at_once_without_saving(tmp_path, warm):
    """SIGQUIT, as "Stop" of the studio sends it: the first one ends the run, and nothing is lost that was saved."""
    settings = STEPS | {"max_train_steps": 500, "checkpointing_steps": 2}
    process = start(tmp_path, warm, settings=settings, at="open:log.jsonl:5:SIGQUIT")
    _, told = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGQUIT, told[-2000:]
    (saved,) = all_checkpoints(tmp_path)
    assert saved.name == "checkpoint-2" and broken(saved) is None
    assert f"SIGQUIT: stopped at once in step 5; {saved} is whole: go on with the same command" in told
    assert "Traceback" not in told


INTERRUPTS = """
import os, pathlib, signal
from angle_adapter import AngleAdapter

class Interrupts(AngleAdapter):  # Ctrl-C in its third forward pass, and again in its fifth
    calls = 0
    def forward(self, features):
        Interrupts.calls += 1
        pathlib.Path(os.environ["CALLS"]).write_text(str(self.calls))
        if self.calls in (3, 5):
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(features)
"""


def test_a_second_interrupt_stops_at_once(tmp_path, warm):
    """In the middle of a step of 400 batches: the first one waits for its end, the second does not."""
    (tmp_path / "interrupts.py").write_text(INTERRUPTS)
    env = warm.env | {"CALLS": str(tmp_path / "calls"), "PYTHONPATH": f"{warm.env['PYTHONPATH']}:{tmp_path}"}
    settings = {"gradient_accumulation_steps": 400, "checkpointing_steps": 400, "adapter": "interrupts:Interrupts"}
    settings |= {"dataset_name": "training_common:angles", "condition_column": "angle"}
    process = start(tmp_path, warm, settings=settings, conditioning="custom", env=env)
    process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert (tmp_path / "calls").read_text() == "5"
    assert not all_checkpoints(tmp_path)


# ------------------------------------------------------------------------------------------------------- damaged
@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return run(tmp_path_factory.mktemp("saved"), conditioning="class", **STEPS)


def resume(saved, tmp_path, steps=12, which="latest", **changed):
    for path in saved.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) < 12 and not (tmp_path / path.name).exists():
            shutil.copytree(path, tmp_path / path.name)
    if not (tmp_path / "log.jsonl").exists():
        shutil.copy(saved / "log.jsonl", tmp_path)
    settings = STEPS | {"conditioning": "class", "max_train_steps": steps} | changed
    return run(tmp_path, resume_from_checkpoint=which, **settings)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "missing file", "no manifest", "broken manifest"])
def test_a_damaged_checkpoint_is_passed_over(saved, tmp_path, damage, capsys):
    shutil.copytree(saved / "checkpoint-9", tmp_path / "checkpoint-9")
    path = tmp_path / "checkpoint-9/model.safetensors"
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "flipped bit":
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "missing file":
        path.unlink()
    elif damage == "no manifest":
        (tmp_path / "checkpoint-9/manifest.json").unlink()
    else:
        (tmp_path / "checkpoint-9/manifest.json").write_text('{"files":')
    assert (broken(tmp_path / "checkpoint-9") is None) is False
    folder = resume(saved, tmp_path)
    told = "".join(capsys.readouterr())
    assert "resumed after step 6" in told
    if damage != "no manifest":
        assert "warning: " in told and "checkpoint-9 is passed over: " in told
    assert_same(result(folder), result(saved))


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(saved, tmp_path):
    shutil.copytree(saved / "checkpoint-9", tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9/optimizer.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-9: optimizer\.bin is damaged"):
        resume(saved, tmp_path, which="checkpoint-9")


def test_a_log_that_was_cut_off(saved, tmp_path):
    """In the middle of a line, which was being written when the power went."""
    lines = (saved / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 9]
    (tmp_path / "log.jsonl").write_text("".join(kept) + lines[len(kept)][:20])
    assert_same(result(resume(saved, tmp_path)), result(saved))


# ------------------------------------------------------------------------------------------------------- changed
def test_another_batch_size_goes_on_with_the_images_not_yet_seen(saved, tmp_path, capsys):
    folder = resume(saved, tmp_path, train_batch_size=8, gradient_accumulation_steps=2, max_train_steps=12)
    assert "changed: images a step 8 -> 16" in "".join(capsys.readouterr())
    assert log_of(folder, "images")[-1] == 9 * 8 + 3 * 16


def test_another_number_of_processes_goes_on_with_the_same_images(saved, tmp_path, warm):
    """Half of the batch in each of two: the same images, noise and times, so the same losses."""
    shutil.copytree(saved / "checkpoint-6", tmp_path / "checkpoint-6")
    shutil.copy(saved / "log.jsonl", tmp_path)
    process = start(tmp_path, warm, 2, settings=STEPS | {"train_batch_size": 2})
    output = "".join(process.communicate(timeout=240))
    assert process.returncode == 0, output[-2000:]
    assert "resumed after step 6, 48 images seen; changed: processes 1 -> 2" in output
    assert log_of(tmp_path, "images") == log_of(saved, "images")
    assert log_of(tmp_path)[:3] == log_of(saved)[:3]
    assert log_of(tmp_path) == pytest.approx(log_of(saved), rel=1e-3)  # rounding grows through Adam


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"resolution": 16}, "made with --resolution 8, now --resolution 16"),
        ({"dataset_name": "training_common:few_shapes"}, "another data set ("),
        ({"conditioning": "none"}, "made with --conditioning class, now --conditioning none"),
        ({"seed": 3}, "made with --seed 0, now --seed 3"),
        (
            {"scheduler": "DDPMScheduler"},
            "MatchEulerDiscreteScheduler, now --scheduler DDPMScheduler",
        ),
    ],
)
def test_another_run_is_refused_and_the_difference_named(saved, tmp_path, changed, words):
    with pytest.raises(ValueError) as error:
        resume(saved, tmp_path, **changed)
    assert words in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- failing
ON_A_SMALL_DISK = """
import shutil, subprocess, sys
from cond_pipelines.training.__main__ import main

place, size, *args = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", place], check=True, timeout=60)
try:
    main(args)
finally:
    shutil.copytree(place, f"{place}.after", symlinks=True)  # nobody else sees it
"""
READ_ONLY = """
import subprocess, sys
from cond_pipelines.training.__main__ import main

place, *args = sys.argv[1:]
subprocess.run(["mount", "--bind", place, place], check=True, timeout=60)
subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True, timeout=60)
main(args)
"""


@pytest.fixture(scope="module")
def warm_with_mounts(warm):
    """The same, in a namespace where anybody may mount file systems."""
    with WarmStart(warm.env, prefix=("unshare", "-rm")) as started:
        yield started


def run_on_a_small_disk(tmp_path, warm_with_mounts, size_mb, **settings):
    """Exit code, stderr, and a copy of what is left, of a run that has the only room in `tmp_path`."""
    args = flags(output_dir=tmp_path, **settings)
    process = warm_with_mounts.start(["-c", ON_A_SMALL_DISK, tmp_path, size_mb, *args])
    told = process.communicate(timeout=240)[1]
    assert "Traceback" not in told, told[-2000:]
    after = Path(f"{tmp_path}.after")
    assert not list(after.rglob("unfinished*"))
    return process.returncode, told, after


def line_of_a_full_disk(code, told):
    assert code == 1, told[-2000:]
    (line,) = [line for line in told.splitlines() if line.startswith("error:")]
    assert "No space left" in line or "disk is full" in line
    return line


def save_until_the_disk_is_full(tmp_path, warm_with_mounts, size_mb, **settings):
    """The line that is said then, and the checkpoints that are left."""
    settings = {"conditioning": "class", "max_train_steps": 100, "checkpointing_steps": 1} | settings
    code, told, after = run_on_a_small_disk(tmp_path, warm_with_mounts, size_mb=size_mb, **settings)
    return line_of_a_full_disk(code, told), all_checkpoints(after)


def test_a_full_disk(tmp_path, warm_with_mounts):
    """On a file system of 40 MB: one line, and the last good checkpoint is whole."""
    line, after = save_until_the_disk_is_full(tmp_path, warm_with_mounts, size_mb=40)
    assert after and all(broken(path) is None for path in after)
    step = int(after[-1].name.split("-")[1])
    assert line.startswith(f"error: step {step + 2}: ") or line.startswith(f"error: step {step + 1}: ")
    assert f"{after[-1].name} is whole: go on with the same command and --resume_from_checkpoint latest" in line


@pytest.mark.parametrize("cache_images", [None, True])
def test_a_full_disk_for_decoded_images(tmp_path, warm_with_mounts, cache_images):
    """34 MB of them on a file system of 24: they are decoded at every use, unless the file was asked for."""
    settings = {"dataset_name": "training_common:many_images", "resolution": 64, "max_train_steps": 1}
    settings |= {"cache_dir": tmp_path / "cache", "cache_images": cache_images, "train_batch_size": 2}
    code, told, after = run_on_a_small_disk(tmp_path, warm_with_mounts, size_mb=24, **settings)
    if cache_images:
        assert str(tmp_path / "cache/cond_pipelines/images-") in line_of_a_full_disk(code, told)
    else:
        assert code == 0, told[-2000:]
        assert "images are decoded at every use: " in told and "No space left" in told
        assert (after / "model_index.json").is_file()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"--output_dir .*/file cannot be written to: "):
        run(tmp_path / "file")


def test_a_read_only_folder(tmp_path, warm_with_mounts):
    args = flags(output_dir=tmp_path, max_train_steps=1)
    process = warm_with_mounts.start(["-c", READ_ONLY, tmp_path, *args])
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 2
    assert f"error: --output_dir {tmp_path} cannot be written to: Read-only file system: name another" in told


def test_a_data_set_that_vanishes(tmp_path):
    """In the middle of the run, read by a worker process."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(64):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"images/{i:02}.png")
    settings = {"dataset_name": None, "train_data_dir": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")}
    settings |= {"cache_images": False, "dataloader_num_workers": 1}

    def remove(event: str, args: tuple) -> None:
        if event == "os.rename" and str(args[1]).endswith(f"{tmp_path.name}/out/checkpoint-2"):
            shutil.rmtree(tmp_path / "images", ignore_errors=True)

    sys.addaudithook(remove)
    before = set(multiprocessing.active_children())  # of other tests, which are about to end
    with pytest.raises(TrainingFailure) as error:
        run(tmp_path / "out", checkpointing_steps=1, checkpoints_total_limit=2, max_train_steps=500, **settings)
    assert set(multiprocessing.active_children()) <= before  # though the error holds the frames of the run
    text = str(error.value)
    assert text.startswith("step ") and "\n" not in text and "No such file" in text
    assert all_checkpoints(tmp_path / "out")[-1].name in text


def test_gradients_that_are_not_finite_are_left_out(tmp_path):
    """One such step in an epoch: the weights stay as they were in it, it is counted, and training goes on."""
    folder = run(tmp_path, dataset_name="training_common:some_infinite", max_train_steps=16, use_ema=False, **INFINITE)
    states = [load_file(path / "model.safetensors") for path in all_checkpoints(folder)]
    moved = [largest_difference(a, b) > 0 for a, b in itertools.pairwise(states)]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    counted = [line.get("skipped_steps", 0) for line in lines]
    assert counted[-1] == 1
    assert moved == [before == after for before, after in itertools.pairwise(counted)]
    assert all(torch.isfinite(x).all() for x in states[-1].values())
    ConditionalPipeline.from_pretrained(folder)


def test_gradients_that_stay_infinite_stop_the_run(tmp_path):
    settings = INFINITE | {"dataset_name": "training_common:many_infinite", "max_skipped_steps": 3}
    with pytest.raises(TrainingFailure, match=r"step \d+: the last 3 gradients were not finite") as error:
        run(tmp_path, max_train_steps=500, **settings)
    assert "--learning_rate" in str(error.value)
    last = all_checkpoints(tmp_path)[-1]
    assert f"{last.name} is whole" in str(error.value)
    assert all(torch.isfinite(x).all() for x in load_file(last / "model.safetensors").values())


def test_weights_that_are_no_numbers_are_not_saved_as_a_model(tmp_path, capsys):
    """Of a run that ends before --max_skipped_steps; what it was to do after its end is said in its first lines."""
    with pytest.raises(
        TrainingFailure, match=r"the trained weights are not finite \(unet\.\w.*, so they are not saved"
    ):
        run(tmp_path, learning_rate=1e38, checkpointing_steps=50, evaluation_steps=4)
    assert not (tmp_path / "model_index.json").exists()
    told = "".join(capsys.readouterr())
    assert "warning: --checkpointing_steps 50 of a run of 4 steps: it comes to none" in told
    assert "--evaluation_steps" not in told


def test_out_of_memory(tmp_path, subprocess_env):
    """Under a real limit on the process's memory."""
    args = flags(output_dir=tmp_path, conditioning="none", max_train_steps=5, checkpointing_steps=1)
    code = (
        "import resource, sys; from cond_pipelines.training.__main__ import main\n"
        "import cond_pipelines.training.log as log\n"
        "step = log.TrainingLog.step\n"
        "def limit(self, state, *args):\n"
        "    step(self, state, *args)\n"
        "    if state.progress.step == 2:\n"
        "        used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))\n"
        "log.TrainingLog.step = limit\n"
        "main(sys.argv[1:])"
    )
    args = [*args, "--dataset_name", "training_common:shapes", "--train_batch_size", "512"]
    env = python_path(subprocess_env) | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "out of memory; a smaller --train_batch_size" in line
    assert "checkpoint-" in line and "is whole" in line


def test_rotation_deletes_only_after_the_new_one_is_complete(tmp_path, warm_with_mounts):
    """Room for one checkpoint and a half: the second cannot be written, the only one to be kept is still there."""
    told, after = save_until_the_disk_is_full(tmp_path, warm_with_mounts, size_mb=20, checkpoints_total_limit=1)
    assert [path.name for path in after] == ["checkpoint-1"] and broken(after[0]) is None
    assert "checkpoint-1 is whole: go on with the same command" in told


def test_the_same_command_for_ever(tmp_path):
    """As a scheduler would restart it: on nothing, in the middle, at the end."""
    for steps, expected in ((4, [2, 4]), (8, [2, 4, 6, 8]), (8, [2, 4, 6, 8])):
        settings = TrainingConfig(
            dataset_name="training_common:shapes",
            resolution=8,
            unet_size="xxs",
            train_batch_size=4,
            max_train_steps=steps,
            mixed_precision="no",
            report_to="none",
            logging_steps=2,
            checkpointing_steps=2,
            validation_steps=0,
            default_num_inference_steps=1,
            resume_from_checkpoint="latest",
            output_dir=str(tmp_path),
        )
        train(settings)
        assert log_of(tmp_path, "step") == expected
        ConditionalPipeline.from_pretrained(tmp_path)
