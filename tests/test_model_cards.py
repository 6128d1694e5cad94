"""model_cards/ holds what the recipes' runs left for their cards, and the cards: rendered again they are the same."""

import shutil
from pathlib import Path

import pytest

from cond_pipelines.sharing.card import CardFacts, write_card

CARDS = sorted(p.parent for p in (Path(__file__).parents[1] / "model_cards").glob("*/README.md"))


def test_every_recipe_has_a_card():
    recipes = (Path(__file__).parents[1] / "training/recipes").glob("*.yaml")
    run = {p.stem for p in recipes if not p.read_text().startswith("# Waits for a GPU")}
    assert {p.name for p in CARDS} == {name for name in run if not name.startswith("debug")}


@pytest.mark.parametrize("folder", CARDS, ids=lambda p: p.name)
def test_rendered_again_it_is_the_same(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    text = (folder / "README.md").read_text()
    write_card(tmp_path / "model", f"cond-pipelines/{folder.name.replace('_', '-')}")
    assert (tmp_path / "model/README.md").read_text() == text


@pytest.mark.parametrize("folder", CARDS, ids=lambda p: p.name)
def test_it_tells_of_a_real_run(folder):
    facts = CardFacts.of_folder(folder)
    assert facts.training.steps > 100 and facts.training.num_images > 1000
    assert "samples.png" in facts.pictures and facts.user.license
