"""The studio's page in a real Chromium: what it shows, by mouse, by keyboard, for everybody, and of any name."""

import os
from pathlib import Path

import numpy as np
import pytest
from hub_server import TOKEN
from PIL import Image
from studio_common import Server, environment, folder_of_shapes, tiny
from studio_way import Visitor
from test_web import needed
from web import browser, find_chromium

from cond_pipelines import ConditionalPipeline
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a data set that has a nasty name and three bad files, and two finished runs."""
    folder = tmp_path_factory.mktemp("work")
    folder_of_shapes(folder / "shapes")
    (folder / "shapes" / "light").rename(folder / "shapes" / NASTY)
    for name, steps in (("first", 20), ("second", 10)):
        train(TrainingConfig(**tiny(folder / "shapes", folder / name, max_train_steps=steps, validation_steps=10)))
    return folder


@pytest.fixture(scope="module")
def studio(work, tmp_path_factory, subprocess_env):
    needed("chromium", find_chromium() is not None)
    pytest.importorskip("playwright")
    server = Server(
        work,
        tmp_path_factory.mktemp("home"),
        environment(subprocess_env) | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN},
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def chromium(studio):
    with browser() as chromium:
        yield chromium


@pytest.fixture()
def visit(chromium, studio):
    """Opens pages; nothing may go wrong on any of them."""
    visitors = []

    def opened(view: str = "", **context: object) -> Visitor:
        visitor = Visitor.of(chromium, **{"viewport": {"width": 1200, "height": 900}} | context)
        visitors.append(visitor)
        visitor.open(studio.address)
        if view:
            visitor.view(view)
        return visitor

    yield opened
    for visitor in visitors:
        visitor.page.context.close()
    assert [visitor.faults for visitor in visitors if visitor.faults] == []


def pixels_of(visitor: Visitor, selector: str) -> np.ndarray:
    """Of the picture that an <img> shows, as the server sends it."""
    url = visitor.page.locator(selector).first.get_attribute("src")
    answer = visitor.page.request.get(visitor.address.partition("/?")[0] + url)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"studio-{os.getpid()}.png"
    path.write_bytes(answer.body())
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.int16)
    path.unlink()
    return pixels


# ---------------------------------------------------------------------------------------------------------- data
def test_bad_files_have_their_reasons_and_a_name_is_text(visit, work):
    visitor = visit()
    page = visitor.page
    page.get_by_label("Folder", exact=True).select_option(str(work / "shapes"))
    page.get_by_label("Setting", exact=True).select_option("class")
    lines = page.locator("#left-out li")
    lines.nth(2).wait_for()
    names = [name for line in lines.all_inner_texts() for name in ("text.png", "empty.png", "cut.png") if name in line]
    assert sorted(names) == ["cut.png", "empty.png", "text.png"]
    assert all("unreadable image: " in line for line in lines.all_inner_texts())
    assert "usable of 51" in page.locator("#inspect").inner_text()
    assert NASTY in page.get_by_label("Class", exact=True).inner_text()
    page.get_by_label("Class", exact=True).select_option(NASTY)
    page.locator(".wall .tile", has_text=NASTY).first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    page.get_by_role("button", name="Train on this").click()
    assert page.get_by_label("conditioning", exact=True).input_value() == "class"
    page.locator("pre.command", has_text="--on_bad_image").wait_for()
    page.wait_for_timeout(0)
    assert "--conditioning=class" in page.locator("pre.command").inner_text().replace(
        "conditioning class", "conditioning=class"
    )


# ----------------------------------------------------------------------------------------------------- run, watch
def test_runs_over_one_another_and_what_differs(visit, work):
    visitor = visit("Run")
    page = visitor.page
    page.locator(".item", has_text="first").click()
    page.get_by_label("compare", exact=False).first.check()
    table = page.get_by_role("region", name="Settings that differ")
    table.get_by_text("max_train_steps").wait_for()
    label = page.get_by_role("img", name="Loss:").get_attribute("aria-label")
    assert "first: loss" in label and "second: loss" in label and "held-out loss" in label
    page.get_by_role("button", name="Colours").click()  # the plots are drawn anew
    page.get_by_label("logarithmic").check()


# ---------------------------------------------------------------------------------------------------------- play
def test_what_is_drawn_is_what_pytorch_draws_beside_another_model(visit, work):
    visitor = visit("Play")
    page = visitor.page
    page.get_by_label("Model", exact=True).select_option(str(work / "first"))
    page.get_by_label("Beside it", exact=True).select_option(str(work / "second"))
    visitor.set("Class", "dark")
    visitor.set("Seed", 7)
    visitor.set("Steps", 3)
    page.get_by_label("keep the film").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".side").nth(1).locator(".tiles img").nth(3).wait_for()
    for i, name in enumerate(("first", "second")):
        pipe = ConditionalPipeline.from_pretrained(work / name)
        pipe.set_progress_bar_config(disable=True)
        image = pipe.sample(["dark"], generator=7, num_inference_steps=3).images[0]
        shown = pixels_of(visitor, f".side:nth-child({i + 1}) .tiles img")
        assert np.abs(shown - np.asarray(image.convert("RGB"), np.int16)).max() <= 1
    film = page.locator(".side").first.get_by_label("From noise to image")
    assert film.get_attribute("max") == "2"
