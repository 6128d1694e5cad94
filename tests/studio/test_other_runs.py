"""Runs that the studio did not start, that have only begun, and that somebody else made."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
from studio_common import Server, environment, folder_of_shapes, tiny

from cond_pipelines.background import Jobs
from cond_pipelines.command_line import arguments_of
from cond_pipelines.files import tail
from cond_pipelines.training.plan import plan
from cond_pipelines.training.run_files import conditioning_of, of_now, read_log, state_of

pytestmark = pytest.mark.timeout(600)  # with what the module sets up, on a busy machine

_LINE = '{"step": 1, "images": 4, "loss": 1.0, "lr": 0.1, "elapsed_sec": 3}\n'


@pytest.fixture(scope="module")
def studio(tmp_path_factory, subprocess_env):
    folder, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home")
    folder_of_shapes(folder / "shapes")
    server = Server(folder, home, environment(subprocess_env))
    server.folder, server.jobs = folder, Jobs(home / "jobs")
    yield server
    server.close()
    for job in server.jobs.all():
        for process in job.processes():
            process.kill()


@pytest.mark.parametrize(
    ("config", "log"),
    [
        ("max_train_minutes: long", _LINE),
        ("max_train_steps: many", _LINE),
        ("max_train_steps: 5", _LINE.replace("3}", '"x"}')),
        ("max_train_steps: 5", _LINE.replace("1,", f"1{'0' * 400},", 1)),
        ("max_train_steps: 5", _LINE.replace("0.1", "[" * 900 + "]" * 900)),
        ("conditioning: 2024-01-01", _LINE),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(studio, config, log):
    run = studio.folder / "damaged"
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text("[" * 100_000)
    (run / "model_index.json").write_text("[" * 100_000)
    (run / "training_config.yaml").write_text(config)
    (run / "log.jsonl").write_text(log)
    studio.wait_for(lambda: studio.run(run).get("mtime") == (run / "log.jsonl").stat().st_mtime)
    assert len(studio.get("runs/log", path=str(run))["logs"]) == 1


def test_the_plan_says_that_a_run_must_not_lie_among_its_data(tmp_path):
    data = folder_of_shapes(tmp_path / "shapes")
    assert plan(arguments_of(tiny(data, tmp_path / "run")))["lines"]
    with pytest.raises(ValueError, match="is in --train_data_dir"):
        plan(arguments_of(tiny(data, data / "run")))


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in (".lock", "log.jsonl", "run.json", "model_index.json", "training_config.yaml"):
        os.mkfifo(tmp_path / name)
    assert tail(tmp_path / ".lock", 10) == "" and read_log(tmp_path)["num_lines"] == 0
    assert conditioning_of(tmp_path) is None and state_of(tmp_path, None)["step"] is None


def test_what_a_command_of_before_said_is_not_said_of_a_run_in_a_terminal(tmp_path):
    job = Jobs(tmp_path / "jobs").start("train", tmp_path, ["train", "--resolution", "0"])
    while job.exit_code is None:
        time.sleep(0.01)
    lock, ended = tmp_path / ".lock", job.record.with_suffix(".code").stat().st_mtime
    lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    os.utime(lock, (ended - 1, ended - 1))
    assert of_now(tmp_path, job) is job and state_of(tmp_path, job)["state"] == "failed"
    with lock.open("a"):  # this process holds it
        state = state_of(tmp_path, job)
    assert (state["state"], state["message"]) == ("starting", None)
    os.utime(lock, (ended + 1, ended + 1))  # it began later, and has ended
    state = state_of(tmp_path, job)
    assert (state["state"], state["message"]) == ("stopped", None)


def test_a_run_that_is_only_starting_is_stopped_and_has_no_step_to_save(studio):
    run = studio.folder / "early"
    job = studio.jobs.find(studio.post("train/start", args=tiny(studio.folder / "shapes", run))["job"])
    (process,) = studio.wait_for(job.processes)
    process.suspend()  # it would import torch for seconds; however long this test takes, it has no folder yet
    for action in ("sample", "save"):
        assert "only starting" in studio.post(f"runs/{action}", 400, path=str(run))["error"]
    assert studio.post("runs/stop", path=str(run))["done"] == "it ends at once"
    process.resume()
    studio.wait_for(lambda: studio.run(run).get("state") not in ("starting", "running"))
    assert "nothing runs" in studio.post("runs/pause", 400, path=str(run))["error"] and not run.exists()


def test_a_server_that_is_terminated_ends_in_order(tmp_path, subprocess_env):
    """As at Ctrl-C: exit code 0, its worker ends, and nothing is printed."""
    command = [sys.executable, "-m", "cond_pipelines.cli", "studio", str(tmp_path), "--no_browser", "--port=0"]
    process = subprocess.Popen(
        [*command, f"--cache_dir={tmp_path / 'home'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(subprocess_env),
    )
    assert process.stdout.readline().startswith("studio: http://127.0.0.1:")
    server = psutil.Process(process.pid)
    while len(workers := server.children()) < 2:  # the one that reads data, and multiprocessing's own
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert psutil.wait_procs(workers, timeout=300)[1] == []
