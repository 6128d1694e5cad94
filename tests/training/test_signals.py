"""Each row of the table in training/README.md, "A run that is interrupted", that is about signals, pipes and limits.

Runs in processes of their own, each in a group (and session) of its own, as `timeout`, systemd, SLURM and a terminal
have it. Moments are not caught by luck: a data set or a log line that the run itself writes says where it is.
"""

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hub_server import TOKEN
from training_common import flags, run

from cond_pipelines import ConditionalPipeline
from cond_pipelines.training.checkpoints import all_checkpoints, broken

SLOW = {"max_train_steps": 100_000, "train_batch_size": 2, "conditioning": "class", "logging_steps": 1}
README = Path(__file__).parents[2] / "training/README.md"


def start(folder, warm, num_processes=1, env=None, **settings):
    more = ["--push_to_hub"] if settings.pop("push_to_hub", False) else []
    env = warm.env | {"PYTHONUNBUFFERED": "1"} | (env or {})
    return warm.start(
        ["-m", "cond_pipelines.training", *flags(output_dir=folder, **settings), *more], env, num_processes
    )


def wait_for(condition, process, sec=300.0):
    end = time.monotonic() + sec
    while not condition():
        assert process.poll() is None, process.communicate(timeout=60)[1][-2000:]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def steps_done(folder):
    path = folder / "log.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def workers_of(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def ended(process, sec=300):
    out, told = process.communicate(timeout=sec)
    assert "Traceback" not in told, told[-3000:]
    return process.returncode, out, told


