"""Which run, or which weights, a result belongs to. Files of earlier versions do not say: they are accepted."""

import hashlib
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import load_file, save

from .builtin import with_builtin
from .console import say
from .errors import read_json, reading
from .files import sha256_of, whole_file
from .folders import RUN_FILE, component_names, inside

LORA_FILE, SUMMARY_FILE = "pytorch_lora_weights.safetensors", "training_summary.json"
_KEY = "run"


def weights_fingerprint(folder: str | Path) -> str | None:
    """A hash of all weights in a model's folder; None where there are none."""
    folder = Path(folder)
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return None
    components = component_names(index, folder / "model_index.json")
    files = sorted(path for name in components for path in (folder / name).glob("*.safetensors"))
    files = [inside(folder, path.relative_to(folder)) for path in files]
    files += [folder / LORA_FILE] if (folder / LORA_FILE).is_file() else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()[:16] if files else None


def class_names_of(name_or_path: str) -> tuple[str, str]:
    """The class names of a model's pipeline and adapter, of a folder or on the Hub; "" where it has none.

    Raises:
        UserError: there is no such model.
    """
    name_or_path = str(with_builtin(name_or_path))
    if Path(name_or_path).is_dir():
        index = read_json(Path(name_or_path) / "model_index.json")
    else:
        from diffusers import DiffusionPipeline

        with reading(name_or_path):
            index = DiffusionPipeline.load_config(name_or_path)
    names = (index.get("_class_name"), index.get("adapter"))
    pipeline, adapter = (str(name[1] if isinstance(name, list) and len(name) == 2 else name or "") for name in names)
    return pipeline, adapter


def run_of_folder(folder: Path) -> str | None:
    """The run that left its model in a folder, or that is under way there; None where nothing says so."""
    for name in (RUN_FILE, SUMMARY_FILE):
        try:
            values = read_json(folder / name)
        except (OSError, ValueError):
            continue
        run = values.get(_KEY) if isinstance(values, dict) else None
        if isinstance(run, str):
            return run
    return None


def run_of_file(path: Path) -> str | None:
    """The run that wrote a picture or a file of weights; None where the file does not say."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found: str | None = (file.metadata() or {}).get(_KEY)
                return found
        with Image.open(path, formats=["PNG", "GIF"]) as image:  # no other is ours
            run = image.info.get(_KEY)
            return run if isinstance(run, str) else None
    except Exception:  # unreadable, as another place says; Pillow has no base class for what broken files raise
        return None


def belongs(path: Path, run: str | None) -> bool:
    """Whether a file is of `run`; a line says so where it is of another."""
    found = run_of_file(path)
    if found is None or run is None or found == run:
        return True
    ignored(path, f"it is of another run ({found}, and this is {run})")
    return False


def report_belongs(report: Any, folder: Path, path: Path, facts: dict[str, Any]) -> bool:
    """Whether an evaluation's report is about the weights in `folder`; a line says so where it is not.

    Args:
        facts: what is known of the model, such as {"setting": "class"}; a report that says otherwise is of another.
    """
    if not isinstance(report, dict):
        return True
    for name, value in facts.items():
        if report.get(name) not in (None, value):
            ignored(path, f"it is of another model ({name} {report[name]}, and this has {value})")
            return False
    measured, there = report.get("weights"), weights_fingerprint(folder)
    # A folder without weights, as in model_cards/, holds what a card is made of and nothing that can draw.
    if None not in (measured, there) and measured != there:
        ignored(path, "it is of other weights; `cond-pipelines evaluate` measures these")
        return False
    return True


def ignored(path: Path, why: str) -> None:
    """Say that a result is left alone."""
    say(f"warning: {path} is ignored: {why}")


# -------------------------------------------------------------------------------------------------- marked files
def save_picture(image: Image.Image, path: Path, run: str | None = None) -> None:
    """Write a whole PNG that says of which run it is."""
    info = PngImagePlugin.PngInfo()
    if run is not None:
        info.add_text(_KEY, run)
    with whole_file(path) as unfinished:
        image.save(unfinished, "PNG", pnginfo=info)


def mark_weights(path: Path, run: str) -> None:
    """Write a small file of weights again, with the run that it is of."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(save(tensors, metadata | {_KEY: run}))
