"""Autoguidance against classifier-free guidance and none: a table for p(x|y) and one for p(x).

    python benchmarks/autoguidance.py --data shapes --minutes 4 --output_dir output/autoguidance

Trains one class-conditional model, keeps EDM2's average of it at sixteen moments, and guides the finished network by
several of them, at several scales. p(x) is the same network without a condition. The data sets, their readers and
the distance are those of few_steps.py.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_steps import Judge, data_set, load, parse_data, trained, training_set
from safetensors.torch import load_file
from torch import nn

from cond_pipelines import ConditionalPipeline
from cond_pipelines.files import write_json, write_text

SIXTEENTHS = (1, 2, 3, 5)  # of the run, at which a guide is taken; --autoguidance takes the second


def guide_of(pipe: ConditionalPipeline, folder: Path, sixteenth: int) -> nn.Module:
    """The UNet as it was on average after so many sixteenths of the run."""
    files = sorted((folder / "ema").glob("*.safetensors"), key=lambda path: int(path.stem))
    weights = {name.partition(":unet.")[2]: value for name, value in load_file(files[sixteenth - 1]).items()}
    guide = copy.deepcopy(pipe.unet)
    guide.load_state_dict({name: value for name, value in weights.items() if name})
    return guide


def rows_of(pipe: ConditionalPipeline, judge: Judge, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each setting of the sampler."""
    settings: list[dict[str, Any]] = [{"guidance_scale": 1.0}]
    settings += [{"guidance_scale": scale} for scale in options.scales if not options.unconditional]
    for sixteenth in options.sixteenths:
        settings += [{"sixteenth": sixteenth, "guidance_scale": {"auto": scale}} for scale in options.scales]
    rows = []
    for setting in settings:
        given = {name: value for name, value in setting.items() if name != "sixteenth"}
        if "sixteenth" in setting:
            given["guide"] = guide_of(pipe, folder, setting["sixteenth"])
        row = judge(pipe, num_inference_steps=options.steps, **given)
        rows.append(setting | {name: value for name, value in row.items() if name != "images"})
    return rows


def table(rows: list[dict[str, Any]], right: str) -> str:
    lines = [f"| guidance | scale | {right} | Frechet distance, 95 % | recall |", "|---|---|---|---|---|"]
    for row in rows:
        scale = row["guidance_scale"]
        name = "classifier-free" if scale != 1 else "none"
        if "sixteenth" in row:
            name, scale = f"by the average at {row['sixteenth']}/16 of the run", scale["auto"]
        low, high = row["interval"]
        distance = f"{row['frechet']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {name} | {scale:g} | {row['right']:.3f} | {distance} | {row['recall']:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse_data(parser)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training")
    parser.add_argument("--model", type=Path, help="the folder of a run with --ema_lengths, in place of a new one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16, help="of sampling")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.25, 1.5, 2.0])
    parser.add_argument("--sixteenths", type=int, nargs="+", default=list(SIXTEENTHS))
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--unconditional", action="store_true", help="the table of p(x) in place of that of p(x|y)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data = data_set(options)
    judge = Judge(data, options.num_samples, unconditional=options.unconditional)
    folder = options.model or trained(
        options.output_dir / options.data / f"autoguided-{options.seed}",
        training_set(options, data),
        conditioning=data.conditioning,
        seed=options.seed,
        max_train_minutes=options.minutes,
        ema_lengths=[0.05],
    )
    rows = rows_of(load(folder), judge, folder, options)
    right = "readable" if options.unconditional else "right"
    name = f"{options.data}-{'p(x)' if options.unconditional else 'p(x|y)'}".replace("|", "_")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / f"{name}.json", rows)
    write_text(options.output_dir / f"{name}.md", table(rows, right))
    print(table(rows, right), f"best distance: {np.min([row['frechet'] for row in rows]):.2f}")


if __name__ == "__main__":
    main()
