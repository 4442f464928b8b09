"""Runs the local pages until somebody stops them."""

from __future__ import annotations

import contextlib
import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from unfreeze.core.errors import RunError
from unfreeze.core.progress import Reporter
from unfreeze.deliver.web import review
from unfreeze.deliver.web.application import create_app
from unfreeze.deliver.web.deck import fit_command, open_deck
from unfreeze.deliver.web.guard import Guard


def serve_review(
    run: str | Path,
    verdicts: Path | None = None,
    *,
    limit: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    ready: Callable[[str], None] | None = None,
    reporter: Reporter | None = None,
) -> tuple[int, str]:
    """Shows the suspects of a run in the browser and writes verdicts down, until Ctrl-C.

    verdicts: the file; by default verdicts.csv in the run. host, port: where to listen; port 0 is any that is free.
    ready: called with the address, token included, once it can be opened. Returns
    how many verdicts there are, and the command that obeys them. Raises RunError, VerdictsError, SourceError.
    """
    deck = open_deck(run, verdicts, limit, reporter)
    with listening(host, port) as listener:
        guard = Guard(host, listener.getsockname()[1])
        app = create_app([review.page(deck, guard)], guard)
        if ready:
            ready(guard.address)
        if open_browser:
            webbrowser.open(guard.address)
        serve(app, listener)
    return len(deck.verdicts), fit_command(deck.run, deck.file)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. RunError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(64)  # the address is told before the server runs: who is quick must wait, not fail
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise RunError(
            f"--host {host} --port {port}: cannot be listened on ({why.lower()}); --port 0 takes a free one."
        ) from None
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answers on the socket until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=2
    )
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how one ends it
        uvicorn.Server(config).run(sockets=[listener])
