"""Arrays on disk: what goes in comes out, whoever asks and whatever is killed."""

import signal

import numpy as np
import pytest

from cond_pipelines.data.array_file import ArrayFile, stored

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), None, np.ones((1, 4), np.float32), np.zeros((0, 2), np.float32)]
ARRAYS += [np.array([7.0], np.float32)]

SCRIPT = """
import os, signal, sys, time, numpy as np
from pathlib import Path
from cond_pipelines.data.array_file import stored

folder, what = Path(sys.argv[1]), sys.argv[2]

def make(notes):
    with open(f"{folder}.made", "a") as file:
        file.write("made\\n")
    end = time.monotonic() + 50
    while what == "waits for two" and len(list(folder.parent.glob("ready-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    for i in range(20):
        if what == "is killed" and i == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        yield np.full((2, 2), i, np.uint8)

(folder.parent / f"ready-{os.getpid()}").touch()
print(sum(int(stored(Path(sys.argv[1]), make)[i].sum()) for i in range(20)))
"""


def started(folder, warm, what):
    return warm.start(["-c", SCRIPT, folder, what])


def test_round_trip(tmp_path):
    def make(notes):
        notes[1] = "gone"
        yield from ARRAYS

    for file in (stored(tmp_path / "a", make), ArrayFile(tmp_path / "a")):
        assert len(file) == 5 and file.notes == {1: "gone"}
        assert [i in file for i in range(-1, 6)] == [False, True, False, True, True, True, False]
        for i in (0, 2, 3, 4):
            assert np.array_equal(file[i], ARRAYS[i]) and file[i].dtype == np.float32
        with pytest.raises(KeyError):
            file[1]
    with pytest.raises(ValueError, match="read-only"):
        file[0][0, 0] = 1


def test_nothing_is_left_of_what_failed(tmp_path):
    def fail(notes):
        yield ARRAYS[0]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        stored(tmp_path / "a", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]


def test_a_killed_writer_is_followed_by_another(tmp_path, warm):
    process = started(tmp_path / "a", warm, "is killed")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and (tmp_path / "unfinished-a").is_dir()
    assert not (tmp_path / "a").exists()
    assert started(tmp_path / "a", warm, "").communicate(timeout=60)[0] == f"{4 * sum(range(20))}\n"
    assert not (tmp_path / "unfinished-a").exists()


def test_of_two_processes_one_makes_it(tmp_path, warm):
    processes = [started(tmp_path / "a", warm, "waits for two") for _ in range(2)]
    assert [p.communicate(timeout=60)[0] for p in processes] == [f"{4 * sum(range(20))}\n"] * 2
    assert (tmp_path / "a.made").read_text() == "made\n"


def made(folder, calls):
    """ARRAYS from `folder`; notes in `calls` that they had to be made."""

    def make(notes):
        calls.append(1)
        yield from ARRAYS

    return stored(folder, make)


@pytest.mark.parametrize("name", ["data.bin", "index.npy", "facts.json"])
def test_what_does_not_verify_is_made_again(tmp_path, name, capsys):
    """As a power cut leaves files of an earlier version: empty, zeroed, cut off; a bit, or a file that is missing."""
    made(tmp_path / "a", calls := [])
    path = tmp_path / "a" / name
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    for damage in (b"", bytes(len(good)), good[:-9], bytes(flipped), None):
        path.unlink() if damage is None else path.write_bytes(damage)
        file = made(tmp_path / "a", calls)
        assert all(np.array_equal(file[i], ARRAYS[i]) for i in (0, 2, 3, 4))
        assert "does not verify" in capsys.readouterr().err
    assert len(calls) == 6
    made(tmp_path / "a", calls)
    assert len(calls) == 6 and not capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.lock"]