def end_in_order(process, folder, name):
    """Exit code 0, one whole checkpoint, and the line that says so."""
    code, _, told = ended(process)
    assert code == 0, told[-2000:]
    (saved,) = all_checkpoints(folder)
    step = int(saved.name.split("-")[1])
    assert broken(saved) is None
    assert told.splitlines()[-1] == (
        f"{name}: step {step:,} is done and saved in {saved}; go on with the same command and "
        "--resume_from_checkpoint latest"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_whole_group_with_workers(number, tmp_path, warm):
    """Workers ignore it; they are gone when the run is."""
    process = start(tmp_path, warm, dataloader_num_workers=2, **SLOW)
    wait_for(lambda: steps_done(tmp_path) >= 2, process)
    workers = workers_of(process)
    assert len(workers) >= 2
    os.killpg(process.pid, number)
    end_in_order(process, tmp_path, number.name)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_signal_to_all_of_two_processes(tmp_path, warm):
    """They agree on the step after which both leave."""
    process = start(tmp_path, warm, num_processes=2, **SLOW)
    wait_for(lambda: steps_done(tmp_path) >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    end_in_order(process, tmp_path, "SIGTERM")


def test_a_signal_to_a_worker_alone_is_ignored_and_its_death_is_one_line(tmp_path, warm):
    process = start(tmp_path, warm, dataloader_num_workers=2, checkpointing_steps=5, **SLOW)
    wait_for(lambda: (tmp_path / "checkpoint-5").is_dir(), process)
    worker = workers_of(process)[-1]
    os.kill(worker, signal.SIGTERM)
    done = steps_done(tmp_path)
    wait_for(lambda: steps_done(tmp_path) >= done + 20, process)
    os.kill(worker, signal.SIGKILL)  # as the system does that has no memory left
    code, _, told = ended(process)
    assert code == 1
    (line,) = [line for line in told.splitlines() if line.startswith("error:")]
    assert re.match(
        r"error: step [\d,]+: a worker process that reads images was killed, most often by the system", line
    )
    assert "--dataloader_num_workers" in line and "is whole: go on with the same command" in line


def test_workers_end_with_a_run_that_is_killed(tmp_path, warm):
    process = start(tmp_path, warm, dataloader_num_workers=2, **SLOW)
    wait_for(lambda: steps_done(tmp_path) >= 2, process)
    workers = workers_of(process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "they live on"
        time.sleep(0.02)


def test_before_the_first_step(tmp_path, warm):
    """In the middle of a data set that takes long to load: one line, and the shell's exit code."""
    process = start(tmp_path, warm, dataset_name="training_common:slow_to_load")
    wait_for((tmp_path / "loading").exists, process)
    process.send_signal(signal.SIGINT)
    code, _, told = ended(process)
    assert code == 130
    assert told.splitlines()[-1] == "SIGINT: stopped before the first step, so there is nothing to save"


def test_after_the_last_step_samples_are_left_out(tmp_path, warm):
    """A signal while the last samples are drawn, which takes minutes here: model and card are whole, exit code 0."""
    process = start(tmp_path, warm, default_num_inference_steps=4_999, max_train_steps=2)
    wait_for((tmp_path / "loss.png").exists, process)  # written between the weights and the samples
    process.send_signal(signal.SIGTERM)
    code, _, told = ended(process)
    assert code == 0, told[-2000:]
    line = f"SIGTERM: the model in {tmp_path} is whole, its card is written without new samples"
    assert told.splitlines()[-1] == line
    ConditionalPipeline.from_pretrained(tmp_path)
    assert (tmp_path / "README.md").is_file() and (tmp_path / "training_summary.json").is_file()
    assert not (tmp_path / "samples.png").exists()


def test_in_an_evaluation_the_samples_are_left_out(tmp_path, warm):
    """They would take minutes here, and a scheduler gives none."""
    steps = {"evaluation_steps": 1, "default_num_inference_steps": 4_999}
    process = start(tmp_path, warm, **(SLOW | steps))
    wait_for(lambda: steps_done(tmp_path) >= 1, process)
    process.send_signal(signal.SIGTERM)
    end_in_order(process, tmp_path, "SIGTERM")


def test_in_the_push_the_line_says_how_to_push(tmp_path, warm, hub):
    hub.fail("POST /api/repos/create", silent=True)
    given = {"hub_model_id": "me/shapes", "hub_token": TOKEN, "push_to_hub": True, "max_train_steps": 1}
    process = start(tmp_path, warm, **given)
    wait_for(lambda: any("create" in request for request in hub.requests), process)
    process.send_signal(signal.SIGTERM)
    code, _, told = ended(process)
    assert code == 0
    assert f"push it later: cond-pipelines push {tmp_path} me/shapes\n" in told
    assert told.splitlines()[-1] == f"SIGTERM: the model in {tmp_path} is whole, its card is written"
    assert (tmp_path / "samples.png").is_file()


def test_a_pipe_that_closes(tmp_path, warm):
    """As `2>&1 | head -n 1` has it: the run goes on to its end; without a temporary folder too."""
    process = start(tmp_path, warm, env={"TMPDIR": "/proc/nowhere"}, max_train_steps=4, conditioning="class")
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(300) == 0
    assert steps_done(tmp_path) >= 4 and (tmp_path / "README.md").is_file()


def test_a_terminal_that_closes(tmp_path, subprocess_env):
    """SIGHUP, and nowhere to write to: the run saves all the same."""
    ours, theirs = pty.openpty()
    args = flags(output_dir=tmp_path, dataloader_num_workers=1, **SLOW)
    path = os.pathsep.join([str(Path(__file__).parents[1]), subprocess_env["PYTHONPATH"]])
    process = subprocess.Popen(
        # The tests themselves may run under nohup, whose children ignore SIGHUP.
        ["env", "--default-signal=HUP", "setsid", "--ctty", "--wait"]
        + [sys.executable, "-m", "cond_pipelines.training", *args],
        env=subprocess_env | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def read_and_look():
        with suppress(BlockingIOError):
            os.read(ours, 10**6)  # a full terminal would hold the run up
        return steps_done(tmp_path) >= 2

    wait_for(read_and_look, process)
    os.close(ours)  # the terminal is gone: SIGHUP to the group, EIO for what is written
    assert process.wait(300) == 0
    (saved,) = all_checkpoints(tmp_path)
    assert broken(saved) is None


LIMITS = {
    "open files": ("ulimit -n 30", {"dataloader_num_workers": 2}),
    "memory": ("ulimit -v 3000000", {"train_batch_size": 4096, "resolution": 64}),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_of_the_machine(limit, tmp_path, subprocess_env):
    shell, settings = LIMITS[limit]
    args = [sys.executable, "-m", "cond_pipelines.training", *flags(output_dir=tmp_path, **settings)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), subprocess_env["PYTHONPATH"]])
    env = subprocess_env | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = ["sh", "-c", f'{shell}; exec "$@"', "sh", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    code, _, told = ended(subprocess.Popen(command, env=env, **pipes))
    assert code in (1, 2), (code, told[-2000:])
    assert len([line for line in told.splitlines() if line.startswith("error:")]) == 1, told[-2000:]


def test_a_limit_of_a_files_size(tmp_path):
    """Before the first step: the weights could be saved nowhere."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(
            ValueError, match=r"ulimit -f allows files of 1.0 MiB, and a file of weights has [\d.]+: raise"
        ):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_done(tmp_path) == 0


def test_every_row_of_the_table_is_here():
    """Who adds a row adds a test, and names it here."""
    table = README.read_text().split("## A run that is interrupted")[1].split("## ")[0]
    rows = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")][1:]
    tests = {
        "SIGTERM, Ctrl-C": test_a_signal_to_the_whole_group_with_workers,
        "the same before the first step": test_before_the_first_step,
        "the same after the last step": test_after_the_last_step_samples_are_left_out,
        "a closed terminal or pipe": test_a_terminal_that_closes,
        "a worker that reads": test_a_signal_to_a_worker_alone_is_ignored_and_its_death_is_one_line,
        "a wrong argument": "test_wrong_inputs.py",
        "an error in your own module": "test_wrong_inputs.py",
        "a Hub that does not answer": "test_hub.py",
        "SIGKILL": "test_survival.py",
        "full disk": "test_survival.py",
        "a disk that fills": "test_run_folder.py",
        "gradients": "test_survival.py",
        "weights that are not finite": "test_survival.py",
        "a full disk at the last save": "test_run_folder.py",
        "another learning rate": "test_resume.py",
        "a checkpoint of an earlier version": "test_written_by_0_1.py",
        "a longer run": "test_resume.py",
        "a shorter run": "test_resume.py",
        "a pretrained model, text encoder": "test_resume.py",
        "holds a finished model": "test_run_folder.py",
        "the same, with `--resume_from_checkpoint`": "test_run_folder.py",
        "the same, with `--overwrite_output_dir`": "test_run_folder.py",
        "is in use by another run": "test_run_folder.py",
        "the output folder": "test_run_folder.py",
        "another batch size": "test_survival.py",
        "another data set": "test_survival.py",
    }
    for row in rows:
        assert any(row.startswith(beginning) for beginning in tests), row
