"""Every file that a command reads, damaged in every way: does each command end in one line, without a traceback?

    python benchmarks/wrong_inputs.py                       # about 700 inputs, 15 minutes
    python benchmarks/wrong_inputs.py --commands card push --every 3

Exit code 1 where a command lets an exception through, or says more than one line. tests/test_wrong_inputs.py takes some
of the same inputs.
"""

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cond_pipelines.cli import main

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))
from hub_server import TOKEN, Hub
from training_common import flags, run

Damage = Callable[[Path], None]
TRAINING = ["train", *flags(max_train_steps=1)]
SMALL = ["--num_samples", "8", "--num_real", "8", "--feature_extractor", "training_common:few_pixels"]
SMALL += ["--dataset_name", "training_common:shapes"]


# ----------------------------------------------------------------------------------------------- what is right
def right_model(folder: Path) -> Path:
    """A folder that every command takes: a model with snapshots, a card, a report."""
    run(folder, conditioning="class", max_train_steps=2, ema_lengths=[0.05, 0.1], validation_fraction=0.2)
    (folder / "card.yaml").write_text("license: mit\ntags: [shapes]\n")
    main(["evaluate", str(folder), *SMALL])
    return folder


def text(content: str | bytes) -> Damage:
    content = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[9] ^= 0x11  # of a safetensors' header, or of a text's first line
    path.write_bytes(content)


WHOLE_FILE: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": text(""),
    "cut": cut,
    "a folder": a_folder,
    "NUL bytes": text(b"\0" * 40),
    "Latin-1": text('{"caf\xe9": 1}'.encode("latin-1")),
    "UTF-16": text("{}".encode("utf-16")),
    "a list": text("[1, 2]"),
    "a word": text('"word"'),
    "a number": text("12"),
    "nothing": text("null"),
    "unclosed": text('{"a": [1, {"b": '),
    "deep": text("[" * 20_000),
    "a tab": text("a:\n\t- b: 'c"),
    "a wrong date": text("a: 2024-13-41"),
    "two documents": text("a: 1\n---\nb: 2\n"),
    "an unknown tag": text("a: !!python/name:os.system x"),
}
VALUES = [None, "word", -1, 1.5, [], {"a": 1}, True, [None, 3], float("nan")]


def read(path: Path) -> dict:
    return (yaml.safe_load if path.suffix == ".yaml" else json.loads)(path.read_text())


def without(name: str) -> Damage:
    return lambda path: write(path, {k: v for k, v in read(path).items() if k != name})


def with_value(name: str, value: object) -> Damage:
    return lambda path: write(path, read(path) | {name: value})


def write(path: Path, values: dict) -> None:
    path.write_text(yaml.safe_dump(values) if path.suffix == ".yaml" else json.dumps(values))


COMMANDS = {
    "card": lambda model, out: ["card", str(model)],
    "ema": lambda model, out: ["ema", str(model), "--length", "0.07", "--output_dir", str(out)],
    "push": lambda model, out: ["push", str(model), "me/model", "--token", TOKEN],
    "compare": lambda model, out: ["compare", str(model), str(model)],
    "evaluate": lambda model, out: ["evaluate", str(model), *SMALL, "--output_dir", str(out)],
    "train": lambda model, out: [
        *TRAINING[: TRAINING.index("--unet_size")],
        *TRAINING[TRAINING.index("--unet_size") + 2 :],
        *("--pretrained_model_name_or_path", str(model), "--conditioning", "class", "--output_dir", str(out)),
    ],
    "recipe": lambda model, out: ["train", "--config", str(model / "training_config.yaml"), "--output_dir", str(out)],
    "recipe without data": lambda model, out: [
        *("train", "--config", str(model / "training_config.yaml"), "--output_dir", str(out)),
        *("--dataset_name", "training_common:nothing"),
    ],
}
READS = {
    "card": ["model_index.json", "unet/config.json", "adapter/config.json", "card.yaml", "training_summary.json"]
    + ["evaluation/report.json", "README.md"],
    "ema": ["model_index.json", "unet/config.json", "adapter/config.json", "scheduler/scheduler_config.json"]
    + ["unet/diffusion_pytorch_model.safetensors", "ema/1.safetensors", "ema/2.safetensors"],
    "push": ["model_index.json", "unet/config.json", "adapter/config.json", "card.yaml", "training_config.yaml"],
    "compare": ["evaluation/report.json"],
    "evaluate": ["model_index.json", "adapter/config.json", "training_config.yaml"],
    "train": ["model_index.json", "unet/config.json", "adapter/diffusion_pytorch_model.safetensors"],
    "recipe": ["training_config.yaml"],
    "recipe without data": ["training_config.yaml"],
}


