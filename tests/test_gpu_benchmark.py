"""benchmarks/gpu.py: every part on a CPU, and what becomes of parts that hang, crash, or are interrupted, for real."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Parts of another kind, and the command with them in place of the real ones.
PARTS = {
    "good": """
def run(context):
    context.row('speed', 2.0, 'x', at_least=1)
    context.row('waits', 3.0, at_most=0)
""",
    "crashes": "def run(context):\n    context.row('before', 1)\n    raise ValueError('it broke')\n",
    "exits": "import os\ndef run(context):\n    os._exit(3)\n",
    # Two grandchildren: one that lives in a session of its own, and one whose parent is over.
    "hangs": """
import subprocess, sys, time
def run(context):
    context.row('before it hung', 1)
    away = [sys.executable, '-c', 'import time; time.sleep(600)', str(context.out)]
    subprocess.Popen(away, start_new_session=True)
    subprocess.run([sys.executable, '-c', f'import subprocess; subprocess.Popen({away!r})'])
    time.sleep(600)
""",
}
COMMAND = """
import sys
sys.path[:0] = [{benchmarks!r}, {here!r}]
import gpu
if __name__ == "__main__":
    parts = tuple(gpu.Part(name, minutes, name) for name, minutes in {parts!r})
    sys.exit(gpu.main(sys.argv[1:], parts))
"""


@pytest.fixture
def command(tmp_path):
    """Starts the command with some of PARTS, each with its share of the minutes."""
    for name, source in PARTS.items():
        (tmp_path / f"{name}.py").write_text(source)

    def start(parts, *args):
        here = str(tmp_path)
        (tmp_path / "command.py").write_text(COMMAND.format(benchmarks=str(BENCHMARKS), here=here, parts=parts))
        args = [sys.executable, str(tmp_path / "command.py"), "--device", "cpu", "--out", str(tmp_path / "out"), *args]
        return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def left_running(out):
    """Processes that hang on; they have the folder of the results among their arguments."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(out) in (p.info["cmdline"] or [])]


def server_of(process):
    """The fork server of the command, before the command ends."""
    return [p for p in psutil.Process(process.pid).children() if "forkserver" in " ".join(p.cmdline())]


def report(out):
    found = json.loads((out / "gpu.json").read_text())
    return found, {part["part"]: part["status"] for part in found["parts"]}


def test_parts_that_hang_or_crash_cost_their_share_and_leave_their_line(command, tmp_path):
    process = command([("hangs", 1), ("crashes", 4), ("exits", 4), ("good", 4)], "--minutes", "1.3")
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1, output
    found, status = report(tmp_path / "out")
    assert status["hangs"] == "killed at its limit of 6 s"
    assert status["crashes"] == "failed with exit code 1: ValueError: it broke"
    assert status["exits"].startswith("failed with exit code 3") and status["good"] == "done"
    rows = {(row["part"], row["what"]): row for row in found["rows"]}
    assert rows["hangs", "before it hung"]["value"] == 1 and rows["crashes", "before"]["value"] == 1
    assert rows["good", "speed"]["met"] is True and rows["good", "waits"]["met"] is False
    assert found["parts"][0]["sec"] < 9 and found["parts"][3]["limit_sec"] > 40  # what was left over is passed on
    assert not left_running(tmp_path / "out")
    text = (tmp_path / "out/gpu.md").read_text()
    assert "## crashes: failed with exit code 1: ValueError: it broke" in text
    assert "| waits | 3 | <= 0 | NO |" in text
    assert "good: speed: 2 x, goal >= 1: yes" in output and len(output.splitlines()) < 70


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_known_is_on_the_disk_when_a_signal_ends_it(command, tmp_path, number):
    process = command([("good", 1), ("hangs", 4)], "--minutes", "5")
    for line in process.stdout:
        if line.startswith("hangs:"):
            break
    while not ((tmp_path / "out/rows.jsonl").read_text().count("before it hung")):
        assert process.poll() is None
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in output, output
    found, status = report(tmp_path / "out")
    assert status == {"good": "done", "hangs": f"ended by {number.name}"}
    assert [row["what"] for row in found["rows"]] == ["speed", "waits", "before it hung"]
    assert not left_running(tmp_path / "out")


