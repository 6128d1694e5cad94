"""The page of `cond-pipelines export --to web` in a real Chromium: seconds an image, size, difference from PyTorch.

    npm pack onnxruntime-web@1.30.0
    python benchmarks/web.py --onnxruntime_web onnxruntime-web-1.30.0.tgz --output_dir output/web

It measures the three builtin models (16 px, 24 steps with guidance) and a model of 32 px that it trains and distills to
4 steps first, with the default size of network. The browser gets one core. Trainings that are finished are kept.
"""

import argparse
import functools
import os
import shutil
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cond_pipelines import ConditionalPipeline, TrainingConfig, builtin_model, train
from cond_pipelines.builtin import NAMES
from cond_pipelines.data.shapes import load_shapes
from cond_pipelines.errors import read_json
from cond_pipelines.export.onnxruntime_web import onnxruntime_web
from cond_pipelines.export.web_folder import write_web
from cond_pipelines.files import write_text

NUM_SEEDS = 20
# A closed machine: names are not resolved, and nothing else than the page asks for anything.
_FLAGS = (
    *("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--disable-gpu",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# From a copy: Chromium warns where a canvas that is shown is read often.
_PIXELS = """shown => {
  const copy = new OffscreenCanvas(shown.width, shown.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(shown, 0, 0);
  return [...copy.getImageData(0, 0, shown.width, shown.height).data];
}"""


# ------------------------------------------------------------------------------------------ a browser, for tests too
def find_chromium() -> str | None:
    """Debian's, or what CHROMIUM names."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Files below a folder at an address of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@contextmanager
def browser(*flags: str) -> Iterator[Any]:
    """Chromium, through playwright, with flags beyond `_FLAGS`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=[*_FLAGS, *flags])
        yield chromium
        chromium.close()


@dataclass
class Page:
    """A page that draws, and what went wrong on it.

    Args:
        page: of playwright, at the address of a folder that `export --to web` wrote.
        faults: console messages, errors, failed requests, and requests to another machine.
    """

    page: Any
    faults: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, chromium: Any, address: str, **context: Any) -> "Page":
        """Open it, and wait for the first image, which it draws by itself."""
        drawing = cls(chromium.new_context(**context).new_page())
        page, faults, origin = drawing.page, drawing.faults, address.rpartition("/")[0]
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
        page.context.on(
            "request",
            lambda request: None if request.url.startswith((origin, "data:")) else faults.append(request.url),
        )
        page.goto(f"{address}/index.html")
        page.locator("body[data-requested]").wait_for(timeout=120_000)
        drawing.wait_until_shown()
        return drawing

    def wait_until_shown(self) -> None:
        """Until the image that was requested last is drawn and shown."""
        number = self.page.locator("body").get_attribute("data-requested", timeout=120_000)
        self.page.locator(f"body[data-shown='{number}']").wait_for(timeout=120_000)

    def draw(self, **controls: object) -> np.ndarray:
        """Fill in controls by their labels, such as Seed=7, and press Draw; returns the pixels, (height, width, 4)."""
        for label, value in controls.items():
            control = self.page.get_by_label(label, exact=True)
            if control.evaluate("x => x.tagName") == "SELECT":
                control.select_option(str(value))
            else:
                control.fill(str(value))
        self.page.get_by_role("button", name="Draw", exact=True).click()
        self.wait_until_shown()
        return self.pixels()

    def pixels(self) -> np.ndarray:
        image = self.page.locator("#image")
        shape = image.evaluate("c => [c.height, c.width, 4]")
        return np.array(image.evaluate(_PIXELS), dtype=np.int16).reshape(shape)

    @property
    def seconds(self) -> float:
        """That the page says it took to draw the image."""
        return float(self.page.locator("#status").inner_text().split()[2])


def difference(pixels: np.ndarray, image: Image.Image) -> int:
    """The largest, of 255, between what a page shows and an image of PyTorch."""
    return int(np.abs(pixels - np.asarray(image.convert("RGBA"), dtype=np.int16)).max())