def damages(command: str, file: str, right: Path) -> list[tuple[str, Damage]]:
    """Every kind of damage of a file, and every name in it taken away or with a value of another kind."""
    path = right / file
    if path.suffix == ".safetensors":
        return [("flipped", flipped), *list(WHOLE_FILE.items())[:6]]
    found = list(WHOLE_FILE.items())
    if path.suffix in (".json", ".yaml"):
        for number, name in enumerate(read(path)):
            found.append((f"without {name}", without(name)))
            value = VALUES[number % len(VALUES)]
            found.append((f"{name} is {value}", with_value(name, value)))
    return found


# ------------------------------------------------------------------------------------------------- the judge
def outcome(argv: list[str]) -> tuple[object, str]:
    """Exit code (None: it worked) and stderr; an exception that a command lets through is a traceback to the user."""
    out, err = io.StringIO(), io.StringIO()
    logging.disable(logging.CRITICAL)  # warnings of the libraries below are no business of this test
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(argv)
    except SystemExit as end:
        return end.code, err.getvalue()
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}", err.getvalue()
    finally:
        logging.disable(logging.NOTSET)
    return None, err.getvalue()


@dataclass
class Count:
    """Of one command: its inputs, how many were refused in one line, and what was wrong with the others."""

    inputs: int = 0
    refused: int = 0
    bad: list[str] = field(default_factory=list)


def try_damaged_files(command: str, right: Path, folder: Path, every: int = 1) -> Count:
    """Run a command on each `every`-th damaged copy of the model `right`, made in `folder`."""
    count = Count()
    for file in READS[command]:
        chosen = damages(command, file, right)[sum(map(ord, command + file)) % every :: every]
        for name, damage in chosen:
            model, out = folder / "model", folder / "out"
            shutil.rmtree(model, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(right, model)
            damage(model / file)
            code, told = outcome(COMMANDS[command](model, out))
            count.inputs += 1
            count.refused += code == 2
            lines = [line for line in told.splitlines() if line.startswith("error:")]
            fine = code in (None, 0) or (code == 2 and len(lines) == 1 and told.splitlines()[-1] == lines[0])
            if not fine:
                count.bad.append(f"{command}: {file}, {name}: {code}; stderr ends with {told[-200:]!r}")
    return count


def try_all() -> None:
    """Print a line for each command; exit code 1 where an input ends badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", default=list(READS), choices=list(READS))
    parser.add_argument("--every", type=int, default=1)
    options, bad = parser.parse_args(), 0
    with tempfile.TemporaryDirectory(prefix="wrong_inputs_") as folder:
        os.chdir(folder)
        right = right_model(Path(folder) / "right")
        for command in options.commands:
            count = try_damaged_files(command, right, Path(folder), options.every)
            print(f"{command}: {count.inputs} inputs, {count.refused} refused, {len(count.bad)} bad")
            print("\n".join(count.bad), flush=True)
            bad += len(count.bad)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    if os.environ.get("HF_ENDPOINT", "").startswith("http://127.0.0.1"):
        try_all()
    with Hub() as hub:  # huggingface_hub reads its address when it is imported: another process has it from its start
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=env, timeout=7200).returncode)
