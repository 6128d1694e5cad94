"""Nothing in the tests and benchmarks waits for ever."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
_WAITING = {"run", "call", "check_call", "check_output"}  # of subprocess
_WAITING_METHODS = {"wait", "communicate"}


def waits_for_ever(node: ast.AST) -> bool:
    """A call that waits for a process, a thread or an event, without a time limit."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if any(keyword.arg in ("timeout", None) for keyword in node.keywords):
        return False
    of_subprocess = isinstance(node.func.value, ast.Name) and node.func.value.id == "subprocess"
    return (of_subprocess and node.func.attr in _WAITING) or (node.func.attr in _WAITING_METHODS and not node.args)


def test_every_wait_has_a_time_limit():
    found, calls = [], 0
    for folder in ("tests", "benchmarks", "studies"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                calls += isinstance(node, ast.Call) and "subprocess.run" in ast.unparse(node.func)
                if waits_for_ever(node):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert calls > 10 and not found, found


def test_every_test_has_a_time_limit(request):
    """Of pytest-timeout, and of faulthandler where a thread that waits holds the interpreter's lock."""
    limit, method = request.config.getini("timeout"), request.config.getini("timeout_method")
    assert request.config.pluginmanager.hasplugin("timeout") and 0 < float(limit) <= 300 and method == "thread"
    assert float(request.config.getini("faulthandler_timeout")) > float(limit)
    assert request.config.getini("faulthandler_exit_on_timeout")
