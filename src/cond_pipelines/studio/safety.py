"""Who may talk to the studio: a browser with its token, on this machine, from the studio's own page."""

import hmac
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 16 * 2**20
_PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-src 'self'; frame-ancestors 'self'"
)
# A report is HTML that a run wrote: it is shown, and nothing in it runs.
SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"


class Guard:
    """ASGI middleware: refuses what does not come from the studio's own page, and adds headers to each answer.

    A browser opens `/?token=...` once and has a cookie from then on; a script sends `Authorization: Bearer TOKEN`.
    The Host is checked against DNS rebinding, the Origin and Sec-Fetch-Site against other sites.

    Args:
        token: secret of this server. port: where it listens.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self.app, self.token, self.cookie = app, token, f"cond_pipelines_studio_{port}"
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # a WebSocket is never accepted
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if "token" in query:  # checked: from the address into a cookie, so that it is in no history and no log
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            await answer(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                for name, value in _HEADERS.items():
                    if name not in given:
                        message["headers"].append((name, value))
            await send(message)

        await self.app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if host not in self.hosts:
            return _refused(f"this host is not the studio: {host[:100]!r}")
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return _refused("requests of other sites are refused")
        from_outside = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if from_outside:
            return _refused("requests of other sites are refused")
        if not self._is_known(scope, headers):
            return _refused("open the address that `cond-pipelines studio` printed: its token is missing or old")
        if scope["method"] not in ("GET", "HEAD"):
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return JSONResponse({"error": "send JSON (Content-Type: application/json)"}, 415)
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
                limit = f"{MAX_BODY_BYTES / 2**20:.0f} MiB"
                return JSONResponse({"error": f"too large, or of no stated length: {limit} at most"}, 413)
        return None

    def _is_known(self, scope: Scope, headers: Headers) -> bool:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        cookies = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
        given = [value for name, _, value in cookies if name == self.cookie]
        given += [headers.get("authorization", "").removeprefix("Bearer ")]
        given += query.get("token", []) if scope["path"] == "/" and scope["method"] == "GET" else []
        return any(hmac.compare_digest(text.encode(), self.token.encode()) for text in given)


_HEADERS = {
    b"content-security-policy": _PAGE_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


def _refused(why: str) -> JSONResponse:
    return JSONResponse({"error": why}, 403)
