"""The same evaluation at several settings of the sampler: a table, the trade-off, the best one."""

import itertools
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from ..console import say
from ..errors import read_json
from ..files import whole_file, write_json, write_text
from ..fonts import Font
from ..locks import by_main_process
from ..networks.pretrained import load_pipeline
from ..processes import join_on_cpus
from ..settings import find_setting
from ..sharing.card import is_our_card, write_card
from ..sharing.escaping import table_cell
from .config import EvaluationConfig, Report, class_tables
from .evaluate import evaluate, output_folder
from .publish import write_publication
from .questions import MEASURES, is_measure

_SWEPT = {"guidance_scale": float, "guide.scale": float, "num_inference_steps": int}
_REHEARSED = 64  # samples
_SEPARATED = "labels separated by"  # so begins the row of several labels; few samples of rare ones have none
_FIELDS = {"guide.scale": "guide_scale"}  # of a configuration and a report, where the name is another


def parse_grid(words: list[str]) -> dict[str, list[float]]:
    """["guidance_scale=1,2", ...] to {"guidance_scale": [1.0, 2.0], ...}. Raises ValueError for anything else."""
    grid: dict[str, list[float]] = {}
    for word in words:
        name, _, values = word.partition("=")
        if name not in _SWEPT:
            raise ValueError(f"--sweep {word}: not one of {', '.join(f'{n}=A,B,...' for n in _SWEPT)}")
        try:
            grid[name] = [_SWEPT[name](value) for value in values.split(",")]
        except ValueError as error:
            raise ValueError(f"--sweep {word}: {error}") from error
    return grid


def sweep(config: EvaluationConfig) -> list[Report]:
    """Evaluate at every combination of `config.sweep`; writes sweep.json, sweep.md and sweep.png.

    Returns:
        The reports. With `config.write_best` the best setting becomes the default of the pipeline in `config.model`.

    Raises:
        ValueError: an unknown setting or measure; a model on the Hub, whose default cannot be written.
    """
    grid, model = parse_grid(config.sweep), Path(config.model)
    if config.write_best and not model.is_dir():
        raise ValueError(f"--write_best needs a folder, and {config.model} is none")
    given = [name for name in _SWEPT if getattr(config, _FIELDS.get(name, name)) is not None]
    saved = [*grid, *(name for name in given if name not in grid)]  # what the best one was measured with
    if config.write_best and {"guidance_scale", "guide.scale"} <= set(saved):
        raise ValueError("--write_best saves one scale: sweep or give guidance_scale or guide.scale")
    if config.write_best and not is_measure(config.write_best):
        raise ValueError(f"--write_best {config.write_best!r} is no measure: {', '.join(MEASURES)}, or one of a report")
    folder = output_folder(config)
    configs = _configs(config, grid, folder)  # all of them are checked before anything is sampled
    _check_steps(config, grid.get("num_inference_steps", []))
    if config.write_best:
        _rehearse(next(iter(configs.values())), config.write_best)
    reports = []
    for words, one in configs.items():
        say(f"sweep: {words}", sys.stdout)
        reports.append(evaluate(one))
    if not reports[0]:  # a process that is not the main one
        return reports
    write_json(folder / "sweep.json", reports)
    write_text(folder / "sweep.md", table(reports))
    chosen = best_report(reports, config.write_best) if config.write_best else None
    _plot(reports, folder / "sweep.png", chosen)
    for report, one in zip(reports, configs.values(), strict=True):
        write_publication(report, Path(str(one.output_dir)))  # once more, with the plot
    if chosen is not None:
        write_best(model, reports, str(config.write_best), saved)
        of_chosen = list(configs.values())[[report is chosen for report in reports].index(True)]
        _take_over(Path(str(of_chosen.output_dir)), folder)
        if is_our_card(model / "README.md"):
            write_card(model)  # it names the defaults, and shows what was measured with them
    return reports


def _configs(config: EvaluationConfig, grid: dict[str, list[float]], folder: Path) -> dict[str, EvaluationConfig]:
    """What is evaluated: {"guidance_scale 1, num_inference_steps 10": its configuration}."""
    configs = {}
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        name = "-".join(f"{key}-{value:g}" for key, value in setting.items())
        fields = {_FIELDS.get(key, key): value for key, value in setting.items()}
        one = replace(config, **fields, sweep=[], write_best=None, output_dir=str(folder / "sweep" / name))
        words = ", ".join(f"{key} {value:g}" for key, value in setting.items())
        configs[words] = replace(one, features_dir=str(folder))
    return configs


def _check_steps(config: EvaluationConfig, counts: list[float]) -> None:
    """Raise ValueError for a number of steps that the model's scheduler cannot make."""
    if not counts:
        return
    join_on_cpus()
    if config.conditioning is not None:
        find_setting(config.conditioning)  # imports the package that the model's adapter is of
    pipe = load_pipeline(config.model)
    for count in counts:
        pipe.set_timesteps(int(count))


def _rehearse(config: EvaluationConfig, measure: str) -> None:
    """Raise ValueError for a measure that the reports will not have; its samples are the first of the sweep's.

    Labels and captions that a measure counts in its name are fewer in few samples: "mean AUC of 3", "R@1 of 100".
    """
    few: dict[str, int] = {"num_samples": max(_REHEARSED, config.sampling_batch_size), "num_likelihood": 2}
    if config.classify:
        few["num_classified"] = 2
    report = evaluate(replace(config, **{name: min(most, getattr(config, name)) for name, most in few.items()}))
    # Where it is refused, every process ends with the same line.
    by_main_process(lambda: _check_rehearsed(report, measure), bool(report))


