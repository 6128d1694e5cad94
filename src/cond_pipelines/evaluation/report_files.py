"""What evaluations left in the folders of models: read from the disk alone, without torch."""

from itertools import combinations
from pathlib import Path

from ..errors import read_json, read_json_list
from .compare import compare, read_report, report_file

_REPORT, _SWEEP = "report.json", "sweep.json"


def reports_in(models: list[Path]) -> list[dict[str, object]]:
    """Of each model with a report: its path, whether there is a sweep, and when the newest was written."""
    reports = []
    for path in models:
        times = {name: _time(path / "evaluation" / name) for name in (_REPORT, _SWEEP)}
        if any(times.values()):
            reports.append({"path": str(path), "sweep": times[_SWEEP] > 0, "mtime": max(times.values())})
    return reports


def report_in(model: Path) -> dict[str, object]:
    """The report, the reports of a sweep, and the pictures and pages next to them; None for what is not there.

    Raises:
        UserError: a file is no report. PermissionError: it is a link that leads out of the model's folder.
    """
    folder = model / "evaluation"
    report, sweep = folder / _REPORT, folder / _SWEEP
    for path in (report, sweep):
        _check_inside(path, model)
    return {
        "report": read_json(report) if report.is_file() else None,
        "sweep": read_json_list(sweep) if sweep.is_file() else None,
        "files": [str(path) for path in sorted(folder.glob("*")) if path.suffix in (".png", ".html", ".md")],
    }


def compared(paths: list[Path]) -> list[dict[str, object]]:
    """The comparison of each two reports; `paths`: of models, or of reports. Raises as `report_in`."""
    for path in paths:
        _check_inside(report_file(path), path)
    read = {str(path): read_report(path) for path in paths}
    return [{"a": a, "b": b, "rows": compare(read[a], read[b])} for a, b in combinations(read, 2)]


def _time(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _check_inside(file: Path, model: Path) -> None:
    if not file.resolve().is_relative_to(model.resolve()):
        raise PermissionError(f"{file} leads out of {model}")
