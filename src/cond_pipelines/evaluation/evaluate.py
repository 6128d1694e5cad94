"""evaluate(config) -> report: sample, extract features, measure, write."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.guiders.guider_utils import BaseGuidance
from PIL import Image

from ..console import show_any_text
from ..data.labels import all_of
from ..data.load import TrainingData
from ..errors import read_text
from ..evaluation import measures as m
from ..files import without_path
from ..folders import check_model_folder, inside
from ..locks import locked_folder
from ..networks.pretrained import load_pipeline
from ..pipelines.conditional import ConditionalPipeline
from ..provenance import weights_fingerprint
from ..settings import Setting, find_setting
from ..sharing.card import write_card
from .config import EvaluationConfig, Report, Row
from .data import check_setting, load_evaluated_data, recorded_config, setting_name
from .features import CLIPScore, cached, extract, load_classifier, load_extractor
from .questions import (
    COMBINATIONS,
    UNSEEN,
    Part,
    Sets,
    caption_rows,
    distribution_rows,
    label_rows,
    mean_row,
    row,
)
from .report import real_image, write_pictures, write_report
from .sampling import draw_samples, read_samples


def evaluate(config: EvaluationConfig) -> Report:
    """Measure a model of any setting.

    Returns:
        The report, as it is written to `evaluation/report.json` with report.md and the pictures.

    Raises:
        ValueError: in one line: no such model, data that do not fit it, too few images.
    """
    show_any_text()
    accelerator = Accelerator()
    if config.conditioning is not None:
        find_setting(config.conditioning)  # imports the package that the model's adapter is of
    folder = output_folder(config)
    pipe = load_pipeline(config.model).to(accelerator.device)
    weights = weights_fingerprint(config.model) if accelerator.is_main_process else None
    recorded = recorded_config(config.model)
    conditioning = setting_name(config, pipe.adapter, recorded)
    setting = find_setting(conditioning)
    check_setting(config, setting)
    data = load_evaluated_data(config, pipe, conditioning, recorded)
    with locked_folder(folder, accelerator.is_main_process):
        return _evaluate(config, accelerator, folder, pipe, setting, data, weights)


def output_folder(config: EvaluationConfig) -> Path:
    """Where an evaluation writes. Raises UserError for a model's folder whose links would lead elsewhere."""
    if config.output_dir:
        return Path(config.output_dir)
    if not Path(config.model).is_dir():
        return Path("evaluation")
    check_model_folder(config.model)
    return inside(config.model, "evaluation")


def _evaluate(
    config: EvaluationConfig,
    accelerator: Accelerator,
    folder: Path,
    pipe: ConditionalPipeline,
    setting: Setting,
    data: TrainingData,
    weights: str | None,
) -> Report:
    rng = np.random.default_rng(config.seed)
    train = np.sort(rng.permutation(data.train)[: config.num_real])
    train_conditions, held_out_conditions = (_conditions(data, rows) for rows in (train, data.held_out))
    # Conditions as often as in the data: in the order of a permutation, over and over.
    order = rng.permutation(len(train))
    by_kind = {"": [train_conditions[order[i % len(order)]] for i in range(config.num_samples)]}
    if setting.has_captions:
        by_kind |= _unseen_captions(config, data, held_out_conditions)
    start, sampler = time.perf_counter(), config.sampler(pipe.adapter.conditioning)
    for kind, conditions in by_kind.items():
        draw_samples(pipe, conditions, _place(folder, kind), accelerator, seed=config.seed, settings=sampler)
    sampling_sec = time.perf_counter() - start
    if not accelerator.is_main_process:
        return {}

    read = _Reader(config, data, folder, accelerator.device)
    samples = {kind: read.samples(_place(folder, kind), conditions) for kind, conditions in by_kind.items()}
    sets = Sets(
        fake=samples.pop(""),
        train=read.real(train, train_conditions, "training images"),
        held_out=read.real(data.held_out, held_out_conditions, "held-out images", scored=True),
        unseen=samples,
    )
    rows, pairs = distribution_rows(sets.fake.features, sets.train.features, sets.held_out.features)
    more, classes = _condition_rows(config, folder, pipe, setting, data, sets)
    report = {
        "model": Path(config.model).name if Path(config.model).is_dir() else config.model,
        "weights": weights,
        "setting": pipe.adapter.conditioning,
        "num_samples": config.num_samples,
        "num_train": len(train),
        "num_held_out": len(data.held_out),
        "feature_extractor": without_path(config.feature_extractor),
        "clip_model": without_path(config.clip_model),
        "unseen_captions": _fingerprint(by_kind.get(COMBINATIONS)),
        "resolution_px": data.dataset.resolution,
        **_sampler(config, pipe, is_guided=any(condition is not None for condition in by_kind[""])),
        "seconds_per_image": round(sampling_sec / sum(map(len, by_kind.values())), 4),
        "device": str(accelerator.device),
        "data": data.dataset.fingerprint(),
        "measures": rows + more,
        "classes": classes,
    }
    write_report(report, folder)
    write_pictures(folder, _place(folder, ""), data, by_kind[""], train, pairs, classes)
    if not config.keep_samples:
        _delete_samples(folder, by_kind)
    if folder.resolve().parent == Path(config.model).resolve():
        write_card(config.model)
    return report


