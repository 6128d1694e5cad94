"""What `halves` leaves: halves.json, halves.md, halves.html and two pictures."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from PIL import Image

from ..console import for_terminal
from ..evaluation.config import Report
from ..evaluation.halves import LEANS, MEMORISES, UNLIKE
from ..evaluation.pictures import of_one_size
from ..files import whole_file, write_json, write_text
from ..pictures import image_grid
from ..provenance import save_picture
from ..sharing.escaping import markdown_text, table_cell

_ANSWERS = {
    "memorised": "The model has memorised: most of its samples depend on which half of the images it saw.",
    "leans": "The model leans to its training images: a quarter of its samples or more depend on which half it saw.",
    "generalised": "The model has generalised: which half of the images it saw decides few of its samples.",
    "hardly trained": "The model is hardly trained: its samples are not yet like the images. Train longer.",
    "undecided": "The samples do not decide it: draw more (--num_samples), or train longer.",
}
_RULE = (
    f"The rule: memorised where the 95 % interval of the attributable share lies above {MEMORISES}, leans where it "
    f"lies above {LEANS}, generalised where it lies below {MEMORISES}, with the share of images added that have a "
    "near-duplicate in the other half, and the models agree more than for unrelated noise; hardly trained instead of "
    f"generalised where the unlikeness is above {UNLIKE}."
)
_FAR = 2.0  # times as far from the nearest image as held-out images are
_TITLES = ["model of half 1", "model of half 2", "nearest in half 1", "nearest in half 2"]
_PICTURES = {
    "halves.png": "Over training",
    "halves_samples.png": "Samples of the same noise, and the images of either half nearest to the first model's",
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Two halves</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } th, td { padding: .2em .8em; text-align: left; border-bottom: 1px solid #ccc }
img { max-width: 100%; image-rendering: pixelated } pre { background: #eee; padding: 1em; white-space: pre-wrap }
</style></head><body>
<h1>Two halves: {{ report.verdict }}</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}<table><tr><th>measure</th><th>value</th><th>95 % interval</th><th>by chance</th><th>better</th></tr>
{% for row in report.measures %}<tr><td>{{ row.name }}</td><td>{{ row.value }}</td>
<td>{{ row.interval | join(" to ") }}</td><td>{{ row.real }}</td><td>{{ row.better }}</td></tr>
{% endfor %}</table>
<h2>Over training</h2>
<table><tr><th>step</th><th>attributable share</th><th>95 % interval</th><th>ratio</th><th>held-out loss</th></tr>
{% for point in report.course %}<tr><td>{{ "{:,}".format(point.step) }}</td><td>{{ point.attributable }}</td>
<td>{{ point.interval | join(" to ") }}</td><td>{{ point.ratio }}</td><td>{{ point.held_out_loss }}</td></tr>
{% endfor %}</table>
{% for title, data in pictures.items() %}<h2>{{ title }}</h2>
<img alt="{{ title }}" src="data:image/png;base64,{{ data }}">
{% endfor %}<h2>How it was made</h2>
<pre>{{ report.command }}</pre>
<p>{% for name, version in report.versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}.
Data {{ report.data }}, seed {{ report.seed }}.</p>
</body></html>
"""


def lines_of(report: Report) -> list[str]:
    """The answer in sentences."""
    share = report["measures"][0]
    p_value = "< 0.0001" if report["p_value"] < 1e-4 else f"= {report['p_value']:.2g}"
    first, second = report["num_images_of_half"]
    lines = [
        _ANSWERS[report["verdict"]],
        f"{share['value']:.0%} of the samples ({share['interval'][0]:.0%} to {share['interval'][1]:.0%}) are nearer to "
        f"the half that their model saw because it saw it; sign test p {p_value}. "
        f"{report['num_samples']:,} samples of each model, halves of {first:,} and {second:,} images.",
        _stop(report),
        _RULE,
    ]
    if report.get("unlikeness") is not None:  # a report of before has none
        lines.append(
            f"Unlikeness of the samples {report['unlikeness']:g}: 0 is the Frechet distance of one half to the other, "
            "1 that of a model that always draws the mean image. Noise has 1 or more, mostly."
        )
    far = next(row for row in report["measures"] if row["name"].startswith("distance to the nearest image"))
    if far["interval"][0] > _FAR:
        lines.append(
            f"Its samples are {far['value']:g} times as far from the nearest image as held-out images are: look "
            "whether they are like the images, since a model that is hardly trained copies nothing either."
        )
    if duplicates := report["num_near_duplicates_across_halves"]:
        lines.append(
            f"{duplicates:,} images of half 1 are nearly the same as one of half 2: a copy of such an image is as near "
            "to either half, and is not seen. Leave such images out for an answer that is sure."
        )
    return lines


