"""evaluate(config) -> report: sample, extract features, measure, write."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import Accelerator
from PIL import Image

from ..card import write_card
from ..conditional_pipeline import ConditionalPipeline
from ..data.labels import Choices
from ..training.config import TrainingConfig
from ..training.setup import TrainingData, load_data
from . import measures as m
from .config import EvaluationConfig
from .features import cached, extract, load_extractor
from .pictures import nearest_sheet, per_class_sheet, samples_sheet
from .sampling import draw_samples, read_samples, to_image


@dataclass
class Sets:
    """Features (N, D), and what each image was told or shows, of samples, training images and held-out ones."""

    fake: np.ndarray
    train: np.ndarray
    held_out: np.ndarray
    asked: list[Any]
    train_conditions: list[Any]
    held_out_conditions: list[Any]


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """Measure a model of any setting.

    Returns:
        The report, as it is written to `evaluation/report.json` beside report.md and the pictures.

    Raises:
        ValueError: in one line: no such model, data that do not fit it, too few images.
    """
    accelerator = Accelerator()
    pipe = ConditionalPipeline.from_pretrained(config.model).to(accelerator.device)
    folder = Path(
        config.output_dir or (Path(config.model) / "evaluation" if Path(config.model).is_dir() else "evaluation")
    )
    data = _load_data(config, pipe)
    rng = np.random.default_rng(config.seed)
    train = np.sort(rng.permutation(data.train)[: config.num_real])
    train_conditions, held_out_conditions = (_conditions(data, rows) for rows in (train, data.held_out))
    # Conditions as often as in the data: in the order of a permutation, over and over.
    order = rng.permutation(len(train))
    asked = [train_conditions[order[i % len(order)]] for i in range(config.num_samples)]

    settings = {
        k: getattr(config, k) for k in ("guidance_scale", "num_inference_steps") if getattr(config, k) is not None
    }
    start = time.perf_counter()
    draw_samples(pipe, asked, folder / "samples", accelerator, seed=config.seed, settings=settings)
    sampling_sec = time.perf_counter() - start
    if not accelerator.is_main_process:
        return {}
    extractor = load_extractor(config.feature_extractor, accelerator.device)
    sets = Sets(
        fake=extract(extractor, read_samples(folder / "samples"), config.num_samples, config.batch_size, "samples"),
        train=_real_features(config, extractor, data, train, folder, "training images"),
        held_out=_real_features(config, extractor, data, data.held_out, folder, "held-out images"),
        asked=asked,
        train_conditions=train_conditions,
        held_out_conditions=held_out_conditions,
    )
    rows, pairs = measure(sets, pipe, data)
    if config.classify:
        rows += _classified(config, pipe, data, held_out_conditions)
    scale = pipe.config.default_guidance_scale if config.guidance_scale is None else config.guidance_scale
    num_steps = config.num_inference_steps or pipe.config.default_num_inference_steps
    guided = scale != 1 and any(condition is not None for condition in asked)
    report = {
        "model": config.model,
        "setting": pipe.adapter.conditioning,
        "num_samples": config.num_samples,
        "num_train": len(train),
        "num_held_out": len(data.held_out),
        "feature_extractor": config.feature_extractor,
        "resolution_px": data.dataset.resolution,
        "num_inference_steps": num_steps,
        "guidance_scale": scale,
        "network_evaluations_per_image": num_steps * (2 if guided else 1),
        "seconds_per_image": round(sampling_sec / config.num_samples, 4),
        "device": str(accelerator.device),
        "data": data.dataset.fingerprint(),
        "measures": rows,
    }
    _write(report, folder)
    _draw(folder, data, asked, train, pairs)
    if not config.keep_samples:
        for path in (folder / "samples").iterdir():
            path.unlink()
    if folder.resolve().parent == Path(config.model).resolve():
        write_card(config.model)
    return report


def measure(sets: Sets, pipe: ConditionalPipeline, data: TrainingData) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The rows of the report, and for each sample the index of its nearest training image."""
    rows: list[dict[str, Any]] = []

    def add(
        question: str, name: str, value: float, interval: tuple[float, float] | None, real: float | None, better: str
    ) -> None:
        row = {"question": question, "name": name, "value": _round(value), "better": better}
        row["interval"] = None if interval is None else [_round(x) for x in interval]
        row["real"] = None if real is None else _round(real)
        rows.append(row)

    fake, train, held_out = sets.fake, sets.train, sets.held_out
    train_stats = m.Gaussian.of(train)
    add(
        *("alike?", "Frechet distance", m.frechet_distance(m.Gaussian.of(fake), train_stats)),
        *(m.interval_of_frechet(fake, train_stats), m.frechet_distance(m.Gaussian.of(held_out), train_stats), "lower"),
    )
    kernel, kernel_real = m.kernel_distance(fake, train), m.kernel_distance(held_out, train)
    spread = 1.96 * kernel.std(ddof=1)
    add(
        "alike?",
        "kernel distance",
        kernel.mean(),
        (kernel.mean() - spread, kernel.mean() + spread),
        kernel_real.mean(),
        "lower",
    )
    found, real = m.manifolds(train, fake), m.manifolds(train, held_out)
    questions = {"precision": "alike?", "density": "alike?", "recall": "all of it?", "coverage": "all of it?"}
    for name, question in questions.items():
        add(question, name, found[name].mean(), m.interval_of_mean(found[name]), real[name].mean(), "higher")
    flags, pairs, _ = m.copies(fake, train, held_out)
    flags = flags.astype(float)
    add(
        "new?",
        "closer to a training image than 99 % of held-out ones",
        flags.mean(),
        m.interval_of_mean(flags),
        0.01,
        "lower",
    )
    if data.id2label:
        _labels(sets, add)
    elif pipe.adapter.conditioning == "text":
        _captions(sets, pipe, add)
    return rows, pairs


