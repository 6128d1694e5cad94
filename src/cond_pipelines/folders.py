"""What may be read of a folder that somebody else made, and where something may be written in it.

What a folder says of itself is data: a path in it leads to a file in the folder or is refused, and so is a link that
leaves it. `check_model_folder` decides for every loader which files it may read; it runs before anything is loaded.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .errors import UserError, describe, read_json
from .files import is_mostly_hole

# In the output folder of a run: whose it is, who writes there, and how it was made.
RUN_FILE, LOCK_FILE, CONFIG_FILE = "run.json", ".lock", "training_config.yaml"
REQUESTS = {"sample": "sample-now", "save": "save-now"}  # files that a run takes as a wish, see `training.requests`
COMPONENT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)
_CLASS = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)  # or a module; a card has it in a block of code
WEIGHTS = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors", re.ASCII)
# Sub-folders of a model's folder that commands read or write, in addition to its components.
_PLACES = ("evaluation", "images", ".eval_results", "ema", "adapter", "unet", "vae", "text_encoder", "tokenizer")
_MAX_FILES = 20_000  # in all of these
_MAX_NUMBER, _MAX_LAYERS, _MAX_DEPTH, _MAX_VALUES = 10_000_000, 5_000, 50, 1_000_000
_MAX_GROWTH = 1_000  # of a text, by the normalizer of a tokenizer
_MAX_TEMPLATE = 1_000  # values in the post_processor of a tokenizer, which adds tokens to a text
_MAX_ADDED = 20_000  # tokens: reading them takes the square of their number
_MAX_HEADER_BYTES = 2**23  # of safetensors: 80,000 tensors
_MAX_TEXT_BYTES = 64 * 2**20
_TEXTS = {".json", ".txt", ".jinja", ".model", ".md", ".yaml", ".jsonl", ".py"}
# Fields that say how many of something are made one after the other; those of normalization are none.
_IN_LAYERS = re.compile(r"(?!.*norm).*layers?(_per_block)?|n_layer|num_blocks|depths?|.*num_inference_steps")
_COUNTS = re.compile(r"(.*_)?(heads|head_dim|channels|groups)")  # which are not below 0
_BLOCKS = ("block_out_channels", "down_block_types", "up_block_types", "encoder_block", "decoder_block")
# What the libraries read: config.json, tokenizer_config.json, config.4.0.0.json, which a config.json may name; of any
# case, as some disks are. Not data_config.json, which sentence-transformers leaves, and which is a list.
_READ = "tokenizer|generation|preprocessor|video_preprocessor|processor|image_processor|scheduler|adapter|quantization"
_CONFIG = re.compile(rf"model_index\.json|(({_READ})_)?config(\.[\w.-]+)?\.json", re.IGNORECASE)
# Those of networks; in others, as of tokenizers and processors, a large number is no size.
_SIZES = re.compile(r"model_index\.json|(scheduler_)?config(\.[\w.-]+)?\.json", re.IGNORECASE)
# With which a config names files: of its own folder, or, as transformers before 5.23 opens them, anywhere.
_FILES_HERE = ("configuration_files", "fast_tokenizer_files")
# tokenizer.json, and tokenizer.4.0.0.json, which a tokenizer_config.json may name.
_TOKENIZER = re.compile(r"tokenizer(\.[\w.-]+)?\.json", re.IGNORECASE)
_FILES_ANYWHERE = re.compile(r"\w+_(file|spm)")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def inside(folder: str | Path, name: str | Path = "") -> Path:
    """The path of `name` in `folder`, which every `..` and every link in it must not leave.

    Raises:
        UserError: it leads out of the folder; the line names where to.

    Example:
        >>> inside("flowers", "README.md")
        PosixPath('flowers/README.md')
    """
    folder = Path(folder)
    home = _home(folder)
    try:
        found = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL byte
        raise UserError(f"{folder}: {str(name)!r} is no path: {' '.join(str(error).split())}") from error
    if found != home and home not in found.parents:
        raise UserError(f"{folder}: {str(name)!r} leads out of the folder, to {found}, and is not followed")
    return folder / name


def is_within(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder itself or lies in it, links resolved.

    Example:
        >>> is_within("photos/cat", "photos"), is_within("photos2", "photos")
        (True, False)
    """
    path, folder = Path(path).resolve(), Path(folder).resolve()
    return path == folder or folder in path.parents


def _home(folder: Path) -> Path:
    """What `folder` may link into: itself, or, of the Hub's cache, the repository whose snapshot it is."""
    home = folder.resolve()
    for path in (home, *home.parents):
        if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
            return path.parent.parent
    return home


