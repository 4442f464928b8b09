"""Who may ask a served run, and how long a connection may take: before the application, and below it."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from unfreeze.deliver.web.guard import Guard
from unfreeze.deliver.web.serving_limits import Limits, RefusedError
from unfreeze.deliver.web.serving_metrics import Metrics
from unfreeze.deliver.web.serving_upload import too_large

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
# Open without a token: whether the server lives is for whoever watches it; style and script say nothing of the run.
_OPEN = ("/healthz",)
_GRACE = 2.0  # seconds beyond `Limits.seconds` after which a connection is cut, whatever it does


def problem(refused: RefusedError, metrics: Metrics) -> JSONResponse:
    """The answer to what is refused; counted."""
    metrics.errors.labels(refused.kind).inc()
    headers = {}
    if refused.status == 503:
        headers["Retry-After"] = "1"
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.kind == "too_slow":
        headers["Connection"] = "close"
    return JSONResponse({"error": refused.reason, "kind": refused.kind}, refused.status, headers)


def allows(headers: Headers, guard: Guard, token: str | None) -> bool:
    """Whether a request carries the token, in its header or the page's cookie, or none is needed."""
    if token is None:
        return True
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return (scheme.lower() == "bearer" and _equal(given.strip(), token)) or guard.has_cookie(headers)


class Gate:
    """ASGI middleware: token, host, origin, stated length; counts what was answered.

    token: None where everybody may ask. On loopback the Host header must name this machine, so that a page elsewhere
    cannot reach the server by pointing a name of its own at it.
    """

    def __init__(self, app: ASGIApp, guard: Guard, token: str | None, limits: Limits, metrics: Metrics) -> None:
        self.app, self.guard, self.token, self.limits, self.metrics = app, guard, token, limits, metrics
        self.local = guard.host in LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here: left unanswered, the server closes them
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
            app = self._entrance(scope) or app
            self._check(scope)
        except RefusedError as refused:
            app = problem(refused, self.metrics)
        scope.setdefault("state", {})["started"] = started
        await app(scope, receive, sending)
        if status:
            self.metrics.answered(scope["path"], status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self.local and not self.guard.knows_host(headers.get("host", "")):
            raise RefusedError("wrong_host", "unknown host: use the address that the terminal shows.")
        if scope["method"] not in ("GET", "HEAD") and not _same_origin(headers):
            raise RefusedError("foreign_page", "another page asked for this.")
        if path not in _OPEN and not path.startswith("/static/") and not allows(headers, self.guard, self.token):
            raise RefusedError("no_token", "send the header `Authorization: Bearer TOKEN`, or open /?token=TOKEN.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise RefusedError("malformed", "Content-Length is no number.")
        if len(length) > 18 or int(length) > self.limits.body:
            raise too_large(self.limits)

    def _entrance(self, scope: Scope) -> Response | None:
        """The token in the page's address becomes a cookie, and leaves the address."""
        if self.token is None or scope["path"] != "/" or scope["method"] != "GET":
            return None
        query = scope["query_string"].decode("latin-1")
        try:
            given = parse_qs(query, max_num_fields=8).get("token", [""])[0]
        except ValueError:
            return None
        if not _equal(given, self.token):
            return None
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.guard.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer


def _same_origin(headers: Headers) -> bool:
    """Whether the browser says that a page of this very server asks, or does not say."""
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


def watched(limits: Limits, metrics: Metrics) -> type[H11Protocol]:
    """uvicorn's HTTP protocol with a clock: no connection outlasts its phase, however slowly it sends or reads.

    uvicorn itself limits only how long a connection is idle after an answer. Here a request's head must come within
    `header_seconds`, all the rest within `seconds` and a little; then the connection is cut off. More than twice
    `connections` are not even listened to.
    """

    class Watched(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _phase = "idle"

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.connections:
                metrics.errors.labels("connections").inc()
                transport.abort()
                return
            self._enter("head")

        def data_received(self, data: bytes) -> None:
            if self._phase == "idle":
                self._enter("head")
            super().data_received(data)
            self._follow()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._follow()

        def eof_received(self) -> bool | None:  # type: ignore[override]
            # Who has sent all and closed only that half still gets an answer; anybody else has gone.
            cycle = self.cycle
            if cycle is not None and not cycle.more_body and not cycle.response_complete:
                cycle.keep_alive = False
                return True
            return None

        def connection_lost(self, exc: Exception | None) -> None:
            self._enter("idle")
            super().connection_lost(exc)

        def _follow(self) -> None:
            """The phase after something happened."""
            busy = self.conn.their_state is not h11.IDLE or (self.cycle and not self.cycle.response_complete)
            if busy and self._phase != "request":
                self._enter("request")
            elif not busy and self._phase == "request":
                # A further request may have begun to come; else uvicorn's own clock runs, and this one beside it.
                self._enter("head" if self.conn.trailing_data[0] else "idle")

        def _enter(self, phase: str) -> None:
            self._phase = phase
            if self._timer is not None:
                self._timer.cancel()
            after = {
                "head": limits.header_seconds,
                "request": limits.seconds + _GRACE,
                "idle": limits.idle_seconds + _GRACE,
            }
            self._timer = self.loop.call_later(after[phase], self._cut)
            if self.transport is None or self.transport.is_closing():
                self._timer.cancel()

        def _cut(self) -> None:
            if self._phase != "idle":
                metrics.errors.labels("too_slow").inc()
            self.transport.abort()

    return Watched
