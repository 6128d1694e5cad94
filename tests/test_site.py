"""The site builds strictly: each link and anchor leads somewhere, and no page asks another server for anything."""

import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import cond_pipelines
from cond_pipelines.flags import settings_of
from cond_pipelines.training.config import TrainingConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_no_page_asks_another_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?(https?:[^" >]+)', text)
        loaded += re.findall(r'<link[^>]* rel="?(?:stylesheet|preconnect)"?[^>]* href="?(https?:[^" >]+)', text)
        assert loaded == [], page.name


def test_every_flag_and_every_name_has_its_place(site):
    commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
    assert [setting.name for setting in settings_of(TrainingConfig) if f"--{setting.name}<" not in commands] == []
    api = (site / "reference/api/index.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h\d id="?cond_pipelines\.(\w+)"?[ >]', api))
    missing = [name for name in cond_pipelines.__all__ if name not in shown]
    assert missing == ["UNET_SIZES"]  # a tuple of names, which build_unet lists


def test_a_notebook_is_a_page_with_its_pictures_and_formulas(site):
    page = (site / "notebooks/3_the_other_task/index.html").read_text(encoding="utf-8")
    assert "<mfrac>" in page and "arithmatex" not in page
    pictures = re.findall(r'<img[^>]* src="?\.\./(3_[^" >]+\.png)', page)
    assert len(pictures) == 3 and all((site / "notebooks" / name).is_file() for name in pictures)
