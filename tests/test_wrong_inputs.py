"""A few hundred wrong or damaged inputs of every command: one line that begins with "error:", code 2, no traceback.

The inputs are made from what is right: every file that a command reads is damaged in every way below, every name in it
is taken away or gets a value of another kind, every flag gets wrong values. What a command can do without may work.
"""

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from hub_server import TOKEN
from training_common import flags, run

from cond_pipelines.cli import main

Damage = Callable[[Path], None]
TRAINING = ["train", *flags(max_train_steps=1)]
SMALL = ["--num_samples", "8", "--num_real", "8", "--feature_extractor", "training_common:few_pixels"]
SMALL += ["--dataset_name", "training_common:shapes"]


# ----------------------------------------------------------------------------------------------- what is right
@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A folder that every command takes: a model with snapshots, a card, a report."""
    folder = tmp_path_factory.mktemp("right") / "model"
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


def names_in(path: Path) -> list[str]:
    return list(read(path))


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
}


def damages(command: str, file: str, right: Path) -> Iterator[tuple[str, Damage]]:
    """Every kind of damage for a file that is read at once, every third for what takes a whole model to be loaded."""
    path = right / file
    found = list(WHOLE_FILE.items())
    if path.suffix in (".json", ".yaml"):
        for number, name in enumerate(names_in(path)):
            found.append((f"without {name}", without(name)))
            value = VALUES[number % len(VALUES)]
            found.append((f"{name} is {value}", with_value(name, value)))
    if path.suffix == ".safetensors":
        found = [("flipped", flipped), *found[:6]]
    step = 1 if command in ("card", "compare") else 3 if command in ("push", "recipe") else 5
    start = sum(map(ord, command + file)) % step
    return iter(found[start::step])


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


def complaint(argv: list[str], may_work: bool) -> str | None:
    """What is wrong with how a command ends."""
    code, told = outcome(argv)
    if code in (None, 0) and may_work:
        return None
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    if code == 2 and len(lines) == 1 and told.splitlines()[-1] == lines[0] and len(lines[0]) < 900:
        return None
    return f"{argv[0]} ... {' '.join(argv[-4:])[:300]}\n    -> {code}, stderr ends with {told[-300:]!r}"


# ------------------------------------------------------------------------------------------------- files
@pytest.mark.timeout(900)  # a hundred commands and more
@pytest.mark.parametrize("command", READS)
def test_damaged_files(command, right, tmp_path, hub, monkeypatch):
    """Of all, no command ends in a traceback; at least a fifth is refused (the others can be done without)."""
    monkeypatch.chdir(tmp_path)
    bad, count, refused = [], 0, 0
    for file in READS[command]:
        for name, damage in damages(command, file, right):
            model, out = tmp_path / "model", tmp_path / "out"
            shutil.rmtree(model, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(right, model)
            damage(model / file)
            count += 1
            code, told = outcome(COMMANDS[command](model, out))
            refused += code == 2
            lines = [line for line in told.splitlines() if line.startswith("error:")]
            fine = code in (None, 0) or (code == 2 and len(lines) == 1 and told.splitlines()[-1] == lines[0])
            if not fine:
                bad.append(f"{command}: {file}, {name}: {code}; stderr ends with {told[-200:]!r}")
    print(f"{command}: {count} inputs, {refused} refused, {len(bad)} bad")
    assert not bad, f"{len(bad)} of {count}:\n" + "\n".join(bad)
    assert refused >= count / 5


# ------------------------------------------------------------------------------------------------- flags
USERS_MODULE = """
import datasets
from cond_pipelines import ConditioningAdapter
from cond_pipelines.data.shapes import load_shapes
from torch.optim import SGD
number, word = 3, "word"
def raises(*args): return {}["missing"]
def gives_none(*args): return None
def gives_list(*args): return [1, 2]
def needs_more(a, b, c, d): return a
def empty(): return datasets.Dataset.from_dict({})
def fine(): return load_shapes(16)
class NoAdapter: pass
class NoOptimizer: pass
class Raising(ConditioningAdapter):
    @classmethod
    def for_unet(cls, unet, **kwargs): raise LookupError("of the user's own")
class RaisingOptimizer(SGD):
    def __init__(self, *args, **kwargs): raise LookupError("of the user's own")
class NoConfig(SGD):
    def step(self, closure=None): return {}["missing"]
