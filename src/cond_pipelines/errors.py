"""Errors of a user's input: one line and an exit code, for every command. A bug of this library keeps its traceback.

A command runs within `one_line_errors()`. What it reads of the user's is read by `read_json`, `read_yaml`, `checked`
and `user_code.load_object`, or, where another library reads it, within `reading(what)`: they raise UserError.
"""

import argparse
import errno
import json
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .console import for_terminal, steady_streams
from .user_code import raised_by_user_code

TRACEBACK_VARIABLE = "COND_PIPELINES_TRACEBACK"  # set to 1: errors keep their traceback
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN}
# As the system, PyTorch, the loader of libraries and oneDNN say it.
_OUT_OF_MEMORY = ("annot allocate memory", "can't allocate memory", "failed to map segment", "could not create a pri")
_MAX_YAML_VALUES = 100_000
_Facts = TypeVar("_Facts")


class UserError(ValueError):
    """Input that cannot be used. The message is one line that names it, and the remedy where there is one."""


def describe(error: BaseException) -> str:
    """One line for an error of any kind; its type too, unless the text says enough.

    Example:
        >>> describe(KeyError("x"))
        "KeyError: 'x'"
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return text if type(error) in (UserError, ValueError, OSError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """For the body of a command: an error of the user's input, or of the machine, ends it in one line on stderr.

    Exit codes: 2 for wrong input; 1 for a machine that lacks room, memory or open files; 130 for Ctrl-C; an error with
    an `exit_code` of its own has that. All other errors are bugs and keep their traceback, and so do all errors
    where COND_PIPELINES_TRACEBACK=1 is set. A terminal that was closed does not end the command.

    Raises:
        SystemExit: after the line.
    """
    with steady_streams():
        try:
            yield
        except KeyboardInterrupt as error:
            end(str(error) or "stopped by Ctrl-C", getattr(error, "exit_code", 130), error)
        except BaseException as error:
            if not is_failure(error):
                raise
            found = _line(error)
            if found is None or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
                raise
            end(*found, error)


def is_failure(error: BaseException) -> bool:
    """Whether something failed, and nobody stopped it: also a panic of Rust, which is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {for_terminal(' '.join(message.split()))}\n")


def end(line: str, code: int, error: BaseException) -> NoReturn:
    """Print `line` on stderr, below all progress bars, and leave. Raises SystemExit."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", [])):
            bar.close()
    sys.stderr.write(for_terminal(" ".join(line.split())) + "\n")
    raise SystemExit(code) from error


def _line(error: BaseException) -> tuple[str, int] | None:
    """The last line of a command and its exit code; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError) | MemoryError):
        return f"error: out of memory: {text or 'the limit of this process is reached'}", 1
    if (code := getattr(error, "exit_code", None)) is not None:
        return text if code == 0 else f"error: {text}", code
    if (blame := raised_by_user_code(error)) is not None:
        return f"error: {blame}; {TRACEBACK_VARIABLE}=1 shows the traceback", 2
    if "Original Traceback" in text:  # of a DataLoader's worker: its last line says what
        _kind, _, text = str(error).strip().splitlines()[-1].partition(": ")
        return (f"error: {text}", 2) if isinstance(error, ValueError) else None
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        remedy = "raise `ulimit -n`" if error.errno in (errno.EMFILE, errno.ENFILE) else "make room, or mend the path"
        return f"error: {describe(error)}: {remedy}", 1
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {describe(error)}", 2
    if isinstance(error, ValueError):
        return f"error: {text}", 2
    if isinstance(error, RuntimeError | ImportError) and (limit := of_a_limit(text)):
        return f"error: {limit}", 1
    return None


def of_a_limit(text: str) -> str | None:
    """What to say where `text`, of an error of PyTorch or of Python, speaks of a limit of the machine; else None."""
    if "Too many open files" in text or "open shared memory" in text:
        return f"too many open files: raise `ulimit -n`, or give --dataloader_num_workers 0 ({text[:120]})"
    if any(words in text for words in ("can't start new thread", "Resource temporarily unavailable")):
        return f"no thread or process can be started: raise `ulimit -u` or `ulimit -v` ({text[:120]})"
    if any(words in text for words in _OUT_OF_MEMORY):
        return f"out of memory: raise `ulimit -v`, or use less ({text[:120]})"
    return None