def test_results_are_written_as_they_come(command, tmp_path):
    """SIGKILL, which nothing can be done about: what was known a second before is there."""
    process = command([("good", 1), ("hangs", 4)], "--minutes", "5")
    out, found = tmp_path / "out", {}
    while "before it hung" not in str(found.get("rows")):
        assert process.poll() is None
        found = report(out)[0] if (out / "gpu.json").is_file() else {}
    server = server_of(process)
    part = [child for one in server for child in one.children()]
    assert server and part
    process.kill()
    process.wait(timeout=60)  # not for its output: what it started has that open too
    assert report(out)[1] == {"good": "done", "hangs": "running"}
    for left in (*part, *left_running(out)):
        left.kill()
    psutil.wait_procs([*server, *part], timeout=30)
    assert not any(p.is_running() for p in server)  # it ends with the last of its children


def test_only_and_skip(command, tmp_path):
    process = command([("good", 1), ("crashes", 1), ("exits", 1)], "--only", "good", "exits", "--skip", "exits")
    process.communicate(timeout=100)
    assert process.returncode == 0 and report(tmp_path / "out")[1] == {"good": "done"}


@pytest.mark.timeout(1000)  # a minute on two idle cores
def test_every_part_runs_on_a_cpu(tmp_path):
    """With the data that --prepare writes, in small."""
    sys.path.insert(0, str(BENCHMARKS))
    import gpu
    import mnist_digits
    import numpy as np
    from gpu_parts.prepare import write_digits
    from safetensors.torch import save_file

    (tmp_path / "data/mnist").mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28), dtype=np.uint8)
    write_digits(tmp_path / "data/mnist/train.parquet", images, np.arange(64) % 10)
    save_file(mnist_digits.DigitReader().state_dict(), tmp_path / "data/mnist_reader.safetensors")
    args = ["--device", "cpu", "--tiny", "--minutes", "10", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    names = [part.name for part in gpu.PARTS]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, args), "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    log = (tmp_path / "out/gpu.log").read_text()
    assert done.returncode == 0, done.stdout + log[-3000:]
    found, status = report(tmp_path / "out")
    assert set(status.values()) == {"done"} and list(status) == names
    failed = [row for row in found["rows"] if row["value"] == "failed"]
    assert not failed, failed
    by_name = {row["what"]: row for row in found["rows"]}
    assert by_name["pipeline tests on cpu"]["value"] == "3 of 3 passed"
    assert by_name["killed and resumed, deterministic algorithms: tensors that differ"]["value"] == 0
    assert by_name["losses with --compile and in eager mode, all steps: relative difference"]["value"] < 1e-5
    assert by_name["xxs, 8 px, 4 images: compiled with CUDA graphs"]["unit"] == "images/s"
    assert by_name["fsdp2.yaml on one CPU, against one process"]["value"] < 1e-5
    assert by_name["fsdp2.yaml on one CPU, resumed against whole"]["value"] == 0
    assert any("diffusers' loop" in name for name in by_name) and any("compiled" in name for name in by_name)
    assert len(done.stdout.splitlines()) <= 60 + 2 * len(status) + 1
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "gpu.md",
        "gpu.json",
        "gpu.log",
        "mnist.png",
        "shapes.png",
    }


def test_no_setting_of_the_equal_steps_is_refused(monkeypatch):
    """A try trains only two of them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from gpu_parts.equal_steps import SETTINGS, config_of

    made = {name: config_of(name, {"train_data_dir": "icons"}, seed=1, steps=10) for name in SETTINGS}
    assert len({repr(config) for config in made.values()}) == len(SETTINGS) > 1
