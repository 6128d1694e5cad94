"""The command line of the demo. It imports nothing heavy: help and a typo are answered at once."""

import argparse
import math
from pathlib import Path
from typing import Any

from .errors import OneLineParser


def parse_demo_args(args: list[str] | None = None) -> dict[str, Any]:
    """The arguments of `demo.run_demo`. Raises SystemExit, after one line, for a bad one."""
    return vars(demo_parser().parse_args(args))


def demo_parser() -> OneLineParser:
    """The arguments of `cond-pipelines demo`."""
    parser = OneLineParser(
        prog="cond-pipelines demo",
        description="Train the three settings on drawn shapes, sample each of them, and measure what the samples show.",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="write models and report here (demo)")
    parser.add_argument("--speed", type=_positive, default=1.0, help="divide the steps of training by this (1)")
    parser.add_argument(
        "--num_samples", type=_count, default=256, help="read this many for each line of the report (256)"
    )
    return parser


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 50:
        raise argparse.ArgumentTypeError(f"{text} is too few to measure: 50 or more")
    return value
