"""Code of the user's own, named on the command line as module:name: loaded, checked, and named where it fails."""

import importlib
import inspect
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).parent)
_loaded: dict[str, str] = {}  # the files of the users' modules: as they were named


def load_object(
    path: str, base: type | None = None, num_arguments: int | None = None, instance_of: type | None = None
) -> Any:
    """The object at "module:name"; modules of the working folder are found too.

    Args:
        base: what it must be a subclass of; None: anything that can be called.
        num_arguments: with how many it will be called; None: not looked at.
        instance_of: what it must be an instance of, instead of something that can be called.

    Raises:
        ValueError: there is none, it is of another kind, or its module fails when it is imported.

    Example:
        >>> load_object("torch.optim:AdamW", torch.optim.Optimizer)
    """
    module_name, _, name = path.partition(":")
    if not (module_name and name) or "\0" in path:
        raise ValueError(f"{path!r} is not of the form module:name")
    if os.getcwd() not in sys.path and "" not in sys.path:  # last, so that it hides nothing
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, name)
    except (Exception, SystemExit) as error:  # importing runs the module
        of_import = isinstance(error, ImportError | AttributeError)
        reason = " ".join(str(error).split()) if of_import else f"{type(error).__name__}: {error}{_place(error)}"
        raise ValueError(f"cannot import {path!r} (module:name): {' '.join(reason.split())}") from error
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{path!r} is a {type(found).__name__}, and a subclass of {base.__name__} is needed")
    if instance_of is not None and not isinstance(found, instance_of):
        raise ValueError(f"{path!r} is a {type(found).__name__}, and a {instance_of.__name__} is needed")
    if instance_of is None and not callable(found):
        raise ValueError(f"{path!r} is a {type(found).__name__}, which cannot be called")
    if num_arguments is not None and not _takes(found, num_arguments):
        raise ValueError(f"{path!r} cannot be called with {num_arguments} argument(s), as is needed here")
    defined_in = found.__module__ if callable(found) and getattr(found, "__module__", None) else module_name
    for one in (module, sys.modules.get(defined_in)):
        file = getattr(one, "__file__", None)
        if file and not file.startswith(_HERE):
            _loaded[file] = path
    return found


def _takes(found: Any, num_arguments: int) -> bool:
    try:
        inspect.signature(found).bind(*[None] * num_arguments)
    except TypeError:
        return False
    except ValueError:  # a built-in does not say
        return True
    return True


def raised_by_user_code(error: BaseException) -> str | None:
    """One line that names the user's module:name, the error and its place, where their code raised it; else None."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    kind, text = type(error).__name__, str(error)
    if "Original Traceback" in text:  # of a DataLoader's worker
        places += [(file, int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', text)]
        kind, _, text = text.strip().splitlines()[-1].partition(": ")
    for file, line in reversed(places):
        if file in _loaded:
            return f"{_loaded[file]} raised {kind}: {' '.join(text.split())} ({Path(file).name}, line {line})"
        if file.startswith(_HERE):
            return None  # of ours, which it called
    return None


def _place(error: BaseException) -> str:
    """The file and line of a module that failed when it was imported."""
    if isinstance(error, SyntaxError):
        return ""  # says it itself
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_HERE, "<frozen"))]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
