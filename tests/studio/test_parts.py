"""What the studio is made of: each part without the server."""

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest
from accelerate import Accelerator
from PIL import Image
from training_common import TINY

from cond_pipelines import builtin_model
from cond_pipelines.background import Jobs
from cond_pipelines.command_line import arguments_of, form_of
from cond_pipelines.data.load import load_data
from cond_pipelines.errors import UserError
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.neighbours import TrainingImages
from cond_pipelines.evaluation.reader import real_image
from cond_pipelines.files import cache_json, keep_newest, strict_json
from cond_pipelines.folder_kinds import kinds_in, with_room
from cond_pipelines.grids import sampled
from cond_pipelines.networks.pretrained import load_pipeline
from cond_pipelines.training.command_line import parse_args, training_parser
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.requests import Requests
from cond_pipelines.training.run_files import conditioning_of, process_in, read_log
from cond_pipelines.worker import Worker


# -------------------------------------------------------------------------------------------------- a log
def _line(step: int, **values: object) -> str:
    return json.dumps({"step": step, "images": 4 * step, **values}) + "\n"


def _training(step: int) -> str:
    return _line(step, loss=1 / step, lr=1e-3, images_per_sec=10.0, elapsed_sec=float(step))


def test_a_long_log_is_thinned_and_no_validation_is_lost(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [
        _training(step) + (_line(step, held_out_loss=0.5) if step % 1000 == 0 else "") for step in range(1, 20_001)
    ]
    lines.insert(7000, _line(7000, kernel_distance=0.2, precision=0.7))
    path.write_text("".join(lines))
    log = read_log(tmp_path, 100)
    assert log["num_lines"] == 20_021
    assert 90 <= len(log["step"]) <= 110 and log["step"] == sorted(set(log["step"]))
    assert (log["step"][0], log["step"][-1]) == (1, 20_000)
    assert all(loss == 1 / step for step, loss in zip(log["step"], log["loss"], strict=True))
    assert log["held_out"] == [[step, 0.5] for step in range(1000, 20_001, 1000)]
    assert log["measures"] == {"kernel_distance": [[7000, 0.2]], "precision": [[7000, 0.7]]}


def test_a_log_that_grows_is_read_on_and_one_that_starts_anew_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(tmp_path)["num_lines"] == 0
    path.write_text(_training(1))
    with path.open("a") as file:
        file.write(_training(2)[:10])  # half a line, of a run that writes just now
    assert read_log(tmp_path)["step"] == [1]
    with path.open("a") as file:
        file.write(_training(2)[10:] + _line(2, held_out_loss=0.3))
    log = read_log(tmp_path)
    assert (log["step"], log["held_out"], log["num_lines"]) == ([1, 2], [[2, 0.3]], 3)
    other = tmp_path / "other"
    other.write_text(_training(9) + "not JSON\n[]\n" + '{"step": "x"}\n')
    os.replace(other, path)  # as a resumed run writes its log
    log = read_log(tmp_path)
    assert (log["step"], log["held_out"], log["num_lines"]) == ([9], [], 4)
    path.unlink()
    assert read_log(tmp_path)["step"] == []


def test_a_skipped_step_has_no_loss_and_is_shown_as_a_gap(tmp_path):
    (tmp_path / "log.jsonl").write_text(_training(1) + _line(2, loss=None, lr=1e-3, images_per_sec=1.0))
    assert read_log(tmp_path)["loss"] == [1.0, None]


def test_what_no_browser_reads_is_not_sent():
    value = {"loss": [1.0, float("nan"), float("inf")], "name": os.fsdecode(b"caf\xe9.png"), "n": (2, None, True)}
    text = strict_json(value)
    read = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert read == {"loss": [1.0, None, None], "name": value["name"], "n": [2, None, True]} and text.isascii()


def test_a_cache_keeps_what_was_used_last(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}").touch() if i % 2 else (tmp_path / f"{i}" / "in").mkdir(parents=True)
        os.utime(tmp_path / f"{i}", (i, i))
    keep_newest(tmp_path, 9)
    assert len(os.listdir(tmp_path)) == 5
    keep_newest(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["3", "4"]
    keep_newest(tmp_path / "gone", 2)


def test_many_write_one_file_of_a_cache_at_once(tmp_path):
    path, values = tmp_path / "look.json", [{"args": [str(i)] * 200} for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: cache_json(path, values[i % 4]), range(400)))
    assert json.loads(path.read_text()) in values and os.listdir(tmp_path) == ["look.json"]


# --------------------------------------------------------------------------------------- folders, locks, wishes
def test_folders_are_told_by_what_is_in_them(tmp_path):
    picture = Image.new("RGB", (2, 2))
    for name in ("photos/cat", "flat", "captions", "run/samples", "model/images", ".hidden/cat", "nested/deep/dog"):
        (tmp_path / name).mkdir(parents=True)
        picture.save(tmp_path / name / "0.png")
    (tmp_path / "captions/metadata.jsonl").write_text("")
    (tmp_path / "run/log.jsonl").write_text("")
    (tmp_path / "run/checkpoint-5/inner").mkdir(parents=True)
    (tmp_path / "model/model_index.json").write_text("{}")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/0.parquet").write_bytes(b"")
    (tmp_path / "empty/er").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    read = {
        kind: sorted(str(path.relative_to(tmp_path)) for path in paths) for kind, paths in kinds_in([tmp_path]).items()
    }
    assert read == {
        "data": ["captions", "flat", "nested/deep", "photos", "tables"],
        "runs": ["run"],
        "models": ["model"],
    }
    assert kinds_in([tmp_path / "gone"]) == {"data": [], "runs": [], "models": []}


def test_new_runs_have_a_folder_that_is_no_data_set(tmp_path, monkeypatch):
    """`cond-pipelines studio photos` can train, too."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "classes/rose", "classes/tulip", "work/run"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("photos", "classes/rose", "classes/tulip"):
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "work" / "run" / "log.jsonl").touch()
    assert with_room(["."]) == ["."] and with_room(["work", "photos"]) == ["work", "photos"]
    assert with_room(["photos", "classes", "work"]) == ["work", "photos", "classes"]
    assert with_room(["photos", "classes"]) == [".", "photos", "classes"]
    assert with_room(["work/run"]) == [".", "work/run"]
    assert conditioning_of(Path(builtin_model("shapes-class"))) == "class" and conditioning_of(tmp_path) is None


def test_a_lock_of_a_process_that_is_gone_or_of_another_is_none(tmp_path):
    host = os.uname().nodename
    lock = tmp_path / ".lock"
    assert process_in(tmp_path) is None
    for text in (
        f"process {os.getpid()} on {host}\n",
        "process 1 on elsewhere\n",
        f"process 999999999 on {host}\n",
        "x",
    ):
        lock.write_text(text)
        assert process_in(tmp_path) is None  # it lives, and does not hold the lock
    lock.write_text(f"process {os.getpid()} on {host}\n")
    with lock.open("a"):
        assert process_in(tmp_path) == psutil.Process()


def test_a_wish_is_taken_once_and_an_old_one_not_at_all(tmp_path):
    (tmp_path / "save-now").touch()
    requests = Requests(tmp_path, Accelerator(cpu=True))
    assert requests.taken(1) == set() and not (tmp_path / "save-now").exists()
    for name in ("sample-now", "save-now"):
        (tmp_path / name).touch()
    assert requests.taken(2) == {"sample", "save"} and requests.taken(3) == set()
    (tmp_path / "sample-now").mkdir()  # cannot be taken: it is none
    assert requests.taken(4) == set()


# --------------------------------------------------------------------------------------------------- commands
def test_a_command_in_the_background_leaves_its_end_on_disk(tmp_path):
    jobs = Jobs(tmp_path / "jobs")
    job = jobs.start("train", tmp_path, ["train", "--resolution", "0"])
    while job.exit_code is None:
        time.sleep(0.01)
    (again,) = Jobs(tmp_path / "jobs").all()
    assert again == job and again.exit_code == 2
    assert again.as_json()["state"] == "failed" and "--resolution 0" in again.message()
    assert again.command == "cond-pipelines train --resolution 0" and again.processes() == []
    assert "it has ended already" in jobs.stop(job.id)
    with pytest.raises(UserError, match="there is no job 'x'"):
        jobs.find("x")


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_killed_command_is_known_to_be(tmp_path, whole_group):
    """The command alone, or its shell too, as a machine without memory or power does."""
    job = Jobs(tmp_path).start("studio", tmp_path, ["studio", str(tmp_path), "--no_browser", "--port=0"])  # has no end
    while not (processes := job.processes()):
        time.sleep(0.001)
    os.killpg(job.pid, signal.SIGKILL) if whole_group else processes[0].kill()
    while job.exit_code is None:
        time.sleep(0.01)
    assert job.exit_code == (-1 if whole_group else 137)


def test_a_worker_that_is_killed_is_one_line_and_the_next_call_starts_another():
    async def calls() -> tuple[str, int]:
        worker = Worker()
        first = (await worker.call("process_of_a_worker:pid"))["pid"]
        with pytest.raises(UserError, match="was killed"):
            await worker.call("process_of_a_worker:killed")
        with pytest.raises(UserError, match="no module"):
            await worker.call("process_of_a_worker:refused")
        second = (await worker.call("process_of_a_worker:pid"))["pid"]
        worker.close()
        return first, second

    first, second = asyncio.run(calls())
    assert first != second and os.getpid() not in (first, second)


def test_work_that_nobody_waits_for_is_ended_and_what_waits_behind_it_is_done(tmp_path):
    async def calls() -> tuple[int, int, int]:
        worker = Worker(niceness=1, gives_up=True)
        first = (await worker.call("process_of_a_worker:pid"))["pid"]
        nice = psutil.Process(first).nice()
        under_way = asyncio.create_task(worker.call("process_of_a_worker:endless", str(tmp_path / "started")))
        behind = asyncio.create_task(worker.call("process_of_a_worker:pid"))
        given_up = asyncio.create_task(worker.call("process_of_a_worker:endless", str(tmp_path / "never")))
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.01)
        given_up.cancel()  # before it has begun
        under_way.cancel()
        second = (await behind)["pid"]
        worker.close()
        return first, second, nice

    first, second, nice = asyncio.run(calls())
    assert first != second and nice == os.nice(0) + 1 and not (tmp_path / "never").exists()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(first).wait(60)
    assert os.listdir(tmp_path) == ["started"]  # and no folder that is half full


@pytest.mark.parametrize("turns", range(0, 50, 10))
def test_a_process_that_is_just_being_started_is_ended_too(tmp_path, turns):
    """The call is cancelled after `turns` turns of the event loop; all are within the start of a process."""

    async def call() -> None:
        worker = Worker(gives_up=True)
        task = asyncio.create_task(worker.call("process_of_a_worker:endless", str(tmp_path / "started")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    resource_tracker.ensure_running()  # a child that stays
    before = set(psutil.Process().children())
    asyncio.run(call())  # ends when the thread that starts the process has ended
    left = [child for child in psutil.Process().children() if child not in before]
    assert psutil.wait_procs(left, timeout=60)[1] == [] and not (tmp_path / "started").exists()


def test_values_of_a_form_are_read_back_by_the_parser():
    given = {"train_data_dir": "a folder", "resolution": 32, "random_flip": True, "center_crop": False}
    given |= {"validation_prompts": ["a cat", "two dogs"], "learning_rate": 1e-4, "conditioning": "class"}
    config = parse_args(arguments_of(given | {"seed": None, "class_prompt": "", "ema_lengths": []}))
    assert {name: getattr(config, name) for name in given} == given
    with pytest.raises(UserError, match="no name of a flag"):
        arguments_of({"--config": "x"})


def test_a_form_has_the_fields_of_the_help():
    groups = form_of(EvaluationConfig, [EvaluationConfig], hidden=["model"])
    names = [field["name"] for group in groups for field in group["fields"]]
    assert [group["title"] for group in groups] == ["Most used", "More"] and "model" not in names
    assert len(names) == len(set(names)) == len(EvaluationConfig.__dataclass_fields__) - 1
    assert {field["name"]: field for field in groups[1]["fields"]}["sweep"]["type"] == "list"
    assert set(training_parser().known) > {"resolution"}


# ------------------------------------------------------------------------------------------------------ models
@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline("builtin:shapes-class")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_samples_depend_on_condition_and_seed_alone_and_frames_lead_to_them(pipe):
    frames, own = [], pipe.scheduler
    names = list(pipe.adapter.id2label.values())[:2]
    images = sampled(pipe, names, [5, 7], frames=frames, num_inference_steps=3)
    assert [len(frame) for frame in frames] == [2, 2, 2]
    assert frames[-1][0].tobytes() == images[0].tobytes() != frames[0][0].tobytes()
    alone = sampled(pipe, names[1:], [7], num_inference_steps=3)
    assert alone[0].tobytes() == images[1].tobytes()
    other = sampled(pipe, names[1:], [7], "heun", num_inference_steps=3)
    assert other[0].tobytes() != alone[0].tobytes() and pipe.scheduler is own
    with pytest.raises(ValueError, match="euler"):
        sampled(pipe, names[1:], [7], "nothing")
    assert pipe.scheduler is own


def test_the_nearest_training_image_of_one_is_itself():
    data = load_data(TrainingConfig(**TINY | {"conditioning": "class"}))
    images = TrainingImages(data)
    row = int(data.train[3])
    first, second = images.nearest(real_image(data, row), count=2)
    assert first["distance"] < 1e-3 < second["distance"] <= 1
    assert first["condition"] in data.id2label.values() and first["image"].size == (8, 8)
