"""In the worker: what a model draws, and what is known of it."""

import base64
import hashlib
import json
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from ..adapters.denoiser import unwrapped
from ..data.images import convert, open_image
from ..data.load import load_data
from ..display import examples_of
from ..errors import UserError, reading
from ..evaluation.neighbours import TrainingImages
from ..files import whole_file, write_json
from ..folders import CONFIG_FILE
from ..networks.pretrained import load_pipeline
from ..pictures import visible
from ..pipelines.conditional import ConditionalPipeline
from ..pipelines.schedulers import SCHEDULERS, objective_name
from ..pipelines.vae import vae_decode
from ..settings import setting_of
from ..sharing.preview import preview
from ..training.at_checkpoint import pipeline_at, write_model
from ..training.command_line import read_recipe
from ..training.config import TrainingConfig
from ..training.ema import pipeline_of_length

_MOST_IMAGES, _MOST_FRAMES = 64, 50
_SAMPLING = ("num_inference_steps", "guidance_scale", "strength")
Request = dict[str, Any]


# -------------------------------------------------------------------------------------------------------- models
def _stamp(model: str) -> str:
    """Changes with the files of a model."""
    path = Path(model)
    files = [path / "manifest.json", path / "model_index.json", *path.glob("*/*.safetensors"), *path.glob("ema/*")]
    return json.dumps([model, *sorted(file.stat().st_mtime_ns for file in files if file.is_file())])


@lru_cache(maxsize=3)
def _loaded(model: str, length: float | None, stamp: str) -> ConditionalPipeline:
    if length is not None:
        pipe = pipeline_of_length(model, length)
    else:
        pipe = pipeline_at(model) if Path(model, "manifest.json").is_file() else load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipe


def _model(request: Request) -> ConditionalPipeline:
    model, length = str(request["model"]), request.get("ema_length")
    return _loaded(model, None if length is None else float(length), _stamp(model))


def model_info(model: str) -> dict[str, object]:
    """What the form for drawing needs to know of a model."""
    pipe = _model({"model": model})
    setting = setting_of(type(pipe).__name__, type(pipe.adapter).__name__)
    width, height = _size(pipe)
    return {
        "setting": setting.name,
        "formula": setting.card.formula,
        "classes": list(pipe.adapter.id2label.values()) if setting.has_classes else [],
        "examples": examples_of(pipe, setting)[:40],
        "num_inference_steps": pipe.config.default_num_inference_steps,
        "guidance_scale": pipe.config.default_guidance_scale,
        "scheduler": type(pipe.scheduler).__name__,
        "schedulers": list(SCHEDULERS.get(objective_name(pipe.config.get("objective"), pipe.scheduler), {})),
        "width": width,
        "height": height,
        "num_parameters": sum(p.numel() for p in pipe.unet.parameters()),
        "embedding_dim": None if setting.has_classes else pipe.adapter.config.get("embedding_dim"),
    }


def _size(pipe: ConditionalPipeline) -> tuple[int, int]:
    size = unwrapped(pipe.unet).config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor


# ------------------------------------------------------------------------------------------------------- drawing
def draw(request: Request, home: str) -> dict[str, object]:
    """Images of conditions and seeds; the same request is answered from the cache."""
    conditions, seeds = list(request["conditions"]), [int(seed) for seed in request["seeds"]]
    if not 0 < len(conditions) == len(seeds) <= _MOST_IMAGES:
        raise UserError(f"{len(conditions)} conditions and {len(seeds)} seeds: as many of both, {_MOST_IMAGES} at most")
    return _kept(request, home, lambda: _drawn(_model(request), request, conditions, seeds, home))


def interpolate(request: Request, home: str) -> dict[str, object]:
    """Images from one noise, under conditions between two."""
    from ..grids import interpolated

    def drawn() -> dict[str, object]:
        sampling = {name: request[name] for name in _SAMPLING if request.get(name) is not None}
        count, seed = min(_MOST_IMAGES, int(request.get("num_steps") or 8)), int(request.get("seed") or 0)
        images = interpolated(_model(request), request["first"], request["second"], count, seed, **sampling)
        return {"images": [_saved(image, home) for image in images]}

    return _kept(request | {"what": "between"}, home, drawn)


def _kept(request: Request, home: str, make: Any) -> dict[str, object]:
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


