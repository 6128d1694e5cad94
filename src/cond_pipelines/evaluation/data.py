"""The real images that a model is compared with: those of its training run, or others."""

import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ..adapters.base import ConditioningAdapter
from ..data.config import ConditionColumn, DataArguments
from ..data.load import TrainingData, load_data
from ..errors import UserError, read_json, read_yaml
from ..flags import flag, with_effect
from ..folders import inside
from ..pipelines.conditional import ConditionalPipeline
from ..provenance import SUMMARY_FILE
from ..settings import SETTINGS, Setting, find_setting
from .config import EvaluationConfig


@dataclass
class EvaluatedData(DataArguments):
    """How the data of a training run were chosen and prepared: what its training_config.yaml says of them.

    Raises:
        ValueError: a value that no data can have; the message names it.
    """

    conditioning: str = flag("none", "The setting of the run, as in `TrainingConfig`.")
    seed: int = flag(0, "The seed of the run: which images are held out depends on it.")

    @property
    def column(self) -> ConditionColumn | None:
        """How the column of the conditions is found and read; None where the setting has none."""
        return find_setting(self.conditioning).column


# Of training_config.yaml: where to read or write, and what to run. Whoever made the folder wrote it.
_NOT_FOLLOWED = ("train_data_dir", "dataset_name", "class_data_dir", "cache_dir")


def recorded_config(model: str) -> dict[str, object]:
    """What a model's training_config.yaml holds; nothing where there is none, as of a model on the Hub."""
    path = inside(model, "training_config.yaml") if Path(model).is_dir() else None
    return read_yaml(path) if path is not None and path.is_file() else {}


def setting_name(config: EvaluationConfig, adapter: ConditioningAdapter, recorded: Mapping[str, object]) -> str:
    """The `--conditioning` that a model was trained with: a third party's row is known by its import path only.

    Raises:
        UserError: the folder names a module that is not imported, and the command line does not.
    """
    if adapter.conditioning in SETTINGS:
        return adapter.conditioning
    name = str(recorded.get("conditioning", ""))
    if config.conditioning is not None:
        return config.conditioning
    if ":" not in name:
        return "custom"
    if name.partition(":")[0] not in sys.modules:
        raise UserError(_unfollowed(config.model, "conditioning", name))
    return name


def _unfollowed(model: str, flag: str, value: object) -> str:
    """The line on a path or a module that only the folder names."""
    return (
        f"{model}: its training_config.yaml names --{flag} {value}, which is not followed on its own word; "
        f"if you trust it, add to the command: {shlex.join([f'--{flag}', str(value)])}"
    )


def check_guidance(config: EvaluationConfig, setting: Setting, has_guide: bool) -> None:
    """Raise ValueError for a scale that the model does not have, before anything is sampled."""
    if config.guide_scale is not None and not has_guide:
        raise ValueError(
            f"guide_scale {config.guide_scale:g} needs a guide, and this model has none: train one with --autoguidance"
        )
    if setting.column is None and config.guidance_scale is not None and not (has_guide and config.guide_scale is None):
        raise ValueError(
            f"guidance_scale {config.guidance_scale:g} has no effect, since p(x) has no classifier-free guidance: "
            "leave it out; p(x) is guided by --guide_scale, of a model that was trained with --autoguidance"
        )


def load_evaluated_data(
    config: EvaluationConfig, pipe: ConditionalPipeline, conditioning: str, recorded: Mapping[str, object]
) -> TrainingData:
    """The data set of the training run, or another one given.

    Args:
        conditioning: of the model; see `setting_name`.
        recorded: see `recorded_config`.

    Raises:
        ValueError: the data cannot be loaded, or a model of them cannot be evaluated.
    """
    known = {name: value for name, value in recorded.items() if name not in _NOT_FOLLOWED}
    given = {name: getattr(config, name) for name in ("train_data_dir", "dataset_name", "class_data_dir")}
    if not (config.train_data_dir or config.dataset_name):
        for name in ("train_data_dir", "dataset_name"):
            if recorded.get(name):
                raise UserError(_unfollowed(config.model, name, recorded[name]))
        raise ValueError("name the real images: --train_data_dir or --dataset_name")
    same = all(given[name] == recorded.get(name) for name in ("train_data_dir", "dataset_name"))
    if same and recorded.get("class_data_dir") and not config.class_data_dir:
        raise UserError(_unfollowed(config.model, "class_data_dir", recorded["class_data_dir"]))
    if not config.class_data_dir:
        known |= {"with_prior_preservation": False, "class_prompt": None, "prior_loss_weight": 1.0}
    known |= given
    known["held_out_by"] = recorded.get("held_out_by", "row") if same and recorded else "content"  # formerly rows
    about_data = {setting.name for setting in fields(EvaluatedData)} - {"cache_latents", "cache_text_embeddings"}
    known = {name: value for name, value in known.items() if name in about_data}
    known |= {"conditioning": conditioning, "resolution": _resolution(config.model, pipe, recorded)}
    known = with_effect(EvaluatedData, known | {"on_bad_image": "skip", "streaming": False})
    vae = pipe.components.get("vae")
    data = load_data(_checked(known, config.model), (vae or pipe.unet).config.in_channels)
    if data.id2label and (names := getattr(pipe.adapter, "id2label", None)):
        used = set(_labels(data.dataset.conditions()))
        data.id2label = {i: name for i, name in data.id2label.items() if i in used}
        data.use_labels(pipe.adapter.label_id, f"the model ({', '.join(list(names.values())[:20])})")
    if len(data.held_out) < 10:
        raise ValueError(f"{len(data.held_out)} images are held out: an evaluation needs at least 10, so more images")
    return data


def _resolution(model: str, pipe: ConditionalPipeline, recorded: Mapping[str, object]) -> object:
    """That of the run where it had buckets, since a UNet's size is that of one of them; else what the UNet draws."""
    if recorded.get("aspect_buckets"):
        summary = inside(model, SUMMARY_FILE)  # it says what was chosen where no --resolution was given
        chosen = read_json(summary).get("resolution_px") if summary.is_file() else None
        if resolution := recorded.get("resolution") or chosen:
            return resolution
    size = pipe.unet.config.sample_size
    return pipe.vae_scale_factor * (size if isinstance(size, int) else round(math.prod(size) ** 0.5))


def _labels(conditions: Iterable[object]) -> Iterator[object]:
    """Every label, also of images that have several."""
    for condition in conditions:
        yield from condition if isinstance(condition, tuple) else (condition,)


def _checked(known: Mapping[str, object], model: str) -> EvaluatedData:
    try:
        return EvaluatedData(**known)
    except (ValueError, TypeError) as error:  # a TypeError: a value that cannot be compared
        raise UserError(f"{Path(model) / 'training_config.yaml'}: {error}") from error
