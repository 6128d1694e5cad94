"""A model as a static page that draws in the reader's browser: networks as ONNX, onnxruntime-web, and web/.

index.html, *.js, style.css   the page, as in web/ here
ort*                          onnxruntime-web, see onnxruntime_web.py
*.onnx                        the networks, weights in half precision where the images stay the same
model.json                    what the page needs to know of the model
"""

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..adapters.class_label import ClassLabelAdapter
from ..adapters.denoiser import takes_end_time
from ..adapters.text import TextAdapter
from ..adapters.unconditional import UnconditionalAdapter
from ..console import say
from ..errors import UserError, read_json
from ..files import remove, write_text
from ..networks.text_encoders import train_tokenizer
from ..pipelines.image_inputs import num_channels_latents
from ..pipelines.schedulers import is_flow_model, set_timesteps
from .onnx_folder import write_onnx
from .onnxruntime_web import NOTICE, onnxruntime_web

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..pipelines.conditional import ConditionalPipeline

PAGE = Path(__file__).parent / "web"
MAX_BYTES = 30_000_000
_MAX_STEPS, _NUM_CHECKED = 50, 4
_MAX_DIFFERENCE = 1.0  # of 255, between images of the weights in half precision and of the model's own
_NUM_COMPARED = 4  # images
_FEWEST_NUMBERS = 16  # of an image: torch.randn draws fewer in another way, see noise.js
_SMALL = 256  # numbers of a tensor that stays in float32
_METHODS = {"FlowMatchEulerDiscreteScheduler": "euler", "FlowMatchHeunDiscreteScheduler": "heun"}


def write_web(
    pipe: "ConditionalPipeline",
    folder: Path,
    *,
    name: str,
    source: str,
    runtime: Mapping[str, bytes] | str | Path | None = None,
) -> int:
    """Write the page of a model into a folder.

    Args:
        name: its title. source: what Python loads the model by.
        runtime: the files of onnxruntime-web, or what `onnxruntime_web` takes.

    Returns:
        The size of the folder in bytes.

    Raises:
        UserError: the page cannot draw with this model, or is larger than 30 MB; the line says what to do.

    Example:
        >>> write_web(pipe, Path("page"), name="Shapes", source="me/shapes")
    """
    facts = _facts(pipe) | {"name": name, "source": source}  # before anything that takes time: it refuses models
    files = runtime if isinstance(runtime, Mapping) else onnxruntime_web(runtime)
    _check_size(2 * _num_weights(pipe) + sum(map(len, files.values())), pipe, "half")  # no export would be smaller
    folder.mkdir(parents=True, exist_ok=True)
    is_half = _keeps_images_in_half(pipe, facts["examples"])
    write_onnx(pipe, folder)
    facts["networks"] = read_json(folder / "model.json")["networks"]
    for leftover in ("scheduler", "tokenizer"):
        remove(folder / leftover)
    for network in facts["networks"] if is_half else ():
        _store_in_half(folder / f"{network}.onnx")
    for path in PAGE.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for file, content in files.items():
        (folder / file).write_bytes(content)
    write_text(folder / "NOTICE.txt", NOTICE)
    write_text(folder / "model.json", json.dumps(facts, ensure_ascii=False, allow_nan=False))
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    _check_size(size, pipe, "half" if is_half else "single, since half precision changes its images")
    return size


def _check_size(size: int, pipe: "ConditionalPipeline", precision: str) -> None:
    if size > MAX_BYTES:
        raise UserError(
            f"the page would have {size / 1e6:.1f} MB, and {MAX_BYTES / 1e6:.0f} MB is the limit: its networks have "
            f"{_num_weights(pipe) / 1e6:.1f} million weights in {precision} precision; train a smaller one "
            "(--unet_size s)"
        )


