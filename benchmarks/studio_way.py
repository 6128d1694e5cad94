"""The whole way through `cond-pipelines studio` in a real Chromium, again and again, with its seconds.

    python benchmarks/studio_way.py --times 20 --seconds 60 --output_dir output/studio_way

A folder with three files that are no images: their reasons are seen. A training is started, paused after so many
seconds, continued; run and server are ended by SIGKILL; both go on, and the weights are those of a run that nothing
interrupted. Then the grid of class by checkpoint, two models from the same noise, an evaluation, and a push to a Hub on
this machine (the one of the tests). A console message, an error of the page, or a request to another machine fails it.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from web import browser

from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.files import write_text

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hub_server import TOKEN, Hub

BAD_FILES = ("broken.png", "empty.png", "text.png")
PATIENCE_MS = 300_000  # the machine may be busy
SETTINGS = {
    "unet_size": "xxs",
    "train_batch_size": 8,
    "checkpointing_steps": 50,
    "num_validation_images": 5,
    "lr_warmup_steps": 0,
}


def write_images(folder: Path, count: int = 120) -> Path:
    """A folder a class, of 16 px, with BAD_FILES among the first."""
    shapes = load_shapes(count)
    names = shapes.features["label"].names
    for i, row in enumerate(shapes):
        place = folder / names[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{i:04d}.png")
    first = folder / names[0]
    whole = next(first.glob("0*.png")).read_bytes()
    for name, content in zip(BAD_FILES, (whole[: len(whole) // 2], b"", b"no image"), strict=True):
        (first / name).write_bytes(content)
    return folder


# ------------------------------------------------------------------------------------------ processes and the page
@dataclass
class Server:
    """A studio in a process of its own, over folders."""

    process: subprocess.Popen[str]
    address: str

    @classmethod
    def started(cls, *folders: Path, log: Path, env: dict[str, str] | None = None) -> "Server":
        """Start it on a free port, and read its address from the line that it prints; errors go into `log`."""
        command = [sys.executable, "-m", "cond_pipelines.cli", "studio", *map(str, folders), "--port", "0"]
        with log.open("a") as errors:
            process = subprocess.Popen(
                [*command, "--no_browser"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | (env or {}),
                start_new_session=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("studio: "):
            raise RuntimeError(f"no address, but {line!r}; see {log}")
        return cls(process, line.split()[1])

    def kill(self) -> None:
        """As `kill -9` of it and of its workers; runs are in sessions of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=60)


def kill_run(folder: Path) -> None:
    """`kill -9` of each process of the run in a folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and b"train" in words:
            with suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)


@dataclass
class Visitor:
    """A page, what went wrong on it, and the seconds of each part of the way."""

    page: Any
    address: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: Path | None = None
    is_server_gone: bool = False

    @classmethod
    def of(cls, chromium: Any, pictures: Path | None = None, **context: Any) -> "Visitor":
        page = chromium.new_context(**context).new_page()
        page.set_default_timeout(float(os.environ.get("PATIENCE_MS", PATIENCE_MS)))
        visitor = cls(page, pictures=pictures)
        page.on("console", lambda message: visitor.note(f"console: {message.text}"))
        page.on("pageerror", lambda error: visitor.note(f"error: {error}"))
        page.context.on("request", lambda request: visitor.request(request.url))
        return visitor

    def note(self, fault: str) -> None:
        """A browser says of each request that a dead server does not answer it: no fault of the page."""
        if not (self.is_server_gone and re.search("ERR_(CONNECTION|EMPTY)", fault)):
            self.faults.append(fault)

    def request(self, url: str) -> None:
        if not url.startswith((self.address.partition("?")[0], "data:", "blob:", "about:")):
            self.faults.append(f"request: {url}")

    def open(self, address: str) -> None:
        """With its token; the first view is there when it returns."""
        self.page.goto("about:blank")  # so that a page of a server that is gone asks for nothing any more
        self.address, self.is_server_gone = address, False
        with self.timed("first view"):
            self.page.goto(address)
            self.page.locator("main section, main form, main .empty").first.wait_for()

    def view(self, name: str) -> None:
        self.page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()

    def set(self, name: str, value: object) -> None:
        """A setting of a form, by its name; one that is out of sight is searched for."""
        control = self.page.get_by_label(name, exact=True)
        search = self.page.get_by_label("Look for a setting")
        if not control.is_visible() and search.count():
            search.fill(name)
            control.wait_for()
        if control.evaluate("x => x.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(str(value))
        if search.count():
            search.fill("")

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def wait(self, selector: str) -> None:
        self.page.locator(selector).first.wait_for()

    def until(self, expression: str) -> None:
        """Until it is true in the page. From here: the page's policy forbids what a script would wait with."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {PATIENCE_MS / 1000} s: {expression}")
            self.page.wait_for_timeout(50)

    def wait_state(self, state: str, name: str) -> None:
        """Until the run of that name is in that state; where it fails instead, its message is the error."""
        item = self.page.locator(".item", has_text=name)
        item.locator(f".badge.{state}, .badge.failed").wait_for()
        if state != "failed" and item.locator(".badge.failed").count():
            raise RuntimeError(self.page.locator("#run-message").inner_text())

    def picture(self, name: str) -> None:
        if self.pictures:
            self.page.mouse.move(0, 0)
            self.page.evaluate("scrollTo(0, 0)")
            self.page.screenshot(path=str(self.pictures / f"studio_{name}.png"))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------- the way
