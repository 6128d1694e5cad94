"""What a part of benchmarks/gpu.py is given, and how it reports: rows, which are on the disk as soon as they are known.

Without torch, so that the command itself starts at once and runs beside a broken installation.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Row:
    """One number, its goal, and whether it was reached.

    Args:
        value: None where it cannot be had here; `note` says why.
        goal: in words; empty where the number is only for information.
        met: None where there is no goal or no value.
    """

    part: str
    what: str
    value: float | str | None
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def text(self) -> str:
        """The value with its unit."""
        if self.value is None:
            return "n/a"
        shown = f"{self.value:,.4g}" if isinstance(self.value, float) and abs(self.value) < 1000 else f"{self.value}"
        shown = f"{self.value:,.0f}" if isinstance(self.value, float) and abs(self.value) >= 1000 else shown
        return f"{shown} {self.unit}".strip()


@dataclass
class Context:
    """What a part is given.

    Args:
        part: its name.
        out: results and pictures go here. scratch: a folder that is deleted afterwards.
        data: what `--prepare` wrote, where it exists.
        device: "cuda" or "cpu".
        tiny: a few steps of the smallest network, to try the script.
        ends_at: `time.time()` at which the part is killed.
    """

    part: str
    out: Path
    scratch: Path
    data: Path
    device: str
    tiny: bool
    ends_at: float

    def left_sec(self) -> float:
        """Until the part is killed."""
        return self.ends_at - time.time()

    def enough(self, what: str, needed_sec: float) -> bool:
        """True where `needed_sec` are left; otherwise a row says that `what` was not measured."""
        if self.tiny or self.left_sec() >= needed_sec:
            return True
        self.row(what, None, note=f"not measured: {self.left_sec():.0f} s were left, it takes about {needed_sec:.0f} s")
        return False

    def row(
        self,
        what: str,
        value: float | str | None,
        unit: str = "",
        at_least: float | None = None,
        at_most: float | None = None,
        goal: str = "",
        met: bool | None = None,
        note: str = "",
    ) -> None:
        """Append a row to rows.jsonl. A goal is a bound, or words together with `met`."""
        if at_least is not None:
            goal, met = f">= {at_least:g}", None if value is None else value >= at_least
        if at_most is not None:
            goal, met = f"<= {at_most:g}", None if value is None else value <= at_most
        met = (
            None if self.tiny or met is None else bool(met)
        )  # the numbers of a try mean nothing; NumPy has its own bool
        row = Row(self.part, what, value, unit, goal, met, note)
        with (self.out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(asdict(row)))  # first the end of a line that a killed part left half written
        print(f"{self.part}: {what}: {row.text()}" + (f" (goal {goal})" if goal else "") + (note and f"; {note}"))


def read_rows(out: Path) -> list[Row]:
    """All rows so far; half a line, of a part that was killed, is skipped."""
    path, rows = out / "rows.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return rows
