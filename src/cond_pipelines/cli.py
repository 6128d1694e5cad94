"""cond-pipelines: the console script."""

import argparse
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from . import small_parsers
from .console import for_terminal, lines_for_terminal
from .demo_arguments import parse_demo_args
from .errors import OneLineParser, UserError, one_line_errors
from .processes import command_line, use_all_cores

_GROUPS = {
    "See it all": {"studio": "open a page on this machine: data, runs, samples, reports"},
    "Look at data": {"inspect": "show what a training would see of a folder, and what it would leave out"},
    "Make a model": {
        "train": "train one: unconditional, class-conditional or text-conditional",
        "distill": "make a trained model draw in 1, 2, 4 or more steps: PARENT --train_data_dir ...",
        "demo": "train the three settings on drawn shapes, and show what they draw",
    },
    "Use it": {"sample": "draw images: a row for each condition, a column for each setting"},
    "Measure it": {
        "evaluate": "compare its samples with held-out images: alike? all of it? new? as requested?",
        "halves": "train on two halves of the images: does the model generalise, or memorise?",
        "compare": "print two evaluations side by side: A B; --pool: one report of several seeds: A B C",
    },
    "Share it": {
        "card": "write its model card again, from what is in its folder",
        "push": "upload its folder to the Hub",
        "export": "make it work without this package: --to stable-diffusion, ddpm, onnx or web",
    },
    "Set up a shell": {"completion": "print a script that completes commands and flags: bash or zsh"},
    "Change what a run left": {
        "ema": "write the model with another length of its weights' moving average",
        "convert": "rewrite a checkpoint of an earlier version, so that it can be resumed",
    },
}
_COMMANDS = [name for group in _GROUPS.values() for name in group]


@command_line
def main(args: list[str] | None = None) -> None:
    """`cond-pipelines COMMAND ...`: see `_GROUPS`."""
    groups = ("\n".join([title, *(f"  {n:10} {what}" for n, what in g.items())]) for title, g in _GROUPS.items())
    epilog = "\n\n".join([*groups, "`cond-pipelines COMMAND --help` lists the arguments of a command."])
    parser = OneLineParser(
        prog="cond-pipelines",
        usage="cond-pipelines COMMAND ...",
        epilog=epilog,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS, nargs="?", help=argparse.SUPPRESS)
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        parser.print_help()
        return
    if args[0] == "--version":
        print(for_terminal(f"cond-pipelines {version('cond_pipelines')}"))
        return
    command = parser.parse_args(args[:1]).command
    with one_line_errors():
        if command == "train":
            from .training.__main__ import main as run
        elif command == "evaluate":
            from .evaluate import main as run
        elif command == "sample":
            from .sample import main as run
        elif command == "export":
            from .export.command import main as run
        else:
            run = {
                "distill": distill,
                "demo": demo,
                "inspect": inspect,
                "compare": compare,
                "halves": halves,
                "convert": convert,
                "ema": ema,
                "card": card,
                "push": push,
                "completion": completion,
                "studio": studio,
            }[command]
        run(args[1:])


# Each parses first and imports then: help and a typo are answered at once.
def demo(args: list[str] | None = None) -> None:
    """Train the three settings on drawn shapes, draw samples of each, and read from them what they show."""
    options = parse_demo_args(args)
    from .demo import run_demo

    run_demo(**options)


def distill(args: list[str]) -> None:
    """`train` with --objective distillation, in the setting of PARENT: a model that draws in 1, 2, 4 or more steps."""
    defaults = {}
    given = [value for flag, value in zip(args, [*args[1:], ""], strict=True) if flag == "--objective"]
    given += [arg.partition("=")[2] for arg in args if arg.startswith("--objective=")]
    for objective in given:
        if objective != "distillation" and ":" not in objective:
            raise UserError(f"--objective {objective} does not distill: leave it out, or use cond-pipelines train")
    if not given:  # as an argument, so that it wins over the objective of a --config, such as the parent's own recipe
        args = [*args, "--objective", "distillation"]
    if args and not args[0].startswith("-"):
        from .provenance import class_names_of
        from .settings import setting_of

        parent, *args = args
        args = ["--pretrained_model_name_or_path", parent, *args]
        defaults["conditioning"] = setting_of(*class_names_of(parent)).name
    from .training.__main__ import main as train

    train(args, **defaults)