"""
OBJECTS = ["number", "word", "gives_none", "gives_list", "raises", "needs_more", "NoAdapter", "missing"]
NAMES = ["nowhere:x", "theirs:", ":x", "theirs:a.b", "broken:x", "leaving:x", "failing:x", "th\0eirs:x", "..:x"]


def wrong_flags(model: Path) -> Iterator[list[str]]:
    image, missing = str(model / "samples.png"), "no/such/folder"
    train = [*TRAINING[:1], *TRAINING[3:]]  # without its data set
    for name in [*NAMES, *(f"theirs:{name}" for name in OBJECTS), "theirs:empty"]:
        yield [*train, "--dataset_name", name]
    for name in [*NAMES[:4], "theirs:NoAdapter", "theirs:number", "theirs:raises", "theirs:Raising"]:
        custom = ["--conditioning", "custom", "--condition_column", "label", "--adapter", name]
        yield [*TRAINING, *custom]
    for name in [*NAMES[:4], "theirs:NoOptimizer", "theirs:number", "theirs:raises", "theirs:RaisingOptimizer"]:
        yield [*TRAINING, "--optimizer", name]
    for name in [*NAMES[:3], *(f"theirs:{name}" for name in OBJECTS if name != "gives_none"), "theirs:gives_none"]:
        yield ["evaluate", str(model), "--output_dir", "e", "--num_samples", "8", "--feature_extractor", name]
    for config in ("{", "[]", "3", '{"nothing": 1}', "null", '{"lr": "x"}', "[" * 5000, '{"a": NaN'):
        yield [*TRAINING, "--optimizer_config", config] if config != "null" else [*TRAINING, "--optimizer_config", "x"]
        embedding = ["--conditioning", "embedding", "--condition_column", "label", "--adapter_config", config]
        yield [*TRAINING, *embedding]
    for path in (missing, image, "", "\0", "/dev/null"):
        yield [*train, "--train_data_dir", path]
        yield [
            *TRAINING,
            "--conditioning",
            "text",
            "--caption_column",
            "caption",
            "--text_encoder_name_or_path",
            path or "x/y/z",
        ]
        yield ["card", path or "nowhere"]
        yield ["ema", path or "nowhere", "--length", "0.1"]
        yield ["compare", path or "nowhere", str(model)]
        yield ["evaluate", path, "--output_dir", "e"]
        yield ["push", path or "nowhere", "me/model", "--token", TOKEN]
        yield [*TRAINING, "--config", path if path not in ("", "/dev/null") else "nowhere"]  # an empty one is fine
        yield [*TRAINING, "--output_dir", path if path in (image, "\0", "/dev/null") else f"{image}/x"]
        yield ["demo", "--output_dir", path if path in (image, "\0", "/dev/null") else f"{image}/x"]
    numbers = ["resolution", "train_batch_size", "learning_rate", "max_train_steps", "gradient_accumulation_steps"]
    for name in numbers:
        for value in ("0", "-1", "word", "", "nan" if name == "learning_rate" else "1.5"):
            yield [*TRAINING, f"--{name}", value]
    for name in ("report_to", "conditioning", "scheduler", "mixed_precision", "dataset_split", "hub_strategy"):
        yield [*TRAINING, f"--{name}", "nonsense"] if name != "dataset_split" else [*TRAINING, "--data_set", "x"]
    for value in ("0", "-1", "0.5", "word", "nan", "inf"):
        yield ["ema", str(model), "--length", value]
    for value in ("0", "-3", "word", ""):
        yield ["evaluate", str(model), "--output_dir", "e", "--num_samples", value]
        yield ["demo", "--speed", value]
        yield ["demo", "--num_samples", value]
    for words in ([], ["nonsense"], ["guidance_scale=a"], ["guidance_scale"], ["num_inference_steps=1.5"]):
        yield ["evaluate", str(model), *SMALL, "--output_dir", "e", "--sweep", *(words or ["="])]
    for command in ("ema", "card", "push", "compare", "evaluate", "nonsense"):
        yield [command]
        yield [command, "--nonsense", "x"]


def test_wrong_flags(right, tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "theirs.py").write_text(USERS_MODULE)
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit('no')\n")
    (tmp_path / "failing.py").write_text("1 / 0\n")
    commands = list(wrong_flags(right))
    bad = [found for argv in commands if (found := complaint(argv, may_work=False)) is not None]
    assert not bad, f"{len(bad)} of {len(commands)}:\n" + "\n".join(bad)
    assert len(commands) > 150


def test_code_of_the_user_is_named(tmp_path, monkeypatch):
    """In the line: module:name, the error, file and line."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_a.py").write_text(USERS_MODULE)
    code, told = outcome(["train", *flags(dataset_name="mine_a:raises", output_dir=tmp_path / "out")])
    assert code == 2
    line = "error: mine_a:raises raised KeyError: 'missing' (mine_a.py, line 7); COND_PIPELINES_TRACEBACK=1 shows"
    assert told.splitlines()[-1].startswith(line)
    monkeypatch.setenv("COND_PIPELINES_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["train", *flags(dataset_name="mine_a:raises", output_dir=tmp_path / "out")])


def test_a_bug_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    import cond_pipelines.training.loop as loop

    monkeypatch.setattr(loop, "load_vae", lambda *args: [][3])
    with pytest.raises(IndexError):
        main(["train", *flags(output_dir=tmp_path / "out")])
