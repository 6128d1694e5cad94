"""A static Space of the Hub: the page that draws with a model, and the card that says of which."""

import json
from pathlib import Path

import yaml

from ..errors import read_json
from ..export.web_folder import write_web
from ..files import write_text
from ..networks.pretrained import load_pipeline
from .escaping import one_line
from .facts import CardFacts


def write_space(model: Path, folder: Path, repo_id: str, runtime: str | Path | None) -> None:
    """Write the page of the model in the folder `model`, and the Space's card, into a new folder.

    Args:
        repo_id: of the model, and of its Space. runtime: see `write_web`.

    Raises:
        UserError: the page cannot draw with this model, or onnxruntime-web is missing.
    """
    facts = CardFacts.of_folder(model)
    name = one_line(facts.user.name or repo_id.split("/")[-1])
    write_web(load_pipeline(model), folder, name=name, source=repo_id, runtime=runtime)
    name_space(folder, repo_id)


def name_space(folder: Path, repo_id: str) -> None:
    """Write the model's full name into the page, and into README.md, whose head tells the Hub what the Space is."""
    write_text(folder / "model.json", json.dumps(read_json(folder / "model.json") | {"source": repo_id}))
    name = repo_id.split("/")[-1]
    head = {"title": name, "emoji": "\U0001f58c\ufe0f", "sdk": "static", "app_file": "index.html", "models": [repo_id]}
    text = yaml.safe_dump(head | {"pinned": False}, sort_keys=False, allow_unicode=True)
    link = f"[{repo_id}](https://huggingface.co/{repo_id})"
    write_text(folder / "README.md", f"---\n{text}---\n\nDraws with {link} in your browser.\n")
