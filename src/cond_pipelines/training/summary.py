"""What a finished run writes next to its pipeline: pictures, and training_summary.json for the model card."""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..data.labels import all_of, condition_name
from ..data.load import TrainingData
from ..files import write_json
from ..grids import sample_grid
from ..pipelines.conditional import ConditionalPipeline
from ..provenance import SUMMARY_FILE, save_picture
from ..sharing.card import TrainingFacts, training_versions, write_card
from .optimizers import trainable
from .run import Run
from .state import TrainState
from .validation import labelled_grid

NUM_SAMPLES = 64
_NUM_PICTURES, _PICTURE_SIDE_PX = 8, 256
_STEPS = (1, 2, 4, 8)  # side by side, of a distilled model


def write_summary(
    run: Run,
    state: TrainState,
    losses: dict[str, float | None],
    conditions: list[object],
    images: list[Image.Image] | None,
) -> None:
    """Write samples.png, images/, training_summary.json and README.md into the output folder.

    Args:
        state: of the finished run, whose model is saved there already.
        losses: the last "loss" and "held_out_loss", None where there was none.
        conditions: of the samples. images: one each; None where a signal came before they were made.
    """
    config, data, progress, pipe = run.config, run.data, state.progress, state.eval_pipe
    folder, run_name = run.output_dir, run.folder.run
    first = {str(c): i for i, c in reversed(list(enumerate(conditions)))} if conditions[0] is not None else None
    shown = sorted(first.values()) if first else list(range(len(conditions)))  # one of each condition
    if images is not None:
        save_picture(labelled_grid(images, conditions, data.id2label), folder / "samples.png", run_name)
        _write_pictures([images[i] for i in shown[:_NUM_PICTURES]], folder / "images", run_name)
        if run.teacher is not None:
            rows = [conditions[i] for i in shown[:_NUM_PICTURES]] if first else [None]
            grid = sample_grid(pipe, rows, {"num_inference_steps": _STEPS}, num_images=1 if first else _NUM_PICTURES)
            save_picture(grid, folder / "steps.png", run_name)
    facts = TrainingFacts(
        run=run_name,
        formula=config.setting.card.formula,
        sentence=config.setting.card.sentence,
        num_images=None if data.train is None else len(data.train),
        num_held_out=len(data.held_out),
        resolution_px=data.dataset.resolution,
        num_channels=data.dataset.channels,
        example_conditions=[_plain(conditions[i], data.id2label) for i in shown[:_NUM_PICTURES] if first],
        dataset=_hub_id(config.dataset_name),
        base_model=_hub_id(config.pretrained_model_name_or_path),
        has_parent=config.pretrained_model_name_or_path is not None,
        num_parameters=sum(
            p.numel() for p in trainable(m for m in pipe.components.values() if isinstance(m, nn.Module))
        ),
        objective=_objective(pipe),
        steps=progress.step,
        images_seen=progress.position,
        minutes=round(progress.elapsed_sec / 60, 2),
        learning_rate=config.learning_rate,
        batch_size=run.images_per_step,
        ema=config.use_ema,
        condition_dropout=config.condition_dropout,
        mixed_precision=config.mixed_precision,
        device=_device_name(run.device),
        num_processes=run.accelerator.num_processes,
        versions=training_versions(),
        **_counts(data),
        **losses,
    )
    write_json(folder / SUMMARY_FILE, asdict(facts))
    write_card(folder, config.hub_model_id)


def _write_pictures(images: list[Image.Image], folder: Path, run: str | None) -> None:
    """Small images in whole multiples of their size."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[0-9][0-9].png"):  # an earlier model of this run may have had more
        old.unlink()
    for number, image in enumerate(images):
        scale = max(1, -(-_PICTURE_SIDE_PX // max(image.size)))
        side = [scale * px for px in image.size]
        save_picture(image.resize(side, Image.Resampling.NEAREST), folder / f"{number:02d}.png", run)


def _counts(data: TrainingData) -> dict:
    """How many images each class has, how many captions there are."""
    if data.train is None:  # streamed: not counted
        return {}
    conditions = data.dataset.conditions()
    if data.id2label:
        counts = Counter(i for c in conditions for i in (c if isinstance(c, tuple) else [c]))
        return {"class_counts": {name: counts[i] for i, name in data.id2label.items()}}
    texts = [text for text in all_of(conditions) if isinstance(text, str)]
    return {"num_captions": len(texts), "num_different_captions": len(set(texts))}


def _plain(condition: object, id2label: dict[int, str] | None) -> object:
    """As JSON takes it."""
    if isinstance(condition, str | float | list) or (isinstance(condition, int) and not id2label):
        return condition
    return condition_name(condition, id2label)


def _hub_id(name: str | None) -> str | None:
    """An id of the Hub, rather than a folder or a function."""
    return name if name and name.count("/") == 1 and ":" not in name and not os.path.exists(name) else None


def _objective(pipe: ConditionalPipeline) -> str:
    saved = pipe.config.objective
    if "prediction_type" in saved:
        return f"{type(pipe.scheduler).__name__}, {saved['prediction_type']} prediction"
    return saved["name"].replace("_", " ")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores" if device.type == "cpu" else device.type