def component_names(index: dict[str, Any], where: str | Path) -> list[str]:
    """The components that a model_index.json names. Raises UserError for a name, or a class, that is no identifier."""
    names = [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
    for name in names:
        if not COMPONENT.fullmatch(name):
            raise UserError(f"{where}: {name[:100]!r} is no name of a component")
        for part in index[name]:
            if isinstance(part, str) and not _CLASS.fullmatch(part):
                raise UserError(f"{where}: {part[:100]!r}, of {name}, is no name of a class or a module")
    return names


def check_new_folder(path: Path, remedy: str) -> None:
    """Refuse to write where something is. Raises UserError, which ends with the remedy."""
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already: {remedy}")


def check_model_folder(folder: str | Path) -> None:
    """Refuse a folder in which anything that a loader or a command may touch is more than data of the folder itself.

    Refused are: a link that leaves the folder; a component whose name is a path; an index of weights that names a file
    elsewhere, or one that is not safetensors; what a PEFT adapter_config.json would load from elsewhere; numbers of
    layers, sizes and depths that no network has; a tokenizer whose replacements have no end; a file that says it is
    longer than what is on the disk.

    Args:
        folder: a pipeline's, or a single network's; also a snapshot in the Hub's cache.

    Raises:
        UserError: in one line, which names the file.
    """
    folder = Path(folder)
    index = folder / "model_index.json"
    names = component_names(read_json(inside(folder, index.name)), index) if index.is_file() else []
    for path in _touched(folder, names):
        inside(folder, path.relative_to(folder))
        if path.name.lower() == "adapter_config.json" and (path.parent != folder or not index.is_file()):
            raise UserError(f"{path} would load another model, which it names: it is not followed")
        if path.name.lower().endswith(".index.json"):
            _check_weights_index(path)
        elif _CONFIG.fullmatch(path.name):
            _check_config(path)
        elif _TOKENIZER.fullmatch(path.name):
            _check_tokenizer(path)


def _touched(folder: Path, components: list[str]) -> Iterator[Path]:
    """The files of the folder itself, and all below its components and the places that commands use."""
    count = 0
    places = [folder / name for name in dict.fromkeys((*components, *_PLACES))]
    for place in [folder, *places]:
        inside(folder, place.relative_to(folder))
        paths = place.iterdir() if place == folder else place.rglob("*")
        for path in paths if place.is_dir() else []:
            count += 1
            if count > _MAX_FILES:
                raise UserError(f"{folder} holds more than {_MAX_FILES:,} files")
            if path.is_file():
                check_length(path)
            if path.is_symlink() or path.is_file():
                yield path
            elif not path.is_dir():
                raise UserError(f"{path} is neither a file nor a folder")  # a pipe, which would be waited for


def check_length(path: Path) -> None:
    """Refuse a file that no disk holds, and a text, or a header of weights, that no library reads in a while."""
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder")  # a pipe, which would be waited for
    if path.suffix.lower() in _TEXTS and (size := path.stat().st_size) > _MAX_TEXT_BYTES:
        limit = _MAX_TEXT_BYTES / 2**20
        raise UserError(f"{path} is too large to be read: {size / 2**20:,.0f} MiB, and the limit is {limit:.0f}")
    if path.suffix == ".safetensors" and path.stat().st_size > _MAX_HEADER_BYTES:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if _MAX_HEADER_BYTES < length <= path.stat().st_size:  # of one that is cut off others say so
            raise UserError(f"{path}: its header has {length:,} bytes, which is more than any network needs")
    if is_mostly_hole(path):
        raise UserError(f"{path} says that it has {path.stat().st_size:,} bytes, and most of them are nowhere")


def _check_weights_index(path: Path) -> None:
    weights = read_json(path).get("weight_map")
    if not isinstance(weights, dict):
        raise UserError(f"{path}: it has no weight_map")
    for name in sorted({str(name) for name in weights.values()}):
        if not WEIGHTS.fullmatch(name):
            raise UserError(f"{path} names {name[:100]!r}: only weights as safetensors, in the same folder, are read")


def _check_config(path: Path) -> None:
    """Sizes before a network is made of them: a billion layers are made one by one."""
    config = read_json(path)
    bound = _MAX_NUMBER if _SIZES.fullmatch(path.name) else float("inf")
    length = config.get("model_max_length")  # of a tokenizer
    if not (length is None or (isinstance(length, int | float) and length >= 1)):  # nan fails too
        raise UserError(f"{path}: model_max_length {str(length)[:60]} must be a number of tokens")
    trained = config.get("trained_ids") or []  # of a tokenizer of ours
    if not (isinstance(trained, list) and all(isinstance(number, int) for number in trained)):
        raise UserError(f"{path}: trained_ids {str(trained)[:60]} must be a list of tokens' numbers")
    layers: dict[str, float] = {}
    for name, value in _values(config, path):
        _check_asked_for(path, name, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or name.startswith("rope"):
            continue
        if value < 0 and _COUNTS.fullmatch(name):
            raise UserError(f"{path}: {name} {value:g} is below 0")
        if _IN_LAYERS.fullmatch(name):
            layers[name] = max(1.0, layers.get(name, 1.0), abs(value))
        elif bound < abs(value) < float("inf"):
            raise UserError(f"{path}: {name} {value:g} is more than any network has ({bound:,.0f})")
    blocks = max((len(v) for k, v in config.items() if k.startswith(_BLOCKS) and isinstance(v, list)), default=1)
    per_block = [count for name, count in layers.items() if name.endswith("_per_block")]
    others = [count for name, count in layers.items() if not name.endswith("_per_block")]
    if blocks * math.prod(per_block) + sum(others) > _MAX_LAYERS:
        names = ", ".join(f"{name} {value:g}" for name, value in layers.items())
        raise UserError(f"{path}: {blocks} block(s) of {names} are more than any network has ({_MAX_LAYERS:,})")


def _check_tokenizer(path: Path) -> None:
    """Refuse what makes a long text of a short one: thirty times "a" to "aa" take all memory.

    A step of the normalizer puts its `content` in the place of each match, which may be between two letters, or its
    `prepend` before the text. A template puts its tokens around the text.
    """
    tokenizer = read_json(path)
    growth = 1.0
    for name, value in _values({"normalizer": tokenizer.get("normalizer")}, path):
        if isinstance(value, str) and name in ("content", "prepend", "Regex"):
            growth *= {"content": max(1, len(value)), "prepend": 1 + len(value), "Regex": 2}[name]
    if growth > _MAX_GROWTH:
        raise UserError(f"{path}: its replacements make a text up to {growth:g} times as long")
    added = tokenizer.get("added_tokens")
    if isinstance(added, list) and len(added) > _MAX_ADDED:
        raise UserError(f"{path}: it has {len(added):,} added_tokens ({_MAX_ADDED:,} at most are read)")
    in_template = sum(1 for _ in _values({"post_processor": tokenizer.get("post_processor")}, path))
    if in_template > _MAX_TEMPLATE:
        raise UserError(f"{path}: its post_processor has {in_template:,} values, more than a template needs")


def _check_asked_for(path: Path, name: str, value: object) -> None:
    """Refuse what a config asks a library to fetch or to read elsewhere: kernels of the Hub, other files."""
    if not isinstance(value, str):
        return
    if name in _KERNELS and "/" in value:
        raise UserError(f"{path} asks for code of {value[:100]!r} (attn_implementation), which is not run")
    leads_away = not re.fullmatch(r"(?!\.)[\w.-]+", value)
    # A path of whoever wrote the file, which old ones have, leads nowhere here.
    if leads_away and (name in _FILES_HERE or (_FILES_ANYWHERE.fullmatch(name) and os.path.lexists(value))):
        raise UserError(f"{path}: {name} names {value[:100]!r}: only a file of the same folder is read")


def damaged_weights(folder: str | Path, failure: Exception | None = None) -> str | None:
    """What to say of the first .safetensors file in a folder that is truncated, empty or no such file; None: none is.

    Only the beginning of each file is read.

    Args:
        failure: of whoever loads it, which may miss weights that are there in another variant only.
    """
    for path in sorted(Path(folder).rglob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except Exception as error:  # safetensors has no public base class
            return f"{path} is damaged ({path.stat().st_size:,} bytes; {describe(error)}): copy or download it again"
    return _variant_instead(str(failure))


def _variant_instead(error: str) -> str | None:
    """What to say where files of another variant lie in the folder in which `error` misses weights; None: none do."""
    missing = re.search(r"no file named (\w+)\.safetensors.* in directory (.+?)\.?$", " ".join(error.split()))
    if missing is None or not Path(missing[2]).is_dir():
        return None
    for path in sorted(Path(missing[2]).glob(f"{missing[1]}*.*.safetensors")):
        if variant := re.search(r"\.([A-Za-z]\w*)(-\d+-of-\d+)?\.safetensors$", path.name):
            remedy = f"give --variant {variant[1]} (in Python: variant=...)"
            return f"{missing[2]} holds weights of the variant {variant[1]} only: {remedy}"
    return None


def _values(config: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """All values, also of lists, each with the name of the field that it stands in."""
    left: list[tuple[str, Any, int]] = [("", config, 0)]
    count = 0
    while left:
        name, value, depth = left.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise UserError(f"{path} is nested too deeply, or holds too much")
        if isinstance(value, dict):
            of_kernels = name in _KERNELS  # {"attn_implementation": {"text_config": ...}}
            left += [(name if of_kernels else str(key), inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(name, inner, depth + 1) for inner in value]
        else:
            yield name, value
