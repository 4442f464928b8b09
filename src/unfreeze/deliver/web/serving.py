"""Serves a finished run: an HTTP API and a page over networks that are held in memory."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import RunError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.deliver.web.guard import Guard
from unfreeze.deliver.web.server import listening
from unfreeze.deliver.web.serving_app import Served, create_app
from unfreeze.deliver.web.serving_gate import GRACE, LOOPBACK, watched
from unfreeze.deliver.web.serving_limits import Limits
from unfreeze.deliver.web.serving_page import about
from unfreeze.learn.direct import Direct

if TYPE_CHECKING:
    import uvicorn

NO_TOKEN = "none"
_SHORTEST = 8
_HEAD_BYTES = 16 * 1024
_FILES = 256  # open files beside those of connections


@dataclass(frozen=True)
class Address:
    """Where a served run answers. url: of the page, token included where one is needed. token: None where none is."""

    url: str
    base: str
    token: str | None
    limits: Limits
    about: dict[str, Any]


def serve(
    run: str | Path | Run | Sequence[str | Path | Run],
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    *,
    ready: Callable[[Address], None] | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Answers with the predictions of a finished run, or of several blended ("RUN+RUN"), until Ctrl-C or SIGTERM.

    host, port: where to listen; port 0 is any that is free. token: what callers must send (`Authorization: Bearer`);
    "none": nobody needs one; None: one is made up unless the host is this machine's loopback. ready: called once it
    answers. Photos are held in memory only; nothing of them is written or logged.
    Raises RunError for a run that cannot be loaded, a port that cannot be had, a bad limit or token.
    """
    limits = limits or Limits()
    secret = token_for(host, token)
    _allow_files(2 * limits.connections + _FILES)
    # A port that is taken is told before networks are loaded.
    with listening(host, port) as listener:
        direct = Direct.load(run, limits.megapixels, reporter)
        served = Served(direct, limits)
        guard = Guard(host, listener.getsockname()[1], token=secret or secrets.token_urlsafe(32))
        server = server_of(served, guard, secret)
        base = guard.address.partition("/?token=")[0]
        if ready:
            ready(Address(guard.address if secret else base + "/", base, secret, limits, about(direct)))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # Ctrl-C is how one ends it
            pass
        finally:
            served.batcher.stop()  # a second Ctrl-C ends the server before it has done so


def server_of(served: Served, guard: Guard, token: str | None) -> uvicorn.Server:
    """The HTTP server, with every limit set."""
    import uvicorn

    limits = served.limits
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what callers do wrong is counted, not logged
    config = uvicorn.Config(
        create_app(served, guard, token),
        http=watched(limits, served.metrics),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2 * limits.connections,
        timeout_keep_alive=max(1, round(limits.idle_seconds)),
        # By then every connection has been cut by its own clock.
        timeout_graceful_shutdown=round(limits.seconds + GRACE) + 1,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return uvicorn.Server(config)


def _allow_files(needed: int) -> None:
    """Lets this process hold as many files and sockets. RunError where the system does not."""
    try:
        import resource
    except ImportError:  # Windows counts them otherwise
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft >= needed:
        return
    if hard < needed:
        raise RunError(
            f"--connections: {(needed - _FILES) // 2:,} need {needed:,} open files and this system allows {hard:,} "
            "(`ulimit -n`); take fewer."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def token_for(host: str, token: str | None) -> str | None:
    """The token that callers must send; None: nobody needs one. RunError for a token that is none."""
    if token is None:
        return None if host in LOOPBACK else secrets.token_urlsafe(24)
    if token == NO_TOKEN:
        return None
    if not re.fullmatch(rf"[A-Za-z0-9._~+/=-]{{{_SHORTEST},}}", token):
        raise RunError(
            f"--token: is at least {_SHORTEST} letters, digits or ._~+/=-, or the word none; leave it out and one is "
            "made up where it is needed."
        )
    return token