def see_reasons(visitor: Visitor) -> None:
    """View 1: each of the bad files is named with its reason."""
    with visitor.timed("data and reasons"):
        visitor.page.get_by_label("Setting", exact=True).select_option("class")
        left_out = visitor.page.locator("#left-out")
        for name in BAD_FILES:
            left_out.get_by_text(name).first.wait_for()
        visitor.wait(".wall img[src]")
        visitor.until("[...document.querySelectorAll('.wall img[src]')].some(x => x.naturalWidth)")
    visitor.picture("data")
    visitor.press("Train on this")


def start_training(visitor: Visitor, name: str, settings: dict[str, object]) -> None:
    """View 2: fill in the form and start."""
    visitor.page.get_by_label("Name of the run").fill(name)
    for setting, value in settings.items():
        visitor.set(setting, value)
    visitor.wait("pre.command")
    with visitor.timed("start of training"):
        visitor.press("Start")
        visitor.wait_state("running", name)


def steps_of(visitor: Visitor) -> int:
    """The step that the page shows."""
    text = visitor.page.locator(".facts div", has_text="step").first.locator("dd").inner_text()
    return int(re.sub(r"\D", "", text.split(" of ")[0]) or 0)


def wait_for_step(visitor: Visitor, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while steps_of(visitor) < step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"step {steps_of(visitor)} after {PATIENCE_MS / 1000} s, not {step}")
        visitor.page.wait_for_timeout(200)


def train_for(visitor: Visitor, seconds: float, num_steps: int) -> None:
    """So many seconds. On a machine that is too fast for that, 3/4 of the steps: there has to be a rest."""
    with visitor.timed("training before the pause"):
        end = time.monotonic() + seconds
        while time.monotonic() < end and steps_of(visitor) < 0.75 * num_steps:
            visitor.page.wait_for_timeout(200)


def interrupt(visitor: Visitor, server: Server, run: Path, restart: Callable[[], Server]) -> Server:
    """Pause and continue; end run and server by SIGKILL, and continue in a new server. Returns that."""
    with visitor.timed("pause"):
        visitor.press("Pause")
        visitor.wait_state("paused", run.name)
    paused = steps_of(visitor)
    with visitor.timed("continue"):
        visitor.press("Continue")
        wait_for_step(visitor, paused + 1)
    visitor.is_server_gone = True
    kill_run(run)
    server.kill()
    visitor.wait("#gone")
    server = restart()
    visitor.open(server.address)
    visitor.view("Run")
    visitor.page.locator(".item", has_text=run.name).click()
    visitor.wait(".badge.paused, .badge.failed")
    visitor.press("Continue")
    visitor.wait(".badge.running")
    visitor.wait_state("finished", run.name)
    visitor.picture("run")
    return server


def look_and_choose(visitor: Visitor, run: Path) -> None:
    """Views 3 and 4: the grid, an earlier checkpoint made the model, and both from the same noise."""
    page = visitor.page
    visitor.view("Watch")
    with visitor.timed("grid of class by checkpoint"):
        visitor.wait(".grid td img")
        blank = "!document.querySelector('.grid .blank') && [...document.querySelectorAll('.grid img')]"
        visitor.until(f"{blank}.every(x => x.naturalWidth)")
    page.locator(".grid td.chosen").focus()
    page.keyboard.press("Home")
    visitor.picture("watch")
    with visitor.timed("make this the model"):
        visitor.press("Make this the model")
        visitor.wait(".note.good a")
    visitor.view("Play")
    page.get_by_label("Model", exact=True).select_option(str(run))
    other = page.get_by_label("Second model").locator("option", has_text=re.compile("checkpoint|step")).first
    page.get_by_label("Second model").select_option(other.get_attribute("value"))
    with visitor.timed("side by side"):
        visitor.press("Draw")
        for i in range(2):
            page.locator(".side").nth(i).locator(".tiles img").nth(3).wait_for()
        visitor.until("[...document.querySelectorAll('.side img')].every(x => x.naturalWidth)")
    visitor.picture("play")