def _stop(report: Report) -> str:
    leans, best = report["leans_from_step"], report["lowest_held_out_loss_at_step"]
    if leans is None:
        return f"Up to the last step samples do not lean; the held-out loss is lowest at step {best:,}."
    falls = f"though the held-out loss falls until step {best:,}" if report["loss_still_falls_when_it_leans"] else ""
    falls = falls or f"and the held-out loss is lowest at step {best:,}"
    stop = report["stop_at_step"]
    where = "no step that was measured is free of it: add images" if stop is None else f"stop at step {stop:,}"
    return f"Samples lean to training images from step {leans:,} on, {falls}: {where}."


def write_halves(report: Report, folder: Path, shown: Sequence[Sequence[Image.Image]]) -> None:
    """Write everything.

    Args:
        shown: columns of a picture: both models' samples, and the nearest images of either half.
    """
    images = of_one_size([image for row in zip(*shown, strict=True) for image in row])
    save_picture(image_grid(images, columns=len(shown), column_titles=_TITLES), folder / "halves_samples.png")
    _plot(report["course"], folder / "halves.png")
    write_json(folder / "halves.json", report)
    lines = [f"# Two halves: {report['verdict']}\n", *(f"{markdown_text(line)}\n" for line in lines_of(report))]
    lines += ["| measure | value | 95 % interval | by chance | better |", "|---" * 5 + "|"]
    for row in report["measures"]:
        cells = [row["name"], row["value"], "{} to {}".format(*row["interval"]), row["real"], row["better"]]
        lines.append("| " + " | ".join(map(table_cell, cells)) + " |")
    lines += ["", "| step | attributable share | 95 % interval | ratio | held-out loss |", "|---" * 5 + "|"]
    for point in report["course"]:
        ends = "{} to {}".format(*point["interval"])
        cells = [f"{point['step']:,}", point["attributable"], ends, point["ratio"], point["held_out_loss"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    write_text(folder / "halves.md", "\n".join(lines) + "\n")
    pictures = {t: base64.b64encode((folder / name).read_bytes()).decode() for name, t in _PICTURES.items()}
    page = Environment(autoescape=True).from_string(_PAGE)
    write_text(folder / "halves.html", page.render(report=report, lines=lines_of(report), pictures=pictures))


def table(report: Report) -> str:
    """The answer and the measures, for a terminal."""
    rows = [
        f"{for_terminal(row['name']):60} {row['value']:g} [{row['interval'][0]:g}, {row['interval'][1]:g}]"
        for row in report["measures"]
    ]
    return "\n".join([*lines_of(report), *rows])


def _plot(course: list[Report], path: Path) -> None:
    """The attributable share with its interval, and the held-out loss, over training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    steps, shares = [point["step"] for point in course], [point["attributable"] for point in course]
    ends = [
        [abs(share - point["interval"][end]) for share, point in zip(shares, course, strict=True)] for end in (0, 1)
    ]
    above.errorbar(steps, shares, yerr=ends, fmt="o-", elinewidth=0.8)
    for name, threshold in (("leans", LEANS), ("memorised", MEMORISES)):
        above.axhline(threshold, linewidth=0.8, linestyle="--", color="grey")
        above.annotate(name, (steps[0], threshold), textcoords="offset points", xytext=(0, 3), fontsize=8)
    above.set(ylabel="attributable share", ylim=(min(-0.1, *shares) - 0.05, 1.05))
    below.plot(steps, [point["held_out_loss"] for point in course], "o-")
    below.set(xlabel="optimizer step", ylabel="held-out loss")
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
