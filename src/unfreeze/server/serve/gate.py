"""Access control of the prediction API, as ASGI middleware."""

from __future__ import annotations

import contextlib
import hmac
import time
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unfreeze.core.messages import option
from unfreeze.server.access import AccessPolicy
from unfreeze.server.connections import Rules
from unfreeze.server.serve.batching import GRACE
from unfreeze.server.serve.limits import Limits, RefusedError
from unfreeze.server.serve.metrics import Metrics
from unfreeze.server.serve.upload import too_large

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Allowed without a token, for liveness probes; so are static files, which reveal nothing about the run.
_OPEN = ("/healthz",)


def problem(refused: RefusedError, metrics: Metrics) -> JSONResponse:
    """Count a refusal and create its response."""
    metrics.errors.labels(refused.kind).inc()
    headers = {}
    if refused.status == 503:
        headers["Retry-After"] = "1"
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.kind in ("too_slow", "no_length", "connections"):
        headers["Connection"] = "close"
    return JSONResponse({"error": refused.reason, "kind": refused.kind}, refused.status, headers)


def allows(headers: Headers, guard: AccessPolicy, token: str | None) -> bool:
    """Whether a request has the token, in the Authorization header or the cookie, or no token is required."""
    if token is None:
        return True
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return (scheme.lower() == "bearer" and _equal(given.strip(), token)) or guard.has_cookie(headers)


class RequestGate:
    """ASGI middleware that checks token, Host, origin and Content-Length, and counts responses.

    The Host header must name this machine or one of the public host names. Otherwise a malicious page could reach the
    server with a host name that resolves to it (DNS rebinding).

    Args:
        app: The application.
        guard: Access policy.
        token: Required token; None if none is required.
        limits: Limits of the server.
        metrics: Receives the counts.
    """

    def __init__(self, app: ASGIApp, guard: AccessPolicy, token: str | None, limits: Limits, metrics: Metrics) -> None:
        self.app, self.guard, self.token, self.limits, self.metrics = app, guard, token, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSocket support: the server closes unanswered connections
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app: ASGIApp = self.app
        try:
            self._check(scope)
            app = self._entrance(scope) or app
        except RefusedError as refused:
            app = problem(refused, self.metrics)
        scope.setdefault("state", {})["started"] = started
        await app(scope, receive, sending)
        if status:
            self.metrics.answered(scope["path"], status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self.guard.knows_host(headers.get("host", "")):
            how = option("public_hosts", metavar="NAME", command="public-host")
            raise RefusedError("wrong_host", f"unknown host: use the address that the terminal shows, or {how}.")
        if scope["method"] not in ("GET", "HEAD") and not _same_origin(headers):
            raise RefusedError("foreign_page", "the request comes from another site.")
        if "transfer-encoding" in headers:
            # Chunks of single bytes would occupy the event loop.
            raise RefusedError("no_length", "state the body's Content-Length; a body in chunks is not taken.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise RefusedError("malformed", "Content-Length is no number.")
        if len(length) > 18 or int(length) > self.limits.body:
            raise too_large(self.limits)

    def _entrance(self, scope: Scope) -> Response | None:
        """Exchange the ticket or token in the page's URL for a cookie and redirect.

        Raises:
            RefusedError: The request has no valid token.
        """
        path = scope["path"]
        if self.token is not None and path == "/" and scope["method"] == "GET":
            query = scope["query_string"].decode("latin-1")
            with contextlib.suppress(ValueError):
                given = parse_qs(query, max_num_fields=8).get("token", [""])[0]
                if self.guard.enter(given) or _equal(given, self.token):
                    return self.guard.entered(Headers(scope=scope))
        if path in _OPEN or path.startswith("/static/") or allows(Headers(scope=scope), self.guard, self.token):
            return None
        raise RefusedError("no_token", "send the header `Authorization: Bearer TOKEN`, or open /?token=TOKEN.")


def _same_origin(headers: Headers) -> bool:
    """Whether the request comes from a page of this server, or the browser sends no origin information."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def rules(limits: Limits, metrics: Metrics) -> Rules:
    """Connection limits of the prediction API; every connection ends with the time limit of its request."""
    return Rules(
        head=limits.header_seconds,
        request=limits.seconds + GRACE,
        idle=limits.idle_seconds + GRACE,
        connections=limits.connections,
        whole=True,
        refuse=lambda kind, reason: problem(RefusedError(kind, reason), metrics),
        count=lambda kind: metrics.errors.labels(kind).inc(),
    )
