"""The routes of the studio: values by name in, JSON out. What takes a while is done in a thread or in a worker."""

import hashlib
import os
import re
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, Response

from ..errors import UserError
from ..evaluation.config import evaluation_form
from ..evaluation.report_files import compared, report_in, reports_in
from ..folder_kinds import kinds_in
from ..folders import REQUESTS, check_new_folder
from ..training import run_control, run_files
from ..training.command_line import training_form
from ..worker import Worker
from .places import check_recorded, flags_of
from .safety import SANDBOX
from .shared import Studio

Values = dict[str, Any]  # of a query or of a JSON body, with those in the path
Answer = Values | Response
Handler = Callable[[Studio, Values], Answer | Awaitable[Answer]]  # an ordinary function is called in a thread
ROUTES: list[tuple[str, str, Handler]] = []
_SHOWN = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".html", ".json", ".md", ".txt", ".yaml", ".jsonl"}
LOOKING, _DRAWING = "cond_pipelines.studio.looking", "cond_pipelines.studio.drawing"
_IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
_GRAY = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8" fill="gray"/></svg>'
_MOST_POINTS, _MOST_ITEMS = 5000, 1000


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Register a function as the answer to METHOD /api/PATH."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, f"/api/{path}", handler))
        return handler

    return register


@route("GET", "state")
def state(studio: Studio, given: Values) -> Answer:
    content = studio.state()
    headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:20]}"', "cache-control": "no-cache"}
    if given["if_none_match"] == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


@route("GET", "file")
def file(studio: Studio, given: Values) -> Answer:
    path = studio.places.path(given["path"])
    if path.suffix.lower() not in _SHOWN or not path.is_file():
        raise UserError(f"{path} is no picture and no text")
    return FileResponse(path, headers={"content-security-policy": SANDBOX} if path.suffix.lower() == ".html" else None)


async def _seen(studio: Studio, given: Values, worker: Worker, function: str) -> Answer:
    chosen = {"conditioning": given.get("conditioning") or "none"} | dict(given.get("args") or {})
    path = str(studio.places.path(given["path"]))
    seen = await worker.call(function, [path, *flags_of(chosen, studio.places)], str(studio.home))
    of_run = {"train_data_dir": path} | ({"on_bad_image": "skip"} if seen["bad_rows"] else {}) | chosen
    return seen | {"command": shlex.join(["cond-pipelines", "train", *flags_of(of_run, studio.places)])}


@route("GET", "data/wall")
async def wall(studio: Studio, given: Values) -> Answer:
    start, count = int(given.get("start", 0)), min(_MOST_ITEMS, int(given.get("count", 200)))
    choice = {name: given[name] for name in ("held_out", "class") if given.get(name)}
    return await studio.look.call(f"{LOOKING}:wall", _key(given), start, count, choice, str(studio.home))


@route("GET", "data/thumb")
async def thumb(studio: Studio, given: Values) -> Answer:
    key, i = _key(given), int(given["i"])
    path = studio.home / "thumbs" / key / f"{i}.png"
    if not path.is_file() and (await studio.look.call(f"{LOOKING}:thumbnails", key, i, str(studio.home)))["is_bad"]:
        return Response(_GRAY, media_type="image/svg+xml", headers={"cache-control": "no-store"})
    return _kept(path)


def _paths(studio: Studio, given: Values) -> list[Path]:
    return [studio.places.path(path) for path in given["paths"]]


def _key(given: Values) -> str:
    if not re.fullmatch(r"[0-9a-f]{20}", str(given.get("key"))):
        raise UserError("this wall is not known: look at the data again")
    return str(given["key"])


def _kept(path: Path) -> Answer:
    if not path.is_file():
        raise FileNotFoundError("this image is not in the cache: make it again")
    return FileResponse(path, headers=_IMMUTABLE)


@route("POST", "train/plan")
async def plan(studio: Studio, given: Values) -> Answer:
    args = flags_of(given["args"], studio.places)
    try:
        planned = await studio.plan.call("cond_pipelines.training.plan:plan", args)
    except UserError as error:  # usual while somebody fills in the form
        planned = {"problem": str(error)}
    return planned | {"command": shlex.join(["cond-pipelines", "train", *args])}


@route("POST", "train/start")
def start(studio: Studio, given: Values) -> Answer:
    folder = studio.places.path(given["args"].get("output_dir"), must_exist=False)
    args = flags_of(given["args"] | {"output_dir": str(folder)}, studio.places)
    return studio.train(folder, ["train", *args]) | {"path": str(folder)}


@route("POST", "runs/{action}")
def act(studio: Studio, given: Values) -> Answer:
    folder, action = studio.places.path(given["path"], must_exist=False), given["action"]
    if action == "continue":
        check_recorded(run_files.config_of(folder), studio.places)
        return studio.train(folder, run_control.continuing(folder)) | {"done": "it goes on"}
    if action not in (*REQUESTS, "pause", "stop"):
        raise UserError(f"{action[:40]!r} is not pause, continue, stop, sample or save")
    return {"done": run_control.act(action, folder, studio.training_of(folder))}


