"""The table of worked examples in CONTRIBUTING.md: what each new idea costs, counted by git, and each of them works.

A patch in tests/worked_examples/ is a change of this package: `git apply` counts its files and lines, then it is
applied to a copy. A file in tests/third_party/ is somebody else's, and nothing here changes for it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cond_pipelines import TrainingConfig
from cond_pipelines.data.load import load_data

ROOT = Path(__file__).parents[1]
ROW = re.compile(
    r"^\| (?P<idea>[^|]+) \| (?P<new>\d) \| (?P<changed>\d) \| `(?P<example>tests/[^`]+)` \|$", re.MULTILINE
)
TABLE = [match.groupdict() for match in ROW.finditer((ROOT / "CONTRIBUTING.md").read_text())]
PATCHES = sorted((ROOT / "tests/worked_examples").glob("*.patch"))
# Each runs in the copy to which all patches were applied, in one process, for an import takes seconds.
USE = """
import numpy as np, torch
from cond_pipelines import build_unet
from cond_pipelines.evaluation.questions import distribution_rows
from cond_pipelines.objectives import OBJECTIVES
from cond_pipelines.objectives.base import Draws
from cond_pipelines.settings import find_setting

unet = build_unet("4px", sample_size=4, channels=1)
x_t, t = torch.randn(2, 1, 4, 4), torch.tensor([3.0, 700.0])
adapter = find_setting("angle").adapter_class.for_unet(unet)
cond = adapter(adapter.preprocess([90.0, None]))
calls = []

def denoise(x_t, t):
    calls.append(t)
    return unet(x_t, t, **cond.unet_kwargs(unet)).sample

draws = Draws(torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.6]), torch.zeros(2, 1), torch.full((2, 1), 0.5))
loss = OBJECTIVES["straightness"]().loss(denoise, x_t, draws)
assert loss.shape == (2,) and loss.isfinite().all() and len(calls) == 2 and (calls[1] < calls[0]).all()
features = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
rows, _ = distribution_rows(features[:20], features[20:40], features[40:])
assert "distance of the means" in [row["name"] for row in rows]
print("all of them work")
"""


def numstat(patch: Path) -> list[str]:
    """The files of a patch, as git counts them."""
    command = ["git", "apply", "--numstat", str(patch)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def test_the_table_names_every_example():
    assert len(TABLE) == 8
    named = {row["example"] for row in TABLE}
    assert {str(path.relative_to(ROOT)) for path in PATCHES} <= named
    assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["idea"])
def test_the_table_says_what_git_counts(row):
    """New files, and changed ones; a table that gets a row counts as a changed file, and gets few lines."""
    path = ROOT / row["example"]
    if path.suffix == ".py":  # outside: one file, which this package does not name
        source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
        module = Path(path.relative_to(ROOT / "tests/third_party").parts[0]).stem
        assert (row["new"], row["changed"]) == ("1", "0") and module not in source
        return
    text = path.read_text()
    files = [line.split("\t") for line in numstat(path)]
    new = text.count("\nnew file mode")
    assert (int(row["new"]), int(row["changed"])) == (new, len(files) - new)
    for added, deleted, name in files:
        is_new = f"--- /dev/null\n+++ b/{name}" in text
        assert name.startswith("src/") and (is_new or int(added) + int(deleted) <= 12), "a row, not a rewrite"


def test_each_change_applies_and_works(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for patch in PATCHES:
        done = subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{patch.name} does not apply any more, make it again: {done.stderr}"
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r})\n{USE}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "all of them work" in done.stdout, done.stderr


def test_a_data_format_of_ones_own(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", images=images, labels=np.arange(12) % 3)
    monkeypatch.setenv("DIGITS", str(tmp_path / "digits.npz"))
    config = TrainingConfig(conditioning="class", dataset_name="npz_format:digits", resolution=8)
    data = load_data(config)
    assert data.id2label == {0: "0", 1: "1", 2: "2"} and data.dataset.channels == 1
    assert len(data.train) + len(data.held_out) == 12
