"""What the three studies share: data that can be read back, trainings that are kept, intervals over seeds, plots.

Each training is `train(TrainingConfig(...))` on a data set that `save_to_disk` wrote, each sample comes from the
pipeline that it left. Needs `pip install '.[evaluate]'`, for scikit-learn.
"""

import argparse
import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import torch
from PIL import Image

from cond_pipelines import ConditionalPipeline, demo
from cond_pipelines.data.shapes import SHAPES, caption, load_shapes, read_attributes, split_combinations
from cond_pipelines.errors import read_json
from cond_pipelines.files import write_json
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

Combination = tuple[str, str, str]  # what an image shows: (kind, colour, background)

DATA = ("shapes", "digits")  # that every study has
ANY = (-math.inf, math.inf)
SHARE = (0.0, 1.0)  # no share of samples lies outside, nor does its interval
TRAINING = {
    "train_batch_size": 16,
    "validation_fraction": 0.0,
    "validation_steps": 0,
    "report_to": "none",
    "optimizer": "adamw",  # with which the results were made
    # As in the demo. What an image shows is decided at high noise.
    "logit_mean": 0.5,
    "logit_std": 1.2,
    "default_num_inference_steps": 24,
    "default_guidance_scale": 2.0,
}


# --------------------------------------------------------------------------------------------------------- data
class Shapes:
    """The embedded data set: a shape of 16 px, drawn as often as one likes, and its exact reader."""

    kinds = SHAPES
    seen, unseen = split_combinations()

    def rows(self, count: int, seed: int) -> datasets.Dataset:
        """Images of the seen combinations, with labels and captions; another seed, other images."""
        return load_shapes(count, seed=seed, combinations="seen")

    def real(self) -> datasets.Dataset:
        """Images that no model is trained on."""
        return load_shapes(1000, seed=10**6, combinations="seen")

    def caption(self, combination: Combination) -> str:
        return caption(*combination)

    def read(self, image: Image.Image) -> tuple[str | None, ...]:
        """The combination that an image shows, None for what cannot be told."""
        return tuple(read_attributes(image).values())


class Digits:
    """scikit-learn's 1,797 digits of 8 px, written by hand: white on black, or `painted` in three inks on two papers.

    One half trains models. The other half stands for real images, and trains the reader, a support vector machine that
    also knows what is no digit: tiles of digits in a wrong order, and noise.
    """

    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    kinds = names
    wordings = (
        "a {1} {0} on {2}",
        "the digit {0} in {1} on {2} paper",
        "{0}, written in {1} on {2}",
        "on {2}, a {1} {0}",
    )
    rgb = {
        "black": (0, 0, 0),
        "white": (255, 255, 255),
        "red": (225, 35, 35),
        "green": (25, 165, 50),
        "blue": (25, 45, 235),
    }

    def __init__(self, painted: bool = False):
        from sklearn.datasets import load_digits
        from sklearn.svm import SVC

        inks, papers = (("red", "green", "blue"), ("black", "white")) if painted else (("white",), ("black",))
        places = list(product(range(10), range(len(inks)), range(len(papers))))
        # One in five, of which no two share both digit and paper, or both digit and ink: all pairs stay familiar.
        hidden = [painted and sum(place) % 5 == 0 for place in places]
        combinations = [(self.names[d], inks[i], papers[p]) for d, i, p in places]
        self.seen = [c for c, hide in zip(combinations, hidden, strict=True) if not hide]
        self.unseen = [c for c, hide in zip(combinations, hidden, strict=True) if hide]
        self.inks, self.papers = inks, papers
        data = load_digits()
        order = np.random.default_rng(0).permutation(len(data.target))
        self.ink, self.target = data.images[order] / 16, data.target[order]  # (1797, 8, 8) in [0, 1], (1797,)
        self.half = len(order) // 2
        ink = self.ink[self.half :]
        others = _no_digits(ink)
        labels = np.concatenate([self.target[self.half :], np.full(len(others), -1)])
        self.reader = SVC(C=10).fit(np.concatenate([ink, others]).reshape(len(labels), -1), labels)

    def rows(self, count: int, seed: int) -> datasets.Dataset:
        """As for Shapes; more than 898 rows are the same digits, painted anew."""
        rng = np.random.default_rng(seed)
        rounds = [rng.permutation(self.half) for _ in range(-(-count // self.half))]
        return self._paint(np.concatenate(rounds)[:count], rng)

    def real(self) -> datasets.Dataset:
        return self._paint(np.arange(self.half, len(self.target)), np.random.default_rng(0))

    def _paint(self, indices: np.ndarray, rng: np.random.Generator) -> datasets.Dataset:
        columns: dict[str, list] = {"image": [], "label": self.target[indices].tolist(), "caption": []}
        for i in indices:
            mine = [c for c in self.seen if c[0] == self.names[self.target[i]]]
            combination = mine[rng.integers(len(mine))]
            ink, paper = (np.array(self.rgb[name]) for name in combination[1:])
            pixels = self.ink[i][..., None] * ink + (1 - self.ink[i][..., None]) * paper  # (8, 8, 3)
            columns["image"].append(Image.fromarray(np.rint(pixels).astype(np.uint8)))
            columns["caption"].append(self.wordings[rng.integers(len(self.wordings))].format(*combination))
        label, text = datasets.ClassLabel(names=list(self.names)), datasets.Value("string")
        features = datasets.Features(image=datasets.Image(), label=label, caption=text)
        return datasets.Dataset.from_dict(columns, features=features)

    def caption(self, combination: Combination) -> str:
        return self.wordings[0].format(*combination)

    def read(self, image: Image.Image) -> tuple[str | None, ...]:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)  # (8, 8, 3)
        beside = np.median(pixels[:, [0, -1]].reshape(-1, 3), axis=0)  # the first and last column are seldom written on
        paper = min(self.papers, key=lambda name: np.linalg.norm(beside - self.rgb[name]))
        away = np.linalg.norm(pixels - self.rgb[paper], axis=-1)  # (8, 8)
        written = pixels[away >= np.sort(away, axis=None)[-8]].mean(axis=0)
        ink = min(self.inks, key=lambda name: np.linalg.norm(written - self.rgb[name]))
        line = np.subtract(self.rgb[ink], self.rgb[paper])
        share = np.clip((pixels - self.rgb[paper]) @ line / (line @ line), 0, 1)  # (8, 8): 0 paper, 1 ink
        digit = int(self.reader.predict(share.reshape(1, -1))[0])
        return (None if digit < 0 else self.names[digit]), ink, paper


def _no_digits(ink: np.ndarray) -> np.ndarray:
    """Tiles of 2 px in a wrong order, and noise, darker and lighter: (2 N, 8, 8)."""
    rng = np.random.default_rng(0)
    tiles = ink.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 2, 2)
    tiles = rng.permuted(tiles.reshape(-1, 16, 4).copy(), axis=1).reshape(-1, 4, 4, 2, 2)
    noise = rng.random(ink.shape) ** rng.uniform(0.3, 3, (len(ink), 1, 1))
    return np.concatenate([tiles.transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8), noise])


