"""How soon `cond-pipelines studio` shows 10,000 images, and how smoothly they scroll, in a real Chromium.

    python benchmarks/studio_wall.py --output_dir output/studio_wall

Seconds from the start of the command, and milliseconds between the frames of the browser while the wall scrolls from
its first row to its last: on a free machine, and while two threads compute, as a training on two cores does. Each is
done with an empty cache, so thumbnails are made on the way.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from studio_way import Server, Visitor
from web import browser

from cond_pipelines.files import write_text

# Milliseconds between frames, while the wall scrolls at a constant speed for so many seconds.
SCROLL = """async (seconds) => {
  const wall = document.querySelector(".wall");
  const most = wall.scrollHeight - wall.clientHeight;
  const gaps = [];
  const start = performance.now();
  let last = start;
  await new Promise((done) => {
    const frame = () => {
      const now = performance.now();
      gaps.push(now - last);
      last = now;
      wall.scrollTop = most * Math.min(1, (now - start) / (1000 * seconds));
      if (now - start < 1000 * seconds) requestAnimationFrame(frame);
      else done();
    };
    requestAnimationFrame(frame);
  });
  return gaps;
}"""
ALL_DRAWN = """(() => {
  const box = document.querySelector(".wall").getBoundingClientRect();
  const images = [...document.querySelectorAll(".wall img")].filter((image) => {
    const { top, bottom } = image.getBoundingClientRect();
    return bottom > box.top && top < box.bottom;
  });
  return images.length > 0 && images.every((image) => image.naturalWidth);
})()"""
BUSY = "while True: pass"


def write_images(folder: Path, count: int, side_px: int) -> None:
    """JPEG files of ten classes, each image another one."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / f"class {i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
        small.resize((side_px, side_px), Image.Resampling.BICUBIC).save(place / f"{i:05d}.jpg")


@contextmanager
def busy(num_threads: int) -> Iterator[None]:
    """While so many processes compute, each on one core."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_threads)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=60)


def look(chromium: Any, folder: Path, seconds: float) -> dict[str, float]:
    """Seconds and milliseconds of one visit, with an empty cache."""
    for name in ("cache", "datasets"):
        shutil.rmtree(folder / name, ignore_errors=True)
    env = {"XDG_CACHE_HOME": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "datasets")}
    start = time.perf_counter()
    server = Server.started(folder / "images", log=folder / "server.log", env=env)
    visitor = Visitor.of(chromium, viewport={"width": 1280, "height": 900})
    measured = {"address is printed, s": time.perf_counter() - start}
    try:
        visitor.open(server.address)
        measured["page is there, s"] = time.perf_counter() - start
        visitor.wait(".wall img[src]")
        visitor.until(ALL_DRAWN)
        measured["thumbnails in sight, s"] = time.perf_counter() - start
        gaps = visitor.page.evaluate(SCROLL, seconds)
        measured["frame while scrolling, median, ms"] = statistics.median(gaps)
        measured["frame while scrolling, 99th of 100, ms"] = float(np.quantile(gaps, 0.99))
        measured["frame while scrolling, longest, ms"] = max(gaps)
        end = time.perf_counter()
        visitor.until(ALL_DRAWN)
        measured["thumbnails in sight after scrolling, s"] = time.perf_counter() - end
        visitor.wait("#inspect")
        measured["each image was looked at, s"] = time.perf_counter() - start
    finally:
        visitor.page.context.close()
        server.kill()
    if visitor.faults:
        raise RuntimeError("\n".join(visitor.faults))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side_px", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0, help="of scrolling from the first row to the last")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    if not (options.output_dir / "images").is_dir():
        write_images(options.output_dir / "images", options.count, options.side_px)
    columns = {}
    with browser() as chromium:
        for name, num_threads in (("free", 0), ("two threads busy", 2)):
            with busy(num_threads):
                columns[name] = look(chromium, options.output_dir, options.seconds)
    lines = [f"{options.count:,} images of {options.side_px} px.", "", f"| | {' | '.join(columns)} |", "|---|---|---|"]
    for row in columns["free"]:
        lines.append(f"| {row} | {' | '.join(f'{values[row]:.2f}' for values in columns.values())} |")
    text = "\n".join([*lines, ""])
    write_text(options.output_dir / "studio_wall.md", text)
    print(text)


if __name__ == "__main__":
    main()