def _condition_rows(
    config: EvaluationConfig,
    folder: Path,
    pipe: ConditionalPipeline,
    setting: Setting,
    data: TrainingData,
    sets: Sets,
) -> tuple[list[Row], Report]:
    """Do samples show their conditions: rows, and the classes one by one; see `questions.label_rows`."""
    rows: list[Row] = []
    classes: Report = {}
    if data.id2label:
        rows, classes = label_rows(sets, data.id2label)
        if config.classifier:
            rows.append(_read_by_classifier(config, data, folder, sets, pipe.device))
    elif setting.has_captions:
        rows += caption_rows(sets, pipe)
    if config.classify:
        rows += _classified(config, pipe, data, sets.held_out.conditions)
    return rows, classes


def _sampler(config: EvaluationConfig, pipe: ConditionalPipeline, is_guided: bool) -> Report:
    """How the samples were drawn, for the report."""
    default = pipe.config.default_guidance_scale if config.guide_scale is None else 1.0
    scale = default if config.guidance_scale is None else config.guidance_scale
    num_steps = config.num_inference_steps or pipe.config.default_num_inference_steps
    report: Report = {"num_inference_steps": num_steps, "guidance_scale": scale}
    if pipe.guider is not None and config.guidance_scale is None and config.guide_scale is None:
        report["guider"] = type(pipe.guider).__name__  # in place of the scale
        return report | {"network_evaluations_per_image": _evaluations_under(pipe.guider, num_steps)}
    if config.guide_scale is not None:
        report["guide_scale"] = config.guide_scale
    elif pipe.components.get("guide") is not None:
        is_guided = True  # by the guide, whatever the condition
    of_step = 1 + (is_guided and scale != 1) + (config.guide_scale not in (None, 1))
    return report | {"network_evaluations_per_image": num_steps * of_step}


def _evaluations_under(guider: BaseGuidance, num_steps: int) -> int:
    """Of the network, for one image: a guider may be on in a part of the steps."""
    guider, count = guider.new(), 0  # the state of the pipeline's own stays as it is
    for index in range(num_steps):
        guider.set_state(step=index, num_inference_steps=num_steps, timestep=torch.tensor(0))
        count += guider.num_conditions
    return count


def _fingerprint(captions: list[str] | None) -> str | None:
    return None if captions is None else hashlib.sha256("\n".join(captions).encode()).hexdigest()[:12]


def _place(folder: Path, kind: str) -> Path:
    """Where samples are kept."""
    return folder / "-".join(["samples", *kind.split()])


def _delete_samples(folder: Path, kinds: Iterable[str]) -> None:
    for kind in kinds:
        for path in _place(folder, kind).iterdir():
            path.unlink()


