"""How long 100,000 files take to start: CPU seconds of listing them and of all checks before the first step.

python benchmarks/data_start.py [--num_files 100000]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cond_pipelines.data.load import load_data
from cond_pipelines.data.loading import load_source
from cond_pipelines.training.config import TrainingConfig


def main() -> None:
    """Make the files, read them, and print one line a stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_files", type=int, default=100_000)
    count = parser.parse_args().num_files
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        rng = np.random.default_rng(0)
        for i in range(count):
            path = folder / f"class {i % 100}" / f"{i:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i < 1000:
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
            else:
                path.write_bytes((folder / f"class {i % 100}" / f"{i % 1000:06}.png").read_bytes() + bytes(i % 97))
        measured("listing and rows", lambda: load_source(str(folder)))
        config = TrainingConfig(
            conditioning="class",
            train_data_dir=str(folder),
            cache_dir=temporary,
            output_dir=temporary,
            cache_images=False,
        )
        measured("everything before the first step", lambda: load_data(config))


def measured(what: str, run: object) -> None:
    """Print the CPU seconds and the growth of memory of one stage."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    run()  # type: ignore[operator]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{what}: {time.process_time() - start:.1f} s of CPU, {grown / 1024:.0f} MiB more at the peak")


if __name__ == "__main__":
    main()
