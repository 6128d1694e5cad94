"""Who may talk to the studio: a browser with its token, on this machine, from the studio's own page."""

import hmac
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 16 * 2**20
# A report is HTML that a run wrote: it is shown, and nothing in it runs.
SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


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
        """Answer or refuse one request; a WebSocket is never accepted."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        headers, tokens = Headers(scope=scope), parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        answer: ASGIApp | None = self._refusal(scope, headers, tokens)
        if answer is None and tokens:  # from the address into a cookie, so that it is in no history and no log
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in _HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        await (answer or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers, tokens: list[str]) -> Response | None:
        host, length = headers.get("host", ""), headers.get("content-length", "")
        if host not in self.hosts:
            return _refused(f"this host is not the studio: {host[:100]!r}")
        from_outside = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if from_outside or headers.get("origin", f"http://{host}") != f"http://{host}":
            return _refused("requests of other sites are refused")
        cookies = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
        given = [value for name, _, value in cookies if name == self.cookie]
        given += [headers.get("authorization", "").removeprefix("Bearer ")] + (tokens if scope["path"] == "/" else [])
        if not any(hmac.compare_digest(text.encode(), self.token.encode()) for text in given):
            return _refused("open the address that `cond-pipelines studio` printed: its token is missing or old")
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _refused("send JSON (Content-Type: application/json)", 415)
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return _refused(f"too large, or of no stated length: {MAX_BODY_BYTES / 2**20:.0f} MiB at most", 413)
        return None


def _refused(why: str, status: int = 403) -> JSONResponse:
    return JSONResponse({"error": why}, status)