# ------------------------------------------------------------------------------------------------- what the page knows
def _facts(pipe: "ConditionalPipeline") -> dict[str, Any]:
    """Of a model that the page can draw with. Raises UserError for any other, with what to do."""
    adapter, config, channels = pipe.adapter, pipe.unet.config, num_channels_latents(pipe)
    kinds = (UnconditionalAdapter, ClassLabelAdapter, TextAdapter)
    if type(adapter) not in kinds:
        known = ", ".join(kind.__name__ for kind in kinds)
        raise _refused(f"its conditions are of {type(adapter).__name__}, and the page has {known}", "use --to onnx")
    if pipe.components.get("vae") is not None:
        raise _refused("it draws latents, and the page draws pixels", "use --to onnx")
    if pipe.components.get("guider") is not None:
        raise _refused(f"it has a guider, {type(pipe.guider).__name__}", "save it without one: pipe.guider = None")
    if channels not in (1, 3, 4) or config.in_channels != channels:
        raise _refused(f"its network takes {config.in_channels} channels", "the page shows 1, 3 or 4: use --to onnx")
    size = config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if channels * height * width < _FEWEST_NUMBERS:
        raise _refused(
            f"its images have {height} x {width} px", "the page's noise begins with larger ones: use --to onnx"
        )
    method = _method(pipe)
    is_fused = method == "stochastic" and takes_end_time(pipe.unet)
    has_guidance = pipe.components.get("guide") is not None or not isinstance(adapter, UnconditionalAdapter)
    return {
        "sentence": _sentence(adapter),
        "classes": _classes(adapter) if isinstance(adapter, ClassLabelAdapter) else None,
        "tokenizer": _tokenizer(pipe) if isinstance(adapter, TextAdapter) else None,
        "examples": _examples(pipe) if isinstance(adapter, TextAdapter) else [],
        "sample_shape": [channels, height, width],
        "method": method,
        "steps": _steps(pipe),
        "default_steps": pipe.config.default_num_inference_steps,
        "guidance": {"default": pipe.config.default_guidance_scale, "is_shown": has_guidance and not is_fused},
    }


def _refused(why: str, remedy: str) -> UserError:
    return UserError(f"this model cannot become a page: {why}: {remedy}")


def _sentence(adapter: nn.Module) -> str:
    if isinstance(adapter, ClassLabelAdapter):
        return "It draws images of a class, p(x|y)."
    return "It draws what a caption says, p(x|text)." if isinstance(adapter, TextAdapter) else "It draws images, p(x)."


def _method(pipe: "ConditionalPipeline") -> str:
    """How the page steps: "euler", "heun" or "stochastic"; the three that sampler.js has."""
    name = type(pipe.scheduler).__name__
    if name not in _METHODS:
        is_flow = str((pipe.config.objective or {}).get("name")) in ("flow_matching", "distillation")
        remedy = 'save it with pipe.use_scheduler("euler")' if is_flow else "train one with --objective flow_matching"
        raise _refused(f"its scheduler is {name}, and the page has {' and '.join(_METHODS)}", remedy)
    return "stochastic" if pipe.scheduler.config.get("stochastic_sampling") else _METHODS[name]


def _steps(pipe: "ConditionalPipeline") -> dict[str, dict[str, list[float]]]:
    """The scheduler's own timesteps and sigmas, for each number of steps that it can make."""
    default, schedules = int(pipe.config.default_num_inference_steps), {}
    is_flow = is_flow_model(pipe.config.objective, pipe.scheduler)
    for n in range(1, max(_MAX_STEPS, default) + 1):
        try:
            if n <= _NUM_CHECKED or n == default:  # what a scheduler cannot do shows in few steps; a check takes time
                timesteps = pipe.set_timesteps(n)
            else:
                timesteps = set_timesteps(pipe.scheduler, n, torch.device("cpu"), is_flow, {})
        except ValueError as error:
            if n == default:
                raise _refused(f"its scheduler cannot make its {n} steps", str(error)) from error
            continue
        schedules[str(n)] = {"timesteps": timesteps.tolist(), "sigmas": pipe.scheduler.sigmas.tolist()}
    return schedules


