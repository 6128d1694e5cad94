"""Pushing a model to the Hub: what belongs to it and nothing else, in one commit."""

import glob
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, HfApi, RepoUrl
from huggingface_hub.errors import LocalTokenNotFoundError

from ..console import say
from ..errors import read_yaml
from .card import write_card
from .contents import copy_model, copy_page
from .hub_waiting import is_silence, limited_waiting, waiting_for
from .leaks import Secret, refuse_secrets, secrets_of
from .space import name_space, write_space

# What another model in a repository cannot have left: these stay where they are.
_NOT_OF_A_MODEL = re.compile(r"\.git\w+|(LICENSE|NOTICE)[\w.-]*|CITATION\.cff|[\w-]+\.md", re.ASCII)
_IN_EACH_PAGE, _IN_NEW_SPACES = "sampler.js", {".gitattributes", "README.md", "index.html", "style.css"}
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
        message = commit_message or f"Upload {type(pipe).__name__}"
        page_of = source if source.is_dir() else Path(folder)
        return _push(Path(folder), page_of, repo_id, Push(commit_message=message, **push))


@dataclass
class Push:
    """How to push.

    Args:
        private: visibility of a new repository; None leaves it to the Hub (an organisation may have a default).
        token: default: the one you are logged in with.
        create_pr: open a pull request instead of committing to the branch.
        revision: the branch to commit to; made where it does not exist.
        keep: leave files of another model that are in the repository, instead of deleting them in the same commit.
        include_training_images: upload evaluation/nearest.png too, which shows images of the training data.
        web: put a page that draws with the model into a static Space of the same name, and link it in the card.
        onnxruntime_web: for that page, see `export.onnxruntime_web`; None: downloaded once.
    """

    private: bool | None = None
    token: str | None = None
    commit_message: str | None = None
    create_pr: bool = False
    revision: str | None = None
    keep: bool = False
    include_training_images: bool = False
    web: bool = False
    onnxruntime_web: str | Path | None = None

    def __post_init__(self) -> None:
        if self.web and (self.create_pr or self.revision is not None):
            raise ValueError("--web shows what is on the main branch: leave out --create_pr and --revision")


def push_folder(folder: str | Path, repo_id: str, **how: Any) -> CommitInfo:
    """Push a saved model: its components, code, card and pictures, in one commit.

    Only files that a list names go up: no checkpoint, log, pickled weights or file of yours. Every byte of them is
    searched for tokens, the home folder, the user's name and the working folder before anything is sent.

    Args:
        folder: what `save_pretrained` or a training run wrote.
        repo_id: "name" or "user/name"; made where it does not exist.
        how: fields of `Push`: private, token, commit_message, create_pr, revision, keep, include_training_images,
            web, onnxruntime_web.

    Returns:
        The commit, which is also a string: its address.

    Raises:
        ValueError: `folder` is no model of this library, a link in it leads out of it, or a file tells of this machine.
        PushError: the Hub did not take it, in one line. A repository that was there is as it was, and so is the folder;
            where a new one was made, the message says so.

    Example:
        >>> push_folder("flowers", "me/flowers", private=True)
    """
    return _push(Path(folder), Path(folder), repo_id, Push(**how))


def _push(folder: Path, page_of: Path, repo_id: str, how: Push) -> CommitInfo:
    """Push the model in `folder` with the page of the folder `page_of`; neither is changed."""
    api = HfApi(token=how.token)
    with tempfile.TemporaryDirectory() as name:
        stage, space = Path(name, "model"), Path(name, "space")
        private = stage_model(folder, page_of, stage, repo_id, how)
        if private:
            say(f"{', '.join(private)} stays here: it shows training images; --include_training_images uploads it")
        secrets = known_secrets(page_of, repo_id, how)
        refuse_secrets(stage, secrets)
        if how.web:  # before anything is made on the Hub, too
            write_space(stage, space, repo_id, how.onnxruntime_web)
            refuse_secrets(space, secrets)
        address = None
        if how.web:
            address = _push_space(_Repository(api, repo_id, how.private, "space"), space, how)
        return _push_model(_Repository(api, repo_id, how.private), stage, how, address)


def stage_model(folder: Path, page_of: Path, stage: Path, repo_id: str, how: Push) -> list[str]:
    """Copy what is pushed into the new folder `stage`; returns the pictures of training images, which stay."""
    stage.mkdir()
    copy_model(folder, stage)
    private = copy_page(page_of, stage, how.include_training_images)
    write_card(stage, repo_id)  # a bad card.yaml is an error before anything is made on the Hub
    return private


def _push_model(repository: "_Repository", stage: Path, how: Push, space: str | None) -> CommitInfo:
    api = repository.api
    with repository.failing_in_one_line():
        repo_id = repository.make()
        if how.revision is not None and not how.create_pr:
            branch = how.revision
            _try(f"branch {branch}", lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
        write_card(stage, repo_id, space)
        others = [] if how.keep else _of_another_model(repository, how.revision, stage)
        return _try(
            "the upload",
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=stage,
                commit_message=how.commit_message or "Upload model",
                create_pr=how.create_pr,
                revision=how.revision,
                delete_patterns=[glob.escape(other) for other in others] or None,
            ),
        )


