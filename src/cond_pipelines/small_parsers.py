"""The arguments of the commands that have few. It imports nothing heavy: help and a typo are answered at once."""

import argparse

from .errors import OneLineParser


def compare_parser() -> OneLineParser:
    """Of `cond-pipelines compare`."""
    parser = OneLineParser(
        prog="cond-pipelines compare",
        description="Print two evaluations side by side, and which differences are larger than chance. With --pool: "
        "make one report of several models that differ in the seed of their training.",
    )
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="a report.json, or a model's folder")
    parser.add_argument(
        "--pool", action="store_true", help="mean of each measure over two or more seeds of training, and its interval"
    )
    parser.add_argument("--output_dir", help="of --pool: write report.json, .md, .tex and .html here (default: pool)")
    return parser


def convert_parser() -> OneLineParser:
    """Of `cond-pipelines convert`."""
    parser = OneLineParser(
        prog="cond-pipelines convert",
        description="Write a checkpoint of an earlier version anew, so that it can be resumed; nothing in it is run.",
    )
    parser.add_argument("checkpoint", help="its folder, such as OUTPUT_DIR/checkpoint-1000")
    return parser


def ema_parser() -> OneLineParser:
    """Of `cond-pipelines ema`."""
    parser = OneLineParser(
        prog="cond-pipelines ema",
        description="Write the pipeline with an average of any length, from the snapshots of a run with --ema_lengths.",
    )
    parser.add_argument("folder", help="the run's output_dir")
    parser.add_argument("--length", type=float, required=True, help="sigma_rel: 0.05 is 5 %% of the run")
    parser.add_argument("--output_dir", help="default: FOLDER-ema-LENGTH")
    return parser


def card_parser() -> OneLineParser:
    """Of `cond-pipelines card`."""
    parser = OneLineParser(prog="cond-pipelines card", description="What you say of it stands in card.yaml.")
    parser.add_argument("folder")
    parser.add_argument("--repo_id", help="its name on the Hub, for the page's code blocks; default: the folder's name")
    return parser


def push_parser() -> OneLineParser:
    """Of `cond-pipelines push`."""
    parser = OneLineParser(
        prog="cond-pipelines push",
        description="Upload a model's folder: the model, its code, its card and pictures, nothing else.",
    )
    parser.add_argument("folder")
    parser.add_argument("repo_id", help='"name" or "user/name"; made where it does not exist')
    parser.add_argument(
        "--private", action=argparse.BooleanOptionalAction, help="visibility of a new repository; default: the Hub's"
    )
    parser.add_argument("--token", help="default: the one you are logged in with")
    parser.add_argument("--commit_message")
    parser.add_argument("--revision", help="the branch to commit to; made where it does not exist")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    parser.add_argument(
        "--keep", action="store_true", help="leave what is not of this model; default: the same commit deletes it"
    )
    parser.add_argument(
        "--include_training_images",
        action="store_true",
        help="upload evaluation/nearest.png too, which shows images of the training data",
    )
    parser.add_argument(
        "--web",
        action="store_true",
        help="put a page that draws with the model into a static Space of the same name, and link it in the card",
    )
    parser.add_argument("--onnxruntime_web", metavar="PACKAGE", help="with --web: see `cond-pipelines export --help`")
    return parser


def studio_parser() -> OneLineParser:
    """Of `cond-pipelines studio`."""
    parser = OneLineParser(
        prog="cond-pipelines studio",
        description="Open a page on this machine over folders of data, runs and models: see the data, start and watch "
        "trainings, draw, compare, evaluate, share. It ends with Ctrl-C; the trainings that it started go on.",
    )
    folders_help = "default: this one, which is also added where no other can hold new runs"
    parser.add_argument("folders", nargs="*", metavar="FOLDER", default=["."], help=folders_help)
    parser.add_argument("--port", type=int, default=8765, help="the next free one from here on (8765); 0: any")
    parser.add_argument("--no_browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--cache_dir", help="thumbnails, drawn images, records of commands (~/.cache/cond_pipelines)")
    return parser


def completion_parser() -> OneLineParser:
    """Of `cond-pipelines completion`."""
    parser = OneLineParser(
        prog="cond-pipelines completion",
        description="Print a script that lets a shell complete commands, flags and files. bash: cond-pipelines "
        "completion bash > ~/.local/share/bash-completion/completions/cond-pipelines. zsh: write it as _cond-pipelines "
        "into a folder of $fpath.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    return parser
