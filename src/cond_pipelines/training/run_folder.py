"""The output folder of a run: one run at a time, and nothing of another run is mixed into it or lost."""

import re
import shutil
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

from accelerate import Accelerator

from ..console import say
from ..errors import read_json
from ..files import write_json
from ..folders import CONFIG_FILE, REQUESTS, RUN_FILE, check_length, inside
from ..locks import by_main_process, locked_folder
from ..provenance import LORA_FILE, SUMMARY_FILE, run_of_folder
from ..sharing.card import is_our_card
from .checkpoints import Progress, all_checkpoints
from .config import TrainingConfig
from .ema import SNAPSHOTS

# What a run, and an evaluation of its model, write. The first name goes first: without it nothing looks finished.
_FILES = (
    *("model_index.json", SUMMARY_FILE, RUN_FILE, LORA_FILE, "pipeline_cond_*.py", CONFIG_FILE),
    *("log.jsonl", "log.jsonl.unfinished", "loss.png", "samples.png", "steps.png", "samples.gif"),
    *("samples/[0-9]*.png", *REQUESTS.values()),
    *("images/[0-9][0-9].png", f"{SNAPSHOTS}/*.safetensors", ".eval_results/cond_pipelines.yaml"),
    *(f"evaluation/{name}" for name in ("report.*", "sweep.*", "features-*.npy", "sample?.png", "nearest.png")),
    *("evaluation/per_class.png", "evaluation/confusion.png", "evaluation/.lock"),
)
_FOLDERS = ("evaluation/samples*", "evaluation/sweep", "unfinished-*")
_COMPONENT_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "modeling_cond_*.py", "tokenizer.json"),
    *("vocab.*", "merges.txt", "*tokens*.json", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
)
_MADE_FOLDERS = ("unet", "adapter", "vae", "text_encoder", "tokenizer", "scheduler")
_INPUTS = (
    *("train_data_dir", "class_data_dir", "pretrained_model_name_or_path", "text_encoder_name_or_path"),
    *("pretrained_vae_model_name_or_path", "resume_from_checkpoint"),
)


_OVERWRITE = "--overwrite_output_dir to delete what that run made"


def check_place(config: TrainingConfig) -> None:
    """Refuse to write among images: pictures of the run would replace some, and be trained on by the next run.

    To be called before the folder is made.
    """
    if around := config.data.data_around(config.output_dir):
        raise ValueError(
            f"--output_dir {config.output_dir} is in {around}: the run's pictures would be images of the data; name a "
            "folder that is not in it"
        )


