"""evaluate(config) -> report: load and try everything, sample, extract features, measure, write."""

import hashlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.guiders.guider_utils import BaseGuidance

from ..console import show_any_text
from ..data.labels import all_of
from ..data.load import TrainingData
from ..errors import read_text
from ..files import without_path, write_json
from ..folders import check_model_folder, inside
from ..locks import by_main_process, locked_folder
from ..networks.pretrained import load_pipeline
from ..pipelines.conditional import ConditionalPipeline
from ..processes import join_on_cpus
from ..provenance import weights_fingerprint
from ..settings import Setting, find_setting
from ..sharing.card import write_card
from ..sharing.facts import training_versions
from .conditions import COMBINATIONS, UNSEEN, ModelCondition, check_labels, check_setting, conditions_of_model
from .config import EvaluationConfig, Report, Row
from .data import check_guidance, load_evaluated_data, recorded_config, setting_name
from .features import protocol_of
from .likelihood_rows import bits_rows, classification_rows
from .obedience import classifier_row, obedience_rows
from .publish import command_of, write_publication
from .questions import Sets, distribution_rows
from .reader import Reader, Samples
from .report import write_pictures, write_report
from .sampling import Plan, draw_samples, plan_of, sample_folder, sample_key, weights_of

_LEAST = 6  # samples, and training images: precision and recall look at the fifth neighbour
_MOST_CONDITIONS = 50_000  # of training images, which samples have over and over
_ALONE = 1000  # at most so many samples of each condition of a composite by itself


def evaluate(config: EvaluationConfig) -> Report:
    """Measure a model of any setting.

    Returns:
        The report, as it is written to `evaluation/report.json` with report.md and the pictures.

    Raises:
        ValueError: in one line: no such model, data that do not fit it, too few images.
    """
    show_any_text()
    join_on_cpus()
    accelerator = Accelerator()
    if config.conditioning is not None:
        find_setting(config.conditioning)  # imports the package that the model's adapter is of
    folder = output_folder(config)
    pipe = load_pipeline(config.model).to(accelerator.device)
    weights = weights_fingerprint(config.model) if accelerator.is_main_process else None
    recorded = recorded_config(config.model)
    conditioning = setting_name(config, pipe.adapter, recorded)
    setting = find_setting(conditioning)
    check_guidance(config, setting, pipe.components.get("guide") is not None)
    check_setting(config, setting, pipe.adapter)
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
    order = rng.permutation(data.train)
    train = np.sort(order[: config.num_real])
    _check_counts(config, train)
    model_conditions = conditions_of_model(pipe.adapter, setting, data)
    check_labels(config, model_conditions)
    # Not of `train`: another --num_real measures the same samples.
    drawn = rng.permutation(np.sort(order[:_MOST_CONDITIONS]))
    plans = {"": plan_of(data, drawn, config.num_samples, config.sampling_batch_size)}
    plans |= _unseen_captions(config, data, model_conditions) | _alone(model_conditions, plans[""])
    # ---- everything that can fail is tried before anything is sampled
    loaded: list[Reader] = []
    reader = partial(Reader, config, data, folder, accelerator.device, model_conditions)
    by_main_process(lambda: loaded.append(_tried(reader, folder)), accelerator.is_main_process)
    # ---- sample
    samples = _draw(config, accelerator, folder, pipe, plans)
    if not accelerator.is_main_process:
        return {}
    rows, pairs, classes = _measure(config, pipe, data, train, model_conditions, loaded[0], samples)
    # ---- write
    report = {
        "model": Path(config.model).name if Path(config.model).is_dir() else config.model,
        "weights": weights,
        "setting": pipe.adapter.conditioning,
        "num_samples": config.num_samples,
        "num_train": len(train),
        "num_held_out": len(data.held_out),
        "feature_extractor": without_path(config.feature_extractor),
        "protocol": protocol_of(loaded[0].extractor),
        "clip_model": without_path(config.clip_model),
        "unseen_captions": _fingerprint(next((plan for kind, plan in plans.items() if COMBINATIONS in kind), None)),
        "resolution_px": data.dataset.resolution,
        **_sampler(config, pipe, setting, is_guided=any(condition is not None for condition in plans[""].drawn)),
        "device": accelerator.device.type,
        "data": data.dataset.fingerprint(),
        "command": command_of(config),
        "versions": training_versions(),
        "measures": rows,
        "classes": classes.pop("", {}),
        "classes_of_conditions": classes,
    }
    write_report(report, folder)
    write_pictures(folder, samples[""], data, train, pairs, model_conditions, report)
    write_publication(report, folder)
    if not config.keep_samples:
        _delete(samples.values())
    if folder.resolve().parent == Path(config.model).resolve():
        write_card(config.model)
    return report


def _measure(
    config: EvaluationConfig,
    pipe: ConditionalPipeline,
    data: TrainingData,
    train: np.ndarray,
    model_conditions: list[ModelCondition],
    read: Reader,
    samples: dict[str, Samples],
) -> tuple[list[Row], np.ndarray, dict[str, Report]]:
    """All rows; for each sample the index into `train` of its nearest image; the classes of each condition."""
    parts = {kind: read.samples(one, f"samples {kind}".strip()) for kind, one in samples.items()}
    sets = Sets(
        fake=parts.pop(""),
        train=read.real(train, data.conditions(train), "training images"),
        held_out=read.real(data.held_out, data.conditions(data.held_out), "held-out images", scored=True),
        more=parts,
    )
    rows, pairs = distribution_rows(sets.fake.features, sets.train.features, sets.held_out.features)
    rows += bits_rows(config, pipe, data, train)
    more, classes = obedience_rows(model_conditions, sets, pipe)
    rows += more
    for each in model_conditions:
        if each.has_classes and config.classifier:
            seen = read.classes(samples[""].images(), samples[""].plan.count), read.real_classes()
            by_classifier = classifier_row(without_path(config.classifier), each, sets, *seen)
            rows += [] if by_classifier is None else [by_classifier]
        if each.has_classes and config.classify:
            rows += classification_rows(config, pipe, data, each, sets.held_out.conditions)
    return rows, pairs, classes