# ---------------------------------------------------------------------------------------------------- trainings
def settings_of(size: dict[str, Any], data: str) -> dict[str, Any]:
    """A size's settings for shapes, digits or pictures; those that differ from data to data are dicts of them."""
    kind = data if data in DATA else "pictures"
    return {name: v.get(kind, v) if isinstance(v, dict) else v for name, v in size.items()}


class Study:
    """One study on one data set at one size: its trainings, each made once, and what it leaves.

    Args:
        name: of the script. options: of `parse_args`.
        sizes: {size: settings}; a setting that differs from data set to data set is a dict of them.
        content: what else must be the same in a folder of kept trainings, for data that may change.
    """

    def __init__(
        self, name: str, options: argparse.Namespace, sizes: dict[str, dict[str, Any]], content: str | None = None
    ):
        self.name, self.options = name, options
        self.settings = settings_of(sizes[options.size], options.data)
        self.folder = Path(options.output_dir) / f"{name}_{options.data}_{options.size}"
        self.cpu_sec = self.wall_sec = 0.0
        kept, decides = self.folder / "settings.json", self.settings | ({"content": content} if content else {})
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, decides)
        if read_json(kept) != json.loads(json.dumps(decides)):
            print(
                f"error: {self.folder} is of other settings or images: delete it, or give another --output_dir",
                file=sys.stderr,
            )
            raise SystemExit(2)

    def dataset(self, name: str, make: Callable[[], datasets.Dataset]) -> str:
        """The folder of a data set that is made once."""
        folder = self.folder / "data" / name
        if not folder.is_dir():
            make().save_to_disk(folder.with_name("unfinished"))
            folder.with_name("unfinished").rename(folder)
        return str(folder)

    def run(self, name: str, measure: Callable[[Path], dict] | None = None, **config: Any) -> dict[str, Any]:
        """Train and measure, or read what was measured before.

        Args:
            measure: the model's folder to numbers; the model is deleted then. None: it is kept.
            config: of TrainingConfig, over TRAINING.

        Returns:
            {"config", "cpu_sec", "wall_sec", "measured"}.
        """
        path, model = self.folder / f"{name}.json", self.folder / name
        config = TRAINING | config
        if self.options.size == "tiny":
            config["default_num_inference_steps"] = 2
        if not path.is_file():
            print(f"\n=== {name}", flush=True)
            shutil.rmtree(model, ignore_errors=True)  # of a run that was killed
            cpu, wall = time.process_time(), time.perf_counter()
            train(TrainingConfig(output_dir=str(model), **config))
            found = {"config": config, "measured": measure(model) if measure else None}
            found |= {"cpu_sec": time.process_time() - cpu, "wall_sec": time.perf_counter() - wall}
            write_json(path, found)
            if measure:
                shutil.rmtree(model)
        found = read_json(path)
        self.cpu_sec, self.wall_sec = self.cpu_sec + found["cpu_sec"], self.wall_sec + found["wall_sec"]
        return found

    def parent(self, data: "Shapes | Digits") -> str:
        """The unconditional model that others start from, of `parent_steps` on `num_images`; studies share it."""
        settings = {name: self.settings[name] for name in ("num_images", "parent_steps", "network")}
        shared = Study(f"parent_of_{len(data.seen)}_combinations", self.options, {self.options.size: settings})
        shared.run(
            "model",
            conditioning="none",
            train_data_dir=shared.dataset("train", lambda: data.rows(settings["num_images"], seed=1000)),
            max_train_steps=settings["parent_steps"],
            **settings["network"],
        )
        self.cpu_sec, self.wall_sec = self.cpu_sec + shared.cpu_sec, self.wall_sec + shared.wall_sec
        return str(shared.folder / "model")

    def finish(self, result: dict[str, Any], panels: list[dict[str, Any]]) -> Path:
        """Write <study>_<data>.json and .png (of another size than small, its name too); returns the first."""
        data, size = self.options.data, self.options.size
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
        )
        head = {"study": self.name, "data": data, "size": size, "settings": self.settings, "device": device}
        cost = {"cpu_minutes": round(self.cpu_sec / 60, 1), "wall_minutes": round(self.wall_sec / 60, 1)}
        path = Path(self.options.results_dir) / f"{self.name}_{data}{'' if size == 'small' else f'_{size}'}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head | cost | result, indent=1) + "\n")
        plot(path.with_suffix(".png"), panels)
        print(f"\n{json.dumps(result['summary'], indent=2)}\nwritten to {path} and .png")
        return path