@route("POST", "watch/choose")
async def choose(studio: Studio, given: Values) -> Answer:
    run, length = studio.places.path(given["path"]), given.get("ema_length")
    model = studio.model(given["model"] if length is None else given["path"])
    end = Path(model).name if length is None else f"ema-{float(length):g}"
    folder = studio.places.path(str(run.parent / (given.get("name") or f"{run.name}-{end}")), must_exist=False)
    check_new_folder(folder, "give another name")
    wanted = {"model": model, "ema_length": length}
    return await studio.draw.call(f"{_DRAWING}:choose", str(run), wanted, str(folder))


@route("POST", "nearest")
async def nearest(studio: Studio, given: Values) -> Answer:
    path = Path(studio.model(given["model"]))
    run = path.parent if (path / "manifest.json").is_file() else path
    check_recorded(run_files.config_of(run), studio.places)
    return await studio.draw.call(f"{_DRAWING}:nearest", given, str(run), str(studio.home))


@route("GET", "drawn/{name}")
def drawn(studio: Studio, given: Values) -> Answer:
    if not re.fullmatch(r"[0-9a-f]{24}\.png", given["name"]):
        raise FileNotFoundError("there is no image of this name")
    return _kept(studio.home / "drawn" / given["name"])


@route("POST", "evaluate")
def evaluate(studio: Studio, given: Values) -> Answer:
    path, values = studio.places.path(given["model"]), dict(given.get("args") or {})
    config = run_files.config_of(path)
    if not values.get("train_data_dir") and not values.get("dataset_name"):
        check_recorded(config, studio.places)
        values |= {n: os.path.abspath(config[n]) for n in ("train_data_dir", "class_data_dir") if config.get(n)}
    args = [str(path), *flags_of(values, studio.places)]
    return {"job": studio.jobs.start("sweep" if values.get("sweep") else "evaluate", path, ["evaluate", *args]).id}


@route("POST", "push")
def push(studio: Studio, given: Values) -> Answer:
    path, repo_id = studio.places.path(given["path"]), str(given.get("repo_id") or "")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", repo_id, re.ASCII):
        raise UserError(f"{repo_id[:100]!r} is no name on the Hub: give name, or user/name")
    args = ["push", str(path), repo_id]
    args += ["--private" if given["private"] else "--no-private"] if given.get("private") is not None else []
    args += [f"--{name}" for name in ("web", "include_training_images") if given.get(name)]
    return {"job": studio.jobs.start("push", path, args).id}


@route("POST", "export")
def export(studio: Studio, given: Values) -> Answer:
    path, target = studio.places.path(given["path"]), str(given["to"])
    out = studio.places.path(given.get("output_dir") or f"{path}-{target}", must_exist=False)
    args = ["export", str(path), str(out), f"--to={target}"]
    return {"job": studio.jobs.start("export", path, args).id, "path": str(out)}


def _log(studio: Studio, given: Values) -> Values:
    points = max(10, min(_MOST_POINTS, int(given.get("points", 600))))
    paths = [studio.places.path(path, must_exist=False) for path in given["paths"]]
    return {"logs": [run_files.read_log(path, points) for path in paths]}


def _output(studio: Studio, given: Values) -> Values:
    job = studio.training_of(studio.places.path(given["path"], must_exist=False))
    return {"text": "" if job is None else job.output()}


def _drawing(function: str) -> Handler:
    def answer(studio: Studio, given: Values) -> Awaitable[Values]:
        wanted = given | {"model": studio.model(given.get("model") or given["path"])}
        return studio.draw.call(f"{_DRAWING}:{function}", wanted, str(studio.home))

    return answer


def _share(studio: Studio, given: Values) -> Awaitable[Values]:
    path, function = studio.places.path(given["path"]), "cond_pipelines.sharing.preview:preview"
    return studio.plan.call(function, str(path), given.get("repo_id") or path.name)


_SIMPLE: list[tuple[str, str, Handler]] = [
    ("POST", "data/look", lambda studio, given: _seen(studio, given, studio.look, f"{LOOKING}:look")),
    ("POST", "data/check", lambda studio, given: _seen(studio, given, studio.check, f"{LOOKING}:check")),
    ("GET", "train/form", lambda studio, given: {"groups": training_form()}),
    ("GET", "evaluate/form", lambda studio, given: {"groups": evaluation_form()}),
    ("GET", "runs/log", _log),
    ("GET", "runs/output", _output),
    ("GET", "runs/differences", lambda studio, given: {"rows": run_files.differences(_paths(studio, given))}),
    ("GET", "watch", lambda studio, given: run_files.watched(studio.places.path(given["path"]))),
    ("GET", "reports", lambda studio, given: {"reports": reports_in(kinds_in(studio.places.folders)["models"])}),
    ("GET", "report", lambda studio, given: report_in(studio.places.path(given["path"]))),
    ("GET", "compare", lambda studio, given: {"pairs": compared(_paths(studio, given))}),
    ("GET", "model", _drawing("model_info")),
    *(("POST", name, _drawing(name)) for name in ("draw", "interpolate", "classify")),
    ("GET", "share", _share),
    ("GET", "jobs/{id}", lambda studio, given: studio.jobs.find(given["id"]).as_json(with_output=True)),
    ("POST", "jobs/stop", lambda studio, given: {"done": studio.jobs.stop(given["id"])}),
]
ROUTES += [(method, f"/api/{path}", handler) for method, path, handler in _SIMPLE]
