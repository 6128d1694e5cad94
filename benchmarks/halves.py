"""`cond-pipelines halves` where the answer is known: planted memorisers, and models that have enough images.

    python benchmarks/halves.py --seeds 0 1 2 --output_dir output/halves

A memoriser is trained on 50 drawn shapes in a long run, a healthy model on 2,000 in a run of as many steps. Each seed
has images, weights and noise of its own. The table says how often each is flagged (memorised, or leans), and how often
the held-out loss alone would flag it: where it has risen by more than 2 % since the lowest step that was measured. The
last column looks at the step where that loss is lowest, where whoever goes by it stops: how often samples lean there.
Calls that are finished are kept, so the command can be given again with more seeds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.evaluation.halves import LEANS
from cond_pipelines.files import write_text
from cond_pipelines.halves.arguments import HalvesConfig
from cond_pipelines.halves.run import run_halves
from cond_pipelines.networks.unet_sizes import NetworkSize, find_size
from cond_pipelines.processes import use_all_cores
from cond_pipelines.training.config import TrainingConfig

RISEN = 1.02  # the held-out loss at the end, as a multiple of its lowest
_XXS = find_size("xxs")
# A quarter of the smallest size of the table, so that 40 calls end.
SMALLEST = NetworkSize(
    0.2,
    2e-3,
    {
        **_XXS.arguments,
        "block_out_channels": (24, 48),
        "attention_head_dim": (1, 1),
        "norm_num_groups": 6,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
    num_halvings=1,
)


def call(kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The report of one call, with what the held-out loss alone says."""
    num_images = options.few if kind == "memoriser" else options.many
    home = options.output_dir / f"{kind}-{seed}"
    images, file = home / "images", home / "out/halves.json"
    if not file.is_file():
        if not images.is_dir():
            images.mkdir(parents=True)
            load_shapes(num_images, seed=1000 + seed).to_parquet(images / "shapes.parquet")
        training = TrainingConfig(
            conditioning=options.conditioning,
            train_data_dir=str(images),
            caption_column="caption" if options.conditioning == "text" else None,
            resolution=options.resolution,
            unet_size=options.unet_size,
            train_batch_size=options.batch_size,
            max_train_steps=options.steps,
            validation_steps=0,
            logging_steps=options.steps,
            report_to="none",
            optimizer="adamw",  # with which the results were made
            seed=seed,
            cache_dir=str(home / "cache"),
            output_dir=str(home / "out"),
        )
        start = time.perf_counter()
        run_halves(HalvesConfig(training, num_samples=options.num_samples))
        (home / "seconds.json").write_text(json.dumps(time.perf_counter() - start))
    report: dict[str, Any] = json.loads(file.read_text())
    losses = [point["held_out_loss"] for point in report["course"]]
    return report | {
        "flagged": report["verdict"] in ("memorised", "leans"),
        "loss_flags": losses[-1] > RISEN * min(losses),
        "leans_at_lowest": report["course"][int(np.argmin(losses))]["interval"][0] > LEANS,
        "seconds": json.loads((home / "seconds.json").read_text()),
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Counts of each kind, and the range of what decides."""
    lines = [
        "| model | calls | flagged | verdicts | flagged by the held-out loss alone | attributable share | "
        "nearest-training ratio | minutes of a call | leans where the held-out loss is lowest |",
        "|---" * 9 + "|",
    ]
    for kind, reports in results.items():
        if not reports:
            continue
        verdicts = [report["verdict"] for report in reports]
        counts = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts))
        shares, ratios = ([report["measures"][row]["value"] for report in reports] for row in (0, 1))
        minutes = np.median([report["seconds"] for report in reports]) / 60
        lines.append(
            f"| {kind} | {len(reports)} | {sum(r['flagged'] for r in reports)} | {counts} | "
            f"{sum(r['loss_flags'] for r in reports)} | {min(shares):.2f} to {max(shares):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} | {minutes:.1f} | "
            f"{sum(r['leans_at_lowest'] for r in reports)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the calls, seed by seed, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=("memoriser", "healthy"), default=["memoriser", "healthy"])
    parser.add_argument("--conditioning", choices=("none", "class", "text"), default="none")
    parser.add_argument("--resolution", type=int, default=8)
    parser.add_argument("--unet_size", default="halves:SMALLEST")
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_samples", type=int, default=128)
    parser.add_argument("--output_dir", type=Path, default=Path("output/halves"))
    options = parser.parse_args()
    use_all_cores()
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        for kind in options.kinds:
            results[kind].append(call(kind, seed, options))
            write_text(options.output_dir / "halves.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