class RunFolder:
    """The locked output folder of a run, as a context manager.

    Args:
        config: output_dir, overwrite_output_dir, resume_from_checkpoint.

    Raises:
        ValueError: another process is at work in the folder, or it holds what would be lost.

    Example:
        >>> with RunFolder(config, accelerator) as folder:
        ...     folder.start(progress, run_of_the_checkpoint)
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator):
        self.config, self.accelerator, self.path = config, accelerator, Path(config.output_dir)
        self.run: str | None = None  # of what is there already, then of this run
        self.stack = ExitStack()

    def __enter__(self) -> "RunFolder":
        is_main = self.accelerator.is_main_process
        by_main_process(self._check_links, is_main)
        with self.stack as stack:
            stack.enter_context(locked_folder(self.path, is_main))
            by_main_process(self._check, is_main)
            self.run = by_main_process(lambda: run_of_folder(self.path), is_main)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _check_links(self) -> None:
        """Refuse a link through which the run would write, or delete, in another folder; checkpoints are only read.

        The folder may be one that somebody else made.
        """
        fixed = ("README.md", ".lock", *_MADE_FOLDERS)
        names = (*_FILES, *_FOLDERS, *fixed, *self._components(), self.config.logging_dir)
        tops = {Path(name).parts[0] for name in names if Path(name).parts and not Path(name).is_absolute()}
        places = {path.name for top in tops - {".."} for path in self.path.glob(top)}
        for place in sorted(places):
            inside(self.path, place)
            if (self.path / place).is_file():
                check_length(self.path / place)
            for path in (self.path / place).rglob("*") if (self.path / place).is_dir() else ():
                if path.is_symlink():
                    inside(self.path, path.relative_to(self.path))

    def _check(self) -> None:
        """Look, before anything is loaded, whether this run may write here."""
        config, resume = self.config, self.config.resume_from_checkpoint
        self._check_kinds()
        holds = self._holds()
        if config.overwrite_output_dir:
            for name in _INPUTS:
                value = getattr(config, name)
                if value and (
                    self._would_delete(value) or (resume is not None and value == resume and self._resumes_here(resume))
                ):
                    raise ValueError(
                        f"--overwrite_output_dir deletes what --{name} {value} reads: leave one of them out"
                    )
        elif holds and not resume:
            again = ", or --resume_from_checkpoint latest to go on with its run" if all_checkpoints(self.path) else ""
            raise ValueError(f"--output_dir {self.path} holds {holds}: name another{again}, or {_OVERWRITE}")

    def _check_kinds(self) -> None:
        """Refuse a file where the run makes a folder, and a folder where it writes a file: it would fail at its end."""
        folders = {Path(name).parts[0] for name in (*_FILES, *_FOLDERS) if "/" in name} | set(_MADE_FOLDERS)
        files = {name for name in _FILES if "/" not in name and "*" not in name} | {"README.md"}
        for path in sorted(self.path.iterdir()):
            if path.name in folders and not path.is_dir():
                raise ValueError(f"--output_dir {self.path}: {path.name} is a file, and the run needs a folder there")
            if path.name in files and path.is_dir():
                raise ValueError(f"--output_dir {self.path}: {path.name} is a folder, and the run writes a file there")

    def _would_delete(self, value: str) -> bool:
        """Whether clearing the folder takes away something of an input that is a path."""
        path, home = Path(value).resolve(), self.path.resolve()
        lies_here = path == home or home in path.parents
        doomed = [made.resolve() for made in self._made()] if lies_here else []
        return any(d == path or d in path.parents or path in d.parents for d in doomed)

    def _resumes_here(self, resume: str | None) -> bool:
        return resume is not None and (resume == "latest" or (self.path / resume).is_dir())

    def _holds(self) -> str | None:
        """What would be lost, or mixed with something new."""
        if (self.path / "model_index.json").exists() or (self.path / LORA_FILE).exists():
            return "a finished model"
        if checkpoints := all_checkpoints(self.path):
            return f"checkpoints of another run ({checkpoints[-1].name})"
        if next(self.path.glob(f"{SNAPSHOTS}/[0-9]*.safetensors"), None):
            return f"another run's averages ({SNAPSHOTS}/)"
        return None

    def start(self, progress: Progress, resumed: str | None, decided: TrainingConfig, num_steps: int | None) -> None:
        """When all that can be wrong with the input was looked at: clear the folder, and say whose it is.

        Args:
            progress: where the run starts. resumed: the run that it goes on with, where its checkpoint says so.
            decided: the configuration with all defaults filled in, which is saved: it goes on with the run.
            num_steps: of the whole run; None: minutes end it.

        Raises:
            ValueError: it would write over what another run left.
        """

        def prepare() -> str:
            known = resumed if progress.step else None
            if self.config.overwrite_output_dir:
                self._clear()
            elif holds := self._holds():
                if not progress.step and holds == "a finished model":
                    raise ValueError(
                        f"--output_dir {self.path} holds a finished model and no checkpoint to go on with: "
                        f"name another, or {_OVERWRITE}"
                    )
                if known and self.run and known != self.run:
                    raise ValueError(
                        f"--output_dir {self.path} holds {holds} of run {self.run}, and the checkpoint is of run "
                        f"{known}: name another folder"
                    )
            run = known or (self.run if progress.step else None) or uuid.uuid4().hex[:12]
            self._drop_what_comes_later(progress.step, run)
            decided.save(self.path / CONFIG_FILE)
            write_json(self.path / RUN_FILE, {"run": run, "num_steps": num_steps})
            return run

        self.run = by_main_process(prepare, self.accelerator.is_main_process)

    def _drop_what_comes_later(self, step: int, run: str) -> None:
        """Averages of steps that are made again, and a log of another run."""
        if step and self.run not in (None, run) and (self.path / "log.jsonl").is_file():
            say(f"warning: log.jsonl is of another run ({self.run}, and this is {run}): it starts anew")
            (self.path / "log.jsonl").unlink()
        for path in self.path.glob(f"{SNAPSHOTS}/*.safetensors"):
            if path.stem.isdigit() and int(path.stem) > step:
                path.unlink()

    def _clear(self) -> None:
        made = self._made()
        for path in made:
            with suppress(FileNotFoundError):  # it lay in a folder that is gone
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        parents = {parent for path in made for parent in path.parents if self.path in parent.parents}
        for folder in sorted(parents, reverse=True):  # the inner ones first
            with suppress(OSError):  # one that holds something of the user's
                folder.rmdir()

    def _made(self) -> list[Path]:
        """All that a run made here, and nothing else; what says that a model is finished comes first."""
        patterns = [*_FILES, *(f"{name}/{file}" for name in self._components() for file in _COMPONENT_FILES)]
        logs = Path(self.config.logging_dir)
        if not logs.is_absolute() and ".." not in logs.parts:
            patterns += [f"{logs.as_posix()}/**/{name}" for name in ("events.out.tfevents.*", "hparams.yml")]
        made = [p for pattern in patterns for p in sorted(self.path.glob(pattern)) if p.is_file() or p.is_symlink()]
        made += [p for pattern in _FOLDERS for p in sorted(self.path.glob(pattern)) if p.is_dir()]
        if is_our_card(self.path / "README.md"):
            made.append(self.path / "README.md")
        return made + all_checkpoints(self.path)

    def _components(self) -> list[str]:
        try:
            index = read_json(self.path / "model_index.json")
        except (OSError, ValueError):
            return []
        names = [name for name, value in index.items() if isinstance(value, list)] if isinstance(index, dict) else []
        return [name for name in names if re.fullmatch(r"[A-Za-z0-9]\w*", name)]
