"""The real images that a model is compared with: those of its training run, or others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..adapters.base import ConditioningAdapter
from ..data.config import ConditionColumn, DataArguments
from ..data.load import TrainingData, load_data
from ..errors import UserError, read_yaml
from ..flags import flag, with_effect
from ..pipelines.conditional import ConditionalPipeline
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


def recorded_config(model: str) -> dict[str, Any]:
    """What a model's training_config.yaml holds; nothing where there is none, as of a model on the Hub."""
    path = Path(model) / "training_config.yaml"
    return read_yaml(path) if path.is_file() else {}


def setting_name(adapter: ConditioningAdapter, recorded: Mapping[str, Any]) -> str:
    """The `--conditioning` that a model was trained with: a third party's row is known by its import path only."""
    if adapter.conditioning in SETTINGS:
        return adapter.conditioning
    name = str(recorded.get("conditioning", ""))
    return name if ":" in name else "custom"


def check_setting(config: EvaluationConfig, setting: Setting) -> None:
    """Raise ValueError for what has no meaning for a model of this setting, before anything is sampled."""
    for row in SETTINGS.values():
        for name in row.evaluation_arguments:
            if getattr(config, name) and name not in setting.evaluation_arguments:
                raise ValueError(f"--{name} needs a {row.name}-conditional model, and this one is {setting.name!r}")


def load_evaluated_data(
    config: EvaluationConfig, pipe: ConditionalPipeline, conditioning: str, recorded: Mapping[str, Any]
) -> TrainingData:
    """The data set of the training run, or another one given.

    Args:
        conditioning: of the model; see `setting_name`.
        recorded: see `recorded_config`.

    Raises:
        ValueError: the data cannot be loaded, or a model of them cannot be evaluated.
    """
    known = dict(recorded)
    given = {"train_data_dir": config.train_data_dir, "dataset_name": config.dataset_name}
    if any(given.values()):
        known |= given
    if not (known.get("train_data_dir") or known.get("dataset_name")):
        raise ValueError("name the real images: --train_data_dir or --dataset_name")
    if known.get("aspect_buckets") or known.get("value_range"):
        raise ValueError("models with --aspect_buckets or --value_range cannot be evaluated yet")
    size = pipe.unet.config.sample_size
    about_data = {setting.name for setting in fields(EvaluatedData)} - {"cache_latents", "cache_text_embeddings"}
    known = {name: value for name, value in known.items() if name in about_data}
    known |= {"conditioning": conditioning, "resolution": pipe.vae_scale_factor * size}
    known = with_effect(EvaluatedData, known | {"on_bad_image": "skip", "streaming": False})
    vae = pipe.components.get("vae")
    data = load_data(_checked(known, config.model), (vae or pipe.unet).config.in_channels)
    if data.id2label and hasattr(data.dataset.rows.features[data.dataset.columns.condition], "feature"):
        raise ValueError("models with several labels an image cannot be evaluated yet")
    if len(data.held_out) < 10:
        raise ValueError(f"{len(data.held_out)} images are held out: an evaluation needs at least 10, so more images")
    return data


def _checked(known: Mapping[str, Any], model: str) -> EvaluatedData:
    try:
        return EvaluatedData(**known)
    except (ValueError, TypeError) as error:  # a TypeError: a value that cannot be compared
        raise UserError(f"{Path(model) / 'training_config.yaml'}: {error}") from error
