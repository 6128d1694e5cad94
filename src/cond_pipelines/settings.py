"""The whole difference between the settings p(x), p(x|y), p(x|text), ...: one table, one row each.

Everything else in this package treats all settings alike: it reads a row and never compares a setting's name. Nothing
heavy is imported before a row is used, so that `--help` is answered at once.

A setting of your own needs no change here. Put its row into your package: `--conditioning my_package:ANGLE` names it.

    ANGLE = Setting("angle", adapter="my_package:AngleAdapter", column=ConditionColumn(names=("angle",)))
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import yaml

from .data.config import ConditionColumn, ParseValue
from .errors import arguments_of, reading
from .user_code import load_object

if TYPE_CHECKING:
    from torch import nn

    from .adapters.base import ConditioningAdapter
    from .data.load import TrainingData
    from .pipelines.conditional import ConditionalPipeline

Labels = dict[int, str]  # class names by id


@dataclass(frozen=True)
class AdapterInputs:
    """What a new adapter is made from.

    Args:
        adapter_class: the setting's, or the one of `--adapter`.
        unet: whose socket the adapter fits.
        data: the checked data set.
        text_encoder: the pipeline's, where it has one.
        has_own_text_encoder: `--text_encoder_name_or_path` names it, so it is not the pretrained model's.
        config: `--adapter_config`, JSON.
        source: the argument that named the adapter, for errors.
    """

    adapter_class: "type[ConditioningAdapter]"
    unet: "nn.Module"
    data: "TrainingData"
    text_encoder: "nn.Module | None" = None
    has_own_text_encoder: bool = False
    config: str | None = None
    source: str = "--conditioning"

    @property
    def arguments(self) -> dict[str, object]:
        """`--adapter_config` as arguments. Raises UserError where it is no JSON object."""
        return arguments_of("--adapter_config", self.config)


def build_adapter(inputs: AdapterInputs) -> "ConditioningAdapter":
    """An adapter from its class and `--adapter_config`. Raises UserError, which names both, where that fails."""
    arguments = inputs.arguments
    encoder = {} if inputs.text_encoder is None else {"text_encoder": inputs.text_encoder}
    with reading(f"--adapter_config {inputs.config}" if arguments else inputs.source):
        return inputs.adapter_class.for_unet(inputs.unet, **encoder, **arguments)


def has_same_class(adapter: "ConditioningAdapter", inputs: AdapterInputs) -> bool:
    """Whether a pretrained model's adapter is of the class that a new one would have."""
    return type(adapter) is inputs.adapter_class


def as_yaml(text: str, id2label: Labels | None) -> object:
    """A number, a list, ... of `--validation_prompts`."""
    return yaml.safe_load(text)


def first_examples(id2label: Labels, examples: Sequence[object]) -> str:
    """The arguments of an example call: `condition=` and up to four conditions."""
    return f"condition={quoted(examples[:4])}"


