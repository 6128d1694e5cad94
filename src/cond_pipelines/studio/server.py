"""`cond-pipelines studio`: a socket on this machine, a token, and the page until Ctrl-C."""

import os
import secrets
import socket
import webbrowser
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import uvicorn

from ..console import for_terminal
from ..errors import UserError
from .app import build_app
from .places import Places
from .shared import Studio

_HOST, _NUM_PORTS = "127.0.0.1", 50


def serve(options: Namespace) -> None:
    """Print the address and answer until Ctrl-C. Raises UserError: a folder is not there, or no port is free."""
    places = Places(options.folders)
    listener = _listen(options.port)
    port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(options.cache_dir or Path(cache, "cond_pipelines", "studio"))
    app = build_app(Studio(places, home), token, port)
    address = f"http://{_HOST}:{port}/?token={token}"
    print(for_terminal(f"studio: {address}"), flush=True)
    print(for_terminal(f"over {', '.join(map(str, places.folders))}; Ctrl-C ends it, trainings go on"), flush=True)
    if not options.no_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=1
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended in order
        uvicorn.Server(config).run(sockets=[listener])


def _listen(first: int) -> socket.socket:
    """A socket on the first free port from `first` on; 0: any."""
    for port in range(first, first + _NUM_PORTS) if first else [0]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
            listener.listen()  # a browser that comes before the server waits
        except (OSError, OverflowError):
            listener.close()
            continue
        return listener
    raise UserError(f"--port {first}: it is in use, and so are the next ones: give another")
