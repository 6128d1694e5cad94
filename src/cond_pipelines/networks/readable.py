"""The files of a pretrained network that are read: those of `folders.check_model_folder`, fetched where need be."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ..folders import check_model_folder

SAFE = {"use_safetensors": True, "trust_remote_code": False}  # for every `from_pretrained` of transformers
TRANSFORMERS_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja")
VAE_FILES = tuple(f"{sub}{name}" for sub in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*"))
_NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def readable_folder(
    name_or_path: str | Path, files: tuple[str, ...] = TRANSFORMERS_FILES, variant: str | None = None, **hub: Any
) -> Path:
    """The folder of a network, from which every loader of this package reads; the Hub's files are fetched first.

    Args:
        name_or_path: a folder, or an id on the Hub.
        files: patterns of what is fetched from the Hub; pickled weights never are.
        variant: of the weights, such as "fp16". hub: revision, token, cache_dir, ... of `snapshot_download`.

    Raises:
        UserError: a file is no data of the folder itself; see `check_model_folder`.
        OSError: huggingface_hub's own, where there is no such model.

    Example:
        >>> AutoModel.from_pretrained(readable_folder("facebook/dinov2-base"), **SAFE)
    """
    if Path(name_or_path).is_dir():
        folder = Path(name_or_path)
    else:
        name = str(name_or_path)
        never = [*_NEVER, *([] if any("/" in pattern for pattern in files) else ["*/*"])]
        never += [] if variant else ["*.fp16.*"]
        try:
            folder = Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=never, **hub))
        except HFValidationError as error:
            raise OSError(f"{name} is no folder, and no name of a repository") from error
    check_model_folder(folder)
    return folder
