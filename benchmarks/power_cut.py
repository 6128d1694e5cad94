"""Cut the power of a training run at random instants, resume it each time, and compare the end with one left alone.

    sudo python benchmarks/power_cut.py --num_cuts 10

The run writes to an ext4 file system that lies in a file. A power cut: that file is copied, without a sync, while the
run trains; what the system still has in its memory is not in the copy. The run and its disk are thrown away, the copy
is mounted (ext4 replays its journal, as after a real cut), and the same command goes on there. Needs root, for mount.
"""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from kill_test import SAVE_EVERY, drawn_shapes, logged_step, result, saved_step, start, warm_start
from processes import kill_all

from cond_pipelines.training.checkpoints import all_checkpoints, broken

_DISK_MB = 192


class Disk:
    """An ext4 file system in a file, mounted.

    Example:
        >>> disk = Disk(root)
        >>> (disk.folder / "file").write_text("kept in memory")
        >>> disk.cut_power()  # then the file is empty, or not there
    """

    def __init__(self, root: Path, size_mb: int = _DISK_MB):
        self.image, self.folder = root / "disk.ext4", root / "disk"
        self.folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size_mb * 2**20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True, timeout=60)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.folder], check=True, timeout=60)

    def copy(self, suffix: str = ".copy") -> Path:
        """What is on the disk at this instant."""
        return Path(shutil.copyfile(self.image, self.image.with_suffix(suffix)))

    def cut_power(self, copy: Path | None = None) -> None:
        """Go on with what was on the disk, now or when it was copied; nothing may use the folder any more."""
        copy = copy or self.copy()
        self.close()
        copy.rename(self.image)
        self._mount()

    def close(self) -> None:
        subprocess.run(["umount", self.folder], check=True, timeout=60)


def main() -> None:
    """Run the study; exit code 1 where a run does not go on, or loses more than an interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_cuts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_train_steps", type=int, default=240)
    options = parser.parse_args()
    how = {"num_processes": 1, "conditioning": "class", "gradient_accumulation_steps": 1}
    rng, root = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="power_cut_"))
    how |= {"max_train_steps": options.max_train_steps, "train_data_dir": drawn_shapes(root)}
    how = argparse.Namespace(**how)
    warm = warm_start()
    if start(root / "whole", how, warm).wait(timeout=3600) != 0:
        raise SystemExit("the run that nobody disturbs failed")
    disk, lost_most, resumed, during_save = Disk(root), 0, 0, 0
    folder = disk.folder / "run"
    print("| cut | steps done | newest whole checkpoint | lost | damaged | resumed |\n|---|---|---|---|---|---|")
    try:
        process = start(folder, how, warm)
        for cut in range(1, options.num_cuts + 1):
            _train_a_little(process, folder, rng)
            done = max(logged_step(folder), saved_step(folder))  # the log has every fourth
            during_save += bool(list(folder.glob("unfinished-checkpoint-*")))
            copy = disk.copy()
            kill_all(process)
            disk.cut_power(copy)
            whole = [path for path in all_checkpoints(folder) if broken(path) is None]
            damaged = len(list(folder.glob("checkpoint-*"))) - len(whole)
            saved = max((int(path.name.split("-")[1]) for path in whole), default=0)
            process = start(folder, how, warm)
            went_on = _goes_on(process, folder, saved)
            resumed, lost_most = resumed + went_on, max(lost_most, done - saved)
            print(
                f"| {cut} | {done} | {saved} | {done - saved} | {damaged} | {'yes' if went_on else 'NO'} |", flush=True
            )
        if process.wait(timeout=3600) == 0:
            shutil.copytree(folder, root / "resumed")  # weights are mapped from their file: the disk would be busy
    finally:
        with contextlib.suppress(Exception):
            kill_all(process)
        disk.close()
    weights, log = result(root / "resumed") if (root / "resumed").is_dir() else ({}, [])
    expected, expected_log = result(root / "whole")
    same = weights.keys() == expected.keys() and all((weights[name] == expected[name]).all() for name in expected)
    print(
        f"\n{resumed} of {options.num_cuts} resumed ({during_save} cut during a save); "
        f"at most {lost_most} steps lost (a checkpoint every {SAVE_EVERY}); "
        f"weights identical to those of an undisturbed run: {same}; log identical: {log == expected_log}; "
        f"{os.cpu_count()} CPU cores, Linux {os.uname().release}"
    )
    good = resumed == options.num_cuts and lost_most <= SAVE_EVERY and same and log == expected_log
    raise SystemExit(0 if good else 1)


def _train_a_little(process: subprocess.Popen, folder: Path, rng: random.Random) -> None:
    """For one to three checkpoints and a moment more, every other time until a checkpoint is being written."""
    during_save, until = rng.random() < 0.5, saved_step(folder) + SAVE_EVERY * rng.randint(1, 3)
    while saved_step(folder) < until:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with code {process.returncode}; take more --max_train_steps")
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 1))
    while during_save and process.poll() is None and not list(folder.glob("unfinished-checkpoint-*")):
        time.sleep(0.001)


def _goes_on(process: subprocess.Popen, folder: Path, saved: int) -> bool:
    """Whether the run makes a checkpoint after the one that was left."""
    while saved_step(folder) <= saved:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


if __name__ == "__main__":
    main()
