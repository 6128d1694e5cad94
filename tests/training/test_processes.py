"""Several processes: they end, as a command and as a library, and share the cores that the run was given."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_common import flags, log_of, run

from cond_pipelines import processes
from cond_pipelines.evaluate import main as main_of_evaluate
from cond_pipelines.training.checkpoints import all_checkpoints, broken

pytestmark = pytest.mark.timeout(600)  # a test starts up to four runs in processes of their own
SCRIPT = """
import os, sys, torch, torch.distributed as dist
from accelerate import PartialState
from training_common import flags
from cond_pipelines.processes import command_line
from cond_pipelines.training.config import parse_args
from cond_pipelines.training.loop import train

folder, end = sys.argv[1:]

class Finalizer:  # is destroyed with the interpreter, unless the process leaves before
    def __del__(self, mark=os.mkdir, path=f"{folder}/destructors-{os.environ['RANK']}"):
        mark(path)

kept = Finalizer()
PartialState(cpu=True)
for number, precision in enumerate(("no", "bf16") if end == "success" else ()):
    args = flags(output_dir=f"{folder}/{number}", mixed_precision=precision, train_batch_size=4, max_train_steps=2,
                 conditioning="custom", adapter="unused_layer:AngleAndUnused", condition_column="angle",
                 dataset_name="training_common:angles")
    train(parse_args(args))
    assert dist.is_initialized(), "the group stays for what comes next"
total = torch.tensor(1.0)
dist.all_reduce(total)
assert total == 2

@command_line
def main(args):
    print("the end", flush=True)
    if end == "error":
        raise RuntimeError("for a reason")
    if end == "code":
        raise SystemExit(2)

main()
"""
UNUSED = """
import torch
from angle_adapter import AngleAdapter
from diffusers.configuration_utils import register_to_config

class AngleAndUnused(AngleAdapter):
    @register_to_config
    def __init__(self, num_waves: int = 2, token_dim: int | None = None, pooled_dim: int | None = None):
        super().__init__(num_waves=num_waves, token_dim=token_dim, pooled_dim=pooled_dim)
        self.unused = torch.nn.Linear(3, 3)
"""


@pytest.mark.parametrize(("end", "code"), [("success", 0), ("error", 1), ("code", 2)])
def test_a_library_in_two_processes(tmp_path, warm, end, code):
    """Two runs in one process, of two precisions, with a layer that no step uses; an end without destructors."""
    (tmp_path / "unused_layer.py").write_text(UNUSED)
    (tmp_path / "script.py").write_text(SCRIPT)
    process = warm.start([tmp_path / "script.py", tmp_path, end], num_processes=2)
    out, err = process.communicate(timeout=240)
    assert out.count("the end") == 2, err[-3000:]
    assert process.returncode == code, err[-3000:]
    assert ("RuntimeError: for a reason" in err) == (end == "error")
    if end == "success":
        assert [log_of(tmp_path / str(n), "step") for n in range(2)] == [[1, 2]] * 2
    assert not list(tmp_path.glob("destructors-*"))


# ---------------------------------------------------------------------------------------------------- the commands
def test_two_processes_and_a_killed_one_give_the_report_of_one(tmp_path, warm):
    """To the last digit; and both end. The killed one loses power as the second of three files takes its name."""
    model = run(tmp_path / "model", conditioning="class", max_train_steps=2, validation_fraction=0.3)
    few = ["--num_samples", "70", "--num_real", "20", "--feature_extractor", "training_common:few_pixels"]
    few += ["--dataset_name", "training_common:shapes", "--num_likelihood", "4"]
    commands = {
        name: ["cond_pipelines.evaluate", str(model), *few, "--output_dir", str(tmp_path / name)]
        for name in ("two", "killed")
    }
    two = warm.start(["-m", *commands["two"]], num_processes=2)
    killed = warm.start(["-m", "at_an_event", "os.rename:00001.npy:1:SIGKILL", *commands["killed"]])
    main_of_evaluate([str(model), *few, "--output_dir", str(tmp_path / "one")])
    told = two.communicate(timeout=240)[1]
    assert two.returncode == 0 and "Traceback" not in told, told[-3000:]
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed/report.json").exists()
    (before,) = (tmp_path / "killed").glob("samples/*/0*.npy")
    written = before.stat().st_mtime_ns
    main_of_evaluate(commands["killed"][1:])
    assert before.stat().st_mtime_ns == written  # it was not drawn again
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two", "killed")]
    assert len(reports[0]["measures"]) > 3 and reports[1] == reports[0] and reports[2] == reports[0]


def test_accelerate_launch_is_as_the_document_says(tmp_path, warm):
    """An error: the line, then accelerate's traceback. Ctrl-C: the launcher leaves at once, the run behind it saves."""
    launch = ["-m", "accelerate.commands.launch", "-m", "cond_pipelines.training"]
    wrong = warm.start([*launch, "--learning_rat", "1"])
    args = flags(output_dir=tmp_path, max_train_steps=100_000, checkpointing_steps=50_000)
    process = warm.start([*launch, *args])
    told = wrong.communicate(timeout=240)[1]
    assert wrong.returncode == 1
    before, _, after = told.partition("Traceback")
    assert before.splitlines()[-1].startswith("error: ") and "--learning_rat" in before.splitlines()[-1], told
    assert "CalledProcessError" in after
    end = time.monotonic() + 240
    while len(log_of(tmp_path) if (tmp_path / "log.jsonl").is_file() else []) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=240)[1]  # all of its group have ended by then: nothing holds the pipe
    assert process.returncode in (130, -signal.SIGINT), told[-2000:]
    (saved,) = all_checkpoints(tmp_path)
    assert broken(saved) is None
    assert f"SIGINT: step {int(saved.name.split('-')[1]):,} is done and saved in {saved}" in told


