"""run_halves(config) -> report: train on two halves, draw from both, compare, say where to stop.

half 1 -> train -+-> averages along the run -+-> samples from the same noise -> nearest images of either half -> verdict
half 2 -> train -+                           +-> held-out loss
"""

import itertools
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ..console import say, show_any_text
from ..data.load import TrainingData, load_data
from ..data.split import num_with_near_duplicate, thumbnail
from ..errors import UserError, read_json, read_yaml
from ..evaluation import measures as m
from ..evaluation.config import EvaluationConfig, Report
from ..evaluation.features import protocol_of
from ..evaluation.halves import Nearest, final_rows, unlikeness, verdict, where_to_stop
from ..evaluation.questions import rounded
from ..evaluation.reader import Reader, Samples, real_image, real_pixels
from ..evaluation.sampling import draw_samples, plan_of, sample_folder, sample_key, to_image, weights_of
from ..files import without_path, write_text
from ..locks import by_main_process, locked_folder
from ..networks.pretrained import load_pipeline
from ..pipelines.conditional import ConditionalPipeline
from ..provenance import SUMMARY_FILE
from ..sharing.facts import training_versions
from ..training.arguments import OutputArguments
from ..training.checkpoints import all_checkpoints
from ..training.config import TrainingConfig
from ..training.ema import DEFAULT_LENGTH, put_snapshot, snapshots
from ..training.failures import HOW_TO_RESUME, Interrupted, TrainingFailure
from ..training.loop import train
from ..training.objective import build_objective
from ..training.run_folder import check_place
from ..training.sharding import RunAccelerator, run_state
from ..training.teacher import is_distillation
from ..training.validation import held_out_loss
from .arguments import HalvesConfig
from .report import write_halves

CONFIG_FILE = "halves_config.yaml"
_MOST_STEPS = 8  # at which samples are drawn
_FEWEST = 6  # images of a half
_BATCH = 64  # held-out images at a time
# What may change between two calls that belong together.
_FREE = {setting.name for setting in fields(OutputArguments)} - {
    "default_num_inference_steps",
    "default_guidance_scale",
}
_FREE |= {"cache_dir", "cache_images", "dataloader_num_workers", "half"}


def run_halves(config: HalvesConfig) -> Report:
    """Train the same configuration on two disjoint halves of the data, and compare the two models.

    Finished halves, and samples that are there, are kept: the same command goes on where it stopped.

    Returns:
        The report, as it is written to `halves.json` in the output folder, with halves.md, halves.html and pictures;
        empty in a process that is not the main one.

    Raises:
        ValueError: in one line: arguments or data that cannot be used, a folder of another configuration.
    """
    show_any_text()
    if is_distillation(config.training):
        raise UserError("--objective distillation: such a model learns from its parent, not from a half of the images")
    check_place(config.training)
    folder, is_main = Path(config.training.output_dir), run_state().is_main_process
    with locked_folder(folder, is_main):
        data = load_data(replace(config.training, half=1))
        _check_data(data)
        read = _reader(config, data, folder)  # what can fail is tried before anything is trained
        models = _train_both(config.training, folder, data, is_main)
        pipes = [load_pipeline(model) for model in models]
        comparison = Comparison(config, folder, _as_seen_by(pipes[0], config, data), pipes, read)
        points = [comparison.at(step, models) for step in _steps(models)]
        return comparison.report(points) if is_main else {}


# ---------------------------------------------------------------------------------------------------- training
def _check_data(data: TrainingData) -> None:
    count = 0 if data.train is None else min(len(data.train), len(data.other_half))
    if count < _FEWEST:
        raise UserError(f"{count} images in a half: at least {_FEWEST} are needed")
    if not len(data.held_out):
        raise UserError("no image is held out: the held-out loss is a part of the answer, and needs 40 images or more")


def _reader(config: HalvesConfig, data: TrainingData, folder: Path) -> Reader:
    how = EvaluationConfig(
        model=str(folder), num_samples=config.num_samples, feature_extractor=config.feature_extractor
    )
    read = Reader(how, data, folder, run_state().device)
    read.try_out(folder)
    return read


