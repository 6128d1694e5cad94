"""Several seeds of training as one report: the mean of each measure, and its interval over seeds."""

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..console import for_terminal
from ..errors import UserError, checked, read_json
from ..files import without_path
from ..folders import inside
from ..settings import SETTINGS
from ..sharing.escaping import one_line
from .compare import SAME, check_same, read_report, report_file
from .config import Report, Row
from .data import recorded_config
from .measures import wilson
from .publish import write_publication
from .questions import range_of, rounded, row
from .report import write_report

_SAMPLER = ("num_inference_steps", "guidance_scale", "guide_scale", "guider", "protocol")
# What two runs of one configuration may differ in, besides the seed: names, and how much goes through a device at once.
_FREE = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "hub_model_id", "logging_dir", "report_to"}
_FREE |= {"cache_dir", "tracker_project_name", "train_batch_size", "gradient_accumulation_steps", "train_data_dir"}


@dataclass
class _Report:
    """What must be in a report, for the pages."""

    model: str
    num_samples: int
    num_train: int
    num_held_out: int
    num_inference_steps: object
    feature_extractor: str
    protocol: str
    versions: dict[str, str] = field(default_factory=dict)  # not in a report of an earlier version


@dataclass
class _Row:
    """What may be in a row of its measures."""

    question: str = ""
    real: float | None = None


def pool_and_write(paths: Sequence[str], output_dir: str) -> Report:
    """Pool reports, and write report.json, report.md, report.tex and report.html.

    Args:
        paths: of each model its folder or its report.json.

    Raises:
        ValueError: see `pool`; models of different configurations, or of the same seed; an incomplete report; an output
            folder that holds a model or the report of one.
    """
    folder = Path(output_dir)
    _check_place(folder)
    files = [report_file(path) for path in paths]
    reports = [_read(file) for file in files]
    report = pool(reports)
    _check_runs(files, [_config_of(file) for file in files])
    names = " ".join(shlex.quote(str(without_path(path))) for path in paths)
    report["commands"] = [*(one_line(r.get("command", _UNKNOWN)) for r in reports)]
    report["commands"].append(one_line(f"cond-pipelines compare {names} --pool"))
    folder.mkdir(parents=True, exist_ok=True)
    write_report(report, folder)
    write_publication(report, folder, _pictures(files, report["models"]))
    return report


def _check_place(folder: Path) -> None:
    """Refuse a folder in which the pool would take the place of a model's report."""
    file = folder / "report.json"
    if (folder / "model_index.json").exists() or (file.is_file() and not read_json(file).get("is_pool")):
        raise UserError(f"--output_dir {folder} holds a model or the report of one: name another folder")


def _read(file: Path) -> Report:
    report = read_report(file)
    checked(_Report, report, file, only_known=False)
    for each in report["measures"]:
        checked(_Row, each, f"{file}, measures", only_known=False)
    row = SETTINGS.get(str(report.get("setting")))
    is_unguided = report.get("network_evaluations_per_image") == report["num_inference_steps"]
    if row is not None and row.column is None and is_unguided:
        report.pop("guidance_scale", None)  # p(x) of an earlier version has one, which had no effect
    return {"versions": {}} | report


_OTHERS = "pool models of different seeds"
_UNKNOWN = "(a report of an earlier version, which does not hold its command)"


def pool(reports: Sequence[Report]) -> Report:
    """One report of several models that differ in the seed of their training.

    A row's value is the mean over seeds. Its interval holds the choice of seeds, by Student's t (1908), and is never
    narrower than the choice of samples makes it; see `_pooled`. `seeds` are the values one by one.

    Raises:
        ValueError: fewer than two reports, two of the same weights, or numbers that cannot be compared.
    """
    if len(reports) < 2:
        raise UserError(f"--pool needs the reports of two seeds at least, and there is {len(reports)}")
    first = reports[0]
    names = [str(report.get("model", "")) for report in reports]
    for number, report in enumerate(reports):
        if report.get("is_pool"):
            raise UserError(f"report {number + 1} is a pool already: give the reports that it was made of")
        check_same(first, report, (*SAME, *_SAMPLER))
        for earlier in range(number):
            if report.get("weights") is not None and report["weights"] == reports[earlier].get("weights"):
                raise UserError(
                    f"reports {earlier + 1} and {number + 1} are of the same weights ({report['weights']}): {_OTHERS}"
                )
            if report.get("weights") is None and names[number] == names[earlier]:  # of the Hub
                raise UserError(f"reports {earlier + 1} and {number + 1} are both of {names[number]}: {_OTHERS}")
    measures = dict.fromkeys(each["name"] for report in reports for each in report["measures"])
    of_one = ("command", "classes", "classes_of_conditions", "measures", "model", "weights")
    return {name: first[name] for name in first if name not in of_one} | {
        "model": f"{len(reports)} seeds: {', '.join(names)}",
        "models": names,
        "weights": ", ".join(str(report.get("weights")) for report in reports),
        "is_pool": True,
        "num_seeds": len(reports),
        "measures": [_pooled([_row_of(report, name) for report in reports]) for name in measures],
        "classes": {},
    }


