"""Pushing a model to the Hub: what belongs to it and nothing else, in one commit."""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from ..errors import UserError, read_json, read_yaml
from ..files import write_json, write_text
from ..provenance import report_belongs
from .card import write_card
from .hub_waiting import is_silence, limited_waiting, waiting_for

_PAGE = (
    "README.md",
    "pytorch_lora_weights.safetensors",
    "unet/config.json",
    "LICENSE",
    "card.yaml",
    "training_config.yaml",
    "training_summary.json",
    "samples.png",
    "samples.gif",
    "loss.png",
)
_PAGE_FOLDERS = {"images": ("*.png",), "evaluation": ("*.json", "*.md", "*.png"), ".eval_results": ("*.yaml",)}
_PICKLED = {".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth"}
_NUM_TRIES = 3


class PushError(RuntimeError):
    """The Hub did not take a model. The message is one line: why, and what was changed there."""

    exit_code = 2


def push_pipeline(
    pipe: Any,
    repo_id: str,
    *,
    variant: str | None = None,
    safe_serialization: bool = True,
    commit_message: str | None = None,
    **push: Any,
) -> CommitInfo:
    """Save `pipe` with its code, add the page of the folder it was loaded from, and push it as `push_folder` does."""
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder, variant=variant, safe_serialization=safe_serialization)
        source = Path(str(getattr(pipe.config, "_name_or_path", None) or folder))
        if source.is_dir():
            _copy_page(source, Path(folder))
        return push_folder(folder, repo_id, commit_message=commit_message or f"Upload {type(pipe).__name__}", **push)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """Push a saved model: its components, code, card and pictures, in one commit.

    Optimizer state, checkpoints, logs, pickled weights, tokens and the machine's paths stay behind.

    Args:
        folder: what `save_pretrained` or a training run wrote.
        repo_id: "name" or "user/name"; made where it does not exist.
        private: visibility of a new repository; None leaves it to the Hub (an organisation may have a default).
        revision: the branch to commit to; made where it does not exist.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        The commit, which is also a string: its address.

    Raises:
        ValueError: `folder` is no model of this library.
        PushError: the Hub did not take it, in one line. A repository that was there is as it was, and so is the folder;
            where a new one was made, the message says so.

    Example:
        >>> push_folder("flowers", "me/flowers", private=True)
    """
    folder, api = Path(folder), HfApi(token=token)
    with tempfile.TemporaryDirectory() as stage:
        _copy_model(folder, Path(stage))
        _copy_page(folder, Path(stage))
        write_card(stage, repo_id)  # a bad card.yaml is an error before anything is made on the Hub
        repository = _Repository(api, repo_id, private)
        try:
            with limited_waiting():
                repo_id = repository.make()
                if revision is not None and not create_pr:
                    _try(f"branch {revision}", lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
                write_card(stage, repo_id)
                return _try(
                    "the upload",
                    lambda: api.upload_folder(
                        repo_id=repo_id,
                        folder_path=stage,
                        commit_message=commit_message or "Upload model",
                        create_pr=create_pr,
                        revision=revision,
                        # an earlier version's code, under its own name
                        delete_patterns=["pipeline_cond_*.py", "adapter/modeling_cond_*.py"],
                    ),
                )
        except Exception as error:  # of huggingface_hub, of the HTTP library below it, of the file system
            raise PushError(f"not pushed to {repo_id}: {_explain(error)}. {repository.state}") from error


class _Repository:
    """The repository of a push, made where it is not there; `state` is what is true of it after a failure."""

    def __init__(self, api: HfApi, repo_id: str, private: bool | None):
        self.api, self.repo_id, self.private = api, repo_id, private
        self.state = "Nothing was changed there"

    def make(self) -> str:
        """Returns its full name."""
        self.failed_before = False
        return _try("the repository", self._make)

    def _make(self) -> str:
        unsure = "Whether a new repository was made there is not known"
        try:
            found = self.api.create_repo(self.repo_id, private=self.private)
        except Exception as error:
            status = _status(error)
            if status not in (403, 409):  # 403: it may be there, and only making one be forbidden
                if status is None and not isinstance(error, ValueError | LocalTokenNotFoundError):
                    self.failed_before, self.state = True, unsure  # the request may have arrived
                raise
            # It is there already, unless an earlier try, whose answer was lost, made it.
            self.state = unsure if self.failed_before else "Nothing was changed there"
            return self.api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id
        self.state = f"The repository {found.repo_id} is new and still empty: push again, or delete it on {found}"
        return found.repo_id


def _copy_model(folder: Path, stage: Path) -> None:
    """The components that model_index.json names, and the code."""
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    code, components = (
        index.get("_class_name"),
        {k: v for k, v in index.items() if isinstance(v, list) and k[:1] != "_"},
    )
    pairs = [code, *components.values()]
    if "adapter" not in components or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise UserError(
            f"{folder} is no model to push (its model_index.json lacks an adapter, or code): load it with "
            "ConditionalPipeline.from_pretrained and save it again"
        )
    kept = {f"{code[0]}.py", f"{components['adapter'][0]}.py"}
    for name in ["model_index.json", f"{code[0]}.py"]:
        _copy(folder / name, stage / name)
    for component, (_, class_name) in components.items():
        if class_name is None:
            continue
        for path in sorted((folder / component).rglob("*")):
            if path.suffix in _PICKLED or (path.suffix == ".py" and path.name not in kept) or not path.is_file():
                continue
            _copy(path, stage / path.relative_to(folder))


def _copy_page(folder: Path, stage: Path) -> None:
    """The card and what it shows, of the weights that are in `stage`."""
    paths = [folder / name for name in _PAGE]
    paths += [
        p for sub, patterns in _PAGE_FOLDERS.items() for pattern in patterns for p in folder.glob(f"{sub}/{pattern}")
    ]
    report = folder / "evaluation/report.json"
    if report.is_file() and not report_belongs(read_json(report), stage, report, {}):
        paths = [path for path in paths if path.parent.name not in ("evaluation", ".eval_results")]
    for path in paths:
        target = stage / path.relative_to(folder)
        if path.is_file() and not target.exists():
            _copy(path, target)


def _copy(source: Path, target: Path) -> None:
    """A hard link where that is possible; a clean copy of what may hold the machine's paths."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == "training_config.yaml":
        values = read_yaml(source)
        values = {k: _without_path(v) for k, v in values.items() if k != "hub_token"}
        write_text(target, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    elif source.suffix == ".json" and source.name.endswith(("config.json", "model_index.json")):
        values = read_json(source)
        for key in ("_name_or_path", "name_or_path"):
            if key in values:
                values[key] = _without_path(values[key])
        write_json(target, values)
    elif source.name == "README.md":  # which is rendered again
        shutil.copyfile(source, target)
    else:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def _without_path(value: Any) -> Any:
    """Only the last part of a path of this machine."""
    if isinstance(value, list):
        return [_without_path(v) for v in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "..")) or os.path.exists(value)):
        return Path(value).name
    return value


# ------------------------------------------------------------------------------------------------------ failures
def _try(what: str, call: Any) -> Any:
    """Call, again after a pause where the Hub or the line was to blame; not where it did not answer at all."""
    for attempt in range(_NUM_TRIES):
        try:
            with waiting_for(what):
                return call()
        except Exception as error:
            status = _status(error)
            final = isinstance(error, ValueError | LocalTokenNotFoundError) or is_silence(error)
            passing = status is None and not final
            if attempt == _NUM_TRIES - 1 or not (passing or status == 429 or (status or 0) >= 500):
                raise
            print(f"the Hub: {_explain(error)}; trying again", file=sys.stderr)
            time.sleep(_pause_sec(error, attempt))


def _response(error: BaseException | None) -> Any:
    """What the Hub answered, to this error or to the one behind it; None where it did not."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__
    return None


def _status(error: BaseException) -> int | None:
    return getattr(_response(error), "status_code", None)


def _pause_sec(error: BaseException, attempt: int) -> float:
    asked = getattr(_response(error), "headers", {}).get("Retry-After", "")
    return min(60.0, float(asked)) if asked.isdigit() else 2.0**attempt


def _explain(error: BaseException) -> str:
    """One line: what happened, and what to do."""
    known = {
        401: "no valid token: run `hf auth login`, or pass token=",
        403: "the token may not write there: use one with write access",
        404: "there is no such repository or branch, or the token may not see it",
        409: "it is in the way of something that exists already",
        412: "somebody else committed at the same moment: try again",
        429: "too many requests: try again later",
    }
    text = " ".join(str(error).split()).rstrip(".")
    status = _status(error)
    if is_silence(error):
        return "the Hub does not answer: see https://status.huggingface.co, or try again later"
    if status is None:
        behind = f" ({type(error.__cause__).__name__})" if error.__cause__ is not None else ""
        return f"{type(error).__name__}: {text}{behind}"
    return f"{known.get(status, 'the Hub failed' if status >= 500 else 'refused')} (HTTP {status})"
