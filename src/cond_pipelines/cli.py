"""cond-pipelines: the console script."""

import argparse
import sys


def main(args: list[str] | None = None) -> None:
    """`cond-pipelines train ...` or `cond-pipelines demo ...`."""
    parser = argparse.ArgumentParser(prog="cond-pipelines", description=__doc__, add_help=False)
    parser.add_argument("command", choices=("train", "demo"), nargs="?")
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        parser.print_help()
        print("\n  train  as `accelerate launch -m cond_pipelines.training`, on one process\n  demo   train on shapes")
        return
    command = parser.parse_args(args[:1]).command
    if command == "train":
        from .training.__main__ import main as run
    else:
        from .demo import main as run
    run(args[1:])
