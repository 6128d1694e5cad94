"""Which folder may import which, what travels with a checkpoint, and how long a module and a function may be."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from diffusers import pipelines as diffusers_pipelines

import cond_pipelines
from cond_pipelines import _moved
from cond_pipelines.settings import SETTINGS

SOURCE = Path(cond_pipelines.__file__).parent
PACKAGE = "cond_pipelines"
# Each may import itself and what stands to its left. A module at the top is a layer of its own name.
LAYERS = [
    *(
        "console",
        "user_code",
        "errors",
        "files",
        "folders",
        "folder_kinds",
        "locks",
        "processes",
        "background",
        "worker",
        "flags",
        "command_line",
        "builtin",
        "provenance",
        "demo_arguments",
        "small_parsers",
    ),
    *("fonts", "pictures"),
    *("adapters", "objectives", "pipelines", "networks", "export", "grids"),
    *("data", "settings", "sharing", "evaluation", "training", "halves"),
    *("sample", "evaluate", "demo", "inspection", "display", "studio", "completion", "cli"),
]
TRAVELS = {"adapters", "pipelines"}


def modules() -> dict[str, ast.Module]:
    paths = [path for path in SOURCE.rglob("*.py") if path.name not in ("__init__.py", "_moved.py")]
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """The modules of this package that a module imports, also within its functions, but not for type checkers alone."""
    package = f"{PACKAGE}.{name}".rpartition(".")[0]
    skipped = {
        id(inner)
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(MODULES[name]):
        if not isinstance(node, ast.ImportFrom) or id(node) in skipped:
            continue
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        if base.split(".")[0] == PACKAGE:
            inner = base.removeprefix(PACKAGE).lstrip(".")
            full = {f"{inner}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {module if module in MODULES else inner for module in full}
    return found - {""}


def layer(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_no_arrow_runs_back_up(name):
    own = LAYERS.index(layer(name))
    assert [other for other in imports_of(name) if LAYERS.index(layer(other)) > own] == []


def test_what_travels_imports_nothing_else_of_ours():
    """A pipeline's file carries the code that calls a network too, and no adapter."""
    for name in MODULES:
        if layer(name) in TRAVELS:
            others = {other for other in imports_of(name) if layer(other) != layer(name)}
            assert others <= ({"adapters.denoiser"} if layer(name) == "pipelines" else set()), name


def test_evaluation_never_imports_training():
    assert not [name for name in MODULES if layer(name) == "evaluation" and "training" in map(layer, imports_of(name))]


def test_only_the_table_compares_names_of_settings():
    names = "|".join(name for name in SETTINGS if name != "none")  # which other things are compared with
    literal = rf'["\']({names})["\']'
    pattern = re.compile(rf"conditioning (==|!=|in|not in) [\"'(\[]|(==|!=|\bis|\bin \() ?{literal}")
    found = {}
    for name in MODULES:
        source = (SOURCE / (name.replace(".", "/") + ".py")).read_text()
        if name != "settings" and layer(name) not in TRAVELS:
            found[name] = [line for line in source.splitlines() if pattern.search(line)]
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_imports_within_a_folder_have_no_cycle():
    below = {name: imports_of(name) & set(MODULES) for name in MODULES}

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        for other in below[name]:
            walk(other, (*path, name))
        below[name] = set()  # nothing leads back from here

    for name in list(below):
        walk(name, ())


def test_no_folder_has_a_name_of_diffusers_pipelines():
    """diffusers takes a component whose module's parent folder has such a name for one of its own."""
    folders = [info.name for info in pkgutil.iter_modules([str(SOURCE)]) if info.ispkg]
    assert not [name for name in folders if hasattr(diffusers_pipelines, name)]


@pytest.mark.parametrize("old", _moved.MOVED)
def test_old_names_of_modules_are_imported_still(old):
    with pytest.warns(DeprecationWarning, match="is now"):
        importlib.invalidate_caches()
        importlib.sys.modules.pop(f"{PACKAGE}.{old}", None)
        module = importlib.import_module(f"{PACKAGE}.{old}")
    assert inspect.ismodule(module) and module.__name__ == f"{PACKAGE}.{_moved.MOVED[old]}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_and_a_function_can_be_taken_in_at_once(name):
    path = SOURCE / (name.replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) <= 350
    lines = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.FunctionDef)
    }
    # The training loop reads top to bottom in one function.
    long = {name: count for name, count in lines.items() if count > (100 if name == "_train" else 60)}
    assert long == {}


# Constructors with diffusers' components and defaults.
MANY_PARAMETERS = {"pipelines.conditional.__init__", "pipelines.settings.__init__"}


@pytest.mark.parametrize("name", MODULES)
def test_a_function_has_at_most_eight_parameters(name):
    """More than eight belong together in a value object. A call of a pipeline has the names of diffusers'."""
    many = {}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef) and f"{name}.{node.name}" not in MANY_PARAMETERS:
            parameters = [p.arg for p in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            many[node.name] = [p for p in parameters if p not in ("self", "cls")]
    assert {function: parameters for function, parameters in many.items() if len(parameters) > 8} == {}


def test_the_training_loop_can_be_taken_in_at_once():
    (loop,) = [node for node in ast.walk(MODULES["training.loop"]) if isinstance(node, ast.While)]
    assert loop.end_lineno - loop.lineno + 1 <= 60
