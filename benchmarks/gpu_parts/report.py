"""gpu.md, gpu.json and the summary, made of rows and of how each part ended."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpu_parts.context import Row, read_rows

_MOST_LINES = 60  # of the summary


@dataclass
class Outcome:
    """How a part ended: its `status` in words, the seconds it took, and those it was given."""

    part: str
    status: str
    sec: float
    limit_sec: float


@dataclass
class Report:
    """What is written into `out`.

    Args:
        machine: card and versions.
        settings: how the benchmark was called.
        outcomes: of the parts that are over.
    """

    out: Path
    machine: dict[str, str]
    settings: dict[str, object]
    outcomes: list[Outcome] = field(default_factory=list)

    def write(self, running: Outcome | None = None) -> None:
        """Write gpu.json and gpu.md as things stand."""
        outcomes = [*self.outcomes, *([running] if running else [])]
        rows = read_rows(self.out)
        result = {"machine": self.machine, "settings": self.settings}
        result |= {"parts": [asdict(o) for o in outcomes], "rows": [asdict(row) for row in rows]}
        self._replace("gpu.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        self._replace("gpu.md", self._markdown(rows, outcomes))

    def end(self, status: str, names: list[str]) -> None:
        """Note `status` for every part that is not over."""
        over = {outcome.part for outcome in self.outcomes}
        self.outcomes += [Outcome(name, status, 0.0, 0.0) for name in names if name not in over]

    def _replace(self, name: str, text: str) -> None:
        unfinished = self.out / f"{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.out / name)  # a reader, or a kill, finds the whole of the old one or of the new one

    def _markdown(self, rows: list[Row], outcomes: list[Outcome]) -> str:
        lines = [f"# {self.machine.get('card', 'unknown machine')}", ""]
        if self.settings.get("tiny"):
            lines += ["A try of the script: the numbers mean nothing.", ""]
        lines += [", ".join(f"{name} {value}" for name, value in self.machine.items() if name != "card"), ""]
        for outcome in outcomes:
            lines += [f"## {outcome.part}: {outcome.status}", "", f"{outcome.sec:.0f} of {outcome.limit_sec:.0f} s", ""]
            found = [row for row in rows if row.part == outcome.part]
            if found:
                lines += ["| what | value | goal | reached | note |", "|---|---|---|---|---|"]
                cells = ((row.what, row.text(), row.goal, _mark(row), row.note) for row in found)
                lines += [
                    "| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in row) + " |" for row in cells
                ]
                lines.append("")
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """At most 60 lines: the parts, then the rows with a goal, then the others."""
        rows = read_rows(self.out)
        lines = [f"{self.machine.get('card', 'unknown machine')}; all results: {self.out / 'gpu.md'}"]
        lines += [f"{o.part}: {o.status} ({o.sec:.0f} of {o.limit_sec:.0f} s)" for o in self.outcomes]
        for row in [*(row for row in rows if row.goal), *(row for row in rows if not row.goal)]:
            goal = f", goal {row.goal}: {_mark(row)}" if row.goal else ""
            lines.append(f"{row.part}: {row.what}: {row.text()}{goal}")
        lines = [line if len(line) <= 160 else line[:157] + "..." for line in lines]
        if len(lines) > _MOST_LINES:
            lines = [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} more in gpu.md"]
        return "\n".join(lines)


def _mark(row: Row) -> str:
    if not row.goal:
        return ""
    return {True: "yes", False: "NO", None: "unknown"}[row.met]
