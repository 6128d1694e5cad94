"""From arguments to the objective of a run: the scheduler's, the pretrained model's, or one of the user's own."""

import inspect
import math
from typing import get_type_hints

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import arguments_of, is_a, reading
from ..objectives import OBJECTIVES, Objective
from ..objectives.base import SavedObjective, check_scheduler, name_of, saved_class
from ..pipelines.conditional import ConditionalPipeline
from ..user_code import load_object
from .config import TrainingConfig

_FLAGS = ("snr_gamma", "logit_mean", "logit_std")  # arguments of objectives that have a flag of their own


def build_objective(
    config: TrainingConfig, scheduler: SchedulerMixin, parent: ConditionalPipeline | None = None
) -> Objective:
    """The objective of a run. Arguments that are not given are the pretrained model's, else the class's defaults.

    Args:
        scheduler: of the model that is trained.
        parent: the pretrained model; its objective counts where neither --scheduler nor --objective is given.

    Raises:
        ValueError: the scheduler has no objective, or it has none of an argument that was given; in one line.
    """
    _check_prediction_type(config, scheduler)
    saved = None if parent is None or config.scheduler else parent.config.get("objective")
    cls = _class(config, scheduler, saved)
    if saved is not None and saved["name"] == name_of(cls):
        check_scheduler(saved, scheduler)
    decided = cls.scheduler_arguments(scheduler)
    if decided is None:
        name = type(scheduler).__name__
        fitting = {"DDPM": ", such as DDPMScheduler", "EDM": ", such as EDMEulerScheduler"}.get(cls.__name__, "")
        raise ValueError(
            f"--objective {config.objective}: {name} samples for another one: give a --scheduler that fits{fitting}"
        )
    arguments = {k: getattr(config, k) for k in _FLAGS if getattr(config, k) is not None}
    accepted = [name for name in inspect.signature(cls).parameters if name not in decided]
    for name in arguments:
        if name not in accepted:
            raise ValueError(f"--{name} has no meaning for {type(scheduler).__name__}: leave it out")
    given = _checked_config(config, cls, accepted)
    for name in arguments.keys() & given.keys():
        raise ValueError(f"--objective_config: {name} is given by --{name} too: leave one of them out")
    inherited = {}
    if saved is not None and saved["name"] == name_of(cls):
        inherited = {name: value for name, value in saved.items() if name in accepted}
    with reading(f"--objective_config {config.objective_config}" if given else f"the objective {name_of(cls)}"):
        objective = cls(**decided | inherited | arguments | given)
        objective.config  # noqa: B018 (what cannot be saved is an error before the first step)
    return objective


def _class(config: TrainingConfig, scheduler: SchedulerMixin, saved: SavedObjective | None) -> type[Objective]:
    if config.objective in OBJECTIVES:
        cls = OBJECTIVES[config.objective]
        if not cls.uses_teacher or cls.scheduler_arguments(scheduler) is not None:
            return cls
        # The distillation of the pretrained model's family.
        fits = [row for row in OBJECTIVES.values() if row.uses_teacher and row.scheduler_arguments(scheduler)]
        return fits[0] if fits else cls
    if config.objective is not None and ":" not in config.objective:
        raise ValueError(f"--objective {config.objective!r} is not one of {', '.join(OBJECTIVES)}, nor module:Class")
    if config.objective is not None:
        return load_object(config.objective, Objective)
    if saved is None:
        return type(Objective.from_scheduler(scheduler))
    cls = saved_class(saved)
    if cls is None:
        raise ValueError(
            f"the pretrained model was trained with the objective {saved['name']}, which is not imported: give it by "
            f"--objective, or another one of {', '.join(OBJECTIVES)}"
        )
    return cls


def _checked_config(config: TrainingConfig, cls: type[Objective], accepted: list[str]) -> dict[str, object]:
    """The arguments in --objective_config: of their types, and none that the scheduler decides."""
    given = arguments_of("--objective_config", config.objective_config)
    hints = get_type_hints(cls.__init__)
    for name, value in given.items():
        if name not in accepted:
            has = f"it has {', '.join(accepted)}" if accepted else "it has none"
            raise ValueError(f"--objective_config: {name!r} is no argument of the objective {name_of(cls)}: {has}")
        is_number = not isinstance(value, float) or math.isfinite(value)
        if not is_number or (name in hints and not is_a(value, hints[name])):
            raise ValueError(f"--objective_config: {name} {value!r} is not of type {_shown(hints.get(name, float))}")
    return given


def _shown(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check_prediction_type(config: TrainingConfig, scheduler: SchedulerMixin) -> None:
    trained_for = scheduler.config.get("prediction_type")
    if config.prediction_type not in (None, trained_for):  # of a pretrained model, which keeps its scheduler
        keeps = f"predicts {trained_for}" if trained_for else "has no prediction type"
        raise ValueError(
            f"--prediction_type {config.prediction_type}: the pretrained model's {type(scheduler).__name__} {keeps}; "
            f"leave it out, or name a new --scheduler"
        )


def own_arguments(objective: Objective, scheduler: SchedulerMixin) -> dict[str, object]:
    """Its arguments that neither the scheduler nor a flag of their own decides: what --objective_config can give."""
    decided = type(objective).scheduler_arguments(scheduler) or {}
    return {name: v for name, v in objective.config.items() if name not in ("name", *_FLAGS, *decided)}