def _drawn(
    pipe: ConditionalPipeline, request: Request, conditions: list[object], seeds: list[int], home: str
) -> dict[str, object]:
    sampling = {name: request[name] for name in _SAMPLING if request.get(name) is not None}
    for name, argument in (("image", "image"), ("mask", "mask_image")):
        if request.get(name):
            picture = ImageOps.fit(read_image(request[name], home, 3 if name == "image" else 1), _size(pipe))
            sampling[argument] = [picture] * len(seeds)
    if not sampling.get("image"):
        sampling.pop("strength", None)
    frames: list[list[Image.Image]] = []
    if request.get("film"):

        def on_step(pipe: ConditionalPipeline, i: int, t: object, kwargs: Request) -> Request:
            frames.append(_frame(pipe, kwargs))
            return {}

        sampling["callback_on_step_end"] = on_step
    scheduler = pipe.scheduler
    try:
        if request.get("scheduler"):
            pipe.use_scheduler(str(request["scheduler"]))
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = pipe.sample(conditions, generator=generator, **sampling).images
    finally:
        pipe.register_modules(scheduler=scheduler)
    frames = frames[:: -(-len(frames) // _MOST_FRAMES) or 1]
    saved = [_saved(image, home) for image in images]
    films = [[*(_saved(frame[i], home) for frame in frames[:-1]), saved[i]] for i in range(len(images))]
    return {"images": saved, "films": films if frames else None}


@torch.no_grad()
def _frame(pipe: ConditionalPipeline, kwargs: dict[str, Any]) -> list[Image.Image]:
    latents = kwargs["latents"]  # (B, C, h, w)
    pixels = latents if pipe.vae is None else vae_decode(pipe.vae, latents)
    arrays = (pixels.clamp(-1, 1) + 1).permute(0, 2, 3, 1).float().cpu().numpy() / 2  # (B, H, W, C)
    return [visible(array) for array in arrays]


def _saved(image: Image.Image, home: str) -> str:
    """The address of an image in the cache, named by its pixels."""
    name = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:24] + ".png"
    path = Path(home) / "drawn" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with whole_file(path) as unfinished:
            image.save(unfinished, "PNG")
    return f"/api/drawn/{name}"


def read_image(text: object, home: str, channels: int = 3) -> Image.Image:
    """A data URL, or the address of an image that was drawn here. Raises UserError for anything else."""
    if not isinstance(text, str):
        raise UserError("an image is a data URL, or the address of one that was drawn here")
    if text.startswith("/api/drawn/"):
        source: object = Path(home) / "drawn" / os.path.basename(text)
    else:
        head, _, content = text.partition(";base64,")
        if not head.startswith("data:image/"):
            raise UserError("an image is a data URL, or the address of one that was drawn here")
        source = {"bytes": base64.b64decode(content), "path": None}
    with reading("the image"):
        image = open_image(source)
        if not isinstance(image, Image.Image):
            raise UserError("it has channels that make no picture: save it as PNG")
        return convert(image, channels)


# ------------------------------------------------------------------------------------------------ what others say
@lru_cache(maxsize=1)
def _training_images(run: str, changed: int) -> TrainingImages:
    return TrainingImages(load_data(TrainingConfig(**read_recipe(Path(run) / CONFIG_FILE))))


def nearest(request: Request, run: str, home: str) -> dict[str, object]:
    """The training images that are nearest to an image."""
    config = Path(run) / CONFIG_FILE
    if not config.is_file():
        raise UserError(f"{run} has no {CONFIG_FILE}, so its training images are not known")
    found = _training_images(run, config.stat().st_mtime_ns).nearest(read_image(request["image"], home))
    return {"items": [item | {"image": _saved(item["image"], home)} for item in found]}


def classify(request: Request, home: str) -> dict[str, object]:
    """p(y|x) of an image, by a class-conditional model."""
    pipe = _model(request)
    names = list(getattr(pipe.adapter, "id2label", {}).values())
    if len(names) < 2:
        raise UserError("p(y|x) needs a class-conditional model of two classes or more")
    image = ImageOps.fit(read_image(request["image"], home, unwrapped(pipe.unet).config.in_channels), _size(pipe))
    result = pipe.classify([image], names)
    order = result.probabilities[0].argsort(descending=True).tolist()
    return {"probabilities": [{"name": names[k], "p": float(result.probabilities[0, k])} for k in order]}


def choose(run: str, request: Request, folder: str) -> Request:
    """Write the model of a checkpoint, or of an EMA length, into a new folder."""
    write_model(_model(request), Path(run), Path(folder))
    return {"path": folder}


def shared(folder: str, repo_id: str) -> dict[str, object]:
    """The card of a model, and what a push would upload."""
    found = preview(folder, repo_id)
    files = [{"name": name, "bytes": size} for name, size in found.files.items()]
    return {"card": found.card, "files": files, "stays": found.stays, "problem": found.problem}
