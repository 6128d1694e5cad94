"""The studio's page in a real Chromium: what it shows, by mouse, by keyboard, for everybody, and of any name."""

import importlib.util
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from hub_server import TOKEN
from PIL import Image
from studio_common import Server, environment, folder_of_shapes, locker, tiny
from studio_way import Visitor, wait_for_step
from test_web import AXE, needed
from web import browser, find_chromium

from cond_pipelines import ConditionalPipeline
from cond_pipelines.background import Jobs
from cond_pipelines.evaluation.config import EvaluationConfig
from cond_pipelines.evaluation.evaluate import evaluate
from cond_pipelines.evaluation.sweep import sweep
from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

pytestmark = pytest.mark.timeout(600)  # with what the module sets up, on a busy machine

NASTY = "<img src=x onerror=alert(1)>"
VIEWS = ("Data", "Run", "Watch", "Play", "Judge", "Share")
NUM_MANY = 10_000


def write_many(folder: Path) -> None:
    """NUM_MANY files of 8 px, of 100 different images."""
    (folder / "few").mkdir(parents=True)
    for i in range(100):
        Image.new("RGB", (8, 8), (2 * i, 255 - 2 * i, i)).save(folder / "few" / f"{i:05d}.png")
    for i in range(100, NUM_MANY):
        shutil.copyfile(folder / "few" / f"{i % 100:05d}.png", folder / "few" / f"{i:05d}.png")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with two data sets, and two finished runs with their reports; one of them is a sweep."""
    folder = tmp_path_factory.mktemp("work")
    folder_of_shapes(folder / "shapes")
    (folder / "shapes" / "light").rename(folder / "shapes" / NASTY)
    write_many(folder / "wall")
    for name, steps in (("first", 20), ("second", 10)):
        train(TrainingConfig(**tiny(folder / "shapes", folder / name, max_train_steps=steps, validation_steps=10)))
    wanted = {"num_samples": 32, "feature_extractor": "pixels", "num_likelihood": 0, "num_inference_steps": 2}
    evaluate(EvaluationConfig(model=str(folder / "first"), train_data_dir=str(folder / "shapes"), **wanted))
    swept = EvaluationConfig(
        model=str(folder / "second"),
        train_data_dir=str(folder / "shapes"),
        sweep=["guidance_scale=1,2"],
        **wanted,
    )
    sweep(swept)
    last = folder / "second" / "evaluation" / "sweep" / "guidance_scale-2" / "report.json"
    report = json.loads(last.read_text())
    del report["measures"][0]  # as a report of another version, which lacks one
    (folder / "second" / "evaluation" / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def studio(work, tmp_path_factory, subprocess_env):
    needed("chromium", find_chromium() is not None)
    needed("playwright", importlib.util.find_spec("playwright") is not None)
    home = tmp_path_factory.mktemp("home")
    server = Server(work, home, environment(subprocess_env) | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN})
    yield server
    server.close()
    for job in Jobs(home / "jobs").all():  # the studio leaves runs alone, also where a test has failed
        for process in job.processes():
            process.kill()


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
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"), np.int16)


# ---------------------------------------------------------------------------------------------------------- data
def test_bad_files_have_their_reasons_and_a_name_is_text(visit, work):
    visitor = visit()
    page = visitor.page
    page.get_by_label("Folder", exact=True).select_option(str(work / "shapes"))
    page.locator("#inspect").wait_for()
    held = []
    page.route("**/api/data/check", lambda route: held.append(route))  # so far only the names are known
    page.get_by_label("Setting", exact=True).select_option("class")
    page.get_by_text("You can train on it when each image is checked").wait_for()
    button = page.get_by_role("button", name="Train on this")
    assert button.is_disabled() and page.locator("pre.command").count() == 0
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    lines = page.locator("#left-out li")
    lines.nth(2).wait_for()
    assert "--on_bad_image=skip" in page.locator("pre.command").inner_text()
    names = [name for line in lines.all_inner_texts() for name in ("text.png", "empty.png", "cut.png") if name in line]
    assert sorted(names) == ["cut.png", "empty.png", "text.png"]
    assert all("unreadable image: " in line for line in lines.all_inner_texts())
    assert "usable of 51" in page.locator("#inspect").inner_text()
    assert NASTY in page.get_by_label("Class", exact=True).inner_text()
    page.get_by_label("Class", exact=True).select_option(NASTY)
    page.locator(".wall .tile", has_text=NASTY).first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    button.click()
    assert page.get_by_label("conditioning", exact=True).input_value() == "class"
    page.locator("pre.command", has_text="--on_bad_image=skip").wait_for()
    assert "--conditioning=class" in page.locator("pre.command").inner_text()


def test_ten_thousand_images_are_a_wall_of_those_in_sight(visit, work):
    visitor = visit()
    page = visitor.page
    page.get_by_label("Folder", exact=True).select_option(str(work / "wall"))
    page.get_by_text(f"{NUM_MANY:,} images").wait_for()
    wall = page.get_by_role("listbox")
    visitor.until("[...document.querySelectorAll('.wall img[src]')].some(x => x.naturalWidth)")
    assert page.locator(".wall .tile").count() < 200
    wall.focus()
    page.keyboard.press("End")
    last = page.locator(f"#tile-{NUM_MANY - 1}")
    last.locator("img[src]").wait_for()
    assert wall.get_attribute("aria-activedescendant") == f"tile-{NUM_MANY - 1}"
    assert page.locator(".wall .tile").count() < 200 and page.locator("#tile-0").count() == 0
    page.keyboard.press("Enter")
    page.get_by_role("dialog").locator("img").wait_for()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


# ----------------------------------------------------------------------------------------------------- run, watch
def test_runs_over_one_another_and_what_differs(visit, work):
    visitor = visit("Run")
    page = visitor.page
    page.locator(".item", has_text="first").click()
    page.get_by_label(re.compile("compare .*second")).check()
    table = page.get_by_role("region", name="Settings that differ")
    table.get_by_text("max_train_steps").wait_for()
    label = page.get_by_role("img", name="Loss:").get_attribute("aria-label")
    assert "first: loss" in label and "second: loss" in label and "held-out loss" in label
    page.get_by_role("button", name="Colours").click()  # the plots are drawn anew
    page.get_by_label("logarithmic").check()


def test_what_one_page_does_the_other_shows(visit, work):
    """A run is started on one, stopped on the other; both show the same all the while."""
    one, other = visit("Run"), visit("Run")
    one.page.get_by_role("link", name="New run").click()
    one.page.get_by_label("Name of the run").fill("both")
    settings = {"train_data_dir": work / "shapes", "conditioning": "class", "on_bad_image": "skip", "unet_size": "xxs"}
    for name, value in (settings | {"max_train_steps": 100_000, "checkpointing_steps": 5}).items():
        one.set(name, value)
    one.press("Start")
    other.page.locator(".item", has_text="both").click()
    for visitor in (one, other):
        visitor.wait_state("running", "both")
        visitor.page.get_by_role("progressbar", name="both").wait_for()
    other.wait(".plot canvas")
    wait_for_step(other, 6)  # after a checkpoint
    other.press("Stop")
    process = psutil.Process(locker(work / "both"))
    process.suspend()  # as on a machine that is busy: the signals wait, and two of a kind are one
    other.press("Stop without saving")
    other.page.get_by_role("button", name="Stop", exact=True).wait_for()  # it is sent
    process.resume()
    for visitor in (one, other):
        visitor.wait_state("paused", "both")
        assert visitor.page.get_by_role("button", name="Continue").count() == 1
        visitor.page.get_by_text("ended by SIGQUIT; it can go on after step").wait_for()
    texts = [visitor.page.get_by_role("region", name="The run").inner_text() for visitor in (one, other)]
    assert texts[0] == texts[1]


def test_the_grid_by_arrow_keys_and_any_checkpoint_becomes_the_model_on_both_pages(visit, work):
    visitor, other = visit("Watch"), visit("Play")
    page = visitor.page
    page.get_by_label("Run", exact=True).select_option(str(work / "first"))
    visitor.until("document.querySelectorAll('.grid td img').length === 6")
    assert page.locator(".grid th[scope=row]").all_inner_texts() == [NASTY, "dark"]
    page.locator(".grid td.chosen").focus()
    time = page.get_by_role("slider", name="Time").first
    page.keyboard.press("Home")
    assert time.get_attribute("aria-valuetext") == "step 10"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert time.get_attribute("aria-valuetext") == "step 20"
    page.locator("figcaption", has_text="dark, step 20").wait_for()
    page.get_by_role("button", name="Play the film").first.click()
    page.locator("output", has_text="finished").first.wait_for()
    time.focus()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Make this the model").click()
    page.locator(".note.good").wait_for()
    other.page.get_by_label("Model", exact=True).locator("option", has_text="checkpoint-10").wait_for(state="attached")
    page.get_by_label("Or an average").fill("0.07")
    page.get_by_role("button", name="Make this average the model").click()
    other.page.get_by_label("Model", exact=True).locator("option", has_text="0.07").wait_for(state="attached")


# ---------------------------------------------------------------------------------------------------------- play
def test_what_is_drawn_is_what_pytorch_draws_and_a_second_model_next_to_it(visit, work):
    visitor = visit("Play")
    page = visitor.page
    page.get_by_label("Model", exact=True).select_option(str(work / "first"))
    page.get_by_label("Second model", exact=True).select_option(str(work / "second"))
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
    page.locator(".side").first.get_by_role("button", name="Nearest training images").click()
    page.locator(".nearest img").first.wait_for()


def test_a_part_of_an_image_between_two_conditions_and_its_class(visit, work, tmp_path):
    visitor = visit("Play")
    page = visitor.page
    page.get_by_label("Model", exact=True).select_option(str(work / "first"))
    Image.new("RGB", (8, 8), (200, 30, 90)).save(tmp_path / "image.png")
    page.get_by_label("How", exact=True).select_option("part")
    visitor.set("Images", 1)
    visitor.set("Steps", 2)
    visitor.set("Strength", 1)
    page.get_by_label("Image", exact=True).set_input_files(tmp_path / "image.png")
    canvas = page.get_by_label("Paint what is drawn anew")
    visitor.set("Brush, % of the width", 40)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.up()
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".side .tiles img").wait_for()
    drawn = pixels_of(visitor, ".side .tiles img")
    assert (np.abs(drawn[:, 6:] - [200, 30, 90]) <= 2).all() and (np.abs(drawn[1, 1] - [200, 30, 90]) > 2).any()
    page.get_by_label("How", exact=True).select_option("between")
    page.get_by_label("To class", exact=True).select_option("dark")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".side .tiles img").nth(7).wait_for()
    page.get_by_label("Image to classify", exact=True).set_input_files(tmp_path / "image.png")
    page.get_by_role("button", name="Classify", exact=True).click()
    page.locator(".bars", has_text=NASTY).wait_for()


# --------------------------------------------------------------------------------------------------- judge, share
def test_reports_are_read_and_compared_and_a_sweep_is_a_trade_off(visit, work):
    visitor = visit("Judge")
    page = visitor.page
    page.locator(".report table").wait_for()
    for box in page.get_by_label("Reports", exact=True).get_by_role("checkbox").all():
        box.check()
    page.get_by_role("region", name="Comparison").get_by_text("within chance").first.wait_for()
    assert page.get_by_text("has it").inner_text() in ("only A has it", "only B has it")
    trade = page.get_by_role("img", name="Trade-off.")
    trade.wait_for()
    assert trade.locator("circle").count() == 2


def test_the_card_and_what_stays_are_seen_before_a_push(visit, work, hub):
    visitor = visit("Share")
    page = visitor.page
    page.get_by_label("Model", exact=True).select_option(str(work / "first"))
    page.get_by_label("Repository on the Hub", exact=True).fill("me/first")
    card = page.get_by_role("article", name="The model card")
    card.get_by_role("heading", name="Use it").wait_for()
    assert NASTY in card.inner_text() and page.locator("img[src='x']").count() == 0
    assert page.get_by_role("region", name="Files that are uploaded").get_by_text("unet/config.json").count() == 1
    assert "checkpoint-10" in page.locator(".names").inner_text()
    page.get_by_role("button", name="Push").click()
    page.locator(".job-message a").wait_for()
    assert "model_index.json" in hub.repos["me/first"].files()


# ---------------------------------------------------------------------------------------------------------- for all
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_nothing_that_axe_finds_and_nothing_wider_than_the_screen(visit, work, scheme, width):
    needed("axe-core", AXE.is_file())
    with tarfile.open(AXE) as package:
        axe = package.extractfile("package/axe.min.js").read().decode()
    visitor = visit(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = visitor.page
    ready = {"Data": ".wall img[src]", "Run": ".plot canvas", "Watch": ".grid td img", "Play": ".tiles img"}
    ready |= {"Judge": ".report table", "Share": "article.prose h2"}
    violations = {}
    for view in VIEWS:
        visitor.view(view)
        if view == "Play":
            page.get_by_role("button", name="Draw", exact=True).click()
        page.locator(ready[view]).first.wait_for()
        page.evaluate(axe)
        violations[view] = page.evaluate(
            "axe.run().then(result => result.violations.map(x => [x.id, x.nodes[0].html]))"
        )
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width, view
    assert violations == {view: [] for view in VIEWS}
