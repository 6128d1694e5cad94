"""What a run is, so that it is resumed as itself: which settings must not change, and what the others change.

Which is which is declared at each field (`flags.flag(resume=...)`). Networks and images are compared by their content.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..data.load import TrainingData
from ..flags import settings_of, shown
from ..objectives.base import Objective, name_of
from ..pipelines.conditional import ConditionalPipeline
from .arguments import OutputArguments
from .checkpoints import Progress, all_checkpoints, load_checkpoint, read_manifest
from .config import TrainingConfig
from .ema import WeightAverage
from .fingerprint import fingerprint_of, plain_config
from .objective import own_arguments
from .run_folder import RunFolder
from .schedule import LearningRate, RunLength

_DECLARED = {setting.name: setting.metadata for setting in settings_of(TrainingConfig)}
# What takes effect but is nothing to report: where a run writes, and what the line on the batch says already.
_UNSAID = {setting.name for setting in fields(OutputArguments)} | {"train_batch_size", "gradient_accumulation_steps"}
FILE_TIMES = "times of the files"
_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_CHOSEN_ONCE = ("unet_size", "optimizer")  # by `defaults`, whose choices change with the versions
_OPTIMIZER_SETTINGS = ("initial_lr", "betas", "weight_decay", "eps")


def with_settings_of_before(config: TrainingConfig, folder: Path, sharded: bool) -> TrainingConfig:
    """The configuration of a run that goes on: what it leaves open is chosen as in the newest checkpoint.

    So a run goes on as it began, also where a newer version of this package would choose otherwise. Where it is
    `sharded`, its optimizer must suit that, and the resume says what is another.
    """
    if not config.resume_from_checkpoint:
        return config
    before = []
    for path in all_checkpoints(folder):
        with suppress(ValueError):  # a damaged one, as the resume says
            before.append(read_manifest(path).identity)
    if not before:
        return config
    is_ours = config.scheduler is None and not config.pretrained_model_name_or_path
    if is_ours and before[-1].get("scheduler") == _SCHEDULER and before[-1].get("shift", 1.0) == 1.0:
        config = replace(config, scheduler=_SCHEDULER)  # by its name: of a run of before, without our shift
    names = [name for name in _CHOSEN_ONCE if getattr(config, name) is None and not (sharded and name == "optimizer")]
    chosen = {name: before[-1].get(name) for name in names}
    if not config.streaming and not any("held_out_by" in values for values in before):
        chosen["held_out_by"] = "row"  # of checkpoints that say nothing of it
    return replace(config, **{name: value for name, value in chosen.items() if value is not None})


def parent_fingerprint(parent: ConditionalPipeline | None) -> str | None:
    """Of the pretrained model's networks; to be taken before they are trained or changed."""
    if parent is None:
        return None
    parts = [parent.components.get(name) for name in ("unet", "text_encoder", "vae")]
    return fingerprint_of(*(part for part in parts if part is not None))[:12]


def loaded_identity(
    config: TrainingConfig, pipe: ConditionalPipeline, data: TrainingData, objective: Objective, parent: str | None
) -> dict[str, Any]:
    """What was loaded and built, by content: values for settings that are named otherwise or chosen, and some more.

    Args:
        pipe: before it is trained. parent: `parent_fingerprint`.
    """
    loaded: dict[str, Any] = {"resolution": data.dataset.resolution, "channels": data.dataset.channels}
    loaded |= {"scheduler": type(pipe.scheduler).__name__, "shift": pipe.scheduler.config.get("shift")}
    loaded |= {"prediction_type": pipe.scheduler.config.get("prediction_type")}
    loaded |= {name: getattr(objective, name, None) for name in ("logit_mean", "logit_std", "snr_gamma")}
    own = own_arguments(objective, pipe.scheduler)
    loaded |= {"objective": name_of(type(objective)), "objective_config": json.dumps(own) if own else None}
    loaded |= {"lora_alpha": config.lora_alpha or config.rank}
    weights = {"pretrained_model": parent}
    for name, part in (("text_encoder", "text_encoder"), ("pretrained_vae_model", "vae")):
        is_given = getattr(config, f"{name}_name_or_path") is not None
        weights[name] = fingerprint_of(pipe.components[part])[:12] if is_given else None
    loaded |= {f"{name}_name_or_path": of and f"with the weights {of}" for name, of in weights.items()}
    loaded |= {"data set": data.dataset.fingerprint(), "held_out_by": data.held_out_by}
    if data.train is not None:
        loaded |= {"content of the data": data.content, FILE_TIMES: data.dataset.times_of_files()}
    else:  # the content of a stream is not known
        loaded["stream"] = [
            config.train_data_dir,
            config.dataset_name,
            config.dataset_config_name,
            config.dataset_split,
        ]
    return loaded