def _push_space(repository: "_Repository", stage: Path, how: Push) -> str:
    """Push the page; returns the full name of its Space."""
    api = repository.api
    with repository.failing_in_one_line():
        repo_id = repository.make()
        there = _try("the list of files", lambda: api.list_repo_files(repo_id, repo_type="space"))
        if _IN_EACH_PAGE not in there and (foreign := sorted(set(there) - _IN_NEW_SPACES)):
            raise PushError(
                f"not pushed: the Space {repo_id} holds something else ({', '.join(foreign[:3])}): push to another "
                "name, or delete that Space. Nothing was changed there"
            )
        name_space(stage, repo_id)
        others = [] if how.keep else _of_another_model(repository, None, stage)
        _try(
            "the upload of the page",
            lambda: api.upload_folder(
                repo_id=repo_id,
                repo_type="space",
                folder_path=stage,
                commit_message=how.commit_message or "Upload page",
                delete_patterns=[glob.escape(other) for other in others] or None,
            ),
        )
        return repo_id


def known_secrets(folder: Path, repo_id: str, how: Push) -> list[Secret]:
    """What must not go up with the model of a folder."""
    return secrets_of(_folders_of(folder), [how.token, _recorded_token(folder)], repo_id)


def _folders_of(folder: Path) -> list[Path]:
    """The model's folder and the one above, where these say more than a drive."""
    home = folder.resolve()
    return [path for path in (home, home.parent) if len(path.parts) > 2]


def _recorded_token(folder: Path) -> str | None:
    path = folder / "training_config.yaml"
    token = read_yaml(path).get("hub_token") if path.is_file() else None
    return token if isinstance(token, str) else None


def _of_another_model(repository: "_Repository", revision: str | None, stage: Path) -> list[str]:
    """What lies in the repository and is not of the model in `stage`; a line says that it will be deleted."""
    api, repo_id, repo_type = repository.api, repository.repo_id, repository.repo_type
    there = _try("the list of files", lambda: api.list_repo_files(repo_id, revision=revision, repo_type=repo_type))
    mine = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    others = sorted(name for name in there if name not in mine and not _NOT_OF_A_MODEL.fullmatch(name))
    if others:
        shown = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
        say(f"{repo_id}: the commit deletes what is not of this model: {shown}; --keep leaves it")
    return others


class _Repository:
    """The repository of a push, made where it is not there; `state` is what is true of it after a failure."""

    def __init__(self, api: HfApi, repo_id: str, private: bool | None, repo_type: str | None = None):
        self.api, self.repo_id, self.private, self.repo_type = api, repo_id, private, repo_type
        self.state = "Nothing was changed there"

    @contextmanager
    def failing_in_one_line(self) -> Iterator[None]:
        """Raise PushError, with `state`, for whatever goes wrong in the block."""
        try:
            with limited_waiting():
                yield
        except PushError:
            raise
        except Exception as error:  # of huggingface_hub, of the HTTP library below it, of the file system
            where = f"the Space {self.repo_id}" if self.repo_type == "space" else self.repo_id
            raise PushError(f"not pushed to {where}: {_explain(error)}. {self.state}") from error

    def make(self) -> str:
        """Returns its full name."""
        self.failed_before = False
        self.repo_id = _try("the repository", self._make)
        return self.repo_id

    def _create(self, exist_ok: bool = False) -> RepoUrl:
        sdk = "static" if self.repo_type == "space" else None
        return self.api.create_repo(
            self.repo_id, private=self.private, repo_type=self.repo_type, space_sdk=sdk, exist_ok=exist_ok
        )

    def _make(self) -> str:
        unsure = "Whether a new repository was made there is not known"
        try:
            found = self._create()
        except Exception as error:
            status = _status(error)
            if status not in (403, 409):  # 403: it may be there, and only making one be forbidden
                if status is None and not isinstance(error, ValueError | LocalTokenNotFoundError):
                    self.failed_before, self.state = True, unsure  # the request may have arrived
                raise
            # It is there already, unless an earlier try, whose answer was lost, made it.
            self.state = unsure if self.failed_before else "Nothing was changed there"
            return str(self._create(exist_ok=True).repo_id)
        self.state = f"The repository {found.repo_id} is new and still empty: push again, or delete it on {found}"
        return str(found.repo_id)


# ------------------------------------------------------------------------------------------------------ failures
_Answer = TypeVar("_Answer")


def _try(what: str, call: Callable[[], _Answer]) -> _Answer:
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
            say(f"the Hub: {_explain(error)}; trying again")
            time.sleep(_pause_sec(error, attempt))
    raise AssertionError("the last try returns or raises")


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
    return min(60.0, float(asked)) if asked.isascii() and asked.isdigit() else 2.0**attempt


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