def _train_both(config: TrainingConfig, folder: Path, data: TrainingData, is_main: bool) -> list[Path]:
    """The folders of both models, trained or there already.

    Raises:
        UserError: the folder holds halves of another configuration, or of other images.
    """
    config = replace(config, ema_lengths=config.ema_lengths or [DEFAULT_LENGTH])
    file, overwrite = folder / CONFIG_FILE, config.overwrite_output_dir
    values = {k: v for k, v in config.to_dict().items() if k not in _FREE} | {"content of the data": data.content}
    values = yaml.safe_load(yaml.safe_dump(values))  # as they are read again
    is_ours = file.is_file()
    before = read_yaml(file) if is_ours and not overwrite else values
    for name in values:
        if before.get(name) != values[name]:
            raise UserError(
                f"--output_dir {folder} holds halves of another configuration ({name} {before.get(name)}, and now "
                f"{values[name]}): name another folder, or --overwrite_output_dir"
            )

    def prepare() -> None:
        halves = [folder / f"half-{half}" for half in (1, 2)]
        for half in halves:
            if overwrite:  # otherwise a later call could keep what is left of the halves of before
                (half / "model_index.json").unlink(missing_ok=True)
            elif not is_ours and half.exists():
                raise UserError(f"{half} is not of this command: name another --output_dir, or --overwrite_output_dir")
        if overwrite or not is_ours:
            write_text(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    by_main_process(prepare, is_main)
    first = _trained(replace(config, half=1, output_dir=str(folder / "half-1")), is_ours, overwrite)
    # The second run is as long, in batches as large, at the same rate: nothing is chosen anew.
    chosen = read_yaml(first / "training_config.yaml")
    same = {name: chosen[name] for name in ("train_batch_size", "gradient_accumulation_steps", "learning_rate")}
    same |= {"max_train_steps": read_json(first / SUMMARY_FILE)["steps"], "num_train_epochs": None}
    second = replace(config, half=2, output_dir=str(folder / "half-2"), **same)
    return [first, _trained(second, is_ours, overwrite)]


def _trained(config: TrainingConfig, is_ours: bool, overwrite: bool) -> Path:
    """The folder of one model: kept where it is finished, gone on with where there is a checkpoint.

    Args:
        is_ours: the folder was made by an earlier call of the same configuration. overwrite: begin anew.
    """
    folder = Path(config.output_dir)
    if is_ours and not overwrite:
        if (folder / "model_index.json").is_file():
            say(f"{folder} is finished, and kept")
            return folder
        if all_checkpoints(folder):
            return _train(replace(config, overwrite_output_dir=False, resume_from_checkpoint="latest"))
    return _train(replace(config, overwrite_output_dir=is_ours or overwrite))


def _train(config: TrainingConfig) -> Path:
    """A run, whose last line where it stops early says how to go on with `halves`."""
    try:
        return train(config)
    except (Interrupted, TrainingFailure) as error:
        raise type(error)(str(error).replace(HOW_TO_RESUME, "go on with the same command")) from error


def _steps(models: list[Path]) -> list[int]:
    """At most eight, evenly along the run; the last is its end. Raises UserError for runs of different steps."""
    last = [int(read_json(model / SUMMARY_FILE)["steps"]) for model in models]
    of_runs = [[step for step in snapshots(model) if step < last[0]] for model in models]
    if last[0] != last[1] or of_runs[0] != of_runs[1]:
        raise UserError(
            f"{models[0]} and {models[1]} have different steps ({last[0]} and {last[1]}): --overwrite_output_dir"
        )
    along = of_runs[0]
    return [*(along if len(along) < _MOST_STEPS else along[1::2]), last[0]]


# --------------------------------------------------------------------------------------------------- comparison
def _as_seen_by(pipe: ConditionalPipeline, config: HalvesConfig, data: TrainingData) -> TrainingData:
    """The data with the model's channels, and its numbers of the classes."""
    channels = (pipe.components.get("vae") or pipe.unet).config.in_channels
    if channels != data.dataset.channels:
        data = load_data(replace(config.training, half=1), channels)
    if data.id2label and getattr(pipe.adapter, "id2label", None):
        data.use_labels(pipe.adapter.label_id, "the model")
    return data


@dataclass(frozen=True)
class Point:
    """Both models at one step: distances of their samples, their held-out losses, features of their samples."""

    step: int
    near: Nearest
    losses: tuple[float, ...]
    features: tuple[np.ndarray, ...]


class Comparison:
    """Draws from both models and compares.

    Args:
        folder: where samples and features are kept.
        data: of half 1, which knows the rows of both. pipes: the models of half 1 and half 2. read: images to features.
    """

    def __init__(
        self, config: HalvesConfig, folder: Path, data: TrainingData, pipes: list[ConditionalPipeline], read: Reader
    ):
        self.config, self.folder, self.data, self.pipes, self.read = config, folder, data, pipes, read
        self.accelerator = RunAccelerator("no")
        for pipe in pipes:
            pipe.to(self.accelerator.device)
        assert data.train is not None  # checked by `_check_data`
        self.rows = [data.train, data.other_half]
        order = np.random.default_rng(config.training.seed).permutation(np.concatenate(self.rows))
        self.plan = plan_of(data, order, config.num_samples)
        self.halves: list[np.ndarray] = []
        if self.accelerator.is_main_process:
            named = zip(self.rows, ("half 1", "half 2"), strict=True)
            self.halves = [read.real(rows, data.conditions(rows), name).features for rows, name in named]

    def at(self, step: int, models: list[Path]) -> Point | None:
        """Compare at a step: with the averages of that step, or the models themselves at the end; the main process."""
        lengths, losses, features = self.config.training.ema_lengths or [DEFAULT_LENGTH], [], []
        for number, (model, pipe) in enumerate(zip(models, self.pipes, strict=True)):
            files = snapshots(model)
            if step == _steps(models)[-1]:
                pipe = self.pipes[number] = load_pipeline(model).to(self.accelerator.device)
            else:
                put_snapshot(pipe, files[step], lengths[0])
            losses.append(self._held_out_loss(pipe))
            samples = self._draw(pipe, f"step {step} half {number + 1}")
            if self.accelerator.is_main_process:
                features.append(self.read.samples(samples, f"step {step:,}, half {number + 1}").features)
        if not features:
            return None
        near = Nearest.of(features, self.halves)
        say(f"step {step:,}: {near.attributable:.0%} attributable to the half, held-out loss {np.mean(losses):.4f}")
        return Point(step, near, tuple(losses), tuple(features))

    def _held_out_loss(self, pipe: ConditionalPipeline) -> float:
        objective = build_objective(self.config.training, pipe.scheduler, pipe)
        loss = held_out_loss(pipe, objective, self.data, self.accelerator, _BATCH)
        assert loss is not None  # images are held out, see `_check_data`
        return loss

    def _draw(self, pipe: ConditionalPipeline, kind: str, seed: int = 0) -> Samples:
        settings: dict[str, object] = {"num_inference_steps": self.config.sampling_steps}
        key = sample_key(pipe, self.plan, seed, settings, weights_of(pipe))
        samples = Samples(sample_folder(self.folder / "drawn", kind, key), self.plan)
        draw_samples(pipe, self.plan, samples.folder, self.accelerator, key, settings)
        return samples

    def report(self, points: list[Point | None]) -> Report:
        """The final table, the course of training, the verdict; written with its pictures."""
        along = [point for point in points if point is not None]
        last, data = along[-1], self.data
        unrelated = self.read.samples(self._draw(self.pipes[1], "unrelated", seed=1), "unrelated noise").features
        held_out = self.read.real(data.held_out, data.conditions(data.held_out), "held-out images").features
        rows = final_rows(last.near, last.features, unrelated, held_out, self.halves)
        course = [_of_point(point) for point in along]
        lows, losses = [point["interval"][0] for point in course], [point["held_out_loss"] for point in course]
        intervals = {row["name"]: row["interval"] for row in rows}
        thumbnails = [[thumbnail(real_pixels(data, row)) for row in rows] for rows in self.rows]
        scale = 1.0 if data.dataset.value_range is None else 127.5
        in_both = num_with_near_duplicate(*thumbnails, scale=scale)
        unlike = unlikeness(last.features, self.halves)
        agrees = intervals["agreement against unrelated noise"]
        report: Report = {
            "verdict": verdict(last.near.interval, agrees, in_both / len(thumbnails[0]), unlike),
            "unlikeness": None if unlike is None else rounded(unlike),
            "p_value": last.near.p_value,
            **where_to_stop([point.step for point in along], lows, losses),
            "setting": self.pipes[0].adapter.conditioning,
            "num_images_of_half": [len(rows) for rows in self.rows],
            "num_near_duplicates_across_halves": in_both,
            "num_held_out": len(data.held_out),
            "num_samples": self.config.num_samples,
            "num_inference_steps": self.config.sampling_steps,
            "feature_extractor": without_path(self.config.feature_extractor),
            "protocol": protocol_of(self.read.extractor),
            "resolution_px": data.dataset.resolution,
            "data": data.content,
            "seed": self.config.training.seed,
            "command": shlex.join(["cond-pipelines", "halves", *(str(without_path(x)) for x in self.config.command)]),
            "versions": training_versions(),
            "measures": rows,
            "course": course,
        }
        write_halves(report, self.folder, self._pictures(last))
        return report

    def _pictures(self, last: Point, count: int = 8) -> list[list[Image.Image]]:
        """Of the first noises: both models' samples, and the images of either half nearest to the first one."""
        drawn = [self._draw(pipe, f"step {last.step} half {n + 1}") for n, pipe in enumerate(self.pipes)]
        shown = [[to_image(x) for x in itertools.islice(samples.images(), count)] for samples in drawn]
        for rows, half in zip(self.rows, self.halves, strict=True):
            nearest = m.nearest(last.features[0][:count], half)[1][:, 0]
            shown.append([real_image(self.data, rows[i]) for i in nearest])
        return shown


def _of_point(point: Point) -> Report:
    """A line of the course of training."""
    return {
        "step": point.step,
        "attributable": rounded(point.near.attributable),
        "interval": [rounded(x) for x in point.near.interval],
        "ratio": rounded(float(np.median(point.near.ratios))),
        "held_out_loss": rounded(float(np.mean(point.losses))),
    }
