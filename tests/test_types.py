"""Type hints: mypy, strict, over the modules that pyproject.toml lists."""

import subprocess
import sys
from pathlib import Path


def test_mypy():
    """Here rather than before pytest: the other core runs tests meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
