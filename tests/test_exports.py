import ast
import importlib
import inspect
import json
import subprocess
import sys

import pytest

import cond_pipelines
from cond_pipelines import ConditionalPipeline, Conditioning, ConditioningAdapter, Noised, Objective

PUBLIC = [
    "UNET_SIZES",
    "ClassConditionalPipeline",
    "ClassLabelAdapter",
    "CompositeAdapter",
    "ConditionalPipeline",
    "Conditioning",
    "ConditioningAdapter",
    "EmbeddingAdapter",
    "Noised",
    "Objective",
    "PromptAdapter",
    "TextAdapter",
    "TextToImagePipeline",
    "TrainingConfig",
    "UnconditionalAdapter",
    "UnconditionalPipeline",
    "build_unet",
    "builtin_model",
    "image_grid",
    "sample_grid",
    "train",
]


def imported_by(*lines: str) -> list[str]:
    """Modules that a fresh interpreter has loaded after `lines`, beyond its own."""
    code = "; ".join(["import json, sys", "before = set(sys.modules)", *lines, "new = set(sys.modules) - before"])
    code += "; print(json.dumps(sorted(new)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=120)
    return json.loads(done.stdout)


def test_public_names_are_complete_and_sorted():
    assert sorted(cond_pipelines.__all__) == sorted(PUBLIC) == sorted(cond_pipelines._EXPORTS)
    assert dir(cond_pipelines) == sorted(cond_pipelines.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    found = getattr(cond_pipelines, name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert found.__name__ == name and found.__module__.startswith("cond_pipelines.")
        assert inspect.getdoc(found), f"{name} has no docstring"


@pytest.mark.parametrize("module", ["adapters", "pipelines"])
def test_no_adapter_or_pipeline_is_left_out(module):
    kinds = (ConditionalPipeline, Conditioning, ConditioningAdapter, Noised, Objective)
    classes = inspect.getmembers(importlib.import_module(f"cond_pipelines.{module}"), inspect.isclass)
    names = {name for name, c in classes if issubclass(c, kinds) and not name.startswith("_")}
    assert names and names <= set(cond_pipelines.__all__)


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match=r"has no attribute 'TextPipeline'; it exports .*TextToImagePipeline"):
        _ = cond_pipelines.TextPipeline
    with pytest.raises(ImportError, match="TextPipeline"):
        from cond_pipelines import TextPipeline  # noqa: F401


def test_importing_is_light():
    heavy = {"torch", "diffusers", "transformers", "accelerate", "datasets", "numpy", "PIL", "huggingface_hub"}
    modules = imported_by("import cond_pipelines", "dir(cond_pipelines)", "cond_pipelines.__version__")
    assert "cond_pipelines" in modules and not heavy & set(modules)
    ours = [name for name in modules if name.startswith("cond_pipelines")]
    assert ours == ["cond_pipelines", "cond_pipelines._moved"] and len(modules) < 30, modules


def test_an_adapter_is_imported_without_the_training_code():
    modules = imported_by("import cond_pipelines", "cond_pipelines.Conditioning")
    assert "cond_pipelines.adapters" in modules and not any("cond_pipelines.training" in name for name in modules)


def test_marked_as_typed():
    assert importlib.resources.files("cond_pipelines").joinpath("py.typed").is_file()


def test_help_and_mistakes_are_answered_before_torch_is_imported():
    """Torch, diffusers and transformers cost seconds; a typo is to cost none. One interpreter for all commands."""
    commands = [
        *(["train", *args] for args in (["--help"], ["--learning_rat", "1"], ["--resolution", "big"], ["--rank", "8"])),
        *([], ["--help"], ["tarin"], ["train", "--config", "nowhere.yaml"], ["evaluate", "--help"], ["evaluate"]),
        *(["evaluate", "model", "--num_sampels", "3"], ["demo", "--help"], ["demo", "--sped", "2"], ["compare"]),
        *([command, "--help"] for command in ("compare", "convert", "ema", "card", "push")),
    ]
    code = (
        "from cond_pipelines.cli import main as command",
        "from cond_pipelines.training.__main__ import main as training",
        "from cond_pipelines.evaluate import main as evaluate",
        "import contextlib, io",
        "quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))",
        f"run = [(command, args) for args in {commands}] + [(training, ['--help']), (evaluate, ['--help'])]",
        "exec('for main, args in run:\\n with contextlib.suppress(SystemExit), quiet[0], quiet[1]:\\n  main(args)')",
        "import runpy",
        "sys.argv = ['demo', '--help']",
        "of_demo = lambda: runpy.run_module('cond_pipelines.demo', None, '__main__')",
        "exec('with contextlib.suppress(SystemExit), quiet[0]: of_demo()')",
    )
    modules = set(imported_by(*code))
    assert {"cond_pipelines.training.arguments", "cond_pipelines.evaluation.config"} <= modules
    assert not modules & {"torch", "diffusers", "transformers", "accelerate", "datasets", "numpy", "PIL", "tqdm"}


def test_editors_see_the_same_names():
    """What is imported for type checkers is what `__getattr__` finds."""
    tree = ast.parse(inspect.getsource(cond_pipelines))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert {alias.name: line.module for line in block.body for alias in line.names} == cond_pipelines._EXPORTS
