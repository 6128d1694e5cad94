"""A report to publish: report.tex, a table for a paper, and report.html, one page with its pictures in it.

Names of classes, captions and models are text of others: each is escaped for the place where it stands.
"""

import base64
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from jinja2 import Environment

from ..errors import UserError, read_json_list
from ..files import without_path, write_text
from ..sharing.escaping import one_line
from ..sharing.sampler import SamplerFacts
from .config import EvaluationConfig, Report, Row, class_tables

# A picture, and what stands above it. nearest.png shows training images: report.html is never pushed to the Hub.
_PICTURES = {
    "samples.png": "The first samples",
    "nearest.png": "Samples and the training images nearest to them",
    "per_class.png": "Samples of each class",
    "confusion.png": "Classes that a linear probe reads in the samples",
}
_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Evaluation of {{ report.model }}</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } th, td { padding: .2em .8em; text-align: left; border-bottom: 1px solid #ccc }
img { max-width: 100%; image-rendering: pixelated } pre { background: #eee; padding: 1em; white-space: pre-wrap }
</style></head><body>
<h1>Evaluation of {{ report.model }}</h1>
<p>{{ "{:,}".format(report.num_samples) }} samples against {{ "{:,}".format(report.num_train) }} training images and
{{ "{:,}".format(report.num_held_out) }} held-out ones, drawn with {{ sampler }}.
Features of {{ report.feature_extractor }}: {{ report.protocol }}.</p>
<table><tr><th>question</th><th>measure</th><th>{{ "mean over seeds" if report.is_pool else "samples" }}</th>
<th>95 % interval</th><th>held-out real images</th>
<th>better</th>{% if report.is_pool %}<th>each seed</th>{% endif %}</tr>
{% for row in report.measures %}<tr><td>{{ row.question }}</td><td>{{ row.name }}</td><td>{{ row.value }}</td>
<td>{{ row.interval | join(" to ") if row.interval else "" }}</td><td>{{ "" if row.real is none else row.real }}</td>
<td>{{ row.better }}</td>{% if report.is_pool %}<td>{{ row.seeds | join(", ") }}</td>{% endif %}</tr>
{% endfor %}</table>
{% for title in columns %}<h2>{{ "Each class of " + title if title else "Each class" }}</h2>
<table><tr>{% for name in columns[title] %}<th>{{ name.replace("_", " ") }}</th>{% endfor %}</tr>
{% for cells in rows[title] %}<tr>
{% for cell in cells %}<td>{{ "" if cell is none else cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}
{% for title, data in pictures.items() %}<h2>{{ title }}</h2>
<img alt="{{ title }}" src="data:image/png;base64,{{ data }}">
{% endfor %}<h2>How it was made</h2>
<pre>{{ commands | join("\n") }}</pre>
<p>{% for name, version in versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}. Weights
{{ report.weights or "of the Hub" }}, data {{ report.data }}.</p>
</body></html>
"""


def write_publication(report: Report, folder: Path, pictures: Mapping[str, str] | None = None) -> None:
    """Write report.tex and report.html.

    Args:
        report: of one model, with its `command`, or of several (`pool`), with their `commands`.
        pictures: title to PNG in base64; default: those of an evaluation, which are in `folder` already.
    """
    commands = report.get("commands") or [report["command"]]
    write_text(folder / "report.tex", latex_table(report, commands))
    tables = class_tables(report)
    made = [name for name in _PICTURES if tables or name in ("samples.png", "nearest.png")]  # others are of before
    columns = {
        title: {name: values for name, values in classes.items() if name != "confusion"}
        for title, classes in tables.items()
    }
    if pictures is None:
        pictures = {
            title: base64.b64encode((folder / name).read_bytes()).decode()
            for name, title in _PICTURES.items()
            if name in made and (folder / name).is_file()
        } | _sweep_of(report, folder)
    page = (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            report=report,
            sampler=SamplerFacts.of_report(report),
            columns=columns,
            rows={title: list(zip(*of_table.values(), strict=True)) for title, of_table in columns.items()},
            pictures=pictures,
            commands=commands,
            versions=report["versions"],
        )
    )
    write_text(folder / "report.html", page)


def _sweep_of(report: Report, folder: Path) -> dict[str, str]:
    """The plot of a sweep of the same weights: of this folder, or the one that this report is a part of."""
    home = folder.parent.parent if folder.parent.name == "sweep" else folder
    with suppress(UserError, OSError, LookupError, TypeError):  # none is there, or it is damaged: no plot
        same = ("weights",) if report["weights"] else ("weights", "model")  # on the Hub weights have no fingerprint
        first = read_json_list(home / "sweep.json")[0]
        if all(first[name] == report[name] for name in same):
            plot = (home / "sweep.png").read_bytes()
            return {"Settings of the sampler, and what they trade": base64.b64encode(plot).decode()}
    return {}


def command_of(config: EvaluationConfig) -> str:
    """The command line of an evaluation, without folders of this machine."""
    words = ["cond-pipelines", "evaluate", str(without_path(config.model))]
    for each in fields(config):
        value = getattr(config, each.name)
        default = [] if each.name == "sweep" else each.default
        if each.name in ("model", "output_dir", "features_dir") or value == default:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{each.name}", *(str(without_path(v)) for v in values)]
    return one_line(shlex.join(words))


def latex(text: object) -> str:
    r"""Text of others within a line of LaTeX.

    Example:
        >>> latex("50 % of rose_1")
        '50 \\% of rose\\_1'
    """
    return "".join(_LATEX.get(c, c) for c in one_line(text))


def latex_table(report: Report, commands: Sequence[str]) -> str:
    """A table of the package booktabs: measure, value with its interval, held-out real images."""
    value = f"mean of {len(report['models'])} seeds" if report.get("is_pool") else "samples"

    def cells(row: Row) -> list[str]:
        interval = "" if row["interval"] is None else f" [{row['interval'][0]}, {row['interval'][1]}]"
        arrow = r"$\uparrow$" if row["better"] == "higher" else r"$\downarrow$"
        real = "" if row["real"] is None else str(row["real"])
        return [f"{latex(row['name'])} {arrow}", f"{row['value']}{interval}", real]

    lines = [
        *(f"% {one_line(command)}" for command in commands),
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lll}",
        r"\toprule",
        rf"measure & {value} [95\,\% interval] & held-out real images \\",
        r"\midrule",
        *(" & ".join(cells(row)) + r" \\" for row in report["measures"]),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"