def parse_args(description: str, args: list[str] | None, pictures: bool = False) -> argparse.Namespace:
    """The command line of a study; `pictures`: --data may be a folder too, whose name is `data` then."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:  # one line, without the usage
            self.exit(2, f"error: {message}\n")

    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if importlib.util.find_spec("sklearn") is None:
        parser.error("scikit-learn is missing: pip install '.[evaluate]'")
    folder = ", or a folder with a folder of images for each class" if pictures else ""
    parser.add_argument("--data", default="shapes", help=f"shapes, drawn; digits, real ones{folder}")
    parser.add_argument(
        "--size",
        choices=("tiny", "small", "full"),
        default="small",
        help="small: two CPU cores; full: a GPU; tiny: a test",
    )
    parser.add_argument("--output_dir", default="output/studies", help="finished trainings are kept here")
    parser.add_argument("--results_dir", default=str(Path(__file__).parent / "results"))
    options = parser.parse_args(args)
    options.data_folder = None if options.data in DATA else Path(options.data)
    if options.data_folder and not (pictures and options.data_folder.is_dir()):
        parser.error(f"--data {options.data} is neither of {', '.join(DATA)}{', nor a folder' if pictures else ''}")
    if options.data_folder:  # quality/icons/train: "icons-train", which is no name in DATA
        options.data = "-".join(options.data_folder.resolve().parts[-2:]).replace("/", "")
    return options


# ------------------------------------------------------------------------------------------------------ samples
def sample(model: Path, conditions: list[Any], **sampling: Any) -> list[Image.Image]:
    """An image for each raw condition, each from a seed of its own."""
    pipe = ConditionalPipeline.from_pretrained(model)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.unet.set_default_attn_processor()  # faster on a CPU
    pipe.set_progress_bar_config(disable=True)
    return demo.sample(pipe, conditions, **sampling)


# ---------------------------------------------------------------------------------------------------- how sure
def interval(values: list[float], within: tuple[float, float] = ANY) -> dict[str, float]:
    """Mean over seeds and its 95 % interval by Student's t, cut at what is possible; of one seed the mean alone."""
    from scipy.stats import t  # scikit-learn brings it

    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else 0.0
    return {"mean": mean, "low": max(mean - half, within[0]), "high": min(mean + half, within[1])}


def plot(path: Path, panels: list[dict[str, Any]]) -> None:
    """A row of plots: lines through means over seeds, a band for the interval, a dot a seed.

    Args:
        panels: {"lines": {label: {x: [a value a seed]}}, "level": a horizontal line (or none), "within": what values
            are possible (or none), and what matplotlib's `Axes.set` takes: title, xlabel, ylabel, xscale, ...}
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        within = panel.pop("within", ANY)
        for label, points in panel.pop("lines").items():
            xs = sorted(points)
            found = [interval(points[x], within) for x in xs]
            (line,) = axes.plot(xs, [f["mean"] for f in found], "-", label=label)
            axes.fill_between(
                xs, [f["low"] for f in found], [f["high"] for f in found], color=line.get_color(), alpha=0.15
            )
            axes.plot(*zip(*((x, y) for x in xs for y in points[x]), strict=True), ".", color=line.get_color())
        level = panel.pop("level", None)
        if level is not None:
            axes.axhline(level, color="grey", linestyle=":")
        axes.set(**panel)
        if panel.get("xscale") == "log":
            axes.set_xticks(xs, [f"{x:,}" for x in xs])
            axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