# ------------------------------------------------------------------------------------------------------ what is drawn
def shapes_32px() -> Any:
    """The drawn shapes, for the trainings below."""
    return load_shapes(10_000, image_size_px=32)


def few_step_model(folder: Path, minutes: float) -> Path:
    """p(x|y) of 32 px in the default size of network, trained and distilled for so many minutes each."""
    common: dict[str, Any] = {
        "dataset_name": "web:shapes_32px",
        "conditioning": "class",
        "resolution": 32,
        "max_train_minutes": minutes,
        "validation_fraction": 0.0,
        "validation_steps": 0,
        "report_to": "none",
        "overwrite_output_dir": True,
    }
    parent, student = folder / "parent", folder / "shapes-32px-4-steps"
    if not (parent / "training_summary.json").is_file():
        train(TrainingConfig(output_dir=str(parent), logit_mean=0.5, logit_std=1.2, **common))
    if not (student / "training_summary.json").is_file():
        common |= {"objective": "distillation", "pretrained_model_name_or_path": str(parent)}
        train(TrainingConfig(output_dir=str(student), **common))
    return student


def measured(chromium: Any, address: str, model: str | Path, picture: Path | None) -> dict[str, float]:
    """Seconds and differences over the seeds; the last image is the page's picture."""
    pipe = ConditionalPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    page = Page.opened(chromium, address, viewport={"width": 1000, "height": 1000})
    facts = page.page.evaluate("fetch('model.json').then(answer => answer.json())")
    seconds, differences = [], []
    for seed in range(NUM_SEEDS):
        controls: dict[str, object] = {"Seed": seed}
        condition = None
        if facts["classes"]:
            chosen = facts["classes"][seed % len(facts["classes"])]
            condition, controls["Class"] = chosen["label"], chosen["id"]
        elif facts["examples"]:
            condition = controls["Caption"] = facts["examples"][seed % len(facts["examples"])]
        pixels = page.draw(**controls)
        seconds.append(page.seconds)
        differences.append(difference(pixels, pipe.sample([condition], generator=seed).images[0]))
    if picture is not None:
        page.page.screenshot(path=str(picture), full_page=True)
    if page.faults:
        raise RuntimeError("\n".join(page.faults))
    page.page.context.close()
    return {
        "steps": facts["default_steps"],
        "median": statistics.median(seconds),
        "slowest": max(seconds),
        "difference": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnxruntime_web", type=Path, help="what `npm pack` wrote (default: downloaded)")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each of the two trainings")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="write the page of shapes-text as a PNG")
    options = parser.parse_args()
    student = few_step_model(options.output_dir, options.minutes)
    models = {name: Path(builtin_model(name)) for name in NAMES} | {student.name: student}
    runtime = onnxruntime_web(options.onnxruntime_web)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})  # the browser's processes inherit it
    lines = [
        "| model | pixels | steps | s an image, median | slowest of 20 | folder, MB | largest difference, of 255 |",
        "|---|---|---|---|---|---|---|",
    ]
    with server(options.output_dir / "pages") as address, browser() as chromium:
        version = chromium.version
        for name, model in models.items():
            folder = options.output_dir / "pages" / name
            shutil.rmtree(folder, ignore_errors=True)
            size = write_web(
                ConditionalPipeline.from_pretrained(model), folder, name=name, source=name, runtime=runtime
            )
            picture = options.picture if name == "shapes-text" else None
            row = measured(chromium, f"{address}/{name}", model, picture)
            px = read_json(folder / "model.json")["sample_shape"][1]
            lines.append(
                f"| {name} | {px} | {row['steps']} | {row['median']:.2f} | {row['slowest']:.2f} | {size / 1e6:.1f} | "
                f"{row['difference']} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join([f"Chromium {version}, one core, {NUM_SEEDS} seeds each.", "", *lines, ""])
    write_text(options.output_dir / "web.md", text)
    print(text)


if __name__ == "__main__":
    main()
