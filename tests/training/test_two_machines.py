"""Two machines, each a network namespace of its own with a cable between them, train as one process would."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_common import ROUNDING_OF_LOSS, flags, largest_difference, log_of, rounding_of_training, run

from cond_pipelines import ConditionalPipeline

# Adam divides by the gradient's size, so rounding would show where it is nearly zero; a large epsilon prevents that.
SETTINGS = {
    "optimizer": "adamw",
    "conditioning": "class",
    "max_train_steps": 12,
    "adam_epsilon": 1e-2,
    "learning_rate": 1e-2,
}


def ip(*args):
    return subprocess.run(["ip", *args], capture_output=True, text=True, timeout=30)


@pytest.fixture()
def machines():
    """Names of two network namespaces, in which eth0 leads to the other: 10.77.0.1 and 10.77.0.2."""
    names = [f"cond{os.getpid()}{side}" for side in "ab"]
    if ip("netns", "add", names[0]).returncode != 0:
        pytest.skip("this machine does not let us make network namespaces")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for number, name in enumerate(names, start=1):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "link", "set", name, "name", "eth0")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_machines_train_as_one_process(machines, tmp_path, subprocess_env):
    """Half of the batch each: the same loss at each of 12 steps, and the same weights."""
    env = subprocess_env | {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] += f":{Path(__file__).parents[1]}"
    args = flags(output_dir=tmp_path / "two", train_batch_size=4, **SETTINGS)
    running = []
    for rank, name in enumerate(machines):
        where = ["--nnodes=2", f"--node_rank={rank}", "--master_addr=10.77.0.1", "--master_port=29555"]
        command = [sys.executable, "-m", "torch.distributed.run", *where, "-m", "cond_pipelines.training", *args]
        command = ["ip", "netns", "exec", name, *command]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    told = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], told[0][1][-2000:]
    assert "x 2 process(es)" in told[0][0] + told[0][1]
    one = run(tmp_path / "one", train_batch_size=8, **SETTINGS)
    assert len(log_of(one)) == 12
    assert np.allclose(log_of(tmp_path / "two"), log_of(one), rtol=ROUNDING_OF_LOSS)
    networks = [ConditionalPipeline.from_pretrained(folder).unet for folder in (one, tmp_path / "two")]
    assert largest_difference(*networks) < rounding_of_training(1e-2, 12)