@dataclass
class RunIdentity:
    """The settings of a run and what they loaded; `notes` says what changed with a resume.

    Args:
        values: by name, as JSON takes them; saved with each checkpoint.
    """

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    fewer_minutes: bool = False

    @classmethod
    def of(cls, config: TrainingConfig, loaded: dict[str, Any], pipe: ConditionalPipeline) -> "RunIdentity":
        """Of a run whose defaults are filled in; `loaded`: `loaded_identity`, and what else must not change."""
        adapter = {k: v for k, v in pipe.adapter.config.items() if not k.startswith("_")}
        loaded = loaded | {"adapter": f"{type(pipe.adapter).__name__} {adapter}", "UNet": plain_config(pipe.unet)}
        values = {k: v for k, v in config.to_dict().items() if k != "hub_token" and _DECLARED[k]["by"] == "value"}
        return cls(json.loads(json.dumps(values | loaded, default=str)))

    def accept(self, before: dict[str, Any]) -> None:
        """Compare with the values that a checkpoint was made with, and note what changed.

        Raises:
            ValueError: the model or the course of training is another; which, before and now.
        """
        before = dict(before)
        if isinstance(before.get("train"), list):  # of a checkpoint of before, as is the next
            before |= dict(zip(("train", "rank", "lora_target_modules"), before["train"], strict=False))
        if "held_out_by" in self.values:
            before.setdefault("held_out_by", "row")
        if "value range" in before:
            before["value_range"] = before.pop("value range")
        names = [*self.values, *(name for name in before if name not in self.values and name in _DECLARED)]
        for name in sorted(names, key=lambda name: name != "sharding"):  # which decides what others can be
            if name not in before or before[name] == self.values.get(name):
                continue
            was, now = before[name], self.values.get(name)
            if name in _DECLARED and _DECLARED[name]["resume"] == "free":
                if name == "max_train_minutes":
                    self.fewer_minutes = bool(now) and (was is None or now < was)
                if name not in _UNSAID:
                    self.notes.append(f"{name} {was} -> {now}")
            elif name in _DECLARED:
                raise ValueError(f"was made with {shown(name, was)}, now {shown(name, now)}")
            elif name == FILE_TIMES:
                self.notes.append("image files were written again since, with the same size or content")
            else:
                raise ValueError(f"was made with another {name} ({_difference(was, now)})")


def _difference(was: Any, now: Any) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
        return ", ".join(f"{k} {was.get(k)}, now {now.get(k)}" for k in keys)
    return f"{was}, now {now}"


def resume(
    folder: RunFolder,
    which: str,
    identity: RunIdentity,
    learning_rate: LearningRate,
    length: RunLength,
    averages: Sequence[WeightAverage],
) -> tuple[Progress, str | None]:
    """Restore the checkpoint `which`; the settings given now take effect in the optimizer.

    Returns:
        How far the run is, and the run that wrote the checkpoint, where it says so; `identity.notes` says what changed.

    Raises:
        ValueError: it cannot be resumed, or it is longer already than `length`; in one line.
    """
    groups = learning_rate.optimizer.param_groups
    wanted = [{name: group[name] for name in _OPTIMIZER_SETTINGS if name in group} for group in groups]
    # By parameter, since Muon makes other groups for a checkpoint of before.
    of_parameter = {id(p): each for group, each in zip(groups, wanted, strict=True) for p in group["params"]}
    progress, run = load_checkpoint(folder.accelerator, folder.path, which, averages, identity.accept, folder.run)
    if not progress.step:
        return progress, run
    groups = learning_rate.optimizer.param_groups
    last = groups[0]["lr"]
    for group in groups:
        group.update(of_parameter[id(group["params"][0])])  # the checkpoint's optimizer has brought those of before
    length.check_not_passed(progress, identity.fewer_minutes)
    if any(note.startswith(("max_train", "num_train", "lr_", "learning_rate")) for note in identity.notes):
        done = length.fraction_done(progress, folder.accelerator)
        if done < 1:
            rate = groups[0]["initial_lr"] * learning_rate.scale(progress.step, done)
            identity.notes.append(
                f"the learning-rate schedule is now that of a run of {length} from its start, so the rate goes from "
                f"{last:.3g} to {rate:.3g}; the images are the same"
            )
    return progress, run
