"""cond-pipelines: the console script."""

import argparse
import sys
from pathlib import Path

_COMMANDS = {
    "train": "as `accelerate launch -m cond_pipelines.training`, on one process",
    "demo": "train on shapes",
    "evaluate": "as `accelerate launch -m cond_pipelines.evaluate`, on one process",
    "compare": "two evaluations: A/report.json B/report.json",
    "ema": "a trained model with another length of its weights' moving average",
    "card": "write the model card of a folder again, from what is in it",
    "push": "upload a folder to the Hub",
}


def main(args: list[str] | None = None) -> None:
    """`cond-pipelines COMMAND ...`: see `_COMMANDS`."""
    epilog = "\n".join(f"  {name:6} {what}" for name, what in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="cond-pipelines", epilog=epilog, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=_COMMANDS, nargs="?")
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        parser.print_help()
        return
    command = parser.parse_args(args[:1]).command
    if command == "train":
        from .training.__main__ import main as run
    elif command == "evaluate":
        from .evaluate import main as run
    else:
        run = {"demo": demo, "compare": compare, "ema": ema, "card": card, "push": push}[command]
    run(args[1:])


# Each parses first and imports then: help and a typo are answered at once.
def demo(args: list[str] | None = None) -> None:
    """Train the three settings on drawn shapes, draw samples of each, and read from them what they show."""
    parser = argparse.ArgumentParser(prog="cond-pipelines demo", description=demo.__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="write models and report here (demo)")
    parser.add_argument("--speed", type=float, default=1.0, help="divide the 9 minutes given to training by this (1)")
    parser.add_argument("--num_samples", type=int, default=256, help="read this many for each line of the report (256)")
    options = parser.parse_args(args)
    from .demo import run_demo

    run_demo(**vars(options))


def compare(args: list[str]) -> None:
    """Print two evaluations side by side, and which differences are larger than chance."""
    parser = argparse.ArgumentParser(prog="cond-pipelines compare", description=compare.__doc__)
    parser.add_argument("a", help="a report.json, or a model's folder")
    parser.add_argument("b")
    options = parser.parse_args(args)
    from .evaluation.compare import compare as rows_of
    from .evaluation.compare import read_report, table

    print(table(_or_exit(lambda: rows_of(read_report(options.a), read_report(options.b)))))


def ema(args: list[str]) -> None:
    """Write the pipeline with an average of any length, from the snapshots of a run with --ema_lengths."""
    parser = argparse.ArgumentParser(prog="cond-pipelines ema", description=ema.__doc__)
    parser.add_argument("folder", help="the run's output_dir")
    parser.add_argument("--length", type=float, required=True, help="sigma_rel: 0.05 is 5 %% of the run")
    parser.add_argument("--output_dir", help="default: FOLDER-ema-LENGTH")
    options = parser.parse_args(args)
    from .training.ema import pipeline_of_length

    folder = options.output_dir or f"{options.folder.rstrip('/')}-ema-{options.length:g}"
    _or_exit(pipeline_of_length, options.folder, options.length).save_pretrained(folder)
    print(folder)


def card(args: list[str]) -> None:
    """Render README.md of a model's folder."""
    parser = argparse.ArgumentParser(prog="cond-pipelines card", description="What you say of it stands in card.yaml.")
    parser.add_argument("folder")
    parser.add_argument("--repo_id", help="its name on the Hub, for the page's code blocks; default: the folder's name")
    options = parser.parse_args(args)
    from .card import write_card

    print(_or_exit(write_card, options.folder, options.repo_id))


def push(args: list[str]) -> None:
    """Upload a model's folder: the model, its code, its card and pictures, nothing else."""
    parser = argparse.ArgumentParser(prog="cond-pipelines push", description=push.__doc__)
    parser.add_argument("folder")
    parser.add_argument("repo_id", help='"name" or "user/name"; made where it does not exist')
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--token", help="default: the one you are logged in with")
    parser.add_argument("--commit_message")
    parser.add_argument("--revision", help="the branch to commit to; made where it does not exist")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    options = vars(parser.parse_args(args))
    from .hub import push_folder

    commit = _or_exit(push_folder, options.pop("folder"), options.pop("repo_id"), **options)
    print(commit.pr_url or commit.commit_url)


def _or_exit(function, *args, **kwargs):
    """What `function` returns; its error as one line and exit code 2."""
    try:
        return function(*args, **kwargs)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
