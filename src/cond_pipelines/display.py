"""What a notebook shows of a pipeline: its setting, its size, its classes or captions, its defaults, four samples."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .adapters.denoiser import unwrapped
from .grids import title_of
from .pictures import image_grid
from .pipelines.schedulers import SCHEDULERS, objective_name
from .settings import Setting, setting_of
from .sharing.escaping import one_line
from .sharing.facts import CardFacts

if TYPE_CHECKING:
    from PIL import Image

    from .pipelines.conditional import ConditionalPipeline

_NUM_SAMPLES, _MAX_NAMES, _MOST_EXAMPLES = 4, 12, 40
# Larger networks take too long for a display: about 10 s for four images.
_MAX_PARAMETERS = {"cpu": 20e6}
_MAX_PARAMETERS_ELSEWHERE = 1e9


def html_of(pipe: "ConditionalPipeline") -> str:
    """HTML of a pipeline for a notebook. Labels and captions are somebody else's text: all text is escaped.

    Four samples are drawn, from the seeds 0 to 3, where the network is small enough for its device. A failure to draw
    them is a line of the display and no error.

    Example:
        >>> from IPython.display import HTML
        >>> HTML(html_of(pipe))
    """
    setting = setting_of(type(pipe).__name__, type(pipe.adapter).__name__)
    examples = examples_of(pipe, setting)
    rows = {"draws": _size(pipe), "network": _network(pipe)}
    if examples:
        rows["classes" if setting.has_classes else "examples of conditions"] = _listed(examples)
    rows["defaults"] = (
        f"num_inference_steps={pipe.config.default_num_inference_steps}, "
        f"guidance_scale={pipe.config.default_guidance_scale:g}, scheduler {type(pipe.scheduler).__name__}"
    )
    table = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows.items())
    title = f"<b>{_text(type(pipe).__name__)}</b>, {_text(setting.card.formula)}"
    return f"<div><p>{title}</p><table>{table}</table>{_samples(pipe, examples)}</div>"


def _text(text: object) -> str:
    return html.escape(one_line(text))


def _size(pipe: "ConditionalPipeline") -> str:
    size = getattr(getattr(unwrapped(pipe.unet), "config", None), "sample_size", None)
    if size is None:
        return "images of any size"
    height, width = (pipe.vae_scale_factor * n for n in (size if isinstance(size, list | tuple) else (size, size)))
    return f"images of {height} x {width} px" + ("" if pipe.vae is None else ", in latents")


def _network(pipe: "ConditionalPipeline") -> str:
    if pipe.unet is None:
        return "none"
    unet = unwrapped(pipe.unet)
    return f"{type(unet).__name__}, {_num_parameters(pipe) / 1e6:.1f} M parameters, on {pipe.device}"


def _num_parameters(pipe: "ConditionalPipeline") -> int:
    return sum(parameter.numel() for parameter in unwrapped(pipe.unet).parameters())


def facts_of(pipe: "ConditionalPipeline") -> dict[str, Any]:
    """What a form for drawing needs to know: the setting, classes or examples, defaults, schedulers, the size."""
    setting = setting_of(type(pipe).__name__, type(pipe.adapter).__name__)
    schedulers = SCHEDULERS.get(objective_name(pipe.config.get("objective"), pipe.scheduler), {})
    width, height = size_px(pipe)
    return {
        "setting": setting.name,
        "formula": setting.card.formula,
        "classes": list(pipe.adapter.id2label.values()) if setting.has_classes else [],
        "examples": examples_of(pipe, setting)[:_MOST_EXAMPLES],
        "num_inference_steps": pipe.config.default_num_inference_steps,
        "guidance_scale": pipe.config.default_guidance_scale,
        "scheduler": type(pipe.scheduler).__name__,
        "schedulers": list(schedulers),
        "width": width,
        "height": height,
        "num_parameters": _num_parameters(pipe),
        "embedding_dim": None if setting.has_classes else pipe.adapter.config.get("embedding_dim"),
    }


def size_px(pipe: "ConditionalPipeline") -> tuple[int, int]:
    """(width, height) of the images that a pipeline draws where nothing is given."""
    size = unwrapped(pipe.unet).config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor


def examples_of(pipe: "ConditionalPipeline", setting: Setting) -> list[object]:
    """Class names, or conditions that the training run recorded in the folder that the pipeline was loaded from."""
    if setting.has_classes:
        return list(pipe.adapter.id2label.values())
    folder = str(pipe.config.get("_name_or_path") or "")
    if not folder or not (Path(folder) / "training_summary.json").is_file():
        return []
    try:
        return list(CardFacts.of_folder(folder).examples)
    except (OSError, ValueError):  # the folder has changed since; the pipeline is in memory
        return []


def _listed(names: Sequence[object]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(one_line(title_of(name)) for name in names[:_MAX_NAMES]) + more


def _samples(pipe: "ConditionalPipeline", examples: Sequence[object]) -> str:
    if pipe.unet is None or pipe.adapter is None:
        return "<p>It has no network, so it draws nothing.</p>"
    if _num_parameters(pipe) > _MAX_PARAMETERS.get(pipe.device.type, _MAX_PARAMETERS_ELSEWHERE):
        return f"<p>No samples: this network is large for a {_text(pipe.device.type)}. pipe.grid(...) draws some.</p>"
    conditions = [examples[i % len(examples)] for i in range(_NUM_SAMPLES)] if examples else [None] * _NUM_SAMPLES
    bars = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**bars | {"disable": True})
    try:
        generator = [torch.Generator().manual_seed(seed) for seed in range(_NUM_SAMPLES)]
        images = pipe.sample(conditions, generator=generator).images
    except Exception as error:  # showing a pipeline never fails: what stands in its way is a line
        return f"<p>No samples: {_text(error)}</p>"
    finally:
        pipe.set_progress_bar_config(**bars)
    captions = [title_of(condition) for condition in conditions] if examples else None
    grid = image_grid(images, columns=_NUM_SAMPLES, captions=captions)
    return f'<img alt="{_text(", ".join(captions or ["four samples"]))}" src="{_data_address(grid)}">'


def _data_address(image: "Image.Image") -> str:
    png = io.BytesIO()
    image.save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
