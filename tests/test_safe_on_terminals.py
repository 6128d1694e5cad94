"""Text of others on a terminal: every line of this package, and what other libraries print while a command runs."""

import ast
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

import cond_pipelines
from cond_pipelines.console import lines_for_terminal, say, steady_streams

SOURCE = Path(cond_pipelines.__file__).parent
ESCAPES = {"for_terminal", "lines_for_terminal"}
# (file, function): why a line there needs none.
EXEMPT = {
    ("console.py", "say"): "it escapes itself",
    ("errors.py", "end"): "it escapes itself",
    ("processes.py", "_exit_code"): "the text of a SystemExit, as Python prints it; a command's own are escaped",
    ("pipelines/settings.py", "_warn_of_lost_words"): "it travels without console.py; words of the caller's own prompt",
    ("adapters/base.py", "_renamed"): "names of this package",
    ("demo.py", "train_demo"): "names of this package",
    ("training/other_flags.py", ""): "tables of this package",
    ("_moved.py", "exec_module"): "names of this package",
}


def unescaped(tree: ast.Module, file: str) -> list[str]:
    """Calls that print something else than a literal, numbers in a format of numbers, and what is escaped."""
    found = []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in [tree, *functions]:
        inner = {
            id(n)
            for f in ast.walk(function)
            if isinstance(f, ast.FunctionDef) and f is not function
            for n in ast.walk(f)
        }
        for node in ast.walk(function):
            if id(node) in inner or not isinstance(node, ast.Call) or not _prints(node.func):
                continue
            if (file, getattr(function, "name", "")) not in EXEMPT and not all(map(_is_safe, node.args)):
                found.append(f"{file}:{node.lineno}: {ast.unparse(node)[:100]}")
    return found


def _prints(function: ast.expr) -> bool:
    text = ast.unparse(function)
    return text in (
        "print",
        "tqdm.write",
        "sys.stderr.write",
        "sys.stdout.write",
        "warnings.warn",
        "self.bar.write",
    ) or (
        text.rpartition(".")[2] in ("warning", "warning_once", "info", "error", "exception", "debug")
        and "log" in text.partition(".")[0].lower()
    )


def _is_safe(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) in (*ESCAPES, "json.dumps")
    if isinstance(value, ast.JoinedStr):
        return all(_is_safe(part) for part in value.values)
    if isinstance(value, ast.FormattedValue):  # a number, or a name of ours
        return value.format_spec is not None or ast.unparse(value.value).endswith("__name__") or _is_safe(value.value)
    return isinstance(value, ast.Constant) or ast.unparse(value) == "DeprecationWarning"


def test_every_line_is_escaped():
    paths = sorted(SOURCE.rglob("*.py"))
    found = [line for p in paths for line in unescaped(ast.parse(p.read_text()), p.relative_to(SOURCE).as_posix())]
    assert found == []


def test_the_search_finds_what_it_must():
    source = "def f(x):\n    print(x)\n    tqdm.write(f'a {x}')\n    _logger.warning('a %s', x)\n    warnings.warn(x)\n"
    assert len(unescaped(ast.parse(source), "a.py")) == 4
    assert unescaped(ast.parse("print('a', f'{x:g}', for_terminal(x))"), "a.py") == []


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """stderr as a command has it. (A fixture would be too early: pytest puts its own in place after that.)"""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with steady_streams():
        yield stream


def test_what_libraries_print_is_text(monkeypatch):
    """A log, a warning and a progress bar with a file's words in them."""
    with terminal(monkeypatch) as shown:
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": "config has \x1b[2J \u202e \u200b \x9b1m and\ttabs\nand lines"}))
        print("\x1b[31merror\x1b[0m\rnothing to see", file=sys.stderr)
        for _ in tqdm(range(1), desc="a\x1b[2J"):
            pass
    text = shown.getvalue()
    assert text.startswith(
        "config has \\x1b[2J \\u202e \\u200b \\x9b1m and\ttabs\nand lines\nerror\\rnothing to see\n\ra\\x1b[2J"
    )
    assert "\x1b" not in text


def test_progress_bars_still_move(monkeypatch):
    with terminal(monkeypatch) as shown:
        for _ in tqdm(range(2), desc="outer", position=1, mininterval=0):
            pass
    text = shown.getvalue()
    assert "\router" in text and "\x1b[A" in text and "\\x1b" not in text and "\\r" not in text


def test_one_line_stays_one(capsys):
    say("a\nb\x1b[2J")
    assert capsys.readouterr().err == "a\\nb\\x1b[2J\n"
    assert lines_for_terminal("a\x1b\nb\r") == "a\\x1b\nb\\r"