# ------------------------------------------------------------------------------------------------------------ cores
THREADS = """
import os, sys, torch
from cond_pipelines.processes import cores_in_words, join_on_cpus, use_all_cores
use_all_cores()
join_on_cpus()
print(torch.get_num_threads(), cores_in_words(), os.environ.get("ACCELERATE_USE_CPU"), sep="|", flush=True)
"""


def test_the_cores_under_a_launcher(tmp_path, subprocess_env):
    """All of them, shared, unless the user chose a number; each launcher sets OMP_NUM_THREADS to 1 otherwise.

    Two processes join, though no variable of the user says that there is no GPU.
    """
    (tmp_path / "script.py").write_text(THREADS)
    free = {name: value for name, value in subprocess_env.items() if not name.startswith(("OMP_", "MKL_", "ACCEL"))}
    accelerate, torchrun = "accelerate.commands.launch", "torch.distributed.run"
    cores = processes.available_cores()
    words = f"{cores} core{'s' if cores > 1 else ''}"
    one = f"1|1 of {words} (OMP_NUM_THREADS=1)" if cores > 1 else "1|1 core"
    asked = ["--num_cpu_threads_per_process", "1"]
    expected = [
        ([accelerate], {}, [f"{cores}|{words}"]),
        ([accelerate], {"OMP_NUM_THREADS": "1"}, [one]),
        ([accelerate, *asked], {}, [one]),
        ([torchrun, "--standalone", "--nproc_per_node=2"], {}, [f"{max(1, cores // 2)}|"] * 2),
    ]
    started = []
    for launcher, env, _ in expected:
        command = [sys.executable, "-m", *launcher, str(tmp_path / "script.py")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=free | env, **pipes))
    for process, (launcher, env, lines) in zip(started, expected, strict=True):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]
        found = [line for line in out.splitlines() if "|" in line]
        assert len(found) == len(lines), (launcher, env, out)
        assert all(line.startswith(start) for line, start in zip(found, lines, strict=True)), (launcher, env, found)
        if len(lines) > 1 and not torch.accelerator.is_available():
            assert all(line.endswith("|true") for line in found), (launcher, env, found)


def test_a_number_of_threads_that_was_chosen_stays(tmp_path, capsys):
    """By `torch.set_num_threads`, as the tests do; and the opening lines say what is used."""
    before = torch.get_num_threads()
    run(tmp_path, max_train_steps=1)
    assert torch.get_num_threads() == before
    assert f"on cpu, {processes.cores_in_words()}\n" in "".join(capsys.readouterr())


def test_a_run_beside_busy_programs_says_so(tmp_path, capsys):
    """Only where its threads have no cores left: operations of several threads wait for each of them."""
    cores, before = processes.available_cores(), torch.get_num_threads()
    hidden = cores != os.cpu_count()  # a part of the machine: by a container's quota, or by `taskset`
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            run(tmp_path / str(threads), max_train_steps=1)
            lines = [line for line in "".join(capsys.readouterr()).splitlines() if "other programs use" in line]
            assert len(lines) == (threads == 2 and not hidden)
        start = rf"warning: other programs use \d+\.\d of {cores} cores, and this one has 2 threads: "
        assert hidden or re.match(start, lines[0])
    finally:
        torch.set_num_threads(before)
        for process in others:
            process.kill()
            process.wait(timeout=60)


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, [1.5]),
        ("0::/\n", {"cpu.max": "200000 100000"}, [2.0]),
        ("0::/on/the/host\n", {"cpu.max": "50000 100000"}, [0.5]),
        ("4:memory:/m\n3:cpu,cpuacct:/g\n", {"cpu,cpuacct/g/cpu.cfs_quota_us": "300000"}, [3.0]),
        ("3:cpu:/g\n", {"cpu/g/cpu.cfs_quota_us": "-1"}, []),
        ("", {}, []),
    ],
)
def test_quotas_of_control_groups(tmp_path, lines, files, expected):
    """As the kernel writes them, of versions 2 and 1."""
    (tmp_path / "cgroup").write_text(lines)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert processes.cpu_quotas(tmp_path / "cgroup", tmp_path / "root") == expected


@pytest.mark.parametrize(
    ("variables", "joined"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"WORLD_SIZE": "2"}, False),  # of a script that starts nothing, or is not yet started
        ({"WORLD_SIZE": ""}, False),
    ],
)
def test_only_what_a_launcher_started_is_joined(monkeypatch, variables, joined):
    """A number of processes alone made the only process wait for a second one, or fail."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")  # so that it is as it was after the test
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    processes.join_on_cpus()
    assert ("ACCELERATE_USE_CPU" in os.environ) == (joined and not torch.accelerator.is_available())