def _classes(adapter: ClassLabelAdapter) -> list[dict[str, object]]:
    """Number, name, and what a call takes for it: the name, or the number where the name is not its own."""
    names = adapter.id2label or {i: f"class {i}" for i in range(adapter.num_classes)}
    count = Counter(names.values())
    is_label = {i: bool(adapter.id2label) and count[name] == 1 for i, name in names.items()}
    return [{"id": i, "name": name, "label": name if is_label[i] else i} for i, name in sorted(names.items())]


def _examples(pipe: "ConditionalPipeline") -> list[str]:
    """Captions of the training data, as the run noted them."""
    path = Path(str(pipe.config.get("_name_or_path") or "")) / "training_summary.json"
    captions = read_json(path).get("example_conditions") if path.is_file() else None
    return [text for text in captions if isinstance(text, str)][:32] if isinstance(captions, list) else []


def _tokenizer(pipe: "ConditionalPipeline") -> dict[str, object]:
    """What tokenizer.js needs of a tokenizer that `new_text_encoder` made."""
    tokenizer = pipe.tokenizer
    if not hasattr(tokenizer, "backend_tokenizer") or _without_vocabulary(tokenizer) != _without_vocabulary(
        train_tokenizer(["a"])
    ):
        raise _refused(
            f"its tokenizer ({type(tokenizer).__name__}) is not one that new_text_encoder makes",
            "train with a new text encoder (leave out --text_encoder_name_or_path), or use --to onnx",
        )
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return {
        "vocab": model["vocab"],
        "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]],
        "special": {name: tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "<start>", "<end>")},
        "start": tokenizer.convert_tokens_to_ids("<start>"),
        "end": tokenizer.convert_tokens_to_ids("<end>"),
        "pad": tokenizer.pad_token_id or 0,
        "max_length": min(pipe.adapter.config.max_length, tokenizer.model_max_length),
    }


def _without_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Everything that decides how a text is split, apart from what was learned, and from where it is cut."""
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["model"] = {k: v for k, v in whole["model"].items() if k not in ("vocab", "merges")}
    return {k: v for k, v in whole.items() if k not in ("truncation", "padding", "decoder")}


# ----------------------------------------------------------------------------------------------------- half precision
def _networks(pipe: "ConditionalPipeline") -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _num_weights(pipe: "ConditionalPipeline") -> int:
    return sum(p.numel() for part in _networks(pipe).values() for p in part.parameters())


@torch.no_grad()
def _keeps_images_in_half(pipe: "ConditionalPipeline", examples: list[str]) -> bool:
    """Whether the model draws the same with its weights rounded to half precision; says so where it does not."""
    parts = {name: copy.deepcopy(part) for name, part in _networks(pipe).items()}
    is_exact = True
    for part in parts.values():
        for p in part.parameters():
            rounded = p.half().to(p.dtype)
            is_exact = is_exact and torch.equal(rounded, p)
            p.copy_(rounded)
    if is_exact:
        return True
    other = type(pipe)(**pipe.components | parts)
    conditions: list[object] = [None] * _NUM_COMPARED
    if isinstance(pipe.adapter, ClassLabelAdapter):
        ids = list(pipe.adapter.id2label) or list(range(pipe.adapter.num_classes))
        conditions = [ids[i % len(ids)] for i in range(_NUM_COMPARED)]
    elif isinstance(pipe.adapter, TextAdapter):
        texts = examples or ["a picture"]
        conditions = [texts[i % len(texts)] for i in range(_NUM_COMPARED)]
    ours, theirs = (
        one.sample(conditions, generator=list(range(_NUM_COMPARED)), output_type="np").images for one in (pipe, other)
    )
    difference = 255 * float(np.abs(ours - theirs).max())
    if not difference <= _MAX_DIFFERENCE:
        say(f"weights stay in single precision: in half precision images differ by {difference:.1f} of 255")
        return False
    return True


def _store_in_half(path: Path) -> None:
    """Keep large tensors of an ONNX file as float16, each with a Cast to float32 before it is used."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and array.size > _SMALL:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