def _check_counts(config: EvaluationConfig, train: np.ndarray) -> None:
    """Raise ValueError where there are too few images for the measures."""
    if config.num_samples < _LEAST:
        raise ValueError(f"--num_samples {config.num_samples}: precision and recall need at least {_LEAST}")
    if len(train) < _LEAST:
        raise ValueError(f"{len(train)} training images: precision and recall need at least {_LEAST}")


def _unseen_captions(
    config: EvaluationConfig, data: TrainingData, model_conditions: list[ModelCondition]
) -> dict[str, Plan]:
    """Captions of held-out images that no training image has, and those of a file, each as often as the others."""
    plans = {}
    for each in model_conditions:
        if not each.has_captions:
            continue
        seen = set()
        for i in data.train:
            raws = all_of([data.dataset.read_condition(int(data.dataset.usable[i]))])
            seen.update(each.read(raw) for raw in raws)
        held_out = [each.read(raw) for raw in data.conditions(data.held_out)]
        new = [(caption, row) for caption, row in zip(held_out, data.held_out, strict=True) if caption]
        first = {caption: row for caption, row in reversed(new) if caption not in seen}
        if first:
            count = min(len(first), config.num_samples)
            plans[each.kind(UNSEEN)] = plan_of(data, np.sort(list(first.values())), count, config.sampling_batch_size)
        if config.unseen_captions:
            lines = _new_captions(config.unseen_captions, seen)
            count = min(config.num_samples, max(256, len(lines)))
            conditions = [each.only(line) for line in lines]
            plans[each.kind(COMBINATIONS)] = Plan(conditions, count, batch_size=config.sampling_batch_size)
    return plans


def _new_captions(path: str, seen: set[object]) -> list[str]:
    """The lines of a file. Raises ValueError for a caption of a training image, and where there is none."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    known = [line for line in lines if line in seen]
    if known or not lines:
        raise ValueError(
            f"--unseen_captions {path}: "
            + (f"{known[0]!r} is the caption of a training image: take it out" if known else "it is empty")
        )
    return lines


def _alone(model_conditions: list[ModelCondition], plan: Plan) -> dict[str, Plan]:
    """Of a composite: samples that have one of the conditions and no other."""
    plans = {}
    for each in model_conditions if len(model_conditions) > 1 else []:
        rows = [i for i, raw in enumerate(plan.conditions) if each.read(raw) is not None]
        if rows:
            conditions: list[object] = [each.only(plan.conditions[i][each.name]) for i in rows]
            sizes = None if plan.sizes is None else [plan.sizes[i] for i in rows]
            plans[each.alone] = Plan(conditions, min(plan.count, _ALONE), sizes, plan.batch_size)
    return plans


def _tried(load: Callable[[], Reader], folder: Path) -> Reader:
    reader = load()
    reader.try_out(folder)
    return reader


def _draw(
    config: EvaluationConfig, accelerator: Accelerator, folder: Path, pipe: ConditionalPipeline, plans: dict[str, Plan]
) -> dict[str, Samples]:
    """Draw what is not there yet; `timing.json` says how long an image took, where one was drawn."""
    settings, weights, start = config.sampler(pipe.adapter.conditioning), weights_of(pipe), time.perf_counter()
    samples, num_drawn = {}, 0
    for kind, plan in plans.items():
        key = sample_key(pipe, plan, config.seed, settings, weights)
        samples[kind] = Samples(sample_folder(folder, kind, key), plan)
        num_drawn += draw_samples(pipe, plan, samples[kind].folder, accelerator, key, settings)
    if accelerator.is_main_process and num_drawn:
        seconds = (time.perf_counter() - start) / num_drawn
        timing = {"seconds_per_image": round(seconds, 4), "num_processes": accelerator.num_processes}
        write_json(folder / "timing.json", timing | {"device": accelerator.device.type})
    return samples


def _sampler(config: EvaluationConfig, pipe: ConditionalPipeline, setting: Setting, is_guided: bool) -> Report:
    """How the samples were drawn, for the report: p(x) without a guide has no scale."""
    has_guide = pipe.components.get("guide") is not None
    default = pipe.config.default_guidance_scale if config.guide_scale is None else 1.0
    scale = default if config.guidance_scale is None else config.guidance_scale
    num_steps = config.num_inference_steps or pipe.config.default_num_inference_steps
    report: Report = {"num_inference_steps": num_steps, "scheduler": type(pipe.scheduler).__name__}
    if setting.column is not None or has_guide:
        report["guidance_scale"] = scale
    if pipe.guider is not None and config.guidance_scale is None and config.guide_scale is None:
        report["guider"] = type(pipe.guider).__name__  # in place of the scale
        return report | {"network_evaluations_per_image": _evaluations_under(pipe.guider, num_steps)}
    if config.guide_scale is not None:
        report["guide_scale"] = config.guide_scale
    elif has_guide:
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


def _fingerprint(plan: Plan | None) -> str | None:
    """Of captions from a file."""
    return None if plan is None else hashlib.sha256("\n".join(map(str, plan.drawn)).encode()).hexdigest()[:12]


def _delete(samples: Iterable[Samples]) -> None:
    for each in samples:
        for path in each.folder.iterdir():
            path.unlink()
        each.folder.rmdir()
