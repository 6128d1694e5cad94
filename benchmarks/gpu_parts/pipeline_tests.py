"""Part "tests": the pipeline tests on the GPU, the quick ones first, until the time is over."""

from pathlib import Path

import pytest
import torch

from gpu_parts.context import Context

TESTS = Path(__file__).parents[2] / "tests"
_FILES = ("test_pipelines.py", "test_parents.py")
_SLOW = ("offload",)  # in a test's name: it moves weights at each call; the others take a tenth of a second
_TINY_COUNT = 3


class _OnDevice:
    """A pytest plugin: runs the variants of one device, in order, and writes down how each ended."""

    def __init__(self, context: Context):
        self.context, self.failed, self.passed, self.skipped, self.count = context, [], 0, 0, 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the variants of the device, the quick ones first."""
        params = (getattr(item, "callspec", None) for item in items)
        devices = [None if p is None else p.params.get("device") for p in params]
        chosen = [item for item, device in zip(items, devices, strict=True) if device == self.context.device]
        chosen.sort(key=lambda item: any(word in item.name for word in _SLOW))
        items[:] = chosen[:_TINY_COUNT] if self.context.tiny else chosen
        self.count = len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count, and write a row for a failure at once."""
        if report.failed:
            self.failed.append(report.nodeid)
            words = report.longreprtext.strip().splitlines()
            self.context.row(report.nodeid.split("/")[-1], "failed", note=words[-1][:300] if words else "")
        self.skipped += report.skipped
        self.passed += report.when == "call" and report.passed

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Stop in time, so that the count is written."""
        if self.context.left_sec() < 4:
            item.session.shouldstop = "no time is left"


def run(context: Context) -> None:
    """Run pytest in this process, and count."""
    plugin = _OnDevice(context)
    files = [str(TESTS / name) for name in _FILES]
    # Nothing of the repository's own settings: they may name plugins that are not there.
    settings = ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-q"]
    pytest.main([*settings, "--rootdir", str(TESTS.parent), *files], plugins=[plugin])
    not_run = plugin.count - plugin.passed - plugin.skipped - len(plugin.failed)
    good = plugin.count > 0 and plugin.passed == plugin.count
    context.row(
        f"pipeline tests on {context.device}",
        f"{plugin.passed} of {plugin.count} passed",
        goal="all",
        met=good,
        note=f"{len(plugin.failed)} failed, {plugin.skipped} skipped, {not_run} not run; torch {torch.__version__}",
    )
    if not good:
        raise SystemExit(f"{plugin.passed} of {plugin.count} tests passed")