def quoted(value: object) -> str:
    """As Python source, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class CardText:
    """What a model card says of a setting.

    Args:
        formula: the distribution, such as "p(x|y)".
        sentence: the end of "This model draws 16 x 16 px images from p(x|y)".
        task: the Hub's pipeline tag; None: none fits. tags: more of the Hub's tags.
        call: (class names by id, examples of conditions) -> arguments of an example call, as Python source.
    """

    formula: str = "p(x|c)"
    sentence: str = ", under a condition of its own kind."
    task: str | None = None
    tags: tuple[str, ...] = ()
    call: Callable[[Labels, Sequence[object]], str] = first_examples


@dataclass(frozen=True)
class Setting:
    """One row: all that is particular to a setting.

    Args:
        name: as the adapter class's attribute `conditioning`.
        adapter: the adapter's class, or "module:Class"; None: `--adapter` names it.
        pipeline: the pipeline's class as "module:Class".
        column: how the column of the conditions is found and read; None: the setting has no conditions.
        required: arguments that must be given, with what they look like.
        has_classes: conditions are classes with names, which the model knows.
        has_captions: conditions are captions that a text encoder reads. Where none is given, a new one is trained.
        new_adapter: makes the adapter.
        adapter_fits: (a pretrained model's adapter of this setting, inputs) -> whether training can go on with it.
        read_prompt: (one of `--validation_prompts`, class names by id) -> raw condition.
        evaluation_arguments: arguments of an evaluation that have a meaning for this setting only.
        card: what the model card says.

    Example:
        >>> Setting("angle", adapter="my_package:AngleAdapter", column=ConditionColumn(names=("angle",)))
    """

    name: str
    adapter: "str | type[ConditioningAdapter] | None" = None
    pipeline: str = "cond_pipelines.pipelines:ConditionalPipeline"
    column: ConditionColumn | None = ConditionColumn()
    required: tuple[str, ...] = ()
    has_classes: bool = False
    has_captions: bool = False
    new_adapter: "Callable[[AdapterInputs], ConditioningAdapter]" = build_adapter
    adapter_fits: "Callable[[ConditioningAdapter, AdapterInputs], bool]" = has_same_class
    read_prompt: Callable[[str, Labels | None], object] = as_yaml
    evaluation_arguments: tuple[str, ...] = ()
    card: CardText = CardText()

    @property
    def pipeline_class(self) -> "type[ConditionalPipeline]":
        """The class that `pipeline` names."""
        cls: type[ConditionalPipeline] = load_object(self.pipeline)
        return cls

    @property
    def adapter_class(self) -> "type[ConditioningAdapter]":
        """The class of `adapter`. Raises ValueError where it is no adapter."""
        from .adapters.base import ConditioningAdapter

        if self.adapter is None:
            raise ValueError(f"--conditioning {self.name} needs --adapter module:Class")
        cls = load_object(self.adapter, ConditioningAdapter) if isinstance(self.adapter, str) else self.adapter
        return cast("type[ConditioningAdapter]", cls)

    @property
    def is_known_by_pipeline(self) -> bool:
        """Whether the pipeline's class tells the setting: no other has it."""
        return self.pipeline != Setting.pipeline

    def check_required(self, config: object) -> None:
        """Raise ValueError where an argument in `required` is not given."""
        names = [text.split()[0].removeprefix("--") for text in self.required]
        if not all(getattr(config, name) for name in names):
            raise ValueError(f"--conditioning {self.name} needs {' and '.join(self.required)}")


# ------------------------------------------------------------------------------------------- p(x)
def _keeps_adapter(adapter: "ConditioningAdapter", inputs: AdapterInputs) -> bool:
    return True


_NONE = Setting(
    "none",
    adapter="cond_pipelines.adapters:UnconditionalAdapter",
    pipeline="cond_pipelines.pipelines:UnconditionalPipeline",
    column=None,
    new_adapter=lambda inputs: inputs.adapter_class.for_unet(inputs.unet),
    adapter_fits=_keeps_adapter,
    card=CardText(
        formula="p(x)",
        sentence=": new images that look like the training images.",
        task="unconditional-image-generation",
        call=lambda id2label, examples: "batch_size=4",
    ),
)


# ------------------------------------------------------------------------------------------- p(x|y)
def _is_label(feature: object) -> bool:
    import datasets

    return isinstance(getattr(feature, "feature", feature), datasets.ClassLabel)  # or a list of labels


def _label_parser(values: Callable[[], Iterable[object]], feature: object) -> tuple[Labels, ParseValue]:
    from .data.labels import label_parser

    return label_parser(values(), feature)


def _class_adapter(inputs: AdapterInputs) -> "ConditioningAdapter":
    id2label = {str(i): name for i, name in (inputs.data.id2label or {}).items()}
    return inputs.adapter_class.for_unet(inputs.unet, id2label=id2label)


def _label_of(text: str, id2label: Labels | None) -> object:
    """A class name, or its id."""
    ids = {name: i for i, name in (id2label or {}).items()}
    return ids.get(text, int(text) if text.isdigit() else text)


_CLASS = Setting(
    "class",
    adapter="cond_pipelines.adapters:ClassLabelAdapter",
    pipeline="cond_pipelines.pipelines:ClassConditionalPipeline",
    column=ConditionColumn(
        flag="label_column",
        names=("label", "labels", "class", "classes", "category", "fine_label", "target", "cls"),
        remedy="--label_column (or put the images into one sub-folder per class)",
        is_certain=_is_label,
        parser=_label_parser,
    ),
    has_classes=True,
    new_adapter=_class_adapter,
    adapter_fits=lambda adapter, inputs: set((inputs.data.id2label or {}).values()) <= set(adapter.id2label.values()),
    read_prompt=_label_of,
    evaluation_arguments=("classifier", "classify"),
    card=CardText(
        formula="p(x|y)",
        sentence=": an image of the class you name.",
        tags=("class-conditional-image-generation",),
        call=lambda id2label, examples: f"class_labels={quoted(list(id2label.values())[:4])}",
    ),
)


# ------------------------------------------------------------------------------------------- p(x|text)
def _is_text(feature: object) -> bool:
    import datasets

    feature = getattr(feature, "feature", feature)  # a list of captions
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _caption_parser(values: Callable[[], Iterable[object]], feature: object) -> tuple[None, ParseValue]:
    from .data.labels import parse_caption

    return None, parse_caption


_TEXT = Setting(
    "text",
    adapter="cond_pipelines.adapters:TextAdapter",
    pipeline="cond_pipelines.pipelines:TextToImagePipeline",
    column=ConditionColumn(
        flag="caption_column",
        names=("text", "caption", "captions", "prompt", "description", "txt"),
        remedy="--caption_column (or add metadata.jsonl with file_name and text)",
        is_possible=_is_text,
        parser=_caption_parser,
    ),
    has_captions=True,
    new_adapter=lambda inputs: inputs.adapter_class.for_unet(inputs.unet, text_encoder=inputs.text_encoder),
    adapter_fits=lambda adapter, inputs: not inputs.has_own_text_encoder,
    read_prompt=lambda text, id2label: text,
    evaluation_arguments=("clip_model", "unseen_captions"),
    card=CardText(
        formula="p(x|text)",
        sentence=": an image of what you write.",
        task="text-to-image",
        call=lambda id2label, examples: quoted(examples[0] if examples else "a picture"),
    ),
)


# ------------------------------------------------------------------------------------------- p(x|vector)
def _vector_parser(values: Callable[[], Iterable[object]], feature: object) -> tuple[None, ParseValue]:
    from .data.labels import vector_parser

    return None, vector_parser()


def _embedding_dim(data: "TrainingData") -> int | None:
    """Of the first vector; None for a streaming set, and where there is none."""
    rows = [] if data.train is None else (data.conditions(data.train[i : i + 1])[0] for i in range(len(data.train)))
    return next((len(vector) for vector in rows if vector is not None), None)


def _embedding_adapter(inputs: AdapterInputs) -> "ConditioningAdapter":
    """With the statistics of the training images, unless they were given."""
    given, data = inputs.arguments, inputs.data
    try:
        adapter = inputs.adapter_class.for_unet(inputs.unet, **{"embedding_dim": _embedding_dim(data)} | given)
    except (TypeError, ValueError) as error:
        why = "no row has a vector" if data.train is not None else "a streaming set needs embedding_dim in it"
        raise ValueError(f"--adapter_config {inputs.config}: {error}; {why}") from error
    rows = data.both_halves
    return adapter if rows is None or {"mean", "std"} & set(given) else adapter.fit(data.conditions(rows))


_VECTORS = ("embedding", "embeddings", "vector", "features")
_EMBEDDING = Setting(
    "embedding",
    adapter="cond_pipelines.adapters:EmbeddingAdapter",
    column=ConditionColumn(names=_VECTORS, parser=_vector_parser),
    new_adapter=_embedding_adapter,
    adapter_fits=lambda adapter, inputs: _embedding_dim(inputs.data) in (None, adapter.config.embedding_dim),
)

# ------------------------------------------------------------------- an adapter of the user's, without a row of its own
_CUSTOM = Setting(
    "custom",
    column=ConditionColumn(names=_VECTORS),
    required=("--adapter module:Class", "--condition_column"),
)

SETTINGS = {row.name: row for row in (_NONE, _CLASS, _TEXT, _EMBEDDING, _CUSTOM)}


def find_setting(name: str) -> Setting:
    """A row by its name, or a third party's by its import path.

    Raises:
        ValueError: there is no such row.

    Example:
        >>> find_setting("class").card.formula, find_setting("my_package:ANGLE").name
        ('p(x|y)', 'angle')
    """
    if name in SETTINGS:
        return SETTINGS[name]
    if ":" not in name:
        raise ValueError(f"--conditioning {name!r} is not one of {', '.join(SETTINGS)}, nor module:SETTING")
    setting: Setting = load_object(name, instance_of=Setting)
    return setting


def setting_of(pipeline_class: str, adapter_class: str = "") -> Setting:
    """The setting that the name of a pipeline's class tells, else its adapter's; "custom" where neither does."""
    known = {row.pipeline.partition(":")[2]: row for row in SETTINGS.values() if row.is_known_by_pipeline}
    by_adapter = {str(row.adapter).partition(":")[2]: row for row in SETTINGS.values() if row.adapter}
    return known.get(pipeline_class) or by_adapter.get(adapter_class, _CUSTOM)
