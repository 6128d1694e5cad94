"""The studio as an ASGI application."""

import asyncio
import inspect
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import UserError, describe
from ..files import strict_json
from .routes import LOOKING, ROUTES, Answer, Handler
from .safety import Guard
from .shared import Studio

PAGE, _IS_THERE_SEC = Path(__file__).parent / "page", 0.5


def build_app(studio: Studio, token: str, port: int) -> Guard:
    """The page, its files and all routes; see `Guard` for who may talk to it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        first = asyncio.create_task(studio.look.call("cond_pipelines.worker:imported", LOOKING))
        yield
        studio.close()
        first.cancel()

    listed = [Route(path, _endpoint(studio, handler), methods=[method]) for method, path, handler in ROUTES]
    routes = [Route("/", lambda _: FileResponse(PAGE / "index.html")), Mount("/page", StaticFiles(directory=PAGE))]
    return Guard(Starlette(routes=[*listed, *routes], lifespan=lifespan), token, port)


def _endpoint(studio: Studio, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            given = await _given(request)
            answered = await asyncio.to_thread(handler, studio, given)
            if inspect.isawaitable(answered):
                answered = await _while_wanted(request, answered)
            return answered if isinstance(answered, Response) else _json(answered)
        except Exception as error:
            return _failure(error)

    return answer


async def _while_wanted(request: Request, work: Awaitable[Answer]) -> Answer:
    """The answer. Where the browser goes away before, or the server ends, the work is cancelled."""
    task = asyncio.ensure_future(work)
    with suppress(asyncio.CancelledError):
        while not (await asyncio.wait({task}, timeout=_IS_THERE_SEC))[0]:
            if await request.is_disconnected():
                break
        else:
            return task.result()
    task.cancel()
    return Response(status_code=503)  # to nobody


async def _given(request: Request) -> dict[str, Any]:
    """The values of a request by name: of its body or its query, and of its path."""
    if request.method == "GET":
        query, tag = request.query_params, request.headers.get("if-none-match")
        return {**query, "paths": query.getlist("path"), "if_none_match": tag, **request.path_params}
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError("the request is no JSON object")
    return values | request.path_params


def _failure(error: Exception) -> Response:
    status = 403 if isinstance(error, PermissionError) else 404 if isinstance(error, FileNotFoundError) else 400
    line = str(error) if status in (403, 404) else describe(error)
    if isinstance(error, KeyError):
        line = f"{error} is missing"
    elif not isinstance(error, ValueError | TypeError | AttributeError | OSError):
        traceback.print_exc()
        status, line = 500, f"this is a fault of the studio: {line}"
    return _json({"error": line}, status)


def _json(value: object, status: int = 200) -> Response:
    return Response(strict_json(value), status, media_type="application/json")
