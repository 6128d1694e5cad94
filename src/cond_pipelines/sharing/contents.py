"""What goes up in a push: files of an allow list, without paths, and every byte of them is searched before it goes."""

import getpass
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token

from ..errors import UserError, read_json, read_yaml
from ..files import without_path, write_json, write_text
from ..folders import check_model_folder, component_names, inside
from ..provenance import LORA_FILE, SUMMARY_FILE, report_belongs

_PAGE = (
    *("README.md", LORA_FILE, "unet/config.json", "LICENSE", "card.yaml", "training_config.yaml", SUMMARY_FILE),
    *("samples.png", "steps.png", "samples.gif", "loss.png", "evaluation/report.json", "evaluation/report.md"),
    *("evaluation/sweep.json", "evaluation/sweep.md", "evaluation/sweep.png", "evaluation/samples.png"),
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
_SEARCHED_BYTES = 2**24
_TOKEN = re.compile(rb"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|sk-[A-Za-z0-9_-]{32,}|AKIA[A-Z0-9]{16})\b")
_COMMON_USERS = {"root", "user", "users", "admin", "ubuntu", "runner", "docker", "jovyan", "app", "test", "home"}
_TEXT = (".json", ".md", ".yaml", ".txt", ".py", ".jinja")


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
    code = [f"{index[name][0]}.py" for name in ("_class_name", "adapter")] if named and "adapter" in index else []
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
    elif source.suffix == ".json" and source.name not in _TOKENS:
        values = read_json(source)
        values = values if source.name == "tokenizer_config.json" else without_path(values)
        for key in ("_name_or_path", "name_or_path"):  # where the machine had it, if only relative to a folder
            values.pop(key, None)
        write_json(target, values)
    elif name == LORA_FILE:
        _copy_without_paths(source, target)
    elif source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
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
        header = json.loads(file.read(length))
        metadata = {}
        for key, text in header.get("__metadata__", {}).items():
            try:
                values = json.loads(text)
            except ValueError:
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


# -------------------------------------------------------------------------------------------------- the last look
@dataclass
class Secret:
    """What must not go up: `pattern` in the bytes of a file, and what it is in words."""

    what: str
    pattern: re.Pattern[bytes]
    in_text_only: bool = False


def secrets_of(paths: Iterable[Path], tokens: Iterable[str | None], repo_id: str) -> list[Secret]:
    """What tells of this machine and its user.

    Args:
        paths: to search for, in addition to the home folder and the working folder.
        tokens: to search for, in addition to the one that huggingface_hub is logged in with.
        repo_id: the name of its owner is public, also where it is the user's name here.
    """
    folders = {"the home folder": Path.home(), "the working folder": Path.cwd()}
    folders |= {f"the folder {path}": path for path in paths}
    found = []
    for what, path in folders.items():
        shortest = 2 if path == Path.home() else 3  # /tmp tells nothing of anybody
        for form in {str(path), str(path.resolve())} if len(path.resolve().parts) >= shortest else ():
            found.append(Secret(what, _any_form(form)))
    for token in {get_token(), *tokens} - {None, ""}:
        found.append(Secret("a token", re.compile(re.escape(str(token).encode()))))
    found.append(Secret("what looks like a token", _TOKEN))
    user = _user()
    if user is not None:
        name = re.escape(user.encode())
        found.append(Secret("the user's name", re.compile(rb"[/\\](?:home|Users)[/\\]+" + name + rb"(?![\w.-])")))
        if len(user) > 2 and user.lower() not in (_COMMON_USERS | {repo_id.split("/")[0].lower()}):
            word = re.compile(rb"(?<![A-Za-z0-9])" + name + rb"(?![A-Za-z0-9])")
            found.append(Secret("the user's name", word, in_text_only=True))
    return found


def _any_form(path: str) -> re.Pattern[bytes]:
    """A path as it is, and as JSON and a URL write it; the same path with more behind it is another one."""
    forms = {path, json.dumps(path)[1:-1], path.replace("\\", "/"), path.replace(" ", "%20"), path.replace("/", "\\/")}
    return re.compile(b"(?:%s)(?![\\w.-])" % b"|".join(re.escape(form.encode()) for form in sorted(forms)))


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return None


def refuse_secrets(stage: Path, secrets: list[Secret]) -> None:
    """Search every byte below `stage`. Raises UserError with the name of a file that tells of this machine."""
    files = [path for path in stage.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name == "README.md", path)):  # the card repeats what others say
        for secret in secrets:
            if secret.in_text_only and path.suffix not in _TEXT:
                continue
            for part in _parts(path):
                if match := secret.pattern.search(part):
                    shown = "" if "token" in secret.what else f" ({match.group().decode(errors='replace')})"
                    raise UserError(
                        f"not pushed: {path.relative_to(stage)} holds {secret.what}{shown}: take it out of that file"
                    )


def _parts(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in parts that overlap by more than what is searched for; of a PNG its texts too."""
    with path.open("rb") as file:
        rest = b""
        while part := file.read(_SEARCHED_BYTES):
            yield rest + part
            rest = part[-8192:]
    if path.suffix == ".png":
        yield _texts_of_png(path)


def _texts_of_png(path: Path) -> bytes:
    """Its texts, which may be compressed."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return "\n".join(f"{key} {value}" for key, value in image.info.items()).encode("utf-8", "replace")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"not pushed: {path.name} is no PNG that can be read: {error}") from error