def _check_rehearsed(report: Report, measure: str) -> None:
    """As `_check_measure`, of a report of more samples."""
    known = {_uncounted(row["name"]) for row in report["measures"]}
    tables = class_tables(report).items()
    rare = tuple(f"{title}: {_SEPARATED}" if title else _SEPARATED for title, table in tables if "auc" in table)
    if _uncounted(measure) not in known and not measure.startswith(rare):
        _check_measure(report, measure)


def _uncounted(name: str) -> str:
    return re.sub(r"(mean AUC of|R@\d+ of) \d+", r"\1", name)


def _take_over(chosen: Path, folder: Path) -> None:
    """The report of the chosen setting, and its pictures, in place of one that was measured with other defaults."""
    for path in sorted(chosen.glob("*")):
        if path.suffix in (".json", ".md", ".tex", ".html", ".png"):
            with whole_file(folder / path.name) as unfinished:
                shutil.copyfile(path, unfinished)


def write_best(model: Path, reports: list[Report], measure: str, names: list[str]) -> dict[str, float]:
    """Make the setting that is best by a measure the pipeline's default; returns it."""
    best = best_report(reports, measure)
    index_file = model / "model_index.json"
    index = read_json(index_file)
    chosen = {name: best[_FIELDS.get(name, name)] for name in names}
    # The scale of a model that has a guide is the guide's.
    index |= {f"default_{name.replace('guide.scale', 'guidance_scale')}": value for name, value in chosen.items()}
    write_json(index_file, index, sort_keys=True)
    best_values = ", ".join(f"{k} {v:g}" for k, v in chosen.items())
    say(f"best by {measure}: {best_values}, now the default of {model}", sys.stdout)
    return chosen


def best_report(reports: list[Report], measure: str) -> Report:
    """The one that is best by a measure. Raises ValueError where they do not have it."""
    _check_measure(reports[0], measure)
    rows = [next(row for row in report["measures"] if row["name"] == measure) for report in reports]
    sign = 1 if rows[0]["better"] == "lower" else -1
    return reports[min(range(len(reports)), key=lambda i: sign * rows[i]["value"])]


def _check_measure(report: Report, measure: str) -> None:
    """Raise ValueError for a measure that a report has not."""
    names = [row["name"] for row in report["measures"]]
    if measure not in names:
        raise ValueError(f"--write_best {measure!r} is not one of {', '.join(names)}")


def table(reports: list[Report]) -> str:
    """A line for each setting, in markdown; nothing in a process that is not the main one."""
    if not reports[0]:
        return ""
    names = [name for name in _SWEPT if _FIELDS.get(name, name) in reports[0]]
    measures = [row["name"] for row in reports[0]["measures"]]
    lines = [
        "| " + " | ".join(map(table_cell, [*names, *measures])) + " |",
        "|---" * (len(names) + len(measures)) + "|",
    ]
    for report in reports:
        values = [f"{report[_FIELDS.get(name, name)]:g}" for name in names] + [
            str(row["value"]) for row in report["measures"]
        ]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _scales(report: Report) -> list[float]:
    return [report[name] for name in ("guide_scale", "guidance_scale") if name in report]


def _plot(reports: list[Report], path: Path, chosen: Report | None = None) -> None:
    """Fidelity against diversity, and the Frechet distance against obedience, where there is something to obey.

    A line for each number of steps, with 95 % intervals; a ring around the report that was chosen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    obeys = [row["name"] for row in reports[0]["measures"] if row["question"].startswith("obeys")]
    panels = [("recall", "precision"), *((name, "Frechet distance") for name in obeys[:1])]
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (across, up) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for steps in sorted({report["num_inference_steps"] for report in reports}):
            mine = sorted((r for r in reports if r["num_inference_steps"] == steps), key=_scales)
            x, y = (_with_errors(mine, name) for name in (across, up))
            axes.errorbar(x[0], y[0], yerr=y[1], xerr=x[1], fmt="o-", elinewidth=0.7, label=f"{steps} steps")
            for report, *place in zip(mine, x[0], y[0], strict=True):
                text = ", ".join(f"{scale:g}" for scale in _scales(report))
                axes.annotate(text, place, textcoords="offset points", xytext=(5, 5))
                if report is chosen:
                    axes.plot(*place, "o", markersize=14, fillstyle="none", color="black", label="chosen")
        axes.set(
            ylabel=up, title=f"each point a {'guidance scale' if any(map(_scales, reports)) else 'number of steps'}"
        )
        font = Font(10, [across])  # the name of a condition, or of a classifier, is of the user's
        axes.set_xlabel(font.shown(across), parse_math=False, fontfamily=font.families)
        axes.legend()
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def _with_errors(reports: list[Report], name: str) -> tuple[list[float], list[list[float]]]:
    """Values of a measure, and how far the ends of their intervals are below and above them."""
    rows = [next(row for row in report["measures"] if row["name"] == name) for report in reports]
    values = [row["value"] for row in rows]
    ends = [row["interval"] or [row["value"]] * 2 for row in rows]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return values, [below, above]