# ------------------------------------------------------------------------------------------------- reading
@contextmanager
def reading(what: str) -> Iterator[None]:
    """For what another library reads of the user's: whatever it raises becomes one line that begins with `what`.

    Libraries have no base class for what a damaged file makes them raise. A lack of memory stays what it is.

    Example:
        >>> with reading(f"--classifier {name}"):
        ...     model = AutoModelForImageClassification.from_pretrained(name)
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        if "OutOfMemory" in type(error).__name__ or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE):
            raise
        text = raised_by_user_code(error) or describe(error)
        raise UserError(text if text.startswith(what) else f"{what}: {text}") from error


def read_text(path: str | Path, limit_mib: int = 64) -> str:
    """A UTF-8 text file. Raises UserError, also for one that is larger than `limit_mib`."""
    try:
        size = Path(path).stat().st_size
        if not Path(path).is_file():
            raise UserError(f"{path} is no file")
        if size > limit_mib * 2**20:
            raise UserError(f"{path} is too large to be read: {size / 2**20:,.0f} MiB, and the limit is {limit_mib}")
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a ValueError: a NUL byte in the path
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises UserError."""
    return _mapping(_json_of(path), path)


def read_json_list(path: str | Path) -> list[Any]:
    """A JSON file that holds a list. Raises UserError."""
    found = _json_of(path)
    if not isinstance(found, list):
        raise UserError(f"{path} must hold a list, not a {type(found).__name__}")
    return found


def _json_of(path: str | Path) -> Any:
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        raise UserError(f"{path} is not JSON: {' '.join(str(error).split())}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of `key: value` lines; an empty one is {}. Raises UserError.

    An alias (`*name`) repeats a value. A few lines of them stand for more than any memory holds, so the values are
    counted as they would be written out, before they are made.
    """
    text = read_text(path, limit_mib=1)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _written_out(node, {}) > _MAX_YAML_VALUES:
            raise UserError(f"{path} holds more than {_MAX_YAML_VALUES:,} values, with those that its aliases repeat")
        found = None if node is None else loader.construct_document(node)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path} is not YAML: {where}{error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-01
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return {} if found is None else _mapping(found, path)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for; more than all memory holds where it contains itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_YAML_VALUES + 1  # until it is counted, for a node within itself
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


def arguments_of(flag: str, text: str | None) -> dict[str, Any]:
    """Arguments given as JSON on the command line; none for None. Raises UserError."""
    try:
        found = json.loads(text or "{}")
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{flag} {(text or '')[:200]}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{flag} {(text or '')[:200]}: it must be names and values in braces, not a {type(found).__name__}"
        )
    return found


def _mapping(found: Any, path: str | Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold names and values, not a {type(found).__name__}")
    return found


def checked(cls: type[_Facts], values: dict[str, Any], where: str | Path, only_known: bool = True) -> _Facts:
    """A dataclass from what a file holds.

    Args:
        only_known: refuse names that `cls` has no field for; otherwise they are ignored.

    Raises:
        UserError: an unknown name, a missing one, or a value of the wrong type; the message names it and `where`.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    unknown = [name for name in values if name not in known]
    if unknown and only_known:
        raise UserError(f"{where}: unknown field {str(unknown[0])!r}; known: {', '.join(known)}")
    values = {name: value for name, value in values.items() if name in known}
    for name, value in values.items():
        if not is_a(value, hints[name]):
            hint = hints[name]
            wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            raise UserError(f"{where}: {name} is {str(value)[:60]!r}, which is not of type {wanted}")
    needed = [x.name for x in fields(cls) if x.default is MISSING and x.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    return cls(**values)


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value from JSON or YAML is of an annotated type; an int is a float, a bool is no int."""
    if hint is Any:
        return True
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(is_a(value, part) for part in parts)
    if kind is list:
        return isinstance(value, list) and all(is_a(v, parts[0]) for v in value)
    if kind is tuple:  # of a fixed length; a list in JSON
        same = isinstance(value, list | tuple) and len(value) == len(parts)
        return same and all(is_a(v, part) for v, part in zip(value, parts, strict=True))
    if kind is dict:
        return isinstance(value, dict) and all(is_a(k, parts[0]) and is_a(v, parts[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
