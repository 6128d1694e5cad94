"""The code that a checkpoint carries: the sources of several modules joined into one file.

This file is self-contained on purpose: it travels with a checkpoint.
"""

import ast
import functools
import importlib
import inspect
import sys
from pathlib import Path

_PACKAGE = "cond_pipelines"
_PIPELINE_MODULES = (
    "adapters.denoiser",
    "pipelines.joined_code",
    "pipelines.remote_code",
    "pipelines.vae",
    "pipelines.guidance",
    "pipelines.autoguidance",
    "pipelines.schedulers",
    "pipelines.arguments",
    "pipelines.call_state",
    "pipelines.sampling",
    "pipelines.image_inputs",
    "pipelines.defaults",
    "pipelines.prompts",
    "pipelines.conditional",
    "pipelines.settings",
)  # in the order in which they import one another
_EVERYWHERE = {"accelerate", "diffusers", "huggingface_hub", "numpy", "PIL", "safetensors", "torch", "transformers"}


def _is_copy(cls: type) -> bool:
    """True for a class that was itself loaded from a checkpoint's code."""
    return cls.__module__.startswith("diffusers_modules.")


def pipeline_code(cls: type) -> str:
    """The text of one file that defines the pipeline class `cls` with no more than diffusers and transformers."""
    if _is_copy(cls):
        return _source(cls.__module__)
    modules = [f"{_PACKAGE}.{name}" for name in _PIPELINE_MODULES]
    if cls.__module__ not in modules:  # somebody's own subclass
        modules.append(cls.__module__)
    return join_code(*modules)


def adapter_code(cls: type, *parts: type) -> str:
    """The text of one file that defines the adapter class `cls`, and the classes of its `parts`.

    Where they need more than one file each, it imports the class and says what to install.
    """
    if _is_copy(cls):
        return _source(cls.__module__)
    modules = [c.__module__ for c in (*parts, cls) if c is not cls] + [cls.__module__]
    files: list[str] | None = [f"{_PACKAGE}.adapters.{name}" for name in ("denoiser", "base")]
    for module in dict.fromkeys(modules):
        needed = _with_imports(module)
        files = None if files is None or needed is None else files + needed
    if files is not None:
        return join_code(*dict.fromkeys(files)) + f'\n_ADAPTER_FROM = "{cls.__module__}"\n'
    package = cls.__module__.split(".")[0]
    return (
        f'"""The adapter of this model is a part of the package {package}."""\n\n'
        "from diffusers.models.modeling_utils import ModelMixin  # noqa: F401: diffusers looks for it here\n\n"
        "try:\n"
        f"    from {cls.__module__} import {cls.__name__}  # noqa: F401\n"
        "except ImportError as error:\n"
        f"    raise ImportError(\n"
        f'        "this model\'s adapter {cls.__name__} is a part of the package {package}: install it (and "\n'
        f'        "{_PACKAGE}), then load the model again"\n'
        "    ) from error\n"
    )


def join_code(*modules: str) -> str:
    """The sources of several modules as one, without their imports of each other and of this package."""
    future: set[str] = set()
    texts = []
    for name in modules:
        text = _source(name)
        lines = text.splitlines(keepends=True)
        for node in _parsed(text).body:
            if _is_for_type_checkers(node):
                new = ""
            elif not isinstance(node, ast.ImportFrom):
                continue
            elif node.module == "__future__":
                future.update(alias.name for alias in node.names)
                new = ""
            elif node.level or (node.module or "").split(".")[0] == _PACKAGE:
                new = "".join(f"{a.asname} = {a.name}\n" for a in node.names if a.asname and a.asname != a.name)
            else:
                continue
            end = node.end_lineno or node.lineno
            lines[node.lineno - 1 : end] = [new] + [""] * (end - node.lineno)
        texts.append("".join(lines))
    head = "".join(f"from __future__ import {name}\n" for name in sorted(future))
    title = f"# The code of {', '.join(modules)}, gathered so that this model loads with diffusers alone.\n"
    return title + head + "\n\n".join(texts)


@functools.cache  # a process that saves many models, as a run that pushes its checkpoints, parses each text once
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _is_for_type_checkers(node: ast.AST) -> bool:
    """True for `if TYPE_CHECKING: ...`, which is never run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _with_imports(module: str) -> list[str] | None:
    """The modules of our adapters that a module imports, then itself; None where it needs more than those files.

    That is anything but its own file, what everybody has, and names of our adapters.
    """
    try:
        tree = _parsed(_source(module))
    except (OSError, SyntaxError):
        return None
    runs = [node for node in tree.body if not _is_for_type_checkers(node)]
    needed: list[str] = []
    for node in ast.walk(ast.Module(runs, [])):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots = {(node.module or "").split(".")[0]}
            if node.level:
                return None
            if roots == {_PACKAGE} and node in runs:
                for alias in node.names:
                    home = _adapter_module(node.module or "", alias.name)
                    if home is None:
                        return None
                    needed += [] if home == module else _with_imports(home) or []
                continue
        else:
            continue
        if roots - _EVERYWHERE - sys.stdlib_module_names:
            return None
    return [*dict.fromkeys(needed), module]


def _adapter_module(module: str, name: str) -> str | None:
    """Where a name that is imported from this package is defined; None where that is not with the adapters."""
    home = getattr(getattr(importlib.import_module(module), name, None), "__module__", "")
    adapters = f"{_PACKAGE}.adapters."
    base = f"{adapters}base"
    if home.startswith(adapters):
        return home
    return base if hasattr(importlib.import_module(base), name) else None


def _source(module: str) -> str:
    return Path(inspect.getsourcefile(sys.modules[module]) or "").read_text(encoding="utf-8")
