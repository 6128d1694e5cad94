"""The conditions of a model, those of a composite one by one, and the arguments that they give a meaning to."""

from dataclasses import dataclass

from ..adapters.base import ConditioningAdapter
from ..data.load import TrainingData
from ..settings import SETTINGS, Setting
from .config import EvaluationConfig

# Apart from the captions of training: those of held-out images that training never saw, and those of a file.
UNSEEN, COMBINATIONS = "captions unseen in training", "unseen combinations"


@dataclass(frozen=True)
class ModelCondition:
    """One of the conditions of a model.

    Args:
        name: of a part of a composite; "" where there is one condition.
        adapter: of this condition.
        setting: its row; None: a third party's, that has none.
        id2label: class names by id, where it is a label.
        has_several: labels an image.
    """

    name: str
    adapter: ConditioningAdapter
    setting: Setting | None
    id2label: dict[int, str]
    has_several: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether it is a label, or several."""
        return self.setting is not None and self.setting.has_classes

    @property
    def has_captions(self) -> bool:
        """Whether it is a caption."""
        return self.setting is not None and self.setting.has_captions

    def read(self, raw: object) -> object:
        """This one of a raw condition: an id, a tuple of ids, a caption, a vector; None: the image has none."""
        value = raw.get(self.name) if self.name and isinstance(raw, dict) else raw
        if value is None or not self.name:
            return value
        if self.has_classes:
            several = isinstance(value, list | tuple)
            return tuple(map(self.adapter.label_id, value)) if several else self.adapter.label_id(value)
        return value

    def only(self, value: object) -> object:
        """The raw condition that is this one, and no other."""
        return {self.name: value} if self.name else value

    def title(self, text: str) -> str:
        """The text with the name of this condition before it, where there are several."""
        return f"{self.name}: {text}" if self.name else text

    def kind(self, what: str) -> str:
        """The name of the samples of a kind that are drawn for this condition."""
        return f"{self.name} {what}" if self.name else what

    @property
    def alone(self) -> str:
        """The kind of samples that have this condition only."""
        return self.kind("alone")

    @property
    def kinds(self) -> dict[str, str]:
        """All kinds of samples for this condition, with what they are called in a row of it."""
        return {self.alone: self.alone} | {self.kind(what): what for what in (UNSEEN, COMBINATIONS)}


def conditions_of_model(adapter: ConditioningAdapter, setting: Setting, data: TrainingData) -> list[ModelCondition]:
    """The conditions of a model, those of a composite one by one."""
    raws, parts = data.dataset.conditions(), getattr(adapter, "parts", None)
    if parts is None:
        several = any(isinstance(raw, tuple) for raw in raws) and setting.has_classes
        return [ModelCondition("", adapter, setting, data.id2label or {}, several)]
    conditions = []
    for name, part in parts.items():
        names = {i: str(i) for i in range(getattr(part, "num_classes", 0))} | getattr(part, "id2label", {})
        several = any(isinstance(raw, dict) and isinstance(raw.get(name), list | tuple) for raw in raws)
        conditions.append(ModelCondition(name, part, SETTINGS.get(part.conditioning), names, several))
    return conditions


def check_setting(config: EvaluationConfig, setting: Setting, adapter: ConditioningAdapter) -> None:
    """Raise ValueError for what has no meaning for a model of this setting, before its data are loaded."""
    parts = getattr(adapter, "parts", None)
    settings = [setting] if parts is None else [SETTINGS.get(part.conditioning) for part in parts.values()]
    known = {name for each in settings if each is not None for name in each.evaluation_arguments}
    for row in SETTINGS.values():
        for name in row.evaluation_arguments:
            if getattr(config, name) and name not in known:
                has = f"this one is {setting.name!r}"
                if parts is not None:
                    has = f"this one has {', '.join(f'{name} ({part.conditioning})' for name, part in parts.items())}"
                raise ValueError(f"--{name} needs a {row.name}-conditional model, and {has}: leave it out")


def check_labels(config: EvaluationConfig, conditions: list[ModelCondition]) -> None:
    """Raise ValueError for what cannot be read of the labels of a model, before anything is sampled."""
    labels = [each for each in conditions if each.has_classes]
    if config.classifier and len(labels) > 1:
        raise ValueError(
            f"--classifier {config.classifier} reads one condition, and {', '.join(each.name for each in labels)} are "
            "labels: leave it out; a linear probe reads each"
        )
    if config.classify and any(each.has_several for each in labels):
        raise ValueError(
            "--classify needs one label an image, and these images have several: leave it out; the report has the AUC "
            "of each label, by a linear probe or by your --classifier"
        )
