"""What the page sends is what it shows, in a real Chromium: of models that differ, of choices that were taken back."""

import importlib.util
import json

import pytest
from PIL import Image
from studio_common import Server, environment, tiny
from test_web import needed
from web import browser, find_chromium

from cond_pipelines.training.config import TrainingConfig
from cond_pipelines.training.loop import train

pytestmark = pytest.mark.timeout(600)  # with what the module sets up, on a busy machine


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two class-conditional models of other classes, one of vectors, and their data."""
    folder = tmp_path_factory.mktemp("work")
    for name, classes in {"animals": ("cat", "dog"), "shapes": ("dark", "light")}.items():
        for number, one in enumerate(classes):
            (folder / name / one).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (8, 8), (100 * number, 20 * i, 50)).save(folder / name / one / f"{i}.png")
    (folder / "vectors").mkdir()
    rows = [{"file_name": f"{i}.png", "vector": [i / 16, 0.5]} for i in range(16)]
    for i, row in enumerate(rows):
        Image.new("RGB", (8, 8), (16 * i, 0, 99)).save(folder / "vectors" / row["file_name"])
    (folder / "vectors" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, conditioning in {"animals": "class", "shapes": "class", "vectors": "embedding"}.items():
        args = tiny(folder / name, folder / f"of-{name}", max_train_steps=4, conditioning=conditioning)
        train(TrainingConfig(**args | {"checkpointing_steps": 2}))
    return folder


@pytest.fixture(scope="module")
def page(work, tmp_path_factory, subprocess_env):
    needed("chromium", find_chromium() is not None)
    needed("playwright", importlib.util.find_spec("playwright") is not None)
    server = Server(work, tmp_path_factory.mktemp("home"), environment(subprocess_env))
    with browser() as chromium:
        page = chromium.new_page()
        page.set_default_timeout(300_000)
        page.goto(server.address)
        yield page
    server.close()


def sent(page, route: str, act) -> dict:
    """The body of the request that `act` leads to."""
    with page.expect_request(lambda request: request.url.endswith(f"/api/{route}")) as request:
        act()
    return json.loads(request.value.post_data)


def show(page, view: str) -> None:
    page.evaluate("view => { sessionStorage.clear(); location.hash = view; location.reload(); }", view)


def test_a_class_of_another_model_is_not_drawn_as_any_class(page, work):
    show(page, f"#play?path={work}/of-shapes")
    menu, draw = page.get_by_label("Class", exact=True), page.get_by_role("button", name="Draw", exact=True)
    menu.select_option("light")
    page.get_by_label("Model", exact=True).select_option(f"{work}/of-animals")
    page.locator("option", has_text="cat").wait_for(state="attached")
    assert menu.input_value() == "cat"
    assert sent(page, "draw", draw.click)["conditions"] == ["cat"] * 4
    page.get_by_label("Second model", exact=True).select_option(f"{work}/of-shapes")
    page.get_by_label("Class of the other", exact=True).select_option("light")
    with page.expect_request(lambda r: r.url.endswith("/api/draw") and "of-shapes" in r.post_data) as request:
        draw.click()
    assert json.loads(request.value.post_data)["conditions"] == ["light"] * 4


def test_a_model_of_vectors_is_drawn_from_in_watch_and_in_play(page, work):
    show(page, f"#watch?path={work}/of-vectors")
    page.locator("table.grid img").nth(2).wait_for()
    assert page.locator(".note.bad").count() == 0
    page.get_by_text("Settings of the grid").click()
    conditions = page.get_by_label("Conditions")
    conditions.fill("0.1, 0.2\n[0.3 4e-1]")
    assert sent(page, "draw", conditions.blur)["conditions"] == [[0.1, 0.2], [0.3, 0.4]]
    show(page, f"#play?path={work}/of-vectors")
    page.get_by_label("Vector", exact=True).wait_for()
    shown = json.loads(page.get_by_label("Vector", exact=True).input_value())
    draw = page.get_by_role("button", name="Draw", exact=True)
    assert sent(page, "draw", draw.click)["conditions"] == [shown] * 4


def test_what_was_taken_back_is_not_sent(page, work):
    show(page, f"#data?path={work}/animals")
    train_on = page.locator("button.main:not([disabled])", has_text="Train on this")
    for text in ("4", ""):
        page.get_by_label("resolution", exact=True).fill(text)
        page.get_by_role("button", name="Look", exact=True).click()
        page.get_by_text(f"{text or 8} px", exact=True).wait_for()
        train_on.click()
        page.get_by_label("train_data_dir", exact=True).wait_for()
        assert page.get_by_label("resolution", exact=True).first.input_value() == text
        page.go_back()
    show(page, "#run?new=1")
    page.get_by_label("train_data_dir", exact=True).select_option("")
    name = page.get_by_label("dataset_name", exact=True)
    with page.expect_request(lambda r: r.url.endswith("/api/train/plan") and "me/data" in r.post_data) as request:
        name.fill("me/data")
    assert json.loads(request.value.post_data)["args"].get("train_data_dir") is None


def test_a_plan_that_nobody_waits_for_is_given_up(page, work):
    show(page, "#run?new=1")
    name, held = page.get_by_label("Name of the run"), []
    name.wait_for()

    def plan_of(text: str):
        while not (routes := [route for route in held if text in route.request.post_data]):
            page.wait_for_timeout(10)
        return routes[0]

    page.route("**/api/train/plan", lambda route: held.append(route))
    name.fill("try-1")
    plan_of("try-1")
    with page.expect_event("requestfailed", lambda request: "try-1" in request.post_data):
        name.fill("try-2")
    plan_of("try-2").continue_()
    page.locator("pre.command", has_text="try-2").wait_for()
    page.unroute("**/api/train/plan")
    assert page.get_by_role("region", name="A new run").locator(".note.bad").count() == 0


def test_watch_follows_a_run_that_keeps_so_many_checkpoints(page, work):
    page.evaluate("location.hash = 'data'")
    run = work / "limited"
    for step in (10, 20):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        (run / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    show(page, f"#watch?path={run}")
    page.locator("output", has_text="step 20").wait_for()
    (run / "checkpoint-10").rename(run / "checkpoint-30")
    page.locator("output", has_text="step 30").wait_for()
