"""In the worker: what a model draws, and what is known of it."""

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from ..adapters.denoiser import unwrapped
from ..data.load import load_data
from ..display import facts_of, size_px
from ..errors import UserError
from ..evaluation.neighbours import TrainingImages
from ..files import keep_newest, write_json
from ..folders import CONFIG_FILE
from ..grids import interpolated, sampled
from ..networks.pretrained import load_pipeline
from ..pictures import write_once
from ..pipelines.conditional import ConditionalPipeline
from ..sample import picture_of
from ..training.at_checkpoint import pipeline_at, pipeline_of_average, write_model
from ..training.command_line import read_recipe
from ..training.config import TrainingConfig

_MOST_IMAGES, _MOST_FRAMES, _MOST_KEPT = 64, 50, 20_000
_SAMPLING = ("num_inference_steps", "guidance_scale", "strength")
Request = dict[str, Any]


def _stamp(model: str) -> str:
    """Changes with the files of a model."""
    path = Path(model)
    files = [path / "manifest.json", path / "model_index.json", *path.glob("*/*.safetensors"), *path.glob("ema/*")]
    return json.dumps([model, *sorted(file.stat().st_mtime_ns for file in files if file.is_file())])


@lru_cache(maxsize=3)
def _loaded(model: str, length: float | None, stamp: str) -> ConditionalPipeline:
    if length is not None:
        pipe = pipeline_of_average(model, length)
    else:
        pipe = pipeline_at(model) if Path(model, "manifest.json").is_file() else load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipe


def _model(request: Request) -> ConditionalPipeline:
    model, length = str(request["model"]), request.get("ema_length")
    return _loaded(model, None if length is None else float(length), _stamp(model))


def model_info(request: Request, home: str) -> Request:
    """What the form for drawing needs to know of a model."""
    keep_newest(Path(home) / "drawn", _MOST_KEPT)
    return facts_of(_model(request))


def draw(request: Request, home: str) -> Request:
    """Images of conditions and seeds; the same request is answered from the cache."""
    conditions, seeds = list(request["conditions"]), [int(seed) for seed in request["seeds"]]
    if not 0 < len(conditions) == len(seeds) <= _MOST_IMAGES:
        raise UserError(f"{len(conditions)} conditions and {len(seeds)} seeds: as many of both, {_MOST_IMAGES} at most")
    return _kept(request, home, lambda: _drawn(request, conditions, seeds, home))


def interpolate(request: Request, home: str) -> Request:
    """Images from one noise, under conditions between two."""

    def drawn() -> Request:
        count, seed = min(_MOST_IMAGES, int(request.get("num_steps") or 8)), int(request.get("seed") or 0)
        pipe, ends = _model(request), (request["first"], request["second"])
        return {"images": _saved(interpolated(pipe, *ends, count, seed, **_sampling(request)), home)}

    return _kept(request | {"what": "between"}, home, drawn)


def _kept(request: Request, home: str, make: Callable[[], Request]) -> Request:
    """What `make` returned for the same request and the same weights before, if its pictures are there still."""
    named = hashlib.sha256(json.dumps([_stamp(str(request["model"])), request], sort_keys=True).encode())
    path = Path(home) / "drawn" / f"{named.hexdigest()[:24]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        urls = [*kept["images"], *(url for film in kept.get("films") or () for url in film)]
        if all((path.parent / os.path.basename(url)).is_file() for url in urls):
            return kept
    start = time.perf_counter()
    made: dict[str, Any] = make() | {"sec": round(time.perf_counter() - start, 3)}
    write_json(path, made)
    return made


def _drawn(request: Request, conditions: list[object], seeds: list[int], home: str) -> Request:
    pipe, sampling = _model(request), _sampling(request)
    for name, argument, channels in (("image", "image", 3), ("mask", "mask_image", 1)):
        if request.get(name):
            picture = ImageOps.fit(read_image(request[name], home, channels), size_px(pipe))
            sampling[argument] = [picture] * len(seeds)
    if not sampling.get("image"):
        sampling.pop("strength", None)
    frames: list[list[Image.Image]] | None = [] if request.get("film") else None
    images = _saved(sampled(pipe, conditions, seeds, request.get("scheduler"), frames, **sampling), home)
    if not frames:
        return {"images": images, "films": None}
    shown = [_saved(frame, home) for frame in frames[:-1][:: len(frames) // _MOST_FRAMES + 1]]
    return {"images": images, "films": [list(film) for film in zip(*shown, images, strict=True)]}


def _sampling(request: Request) -> Request:
    return {name: request[name] for name in _SAMPLING if request.get(name) is not None}


def _saved(images: list[Image.Image], home: str) -> list[str]:
    """The addresses of images in the cache, named by their pixels."""
    return [f"/api/drawn/{write_once(image, Path(home) / 'drawn')}" for image in images]


def read_image(text: object, home: str, channels: int = 3) -> Image.Image:
    """A data URL, or the address of an image that was drawn here. Raises UserError for anything else."""
    head, _, content = str(text).partition(";base64,")
    source: object = {"bytes": base64.b64decode(content), "path": None}
    if head.startswith("/api/drawn/"):
        source = Path(home) / "drawn" / os.path.basename(head)
    elif not head.startswith("data:image/"):
        raise UserError("an image is a data URL, or the address of one that was drawn here")
    return picture_of("the image", source, channels)


@lru_cache(maxsize=1)
def _training_images(run: str, changed: int) -> TrainingImages:
    return TrainingImages(load_data(TrainingConfig(**read_recipe(Path(run) / CONFIG_FILE))))


def nearest(request: Request, run: str, home: str) -> Request:
    """The training images that are nearest to an image."""
    config = Path(run) / CONFIG_FILE
    if not config.is_file():
        raise UserError(f"{run} has no {CONFIG_FILE}, so its training images are not known")
    neighbours = _training_images(run, config.stat().st_mtime_ns).nearest(read_image(request["image"], home))
    images = _saved([item["image"] for item in neighbours], home)
    return {"items": [item | {"image": image} for item, image in zip(neighbours, images, strict=True)]}


def classify(request: Request, home: str) -> Request:
    """p(y|x) of an image, by a class-conditional model."""
    pipe = _model(request)
    names = list(getattr(pipe.adapter, "id2label", {}).values())
    if len(names) < 2:
        raise UserError("p(y|x) needs a class-conditional model of two classes or more")
    image = ImageOps.fit(read_image(request["image"], home, unwrapped(pipe.unet).config.in_channels), size_px(pipe))
    p = pipe.classify([image], names).probabilities[0]
    return {"probabilities": [{"name": names[k], "p": float(p[k])} for k in p.argsort(descending=True).tolist()]}


def choose(run: str, request: Request, folder: str) -> Request:
    """Write the model of a checkpoint, or of an EMA length, into a new folder."""
    write_model(_model(request), Path(run), Path(folder))
    return {"path": folder}
