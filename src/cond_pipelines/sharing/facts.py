"""What a model's folder says of the model: nothing in it is invented.

model_index.json, unet/, adapter/        what it is
card.yaml                                what you say of it: UserFacts
training_summary.json                    what the training run saw and did: TrainingFacts
evaluation/report.json                   what an evaluation measured: EvaluationFacts
samples.png, .gif, steps.png, loss.png, images/   shown where they are there
"""

import importlib.metadata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import checked, read_json, read_yaml
from ..folders import check_model_folder, component_names
from ..provenance import LORA_FILE, belongs, ignored, report_belongs
from ..settings import SETTINGS, CardText, Setting, setting_of
from .sampler import SamplerFacts


@dataclass
class UserFacts:
    """What only you know, from card.yaml; all of it optional.

    Args:
        name: of the model; default: the repository's name.
        license: an identifier of the Hub, such as "apache-2.0".
        dataset: the data set's id on the Hub, or what it is in words.
        base_model: the id of the model it was fine-tuned from.
        space: the name of a Space that draws with it, which the card links.
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
    space: str | None = None


@dataclass
class TrainingFacts:
    """What the training run saw and did, from training_summary.json."""

    run: str | None = None  # that it is of; pictures say the same
    formula: str = ""  # these two as in `settings.CardText`: a third party's row is not at hand when a card is written
    sentence: str = ""
    num_images: int | None = None  # None: streamed
    num_held_out: int = 0
    resolution_px: int | None = None
    num_channels: int | None = None
    class_counts: dict[str, int] = field(default_factory=dict)
    num_captions: int = 0
    num_different_captions: int = 0
    example_conditions: list[Any] = field(default_factory=list)
    dataset: str | None = None  # its id on the Hub, where it has one
    base_model: str | None = None  # likewise
    has_parent: bool = False  # whether it started from another model, on the Hub or not
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
        sampler: with what the samples were drawn.
    """

    measures: list[dict[str, Any]] = field(default_factory=list)
    num_samples: int | None = None
    feature_extractor: str | None = None
    sampler: SamplerFacts = SamplerFacts()


@dataclass
class _Measure:
    """What a card needs of a row of `measures`."""

    question: str
    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    real: float | None = None


@dataclass
class _Index:
    """What a card needs of model_index.json."""

    _class_name: str | tuple[str | None, str | None]
    unet: tuple[str | None, str | None]
    scheduler: tuple[str | None, str | None]
    adapter: tuple[str | None, str | None]
    vae: tuple[str | None, str | None] = (None, None)
    guide: tuple[str | None, str | None] = (None, None)
    guider: tuple[str | None, str | None] = (None, None)
    default_num_inference_steps: int = 30
    default_guidance_scale: float = 2.5
    objective: dict[str, Any] | None = None