def _row_of(report: Report, name: str) -> Row:
    for each in report["measures"]:
        if each["name"] == name:
            of_name: Row = each
            return of_name
    raise UserError(f"the report of {report.get('model')} has no {name!r}: evaluate all models in the same way")


def _pooled(rows: list[Row]) -> Row:
    """The mean and its interval, within the values that the measure can have: each end is the further of two.

    Over seeds: mean -+ t s / sqrt(n), of shares Wilson's for that reach. It knows the samples by how much seeds differ,
    so of seeds that happen to agree it would be too narrow. Over samples: the seeds' own intervals, put together as
    that of a mean (Zou and Donner 2008, Eq. 3).
    """
    from scipy.stats import t

    for each in rows[1:]:
        check_same(rows[0], each, ["better"])
    values, first = np.array([each["value"] for each in rows], dtype=np.float64), rows[0]
    mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    reach = t.ppf(0.975, len(values) - 1) * error
    low, high = range_of(first["name"])
    is_share = (low, high) == (0, 1) and 0 < mean < 1
    of_seeds = wilson(float(mean), float(reach)) if is_share else (mean - reach, mean + reach)
    own = np.array([each["interval"] or [each["value"]] * 2 for each in rows], dtype=np.float64)  # (n, 2)
    below, above = np.linalg.norm(own - values[:, None], axis=0) / len(values)
    ends = min(mean, max(low, min(of_seeds[0], mean - below))), max(mean, min(high, max(of_seeds[1], mean + above)))
    floors = [each["real"] for each in rows if each.get("real") is not None]
    real = float(np.mean(floors)) if len(floors) == len(rows) else None
    pooled = row(first.get("question", ""), first["name"], mean, ends, real, first["better"])
    return pooled | {"seeds": [rounded(value) for value in values]}


def _config_of(file: Path) -> Report:
    """The configuration of the training run whose folder holds a report; nothing where that is not there."""
    for folder in (file.parent.parent, file.parent):
        if (folder / "model_index.json").is_file():
            return recorded_config(str(folder))
    return {}


def _check_runs(files: list[Path], configs: list[Report]) -> None:
    """Raise UserError for runs that differ in more than their seed, or not even in that."""
    known = [(file, config) for file, config in zip(files, configs, strict=True) if config]
    seeds: dict[object, Path] = {}
    for file, config in known:
        first = known[0][1]
        different = [name for name in first if name not in _FREE | {"seed"} and first[name] != config.get(name)]
        if different:
            name = different[0]
            raise UserError(
                f"{file} is of a model of another configuration ({name} {config.get(name)}, and of the first "
                f"{first[name]}): pool models that differ in --seed alone"
            )
        if config.get("seed") in seeds:
            raise UserError(f"{file} and {seeds[config['seed']]} are both of seed {config['seed']}: train with others")
        seeds[config.get("seed")] = file


def _pictures(files: list[Path], names: list[str]) -> dict[str, str]:
    """The samples of each model that lie with its report, by their title, in base64."""
    pictures = {}
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        path = inside(file.parent, "samples.png")
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            pictures[f"The first samples of {one_line(name)}, report {number + 1}"] = data
    return pictures


def lines_of(report: Report) -> str:
    """As text, a row a line."""
    rows = [each | {"name": for_terminal(each["name"])} for each in report["measures"]]
    width = max((len(each["name"]) for each in rows), default=10)
    lines = [f"{'measure':{width}}  {'mean [95 % over seeds]':30}  each seed"]
    for each in rows:
        shown = f"{each['value']:g} [{each['interval'][0]:g}, {each['interval'][1]:g}]"
        lines.append(f"{each['name']:{width}}  {shown:30}  {', '.join(f'{value:g}' for value in each['seeds'])}")
    return "\n".join(lines)
