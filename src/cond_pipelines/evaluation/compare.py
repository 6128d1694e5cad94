"""Two evaluations side by side: which differences are larger than chance."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..console import for_terminal
from ..errors import UserError, checked, read_json
from ..folders import check_model_folder
from .config import Report, Row

SAME = (
    "setting",
    "feature_extractor",
    "clip_model",
    "unseen_captions",
    "resolution_px",
    "data",
    "num_train",
    "num_samples",
    "is_pool",
)


@dataclass
class _Report:
    """What must be in a report.json."""

    measures: list[Row]


@dataclass
class _Row:
    """What must be in a row of its measures."""

    name: str
    value: float
    better: str
    interval: tuple[float, float] | None


def compare(a: Report, b: Report) -> list[Row]:
    """Rows of {"name", "a", "b", "difference", "verdict"}; for a measure of one report only, the other is None.

    A difference counts as larger than chance where the two 95 % intervals do not meet, which errs on the side of doubt.

    Raises:
        ValueError: the reports cannot be compared; the message names the first difference.
    """
    check_same(a, b, SAME)
    rows, theirs = [], {row["name"]: row for row in b["measures"]}
    for row in a["measures"]:
        other = theirs.get(row["name"])
        if other is None:
            rows.append({"name": row["name"], "a": row, "b": None, "difference": None, "verdict": "only A has it"})
            continue
        difference = other["value"] - row["value"]
        if row["interval"] is None or other["interval"] is None:
            verdict = "no interval"
        elif max(row["interval"][0], other["interval"][0]) <= min(row["interval"][1], other["interval"][1]):
            verdict = "within chance"
        else:
            verdict = "B is better" if (difference > 0) == (row["better"] == "higher") else "A is better"
        rows.append({"name": row["name"], "a": row, "b": other, "difference": difference, "verdict": verdict})
    names = {row["name"] for row in a["measures"]}
    return rows + [
        {"name": row["name"], "a": None, "b": row, "difference": None, "verdict": "only B has it"}
        for row in b["measures"]
        if row["name"] not in names
    ]


def check_same(a: Report, b: Report, names: Iterable[str]) -> None:
    """Raise ValueError, which names the first difference, for reports whose numbers mean different things."""
    for name in names:
        if a.get(name) != b.get(name):
            raise ValueError(
                f"the reports differ in {name} ({a.get(name)} and {b.get(name)}), so their numbers cannot be compared: "
                "evaluate both in the same way"
            )


def report_file(path: str | Path) -> Path:
    """The report.json of a path or of a model's folder. Raises ValueError where there is none."""
    path = Path(path)
    if path.is_dir():
        check_model_folder(path)
    file = next((p for p in (path, path / "report.json", path / "evaluation/report.json") if p.is_file()), None)
    if file is None:
        raise ValueError(f"{path} is no evaluation's report.json, and holds none")
    return file


def read_report(path: str | Path) -> Report:
    """A report.json, or the one of a model's folder. Raises ValueError where there is none, or an incomplete one."""
    file = report_file(path)
    report = read_json(file)
    checked(_Report, report, file, only_known=False)
    for row in report["measures"]:
        checked(_Row, row, f"{file}, measures", only_known=False)
        if any(math.isnan(number) for number in (row["value"], *(row["interval"] or ()))):
            raise UserError(
                f"{file}: {row['name']!r} is no number (NaN), and says nothing of the model: evaluate it again"
            )
    return report


def table(rows: list[Row]) -> str:
    """As text, a row a line."""

    def shown(row: Row | None) -> str:
        if row is None:
            return "-"
        interval = "" if row["interval"] is None else f" [{row['interval'][0]:g}, {row['interval'][1]:g}]"
        return f"{row['value']:g}{interval}"

    rows = [row | {"name": for_terminal(row["name"])} for row in rows]
    width = max((len(row["name"]) for row in rows), default=10)
    lines = [f"{'measure':{width}}  {'A':28}  {'B':28}  verdict"]
    lines += [f"{r['name']:{width}}  {shown(r['a']):28}  {shown(r['b']):28}  {r['verdict']}" for r in rows]
    return "\n".join(lines)
