"""python benchmarks/train_memory.py: peak memory of a training run on 1,000 and on 100,000 images.

Each run is a process of its own, which takes its images from parquet files; printed are the peak resident set sizes,
and their ratio: of a set as it is by default (77 MB when decoded, so in a file), of one whose decoded images are kept
in a file from the first one on, and of a streamed one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets

from cond_pipelines.data.shapes import load_shapes


def write_parquet(folder: Path, count: int) -> None:
    """Files of 1,000 images each; the images repeat, their labels do not matter."""
    folder.mkdir(parents=True)
    part = load_shapes(1000)
    for number in range(count // 1000):
        part.to_parquet(folder / f"{number:04}.parquet")


def peak_mib(folder: Path, options: argparse.Namespace, *more: str) -> float:
    """Peak resident set size of a run."""
    args = ["--train_data_dir", str(folder), "--resolution", "16", "--conditioning", "class", "--unet_size", "xxs"]
    args += ["--max_train_steps", str(options.steps), "--train_batch_size", "32", "--report_to", "none", *more]
    args += ["--default_num_inference_steps", "1", "--validation_steps", "0", "--mixed_precision", "no"]
    with tempfile.TemporaryDirectory() as out:
        args += ["--output_dir", f"{out}/model", "--cache_dir", f"{folder}.cache"]
        code = (
            "import sys, resource; from cond_pipelines.training.__main__ import main; main(sys.argv[1:])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True, timeout=3600
        )
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--counts", type=int, nargs=2, default=[1000, 100_000])
    options = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            write_parquet(Path(folder) / str(count), count)
        for name, flag in (("default", []), ("cache_images", ["--cache_images"]), ("streaming", ["--streaming"])):
            # The larger of two runs of each: the first one makes what is kept.
            peaks = [max(peak_mib(Path(folder) / str(n), options, *flag) for _ in range(2)) for n in options.counts]
            result[name] = {"peak_mib": [round(p) for p in peaks], "ratio": round(peaks[1] / peaks[0], 3)}
    print(json.dumps({"images": options.counts, "datasets": datasets.__version__, **result}))


if __name__ == "__main__":
    main()
