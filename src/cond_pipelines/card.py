"""A model card from what a model's folder holds: nothing in it is invented.

model_index.json, unet/, adapter/        what it is
card.yaml                                what you say of it: UserFacts
training_summary.json                    what the training run saw and did: TrainingFacts
evaluation/report.json                   what an evaluation measured: EvaluationFacts
samples.png, .gif, loss.png, images/     shown where they are there
"""

import importlib.metadata
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
MARK = "<!-- Written by cond-pipelines card: change card.yaml, not this page. -->"
_TASKS = {"none": "unconditional-image-generation", "class": "unconditional-image-generation", "text": "text-to-image"}
_SETTINGS = {"none": "p(x)", "class": "p(x|y)", "text": "p(x|text)"}


@dataclass
class UserFacts:
    """What only you know, from card.yaml; all of it optional.

    Args:
        name: of the model; default: the repository's name.
        license: an identifier of the Hub, such as "apache-2.0".
        dataset: the data set's id on the Hub, or what it is in words.
        base_model: the id of the model it was fine-tuned from.
    """

    name: str | None = None
    description: str | None = None
    license: str | None = None
    language: str | None = None
    dataset: str | None = None
    base_model: str | None = None
    authors: str | None = None
    tags: list[str] = field(default_factory=list)
    limits: str | None = None
    citation: str | None = None


@dataclass
class TrainingFacts:
    """What the training run saw and did, from training_summary.json."""

    num_images: int | None = None  # None: streamed
    num_held_out: int = 0
    resolution_px: int | None = None
    class_counts: dict[str, int] = field(default_factory=dict)
    num_captions: int = 0
    num_different_captions: int = 0
    example_conditions: list[Any] = field(default_factory=list)
    dataset: str | None = None  # its id on the Hub, where it has one
    base_model: str | None = None  # likewise
    num_parameters: int = 0
    objective: str = ""
    steps: int = 0
    images_seen: int = 0
    minutes: float = 0.0
    loss: float | None = None
    held_out_loss: float | None = None
    learning_rate: float = 0.0
    batch_size: int = 0  # over all processes
    ema: bool = True
    condition_dropout: float = 0.0
    mixed_precision: str = "no"
    device: str = ""
    num_processes: int = 1
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class EvaluationFacts:
    """What an evaluation measured, from evaluation/report.json.

    Args:
        measures: rows of {"question", "name", "value"} and, where known, "interval" [low, high] and "real" (the same
            measure of held-out real data).
    """

    measures: list[dict[str, Any]] = field(default_factory=list)
    num_samples: int | None = None
    feature_extractor: str | None = None


@dataclass
class CardFacts:
    """All that a card is made of.

    Example:
        >>> facts = CardFacts.of_folder("path/to/model")
        >>> render_card(facts, "me/flowers").save("README.md")
    """

    class_name: str
    setting: str
    resolution_px: int
    width_px: int
    num_channels: int
    latent: bool
    lora: bool
    id2label: dict[str, str]
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    pictures: list[str]
    user: UserFacts
    training: TrainingFacts | None
    evaluation: EvaluationFacts | None
    unet_class: str = "UNet2DConditionModel"

    @classmethod
    def of_folder(cls, folder: str | Path) -> "CardFacts":
        """Read what a model's folder holds.

        Raises:
            ValueError: it is no model of this library, or card.yaml has an unknown field.
        """
        folder = Path(folder)
        index = _json(folder / "model_index.json")
        if index is None or "adapter" not in index:
            raise ValueError(f"{folder} is no model of cond_pipelines: its model_index.json names no adapter")
        name = index["_class_name"]
        unet, adapter = _json(folder / "unet/config.json") or {}, _json(folder / "adapter/config.json") or {}
        class_name = name[1] if isinstance(name, list) else name
        settings = {"UnconditionalPipeline": "none", "ClassConditionalPipeline": "class", "TextToImagePipeline": "text"}
        vae = _json(folder / "vae/config.json") if index.get("vae", [None, None])[1] else None
        factor = 1 if vae is None else 2 ** (len(vae.get("block_out_channels", [0])) - 1)
        size = unet.get("sample_size") or 0
        pictures = [
            "samples.png",
            "samples.gif",
            "loss.png",
            *sorted(f"images/{p.name}" for p in folder.glob("images/*.png")),
        ]
        return cls(
            class_name=class_name,
            setting=settings.get(class_name, "custom"),
            resolution_px=factor * (size[0] if isinstance(size, list) else size),
            width_px=factor * (size[1] if isinstance(size, list) else size),
            num_channels=(vae or unet).get("in_channels", 3),
            latent=vae is not None,
            lora=(folder / "pytorch_lora_weights.safetensors").is_file(),
            id2label={str(k): v for k, v in (adapter.get("id2label") or {}).items()},
            num_inference_steps=index.get("default_num_inference_steps", 30),
            guidance_scale=index.get("default_guidance_scale", 2.5),
            scheduler=index["scheduler"][1],
            pictures=[p for p in pictures if (folder / p).is_file()],
            user=_user_facts(folder / "card.yaml"),
            training=_known(TrainingFacts, _json(folder / "training_summary.json")),
            evaluation=_known(EvaluationFacts, _json(folder / "evaluation" / "report.json")),
            unet_class=index["unet"][1],
        )


