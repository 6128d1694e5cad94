"""The last save of a run: the finished model, whole in its folder, or somewhere else where that has no room."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from ..console import say
from ..data.load import cache_home
from ..files import remove, sync_folder, sync_tree, unfinished_folder, whole_folder
from ..pipelines.conditional import ConditionalPipeline
from ..provenance import LORA_FILE, SUMMARY_FILE, mark_weights
from .config import TrainingConfig
from .failures import TrainingFailure
from .lora import save_model
from .run_folder import RunFolder

_WAIT_SEC = 20  # between two looks for room
# Of an earlier model of the same run: what the new one writes under another name, or not at all.
_STALE = (
    "pipeline_cond_*.py",
    LORA_FILE,
    "*/modeling_cond_*.py",
    "*/diffusion_pytorch_model*",
    "*/model*.safetensors*",
)


def save_finished(
    folder: RunFolder, config: TrainingConfig, pipe: ConditionalPipeline, parent: ConditionalPipeline | None
) -> str | None:
    """Write the model and training_config.yaml into the output folder, or elsewhere where that cannot be written to.

    Where there is no room anywhere it waits, for the weights are only in memory.

    Returns:
        None; or in one line why the model is elsewhere, and where.
    """

    def write(place: Path) -> None:
        save_model(pipe, place, parent)
        config.save(place / "training_config.yaml")
        if folder.run is not None and (place / LORA_FILE).is_file():
            mark_weights(place / LORA_FILE, folder.run)

    others, has_warned = list(_other_places(folder, config)), False
    while True:
        reason = _problem_of(lambda: _write_here(folder.path, write))
        if reason is None:
            return None
        for place in others:
            if _problem_of(partial(_write_there, place, write)) is None:
                return (
                    f"training is finished, but {folder.path} cannot be written to ({reason}); the trained model is "
                    f"saved in {place}"
                )
        if not has_warned:
            say(
                f"warning: {folder.path} cannot be written to ({reason}), nor can {', '.join(map(str, others))}: the "
                f"trained model is kept in memory; make room (a new try every {_WAIT_SEC} s, Ctrl-C gives it up)"
            )
            has_warned = True
        time.sleep(_WAIT_SEC)


def _other_places(folder: RunFolder, config: TrainingConfig) -> Iterator[Path]:
    name = f"{folder.path.resolve().name}-{folder.run}"
    yield cache_home(config) / "finished" / name  # first: a temporary folder may go with the job
    with suppress(OSError):
        yield Path(tempfile.gettempdir()) / name
    with suppress(OSError):
        yield Path.cwd() / name


def _write_there(place: Path, write: Callable[[Path], None]) -> None:
    with whole_folder(place) as unfinished:
        write(unfinished)


def _write_here(folder: Path, write: Callable[[Path], None]) -> None:
    """Write all of the model next to the one that may be there, then put it in place, model_index.json last."""
    staging = unfinished_folder(folder / "model")
    remove(staging)
    try:
        staging.mkdir(parents=True)
        write(staging)
        sync_tree(staging)
        files = [p.relative_to(staging) for p in sorted(staging.rglob("*")) if p.is_file()]
        index = Path("model_index.json")
        for name in (index, Path(SUMMARY_FILE)):  # killed from here on: no model, rather than parts of two
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        for pattern in _STALE:
            for path in folder.glob(pattern):
                if path.relative_to(folder).parts[0] in os.listdir(staging) or path.parent == folder:
                    path.unlink()
        for name in sorted(files, key=lambda name: name == index):
            (folder / name).parent.mkdir(exist_ok=True)
            if name == index:
                for parent in {folder, *((folder / other).parent for other in files)}:
                    sync_folder(parent)
            os.replace(staging / name, folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _problem_of(write: Callable[[], None]) -> str | None:
    """What the disk has against it; other errors are raised."""
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        disk = isinstance(error, OSError | SafetensorError) or "No space left" in text or "PytorchStreamWriter" in text
        if not disk:
            raise
        return error.strerror or text if isinstance(error, OSError) else text
    return None


@contextmanager
def model_is_saved(folder: Path) -> Iterator[None]:
    """Within: what fails now fails after the model is safe, and the message says so."""
    try:
        yield
    except OSError as error:
        raise TrainingFailure(
            f"the trained model is saved in {folder}, but not all of its pictures and its card: "
            f"{' '.join(str(error).split())}; make room, then `cond-pipelines card {folder}`"
        ) from error
