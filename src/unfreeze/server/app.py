"""The local web application behind the label review and the studio, and its server.

`create_app` combines routers with access control and static files. `serve` runs an application until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import FrameType

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse

from unfreeze.core.errors import RunError
from unfreeze.core.messages import option
from unfreeze.core.progress import Reporter
from unfreeze.reports.html import WEB
from unfreeze.server import review
from unfreeze.server.access import AccessMiddleware, AccessPolicy, opened
from unfreeze.server.connections import HEAD_BYTES, Rules, timed_protocol
from unfreeze.server.review import fit_command, open_deck


def create_app(
    pages: Iterable[APIRouter],
    guard: AccessPolicy,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Create the application. Every request passes the access policy first.

    Styles and scripts are served from the package; nothing is loaded from other hosts.

    Args:
        pages: Routers, such as `review.page(...)` or those of the studio.
        guard: Access policy.
        lifespan: Startup and shutdown handler.
    """
    app = FastAPI(title="unfreeze", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for page in pages:
        app.include_router(page)
    app.mount("/static", StaticFiles(directory=WEB / "static"), name="static")
    app.add_exception_handler(ClientDisconnect, _cut_off)
    app.add_exception_handler(RequestValidationError, strange)
    app.add_middleware(AccessMiddleware, guard=guard)
    return app


def strange(request: Request, error: Exception) -> JSONResponse:
    """Handle validation errors without echoing the input, since values such as `Infinity` are not valid JSON."""
    return JSONResponse({"error": "This is not what the page sends; reload it."}, 422)


def _cut_off(request: Request, error: Exception) -> PlainTextResponse:
    """Respond to bodies over the limit, which the access middleware aborts like a disconnect."""
    return PlainTextResponse("Refused: too large.\n", 413)


_PATIENCE = 4.5  # seconds from the signal until the process is ended


def serve_review(
    run: str | Path,
    corrections: Path | None = None,
    *,
    limit: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    ready: Callable[[str], None] | None = None,
    reporter: Reporter | None = None,
) -> tuple[int, str]:
    """Serve the label review page of a run until Ctrl-C; corrections are saved to a file immediately.

    Args:
        run: A finished run.
        corrections: File for the corrections, by default corrections.csv in the run folder.
        limit: Number of images to review; 0 for a default (see `open_deck`).
        host: Address to listen on.
        port: Port to listen on; 0 for any free port.
        open_browser: Open the page in the browser.
        ready: Called with a URL when the server is ready. Each URL is valid for one browser; when it is used, `ready`
            is called again with a new one.
        reporter: Receives progress.

    Returns:
        The number of corrections, and the command that fits a run with them.

    Raises:
        RunError: The run cannot be loaded, or the server cannot listen on the port.
        CorrectionsError: The file of corrections is invalid.
        SourceError: The label issues cannot be computed.
    """
    deck = open_deck(run, corrections, limit, reporter)
    with listening(host, port) as listener:
        guard = AccessPolicy(host, listener.getsockname()[1])
        app = create_app([review.page(deck, guard)], guard)
        if ready:
            ready(guard.address_once(ready))
        with opened(guard, open_browser):
            serve(app, listener)
    return len(deck.corrections), fit_command(deck.run, deck.file)


def listening(host: str, port: int) -> socket.socket:
    """Create a listening TCP socket; port 0 is any free port.

    Raises:
        RunError: The address or port is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(64)  # the URL is shown before the server runs: early connections wait in the backlog
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise RunError(
            f"{option('host', host)} {option('port', port)}: cannot be listened on ({why.lower()}); "
            f"{option('port', 0)} takes a free one."
        ) from None
    return listener


def serve(app: FastAPI, listener: socket.socket, ending: Callable[[], None] | None = None) -> None:
    """Serve an application until Ctrl-C or SIGTERM, and end within 5 seconds of the signal even if threads hang.

    Args:
        app: The application.
        listener: A listening socket.
        ending: Called in a separate thread on the signal. If it does not return in time, the process is ended anyway.
    """
    import uvicorn

    over = threading.Event()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                threading.Thread(target=_end, args=(sig, ending, over), name="end", daemon=True).start()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        http=timed_protocol(Rules()),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the normal way to stop the server
        try:
            Server(config).run(sockets=[listener])
        finally:
            over.set()


def _end(number: int, ending: Callable[[], None] | None, over: threading.Event) -> None:
    """End the process if the server has not stopped in time, for example because a thread hangs in file I/O."""
    until = time.monotonic() + _PATIENCE
    if ending:
        waiting = threading.Thread(target=ending, name="ending", daemon=True)
        waiting.start()
        waiting.join(_PATIENCE)
    time.sleep(max(0.0, until - time.monotonic()))
    if over.is_set() and threading.main_thread().is_alive():  # the server was stopped inside a longer program
        return
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(0 if number == signal.SIGINT else 128 + number)