def judge_and_share(visitor: Visitor, run: Path, repo: str) -> None:
    """Views 5 and 6: a report, and a push that ends with the address of the commit."""
    visitor.view("Judge")
    visitor.page.get_by_label("Model", exact=True).select_option(str(run))
    for name, value in {"num_samples": 48, "feature_extractor": "pixels", "num_inference_steps": 4}.items():
        visitor.set(name, value)
    with visitor.timed("report"):
        visitor.press("Evaluate")
        visitor.wait(".report table")
    visitor.picture("judge")
    visitor.view("Share")
    visitor.page.get_by_label("Model", exact=True).select_option(str(run))
    visitor.page.get_by_label("Repository on the Hub").fill(repo)
    visitor.wait("article.prose h2")
    visitor.picture("share")
    with visitor.timed("push"):
        visitor.press("Push")
        visitor.wait(".job-message a")


def weights(folder: Path) -> dict[str, bytes]:
    """The files of the model's own weights."""
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name in ("unet", "adapter")
        for path in (folder / name).glob("*.safetensors")
    }


def way(
    chromium: Any, folder: Path, hub: Hub, settings: dict[str, object], seconds: float, pictures: Path | None = None
) -> tuple[Visitor, Path]:
    """Go it once. `folder` holds images/; the run is `folder`/run. Raises where something on the way fails.

    Returns:
        The visitor, with the seconds of each part, and the run's folder.
    """
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HOME": str(folder / "hf_home"), "XDG_CACHE_HOME": str(folder / "cache")}
    run = folder / "work" / "run"

    def start() -> Server:
        return Server.started(folder / "work", log=folder / "server.log", env=env)

    server = start()
    visitor = Visitor.of(chromium, pictures, viewport={"width": 1280, "height": 860})
    try:
        visitor.open(server.address)
        see_reasons(visitor)
        start_training(visitor, run.name, settings)
        train_for(visitor, seconds, int(str(settings["max_train_steps"])))
        server = interrupt(visitor, server, run, start)
        look_and_choose(visitor, run)
        judge_and_share(visitor, run, "me/way")
    except Exception:
        visitor.page.screenshot(path=str(folder / "failed.png"), full_page=True)
        raise
    finally:
        visitor.page.context.close()
        kill_run(run)
        server.kill()
    if visitor.faults:
        raise RuntimeError("\n".join(visitor.faults))
    pushed = set(hub.repos["me/way"].files())
    if not {"README.md", "model_index.json"} <= pushed:
        raise RuntimeError(f"pushed was {sorted(pushed)}")
    return visitor, run


def reference_run(folder: Path, settings: dict[str, object]) -> tuple[Path, float]:
    """The same training in a terminal, which nothing interrupts; and its seconds."""
    run, start = folder / "reference", time.perf_counter()
    shutil.rmtree(run, ignore_errors=True)
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "cond_pipelines.cli", "train", "--train_data_dir", str(folder / "work" / "images")]
    command += ["--on_bad_image", "skip", "--conditioning", "class", "--output_dir", str(run), *flags]
    subprocess.run(command, check=True, capture_output=True, timeout=3600)
    return run, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training before the pause")
    parser.add_argument("--steps", type=int, default=1500, help="of the whole training")
    parser.add_argument("--reference", type=Path, help="the uninterrupted run of an earlier call, with the same steps")
    parser.add_argument("--pictures", type=Path, help="write a picture of each view into this folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    settings = SETTINGS | {"max_train_steps": options.steps, "checkpointing_steps": max(1, options.steps // 8)}
    write_images(options.output_dir / "work" / "images")
    if options.reference:
        reference = options.reference
    else:
        reference, sec = reference_run(options.output_dir, settings)
        print(f"the reference took {sec:.0f} s", flush=True)
    all_seconds: list[dict[str, float]] = []
    failures = []
    for i in range(options.times):
        for path in [*(options.output_dir / "work").iterdir(), options.output_dir / "cache"]:
            if path.name != "images":
                shutil.rmtree(path, ignore_errors=True)
        with Hub() as hub, browser() as chromium:
            try:
                visitor, run = way(chromium, options.output_dir, hub, settings, options.seconds, options.pictures)
                if weights(run) != weights(reference):
                    raise RuntimeError("the weights differ from those of the run that nothing interrupted")
            except Exception as error:
                failures.append(f"{i + 1}: {error}")
                print(f"failed: {failures[-1]}", flush=True)
                continue
        all_seconds.append(visitor.seconds)
        print(f"{i + 1}: " + ", ".join(f"{name} {sec:.1f} s" for name, sec in visitor.seconds.items()), flush=True)
    lines = [f"{len(all_seconds)} of {options.times} went the whole way.", ""]
    lines += ["| part | median, s | longest, s |", "|---|---|---|"]
    for part in all_seconds[0] if all_seconds else ():
        values = [seconds[part] for seconds in all_seconds]
        lines.append(f"| {part} | {statistics.median(values):.2f} | {max(values):.2f} |")
    text = "\n".join([*lines, *failures, ""])
    write_text(options.output_dir / "studio_way.md", text)
    print(text)


if __name__ == "__main__":
    main()