def render_card(facts: CardFacts, repo_id: str) -> ModelCard:
    """The card of a model that is, or will be, at `repo_id`."""
    user, training, name = facts.user, facts.training, facts.user.name or repo_id.split("/")[-1]
    dataset = user.dataset or (training.dataset if training else None)
    base_model = user.base_model or (training.base_model if training else None)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=_TASKS.get(facts.setting),
        license=user.license,
        language=user.language,
        datasets=[dataset] if _is_hub_id(dataset) else None,
        base_model=base_model if _is_hub_id(base_model) else None,
        tags=["cond-pipelines", "image-generation", "diffusers", f"setting:{facts.setting}"]
        + (["lora"] if facts.lora else [])
        + user.tags,
        model_name=name,
        eval_results=_eval_results(facts, dataset) or None,
        ignore_metadata_errors=False,
        widget=_widget(facts) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        mark=MARK,
        facts=facts,
        user=user,
        training=training,
        evaluation=facts.evaluation,
        name=name,
        repo_id=repo_id,
        setting=_SETTINGS.get(facts.setting, "p(x|c)"),
        call=_call(facts),
        images=[p for p in facts.pictures if p.startswith("images/")],
        examples=list(facts.id2label.values())[:40] if facts.setting == "class" else _examples(facts),
        dataset=dataset,
        base_model=base_model,
        key=repo_id.split("/")[-1].replace("-", "_"),
    )
    return card


def write_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Render README.md in `folder`; one that was not written by this library is left alone."""
    folder, path = Path(folder), Path(folder) / "README.md"
    if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
        return path
    facts = CardFacts.of_folder(folder)
    render_card(facts, repo_id or folder.resolve().name).save(path)
    if facts.evaluation is not None:
        _write_eval_results(facts, folder)
    return path


def training_versions() -> dict[str, str]:
    """Of the packages that matter, as installed."""
    names = ("cond-pipelines", "diffusers", "transformers", "accelerate", "datasets", "torch")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _call(facts: CardFacts) -> str:
    """The arguments of an example call."""
    if facts.setting == "none":
        return "batch_size=4"
    if facts.setting == "class":
        return f"class_labels={_quoted(list(facts.id2label.values())[:4])}"
    examples = _examples(facts)
    if facts.setting == "text":
        return _quoted(examples[0] if examples else "a picture")
    return f"condition={_quoted(examples[:4])}"


def _quoted(value: Any) -> str:
    """As Python source, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _examples(facts: CardFacts) -> list[Any]:
    return facts.training.example_conditions if facts.training else []


def _widget(facts: CardFacts) -> list[dict[str, Any]]:
    """What <Gallery /> shows: images/00.png is the sample for the first example, and so on."""
    told = list(facts.id2label.values()) if facts.setting == "class" else _examples(facts)
    pictures = [p for p in facts.pictures if p.startswith("images/")]
    texts = [str(told[i % len(told)]) if told else "-" for i in range(len(pictures))]
    return [{"text": text, "output": {"url": picture}} for text, picture in zip(texts, pictures, strict=True)]


def _eval_results(facts: CardFacts, dataset: str | None) -> list[EvalResult]:
    """The Hub's older form, in the card's metadata."""
    return [
        EvalResult(
            task_type=_TASKS.get(facts.setting, "image-generation"),
            dataset_type=dataset if _is_hub_id(dataset) else "custom",
            dataset_name=dataset or "the training data's held-out part",
            metric_type=row["name"].lower().replace(" ", "_"),
            metric_name=row["name"],
            metric_value=row["value"],
        )
        for row in (facts.evaluation.measures if facts.evaluation else [])
    ]


def _write_eval_results(facts: CardFacts, folder: Path) -> None:
    """The Hub's present form, one file; it is about a data set of the Hub, so without one there is none."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    dataset = facts.user.dataset or (facts.training.dataset if facts.training else None)
    if not _is_hub_id(dataset):
        return
    notes = f"{facts.evaluation.num_samples} samples, features of {facts.evaluation.feature_extractor}"
    entries = [
        EvalResultEntry(dataset, task_id=row["name"].lower().replace(" ", "_"), value=row["value"], notes=notes)
        for row in facts.evaluation.measures
    ]
    path = folder / ".eval_results" / "cond_pipelines.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")


def _is_hub_id(name: str | None) -> bool:
    return name is not None and name.count("/") == 1 and not name.startswith((".", "/")) and " " not in name


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _known(cls: type, values: dict[str, Any] | None) -> Any:
    """An instance from what `cls` has fields for; newer files may hold more."""
    names = {f.name for f in fields(cls)}
    return None if values is None else cls(**{k: v for k, v in values.items() if k in names})


def _user_facts(path: Path) -> UserFacts:
    values = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    known = asdict(UserFacts())
    unknown = [k for k in values if k not in known] if isinstance(values, dict) else [str(values)[:40]]
    if unknown:
        raise ValueError(f"{path}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
    return UserFacts(**values)
