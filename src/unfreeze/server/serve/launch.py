"""Start of the prediction service: load the run, check the limits, listen and serve."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.core.errors import EngineError, RunError
from unfreeze.core.messages import option, wording
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode_process import Decoder, DecoderLostError
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.access import AccessPolicy
from unfreeze.server.app import listening
from unfreeze.server.connections import HEAD_BYTES, timed_protocol
from unfreeze.server.serve.app import Served, create_app
from unfreeze.server.serve.batching import GRACE
from unfreeze.server.serve.gate import LOOPBACK, rules
from unfreeze.server.serve.limits import Limits
from unfreeze.server.serve.pages import about

if TYPE_CHECKING:
    import uvicorn


NO_TOKEN = "none"
_SHORTEST = 8
_FILES = 256  # open files in addition to the connections


@dataclass(frozen=True)
class Address:
    """Address of the prediction API.

    Attributes:
        url: URL of the page; with a token, it is valid for one browser.
        base: Base URL.
        token: Required token; None if none is required.
        limits: Limits of the server.
        about: Description of what is served.
    """

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
    public_hosts: Sequence[str] = (),
    ready: Callable[[Address], None] | None = None,
    entered: Callable[[str], None] | None = None,
    reporter: Reporter | None = None,
) -> None:
    """Serve the predictions of a finished run or an ensemble ("RUN+RUN") until Ctrl-C or SIGTERM.

    Images are held in memory only; nothing about them is written to disk or logged.

    Args:
        run: A run, several runs, or "RUN+RUN".
        host: Address to listen on.
        port: Port to listen on; 0 for any free port.
        token: Token that clients must send (`Authorization: Bearer`); "none" for no token; None to generate one unless
            the host is the loopback interface.
        limits: Limits of the server.
        public_hosts: Additional accepted values of the Host header; "*" accepts any.
        ready: Called when the server is ready.
        entered: Called with a new URL of the page whenever the previous one was used; each is valid for one browser.
        reporter: Receives progress.

    Raises:
        RunError: The run cannot be loaded, the port is not available, or a limit or the token is invalid.
        EngineError: The decoder process does not start, or the networks or decoders stopped responding.
    """
    limits = limits or Limits()
    secret = token_for(host, token)
    _allow_files(2 * limits.connections + _FILES)
    # Bind the port before loading the networks, so that a port in use fails early.
    with listening(host, port) as listener:
        _check_decoder()
        direct = InMemoryPredictor.load(run, limits.megapixels, reporter)
        served = Served(direct, limits)
        guard = AccessPolicy(
            host,
            listener.getsockname()[1],
            token=secret or secrets.token_urlsafe(32),
            public=tuple(name.lower() for name in public_hosts),
        )
        server = server_of(served, guard, secret)
        trouble = list[str]()

        def failed(reason: str) -> None:
            trouble.append(reason)
            server.should_exit = server.force_exit = True

        served.batcher.failed = failed
        page = guard.address_once(entered) if secret else f"{guard.base}/"
        if ready:
            ready(Address(page, guard.base, secret, limits, about(direct)))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # Ctrl-C is the normal way to stop the server
            pass
        finally:
            served.batcher.stop()  # a second Ctrl-C skips the application's shutdown handler
    if trouble:
        raise EngineError(f"serve: {trouble[0]}; the service ends, so that it can be started again.")


def server_of(served: Served, guard: AccessPolicy, token: str | None) -> uvicorn.Server:
    """Create the uvicorn server with all limits set."""
    import uvicorn

    limits = served.limits
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # client errors are counted, not logged
    config = uvicorn.Config(
        create_app(served, guard, token),
        http=timed_protocol(rules(limits, served.metrics)),
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2 * limits.connections,
        timeout_keep_alive=max(1, round(limits.idle_seconds)),
        # Longer than the timeout of any connection.
        timeout_graceful_shutdown=round(limits.seconds + GRACE) + 1,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    return uvicorn.Server(config)


def _check_decoder() -> None:
    """Check that a decoder process can be started; otherwise raise EngineError."""
    decoder = Decoder()
    try:
        decoder.wait()
    except DecoderLostError as error:
        raise EngineError(f"serve: the decoder process does not start ({error}).") from None
    finally:
        decoder.close()


def _allow_files(needed: int) -> None:
    """Raise the limit of open files of this process.

    Raises:
        RunError: The system does not allow it.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or soft >= needed:
        return
    if hard < needed:
        raise RunError(
            f"{wording('--connections', 'limits.connections')}: {(needed - _FILES) // 2:,} need {needed:,} open files "
            f"and this system allows {hard:,} "
            "(`ulimit -n`); take fewer."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def token_for(host: str, token: str | None) -> str | None:
    """The token that clients must send; None if none is required.

    Raises:
        RunError: The token is invalid.
    """
    if token is None:
        return None if host in LOOPBACK else secrets.token_urlsafe(24)
    if token == NO_TOKEN:
        return None
    if not re.fullmatch(rf"[A-Za-z0-9._~+/=-]{{{_SHORTEST},}}", token):
        raise RunError(
            f"{option('token')}: is at least {_SHORTEST} letters, digits or ._~+/=-, or the word none; leave it out "
            "and one is "
            "made up where it is needed."
        )
    return token
