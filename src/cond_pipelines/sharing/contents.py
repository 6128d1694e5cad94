"""What goes up in a push: files of an allow list, without paths of this machine; `leaks` looks at them once more."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, read_json, read_json_list, read_yaml, reading
from ..files import without_path, write_json, write_text
from ..folders import check_model_folder, component_names, inside
from ..provenance import LORA_FILE, SUMMARY_FILE, report_belongs
from .bare_pictures import copy_picture

_SWEEP = "evaluation/sweep.json"  # a list of reports
_PAGE = (
    *("README.md", LORA_FILE, "unet/config.json", "LICENSE", "card.yaml", "training_config.yaml", SUMMARY_FILE),
    *("samples.png", "steps.png", "samples.gif", "loss.png", "evaluation/report.json", "evaluation/report.md"),
    *(_SWEEP, "evaluation/sweep.md", "evaluation/sweep.png", "evaluation/samples.png"),
    *("evaluation/per_class.png", "evaluation/confusion.png", ".eval_results/cond_pipelines.yaml"),
)
PRIVATE = ("evaluation/nearest.png",)  # which show images of the training data
_PICTURES = re.compile(r"images/\d\d\.png", re.ASCII)
# Files of a component, as diffusers and transformers name them.
_COMPONENT_FILE = re.compile(
    r"(diffusion_pytorch_model|model)[\w.-]*\.safetensors(\.index(\.\w+)?\.json)?"
    r"|(config|scheduler_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|generation_config"
    r"|preprocessor_config)\.json"
    r"|vocab\.txt|merges\.txt|(spiece|sentencepiece\.bpe|tokenizer)\.model|chat_template\.jinja",
    re.ASCII,
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENS = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")  # any text is one
_MAX_HEADER_BYTES = 2**27  # of safetensors; its own limit is 100 MB


def copy_model(folder: Path, stage: Path) -> None:
    """Copy the components that model_index.json names, and the code, into `stage`.

    Raises:
        UserError: `folder` is no model of this library, or a file is more than data of it; see `check_model_folder`.
    """
    check_model_folder(folder)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    components = component_names(index, folder / "model_index.json")
    pairs = [index.get("_class_name"), *(index[name] for name in components)]
    named = all(isinstance(p, list) and len(p) == 2 and all(isinstance(x, str | None) for x in p) for p in pairs)
    code = [f"{index[name][0]}.py" for name in ("_class_name", "adapter")] if named and "adapter" in components else []
    if not code or not all(re.fullmatch(r"\w+\.py", name, re.ASCII) for name in code):
        raise UserError(
            f"{folder} is no model to push (its model_index.json lacks an adapter, or code): load it with "
            "ConditionalPipeline.from_pretrained and save it again"
        )
    for name in ("model_index.json", code[0]):
        copy_file(folder, name, stage)
    for component in components:
        for path in sorted((folder / component).glob("*")) if index[component][1] is not None else []:
            is_code = component == "adapter" and path.name == code[1]
            if path.is_file() and (is_code or _COMPONENT_FILE.fullmatch(path.name)):
                copy_file(folder, f"{component}/{path.name}", stage)


def copy_page(folder: Path, stage: Path, include_training_images: bool = False) -> list[str]:
    """Copy the card and what it shows, of the weights that are in `stage`, where they are not there yet.

    Returns:
        Names of pictures of the training data, which stay unless `include_training_images`.
    """
    check_model_folder(folder)
    report = folder / "evaluation/report.json"
    evaluated = not report.is_file() or report_belongs(read_json(report), stage, report, {})
    names = [*_PAGE, *(PRIVATE if include_training_images else ())]
    names += sorted(f"images/{path.name}" for path in folder.glob("images/*.png"))
    for name in names:
        of_evaluation = name.startswith(("evaluation/", ".eval_results/"))
        known = name in _PAGE or name in PRIVATE or _PICTURES.fullmatch(name)
        if known and (evaluated or not of_evaluation) and (folder / name).is_file() and not (stage / name).exists():
            copy_file(folder, name, stage)
    return [] if include_training_images else [name for name in PRIVATE if evaluated and (folder / name).is_file()]


def copy_file(folder: Path, name: str, stage: Path) -> None:
    """Copy a file, without paths of this machine in what is text; weights as a link, since they are only read."""
    source, target = inside(folder, name), stage / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name == "training_config.yaml":
        values = {k: _setting(k, v) for k, v in read_yaml(source).items() if k != "hub_token"}
        write_text(target, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    elif name == _SWEEP:
        write_json(target, without_path(read_json_list(source)))
    elif source.suffix == ".json" and source.name not in _TOKENS:
        values = read_json(source)
        values = values if source.name == "tokenizer_config.json" else without_path(values)
        for key in ("_name_or_path", "name_or_path"):  # where the machine had it, if only relative to a folder
            values.pop(key, None)
        write_json(target, values)
    elif name == LORA_FILE:
        with reading(str(source)):
            _copy_without_paths(source, target)
    elif source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
    elif source.suffix in (".png", ".gif"):
        copy_picture(source, target)
    else:
        shutil.copyfile(source, target)


def _setting(name: str, value: Any) -> Any:
    """A setting of the run. A name of a folder stays, without what leads there; so does an id of the Hub."""
    is_path = name.endswith("_dir") or (name.endswith("_or_path") and not _HUB_ID.fullmatch(str(value)))
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) and is_path else without_path(value)


def _copy_without_paths(source: Path, target: Path) -> None:
    """A safetensors file whose header names no path: PEFT notes there what a LoRA was made from."""
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise UserError(f"{source} is no safetensors file: its header would have {length:,} bytes")
        header = json.loads(file.read(length))
        metadata = {}
        for key, text in header.get("__metadata__", {}).items():
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                metadata[key] = without_path(text)
                continue
            metadata[key] = json.dumps(_without_origin(without_path(values)))
        if metadata:
            header["__metadata__"] = metadata
        written = json.dumps(header).encode()
        written += b" " * (-len(written) % 8)
        with target.open("wb") as out:
            out.write(len(written).to_bytes(8, "little") + written)
            shutil.copyfileobj(file, out)


def _without_origin(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {k: None if k.endswith("base_model_name_or_path") else _without_origin(v) for k, v in values.items()}
