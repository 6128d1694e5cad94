"""A few hundred wrong or damaged inputs of every command: one line that begins with "error:", code 2, no traceback.

The inputs are made from what is right: the files that a command reads are damaged in many ways (see
benchmarks/wrong_inputs.py), every flag gets wrong values. What a command can do without may work.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN
from training_common import flags
from wrong_inputs import READS, SMALL, TRAINING, outcome, right_model, try_damaged_files

from cond_pipelines.cli import main
from cond_pipelines.errors import of_a_limit

# Of the damaged files every n-th: loading a model, pushing it and training take their time.
EVERY = {"compare": 1, "recipe without data": 5, "card": 11, "ema": 11, "evaluate": 29, "train": 19, "push": 31}
EVERY |= {"recipe": 29}  # primes: no kind of damage is always passed over


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return right_model(tmp_path_factory.mktemp("right") / "model")


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
@pytest.mark.parametrize("command", READS)
def test_damaged_files(command, right, tmp_path, hub, monkeypatch):
    """Of all, no command ends in a traceback; at least a fifth is refused (the others can be done without).

    `python benchmarks/wrong_inputs.py` tries every damage of every file.
    """
    monkeypatch.chdir(tmp_path)
    count = try_damaged_files(command, right, tmp_path, EVERY[command])
    assert not count.bad, f"{len(count.bad)} of {count.inputs}:\n" + "\n".join(count.bad)
    assert count.inputs >= 8 and count.refused >= count.inputs / 5


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
    import cond_pipelines.training.run as loop

    monkeypatch.setattr(loop, "load_vae", lambda *args: [][3])
    with pytest.raises(IndexError):
        main(["train", *flags(output_dir=tmp_path / "out")])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("could not create a primitive", "out of memory: raise `ulimit -v`"),  # oneDNN's, in a step
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory", "out of memory: raise `ulimit -v`"),
        ("can't start new thread", "no thread or process can be started"),
        ("a bug of ours", None),
    ],
)
def test_limits_of_the_machine_are_known_by_what_libraries_say(text, line):
    found = of_a_limit(text)
    assert found is None if line is None else found.startswith(line)