@dataclass
class _UNet:
    """What a card needs of unet/config.json."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3


@dataclass
class _VAE:
    """What a card needs of vae/config.json."""

    in_channels: int = 3
    block_out_channels: list[int] = field(default_factory=list)
    encoder_block_out_channels: list[int] = field(default_factory=list)  # of AutoencoderDC, which lacks the other

    @property
    def scale_factor(self) -> int:
        """Pixels per latent along a side: each block but the last halves them."""
        return 1 << max(0, len(self.block_out_channels or self.encoder_block_out_channels) - 1)


@dataclass
class _Adapter:
    """What a card needs of adapter/config.json."""

    id2label: dict[str, str] | None = None
    null_prompt: str | None = ""  # None: it keeps its own encoded "no prompt"; the text encoder was trained


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
    adapter_class: str = ""
    has_own_null: bool = False
    of_parent: list[str] = field(default_factory=list)
    is_distilled: bool = False
    has_guide: bool = False
    guider: str | None = None

    @property
    def has_guidance(self) -> bool:
        """Whether anything guides: p(x) has no classifier-free guidance."""
        return self.row.column is not None or self.has_guide

    @property
    def defaults(self) -> SamplerFacts:
        """With what it draws where nothing is given."""
        scale = self.guidance_scale if self.has_guidance else None
        return SamplerFacts(self.num_inference_steps, scale, None, self.guider, self.scheduler).in_effect()

    @property
    def measured(self) -> SamplerFacts:
        """With what the samples of the evaluation were drawn."""
        sampler = self.evaluation.sampler.in_effect() if self.evaluation else SamplerFacts()
        return sampler if self.has_guidance else replace(sampler, guidance_scale=None)

    @property
    def lora_is_all(self) -> bool:
        """Whether the LoRA's file is the whole model: the adapter is the one that any parent of that kind has."""
        return self.lora and self.adapter_class == "PromptAdapter" and not self.has_own_null

    @property
    def needed(self) -> str:
        """The versions of other libraries with which the code of the repository loads; tests/oldest.py tries them."""
        needs_transformers = " and transformers 5.6 or newer" if self.row.has_captions else ""
        return f"0.35 or newer{needs_transformers}"

    @property
    def row(self) -> Setting:
        """The setting's row in the table."""
        return SETTINGS[self.setting]

    @property
    def card(self) -> CardText:
        """What the setting's row says; of a third party's setting what the run noted of its row."""
        if self.row.is_known_by_pipeline or self.training is None or not self.training.formula:
            return self.row.card
        return replace(self.row.card, formula=self.training.formula, sentence=self.training.sentence)

    @property
    def examples(self) -> list[Any]:
        """Class names, or conditions of the data set."""
        recorded = self.training.example_conditions if self.training else []
        return list(self.id2label.values()) if self.row.has_classes else recorded

    @classmethod
    def of_folder(cls, folder: str | Path) -> "CardFacts":
        """Read what a model's folder holds.

        Raises:
            ValueError: it is no model of this library, or card.yaml has an unknown field.
        """
        folder = Path(folder)
        check_model_folder(folder)
        found = _json(folder / "model_index.json")
        if found is None or "adapter" not in found:
            raise ValueError(f"{folder} is no model of cond_pipelines: its model_index.json names no adapter")
        index = checked(_Index, found, folder / "model_index.json", only_known=False)
        unet, adapter = _facts(_UNet, folder / "unet/config.json"), _facts(_Adapter, folder / "adapter/config.json")
        class_name = str(index._class_name if isinstance(index._class_name, str) else index._class_name[1])
        vae = _facts(_VAE, folder / "vae/config.json") if index.vae[1] else None
        factor = 1 if vae is None else vae.scale_factor
        height, width = unet.sample_size if isinstance(unet.sample_size, list | tuple) else [unet.sample_size or 0] * 2
        pictures = ["samples.png", "steps.png", "samples.gif", "loss.png", "evaluation/nearest.png"]
        pictures += sorted(f"images/{p.name}" for p in folder.glob("images/*.png"))
        setting, height_px, width_px = setting_of(class_name).name, factor * height, factor * width
        training = _known(TrainingFacts, folder / "training_summary.json")
        lora = _is_lora(folder, training.run if training is not None else None)
        num_channels = (vae or unet).in_channels
        if lora and training is not None and training.resolution_px:  # its UNet's config may be one of latents
            num_channels = training.num_channels or (num_channels if training.resolution_px == height_px else 3)
            width_px = round(training.resolution_px * width / max(height, 1))
            height_px = training.resolution_px
        run = training.run if training is not None else None
        return cls(
            class_name=class_name,
            setting=setting,
            resolution_px=height_px,
            width_px=width_px,
            num_channels=num_channels,
            latent=vae is not None,
            lora=lora,
            id2label=adapter.id2label or {},
            num_inference_steps=index.default_num_inference_steps,
            guidance_scale=index.default_guidance_scale,
            scheduler=str(index.scheduler[1]),
            pictures=[p for p in pictures if (folder / p).is_file() and belongs(folder / p, run)],
            user=_user_facts(folder / "card.yaml"),
            training=training,
            evaluation=_evaluation(folder, setting, _measured_px(training, height, width, vae is not None)),
            unet_class=str(index.unet[1]),
            adapter_class=str(index.adapter[1]),
            has_own_null=adapter.null_prompt is None,
            has_guide=index.guide[1] is not None,
            guider=index.guider[1],
            is_distilled=str((index.objective or {}).get("name")).endswith("distillation"),
            of_parent=[name for name in component_names(found, folder) if found[name] == [None, None]],
        )


def _is_lora(folder: Path, run: str | None) -> bool:
    """Whether the model is a LoRA: one in the folder of a complete UNet is not of this model."""
    path = folder / LORA_FILE
    if not path.is_file() or not belongs(path, run):
        return False
    if complete := next(folder.glob("unet/*.safetensors"), None):
        ignored(path, f"the model is complete without it ({complete.relative_to(folder)})")
    return complete is None


def _measured_px(training: TrainingFacts | None, height: int, width: int, latent: bool) -> int | None:
    """The resolution that a report of this model names, where it is known.

    That of the run: a UNet of a run with buckets has the height and width of one of them.
    """
    if training is not None and training.resolution_px:
        return training.resolution_px
    return height if height == width and not latent else None


def _evaluation(folder: Path, setting: str, resolution_px: int | None) -> EvaluationFacts | None:
    """What was measured of these weights."""
    path = folder / "evaluation" / "report.json"
    facts = _known(EvaluationFacts, path)
    if facts is None:
        return None
    for row in facts.measures:
        checked(_Measure, row, f"{path}, measures", only_known=False)
    known: dict[str, Any] = {"resolution_px": resolution_px} if resolution_px else {}
    known |= {"setting": setting} if SETTINGS[setting].is_known_by_pipeline else {}
    report = read_json(path)
    facts.sampler = checked(SamplerFacts, report, path, only_known=False)
    return facts if report_belongs(report, folder, path, known) else None


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


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _known(cls: type, path: Path) -> Any:
    """What a file holds of the fields of `cls`, None where there is no file; newer files may hold more."""
    values = _json(path)
    return None if values is None else checked(cls, values, path, only_known=False)


def _facts(cls: type, path: Path) -> Any:
    return _known(cls, path) or cls()


def _user_facts(path: Path) -> UserFacts:
    return checked(UserFacts, read_yaml(path) if path.exists() else {}, path)
