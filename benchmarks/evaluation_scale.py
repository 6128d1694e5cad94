"""python benchmarks/evaluation_scale.py: time and memory of the measures of 10,000 samples against 60,000 references.

Features are given: normal vectors in ten classes, most of their variance in the first 20 directions, as a trained
network's are. All rows of a class-conditional report are made, intervals included, beside 1,000 held-out images.
"""

import argparse
import json
import os
import resource
import time

import numpy as np
import torch

from cond_pipelines.evaluation.obedience import label_rows
from cond_pipelines.evaluation.questions import Part, Sets, distribution_rows


def features(count: int, dim: int, seed: int) -> Part:
    """(count, dim) float32 in ten classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=count)
    centres = np.random.default_rng(0).standard_normal((10, dim), dtype=np.float32)
    scale = np.where(np.arange(dim) < 20, 3.0, 0.5).astype(np.float32)
    x = rng.standard_normal((count, dim), dtype=np.float32)
    return Part(x * scale + 0.3 * centres[labels], labels.tolist())


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_samples", type=int, default=10_000)
    parser.add_argument("--num_real", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=768, help="of a feature: 768 for DINOv2-base, 2048 for Inception")
    options = parser.parse_args()
    sets = Sets(
        fake=features(options.num_samples, options.dim, 1),
        train=features(options.num_real, options.dim, 2),
        held_out=features(1000, options.dim, 3),
    )
    start = time.perf_counter()
    rows, _ = distribution_rows(sets.fake.features, sets.train.features, sets.held_out.features)
    distribution_sec = time.perf_counter() - start
    rows += label_rows(sets, {i: str(i) for i in range(10)})[0]
    result = {
        **vars(options),
        "rows": len(rows),
        "distribution_sec": round(distribution_sec, 1),
        "all_sec": round(time.perf_counter() - start, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