def inspect(args: list[str]) -> None:
    """Show what a training would see of a data set."""
    from .inspection import parse_config

    config = parse_config(args)
    from .inspection import inspect as lines_of

    print(lines_for_terminal(lines_of(config)))


def compare(args: list[str]) -> None:
    """Print two evaluations side by side and which differences are larger than chance, or pool several seeds."""
    options = small_parsers.compare_parser().parse_args(args)
    if not options.pool and options.output_dir:
        raise UserError(f"--output_dir {options.output_dir} has no effect without --pool: leave it out")
    if not options.pool and len(options.reports) != 2:
        raise UserError(f"{len(options.reports)} reports: compare takes two, or add --pool for one report of all seeds")
    if options.pool:
        from .evaluation.pool import lines_of, pool_and_write

        print(lines_for_terminal(lines_of(pool_and_write(options.reports, options.output_dir or "pool"))))
        return
    from .evaluation.compare import compare as rows_of
    from .evaluation.compare import read_report, table

    print(lines_for_terminal(table(rows_of(*map(read_report, options.reports)))))


def halves(args: list[str]) -> None:
    """Train on two halves of the images, compare the models, print the answer."""
    from .halves.arguments import parse_args

    config = parse_args(args)
    use_all_cores()
    from .halves.report import table
    from .halves.run import run_halves

    if report := run_halves(config):
        print(lines_for_terminal(table(report)))


def convert(args: list[str]) -> None:
    """Write a checkpoint of an earlier version anew, so that it can be resumed; nothing in it is run."""
    options = small_parsers.convert_parser().parse_args(args)
    from .training.checkpoints import convert_checkpoint

    print(for_terminal(str(convert_checkpoint(options.checkpoint))))


def ema(args: list[str]) -> None:
    """Write the pipeline with an average of any length, from the snapshots of a run with --ema_lengths."""
    options = small_parsers.ema_parser().parse_args(args)
    from .files import whole_folder
    from .folders import check_new_folder

    folder = options.output_dir or f"{options.folder.rstrip('/')}-ema-{options.length:g}"
    check_new_folder(Path(folder), "name a new folder with --output_dir")
    from .training.ema import pipeline_of_length

    with whole_folder(folder) as unfinished:
        pipeline_of_length(options.folder, options.length).save_pretrained(unfinished)
    print(for_terminal(folder))


def card(args: list[str]) -> None:
    """Render README.md of a model's folder."""
    options = small_parsers.card_parser().parse_args(args)
    from .sharing.card import write_card

    print(for_terminal(str(write_card(options.folder, options.repo_id))))


def push(args: list[str]) -> None:
    """Upload a model's folder: the model, its code, its card and pictures, nothing else."""
    options = vars(small_parsers.push_parser().parse_args(args))
    from .sharing.push import push_folder

    commit = push_folder(options.pop("folder"), options.pop("repo_id"), **options)
    print(for_terminal(str(commit.pr_url or commit.commit_url)))


def studio(args: list[str]) -> None:
    """Serve the studio's page until Ctrl-C."""
    options = small_parsers.studio_parser().parse_args(args)
    try:
        from .folder_kinds import with_room
        from .studio.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError("the studio needs more packages: pip install starlette uvicorn") from error
    options.folders = with_room(options.folders)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends its workers, as at Ctrl-C
    serve(options)


def completion(args: list[str]) -> None:
    """Print a script for a shell that completes commands, flags and files."""
    options = small_parsers.completion_parser().parse_args(args)
    from .completion import script

    print(lines_for_terminal(script(options.shell)))


if __name__ == "__main__":
    main()