class _Reader:
    """Images to what is measured of them."""

    def __init__(self, config: EvaluationConfig, data: TrainingData, folder: Path, device: torch.device):
        self.config, self.data, self.kept = config, data, Path(config.features_dir or folder)
        self.extractor = load_extractor(config.feature_extractor, device)
        self.clip = CLIPScore(config.clip_model, device) if config.clip_model else None

    def samples(self, folder: Path, conditions: list[object]) -> Part:
        what = folder.name.replace("-", " ")
        features = extract(self.extractor, read_samples(folder), len(conditions), self.config.batch_size, what)
        return Part(features, conditions, self._scores(read_samples(folder), conditions))

    def real(self, rows: np.ndarray, conditions: list[object], what: str, scored: bool = False) -> Part:
        """Kept, under what decides it: data, preprocessing, extractor."""
        key = {
            "data": self.data.dataset.fingerprint(),
            "rows": rows.tolist(),
            "resolution": self.data.dataset.resolution,
            "extractor": self.config.feature_extractor,
        }
        features = cached(
            self.kept,
            key,
            lambda: extract(self.extractor, self._images(rows), len(rows), self.config.batch_size, what),
        )
        if self.clip is None or not scored:
            return Part(features, conditions)
        key |= {"extractor": "CLIP score", "clip_model": self.config.clip_model, "captions": conditions}
        return Part(features, conditions, cached(self.kept, key, lambda: self._scores(self._images(rows), conditions)))

    def _images(self, rows: np.ndarray) -> Iterator[Image.Image]:
        return (real_image(self.data, row) for row in rows)

    def _scores(self, images: Iterable[Image.Image], conditions: list[object]) -> np.ndarray | None:
        return None if self.clip is None else self.clip(images, conditions, self.config.batch_size)


def _unseen_captions(
    config: EvaluationConfig, data: TrainingData, held_out_conditions: list[str | None]
) -> dict[str, list[str]]:
    """Captions of held-out images that no training image has, and those of a file, each as often as the others."""
    seen = set()
    for i in data.train:
        seen.update(all_of([data.dataset.read_condition(int(data.dataset.usable[i]))]))
    unseen = {UNSEEN: [c for c in dict.fromkeys(held_out_conditions) if c and c not in seen][: config.num_samples]}
    if config.unseen_captions:
        lines = read_text(config.unseen_captions).splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        known = [line for line in lines if line in seen]
        if known or not lines:
            raise ValueError(
                f"--unseen_captions {config.unseen_captions}: "
                + (f"{known[0]!r} is the caption of a training image: take it out" if known else "it is empty")
            )
        count = min(config.num_samples, max(256, len(lines)))
        unseen[COMBINATIONS] = [lines[i % len(lines)] for i in range(count)]
    return {kind: captions for kind, captions in unseen.items() if captions}


def _read_by_classifier(
    config: EvaluationConfig, data: TrainingData, folder: Path, sets: Sets, device: torch.device
) -> Row:
    """Does it obey y, by a classifier of the user's; its ceiling is what it makes of held-out images."""
    classifier = load_classifier(config.classifier, data.id2label, device)

    def right(images: Iterable[Image.Image], part: Part) -> np.ndarray:
        read = extract(classifier, images, len(part.conditions), config.batch_size, f"{config.classifier}'s view")[:, 0]
        known = np.array([c is not None for c in part.conditions], dtype=bool)
        return (read[known] == np.array(part.known.conditions)).astype(float)

    fake = right(read_samples(_place(folder, "")), sets.fake)
    real = right((real_image(data, i) for i in data.held_out), sets.held_out)
    return mean_row("obeys y?", f"class read right by {config.classifier}", fake, real.mean())


def _classified(
    config: EvaluationConfig, pipe: ConditionalPipeline, data: TrainingData, conditions: list[object]
) -> list[Row]:
    """What the model makes of held-out images as a classifier: how often it is right, and as sure as it should be."""
    known = [i for i, label in enumerate(conditions) if label is not None][: config.num_classified]
    images = [real_image(data, data.held_out[i]) for i in known]
    classes = list(data.id2label)
    result = pipe.classify(images, classes, seed=config.seed)
    right = np.array([classes[best] == conditions[i] for best, i in zip(result.best, known, strict=True)], dtype=float)
    sure = result.probabilities.max(dim=1).values.numpy()
    return [
        mean_row("obeys y?", "held-out images classified right", right),
        row(
            *("obeys y?", "calibration error of that", m.calibration_error(sure, right)),
            m.interval_of(m.calibration_error, sure, right),
            better="lower",
        ),
    ]


def _conditions(data: TrainingData, rows: np.ndarray) -> list[object]:
    if data.dataset.columns.condition is None:
        return [None] * len(rows)
    return data.conditions(rows)