def _labels(sets: Sets, add: Any) -> None:
    """Does it obey y: a linear probe on the features of real images, and the probe's own ceiling."""

    def known(conditions: list[Any], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keep = np.array([c is not None for c in conditions], dtype=bool)
        return features[keep], np.array([c for c in conditions if c is not None])

    train, labels = known(sets.train_conditions, sets.train)
    if len(set(labels.tolist())) < 2:
        return
    probe = m.Probe(train, labels)
    fake, asked = known(sets.asked, sets.fake)
    held_out, shown = known(sets.held_out_conditions, sets.held_out)
    right = (probe(fake) == asked).astype(float)
    ceiling = float((probe(held_out) == shown).mean()) if len(shown) else None
    add("obeys y?", "class read right by a linear probe", right.mean(), m.interval_of_mean(right), ceiling, "higher")


def _classified(
    config: EvaluationConfig, pipe: ConditionalPipeline, data: TrainingData, conditions: list[Any]
) -> list[dict[str, Any]]:
    """What the model makes of held-out images as a classifier: how often it is right, and as sure as it should be."""
    if not data.id2label:
        raise ValueError("--classify needs a class-conditional model")
    known = [i for i, label in enumerate(conditions) if label is not None][: config.num_classified]
    images = [_image(data, data.held_out[i]) for i in known]
    found = pipe.classify(images, list(data.id2label), seed=config.seed)
    right = np.array([int(best) == conditions[i] for best, i in zip(found.best, known, strict=True)], dtype=float)
    sure = found.probabilities.max(dim=1).values.numpy()
    accuracy = {"name": "held-out images classified right", "value": _round(right.mean()), "better": "higher"}
    accuracy["interval"] = [_round(x) for x in m.interval_of_mean(right)]
    error = {"name": "calibration error of that", "value": _round(m.calibration_error(sure, right)), "better": "lower"}
    return [{"question": "obeys y?", "interval": None, "real": None} | row for row in (accuracy, error)]


def _captions(sets: Sets, pipe: ConditionalPipeline, add: Any) -> None:
    """Does it obey the text: retrieval of the caption, through a map fitted on real pairs."""
    texts = {c for part in (sets.train_conditions, sets.asked, sets.held_out_conditions) for c in part if c}
    known = sorted(texts)
    vectors: list[np.ndarray] = []
    for start in range(0, len(known), 256):
        features = pipe._features(known[start : start + 256])
        mask = features["mask"][..., None].float()  # (B, L, 1)
        mean = (features["hidden_states"].detach().float() * mask).sum(dim=1) / mask.sum(dim=1)  # (B, E)
        vectors.append(mean.cpu().numpy())
    table = dict(zip(known, np.concatenate(vectors), strict=True))

    def pairs(conditions: list[Any], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keep = np.array([bool(c) for c in conditions])
        return features[keep], np.array([table[c] for c in conditions if c])

    retrieval = m.Retrieval(*pairs(sets.train_conditions, sets.train))
    fake, real = retrieval(*pairs(sets.asked, sets.fake)), retrieval(*pairs(sets.held_out_conditions, sets.held_out))
    for name, title in (
        ("r_at_1", "R@1 of 100 captions"),
        ("r_at_5", "R@5 of 100 captions"),
        ("auc", "matched against shuffled, AUC"),
    ):
        add("obeys the text?", title, fake[name].mean(), m.interval_of_mean(fake[name]), real[name].mean(), "higher")


def _round(value: float) -> float:
    return float(f"{float(value):.4g}")


def _load_data(config: EvaluationConfig, pipe: ConditionalPipeline) -> TrainingData:
    """The data set of the training run, or another one given; refuses what cannot be measured."""
    path = Path(config.model) / "training_config.yaml"
    known = yaml.safe_load(path.read_text()) if path.is_file() else {}
    given = {"train_data_dir": config.train_data_dir, "dataset_name": config.dataset_name}
    if any(given.values()):
        known |= given
    if not (known.get("train_data_dir") or known.get("dataset_name")):
        raise ValueError("name the real images: --train_data_dir or --dataset_name")
    size = pipe.unet.config.sample_size
    if known.get("aspect_buckets") or known.get("value_range"):
        raise ValueError("models with --aspect_buckets or --value_range cannot be evaluated yet")
    known |= {"conditioning": pipe.adapter.conditioning, "resolution": pipe.vae_scale_factor * size}
    known |= {"on_bad_image": "skip", "streaming": False, "pretrained_model_name_or_path": None, "unet_size": None}
    known = {k: v for k, v in known.items() if k in TrainingConfig.__dataclass_fields__}
    vae = pipe.components.get("vae")
    data = load_data(TrainingConfig(**known), (vae or pipe.unet).config.in_channels)
    if len(data.held_out) < 10:
        raise ValueError(f"{len(data.held_out)} images are held out: an evaluation needs at least 10, so more images")
    return data


def _conditions(data: TrainingData, rows: np.ndarray) -> list[Any]:
    if data.dataset.columns.condition is None:
        return [None] * len(rows)
    found = [data.dataset.read_condition(int(data.dataset.usable[i])) for i in rows]
    return [c[0] if isinstance(c, Choices) else c for c in found]


def _image(data: TrainingData, row: int) -> Image.Image:
    return to_image(data.dataset[0, int(row)].pixels)


def _real_features(
    config: EvaluationConfig, extractor: Any, data: TrainingData, rows: np.ndarray, folder: Path, what: str
) -> np.ndarray:
    key = {
        "data": data.dataset.fingerprint(),
        "rows": rows.tolist(),
        "resolution": data.dataset.resolution,
        "extractor": config.feature_extractor,
    }
    images = (_image(data, row) for row in rows)
    return cached(
        Path(config.features_dir or folder), key, lambda: extract(extractor, images, len(rows), config.batch_size, what)
    )


def _write(report: dict[str, Any], folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    lines = [
        f"# Evaluation of {report['model']}\n",
        f"{report['num_samples']:,} samples against {report['num_train']:,} training images and "
        f"{report['num_held_out']:,} held-out ones, features of {report['feature_extractor']}, "
        f"{report['num_inference_steps']} steps, guidance scale {report['guidance_scale']}.\n",
        "| question | measure | samples | 95 % interval | held-out real images | better |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["measures"]:
        interval = "" if row["interval"] is None else f"{row['interval'][0]} to {row['interval'][1]}"
        real = "" if row["real"] is None else row["real"]
        lines.append(f"| {row['question']} | {row['name']} | {row['value']} | {interval} | {real} | {row['better']} |")
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw(folder: Path, data: TrainingData, asked: list[Any], train: np.ndarray, pairs: np.ndarray) -> None:
    images = []
    for image, _ in zip(read_samples(folder / "samples"), range(512), strict=False):
        images.append(image)
    names = [str((data.id2label or {}).get(c, c)) for c in asked]
    samples_sheet(images, names if asked[0] is not None else None).save(folder / "samples.png")
    nearest_sheet(images, [_image(data, train[i]) for i in pairs[: len(images)]]).save(folder / "nearest.png")
    if data.id2label:
        per_class_sheet(images, asked, data.id2label).save(folder / "per_class.png")
