"""A model card, rendered from what a model's folder holds; see `facts`."""

import functools
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, Template

from ..errors import reading
from ..files import whole_file, write_text
from ..folders import check_model_folder, inside
from ..settings import quoted
from .escaping import Raw, code_line, markdown_text, one_line, python_source, shell_word, table_cell
from .facts import CardFacts, EvaluationFacts, TrainingFacts, UserFacts, training_versions

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
__all__ = [
    "MARK",
    "CardFacts",
    "EvaluationFacts",
    "TrainingFacts",
    "UserFacts",
    "is_our_card",
    "render_card",
    "training_versions",
    "write_card",
]

_MAX_CARD_BYTES = 2**24
MARK = "<!-- Written by cond-pipelines card: change card.yaml, not this page. -->"


def render_card(facts: CardFacts, repo_id: str, space: str | None = None) -> ModelCard:
    """The card of a model that is, or will be, at `repo_id`; `space`: of a Space that draws with it."""
    user, training, name = facts.user, facts.training, facts.user.name or repo_id.split("/")[-1]
    dataset = user.dataset or (training.dataset if training else None)
    base_model = user.base_model or (training.base_model if training else None)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=facts.row.card.task,
        license=_shown(user.license),
        language=_shown(user.language),
        datasets=[dataset] if _is_hub_id(dataset) else None,
        base_model=base_model if _is_hub_id(base_model) else None,
        tags=["cond-pipelines", "image-generation", "diffusers", f"setting:{facts.setting}", *facts.row.card.tags]
        + (["lora"] if facts.lora else [])
        + [one_line(tag) for tag in user.tags],
        model_name=one_line(name),
        eval_results=_eval_results(facts, dataset) or None,
        ignore_metadata_errors=False,
        widget=_widget(facts) or None,
    )
    text = _template().render(
        card_data=Raw(data.to_yaml()),
        mark=Raw(MARK),
        facts=facts,
        user=user,
        training=training,
        evaluation=facts.evaluation,
        name=name,
        authors=user.authors or "its authors",
        repo_id=code_line(repo_id),
        space=code_line(space or user.space or ""),
        quoted_repo_id=python_source(quoted(repo_id)),
        setting=facts.card,
        call=python_source(facts.row.card.call(dict(enumerate(facts.id2label.values())), facts.examples)),
        images=[p for p in facts.pictures if p.startswith("images/")],
        examples=facts.examples[:40] if facts.row.has_classes else facts.examples,
        dataset=dataset,
        base_model=base_model,
        parent=python_source(quoted(base_model or "parent")),
        key=code_line(repo_id.split("/")[-1].replace("-", "_")),
    )
    return ModelCard(text)


def _shown(text: str | None) -> str | None:
    return None if text is None else one_line(text)


def _escaped(value: object) -> object:
    """What a template prints is text of others unless it says otherwise."""
    return value if isinstance(value, Raw) else markdown_text(value)


_TEMPLATES = Environment(finalize=_escaped)
_TEMPLATES.globals |= {"raw": Raw, "cell": table_cell, "code": code_line, "shell": shell_word}


@functools.cache  # compiled once a process
def _template() -> Template:
    return _TEMPLATES.from_string(TEMPLATE.read_text(encoding="utf-8"))


def write_card(folder: str | Path, repo_id: str | None = None, space: str | None = None) -> Path:
    """Render README.md in `folder`; one that was not written by this library is left alone.

    Args:
        repo_id: the model's name on the Hub. space: of a Space that draws with it; None: that of card.yaml.
    """
    folder, path = Path(folder), inside(folder, "README.md")
    check_model_folder(folder)
    if path.is_file() and not is_our_card(path):
        return path
    facts = CardFacts.of_folder(folder)
    with reading(str(path)), whole_file(path) as unfinished:  # the Hub's library refuses some values, as of a licence
        render_card(facts, repo_id or folder.resolve().name, space).save(unfinished)
    _write_eval_results(facts, folder)
    return path


def is_our_card(path: Path) -> bool:
    """Whether a README.md was written by this library."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(_MAX_CARD_BYTES)


def _widget(facts: CardFacts) -> list[dict[str, Any]]:
    """What <Gallery /> shows: images/00.png is the sample for the first example, and so on."""
    pictures = [p for p in facts.pictures if p.startswith("images/")]
    examples = facts.examples
    texts = [one_line(examples[i % len(examples)]) if examples else "-" for i in range(len(pictures))]
    return [{"text": text, "output": {"url": picture}} for text, picture in zip(texts, pictures, strict=True)]


def _eval_results(facts: CardFacts, dataset: str | None) -> list[EvalResult]:
    """The Hub's older form, in the card's metadata."""
    return [
        EvalResult(
            task_type=facts.row.card.task or "image-generation",
            dataset_type=dataset if _is_hub_id(dataset) else "custom",
            dataset_name=one_line(dataset or "the training data's held-out part"),
            metric_type=one_line(row["name"]).lower().replace(" ", "_"),
            metric_name=one_line(row["name"]),
            metric_value=row["value"],
        )
        for row in (facts.evaluation.measures if facts.evaluation else [])
    ]


def _write_eval_results(facts: CardFacts, folder: Path) -> None:
    """The Hub's present form, one file; it is about a data set of the Hub, so without one there is none."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    dataset = facts.user.dataset or (facts.training.dataset if facts.training else None)
    path = inside(folder, ".eval_results/cond_pipelines.yaml")
    if facts.evaluation is None or not _is_hub_id(dataset):
        path.unlink(missing_ok=True)  # of weights, or of data, that were here before
        return
    notes = f"{facts.evaluation.num_samples} samples, features of {facts.evaluation.feature_extractor}"
    notes = one_line(f"{notes}, {facts.measured}" if facts.measured.num_inference_steps else notes)
    entries = [
        EvalResultEntry(
            dataset, task_id=one_line(row["name"]).lower().replace(" ", "_"), value=row["value"], notes=notes
        )
        for row in facts.evaluation.measures
    ]
    path.parent.mkdir(exist_ok=True)
    write_text(path, yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))


def _is_hub_id(name: str | None) -> bool:
    return name is not None and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name, re.ASCII) is not None
