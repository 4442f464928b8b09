"""Who may ask a served run, and how long a connection may take: before the application, and below it."""

from __future__ import annotations

import asyncio
import contextlib
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
GRACE = 2.0  # seconds beyond `Limits.seconds` after which a connection is cut, whatever it does
_QUIET = 1.0  # seconds of silence after which a connection may have to give way
_PIECE = 4096  # bytes of a head that are looked at together


def problem(refused: RefusedError, metrics: Metrics) -> JSONResponse:
    """The answer to what is refused; counted."""
    metrics.errors.labels(refused.kind).inc()
    headers = {}
    if refused.status == 503:
        headers["Retry-After"] = "1"
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.kind in ("too_slow", "no_length", "connections"):
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
        if self.local and not self.guard.knows_host(headers.get("host", "")):
            raise RefusedError("wrong_host", "unknown host: use the address that the terminal shows.")
        if scope["method"] not in ("GET", "HEAD") and not _same_origin(headers):
            raise RefusedError("foreign_page", "another page asked for this.")
        if "transfer-encoding" in headers:
            # Its chunks could be a byte each, and every one is work for all.
            raise RefusedError("no_length", "state the body's Content-Length; a body in chunks is not taken.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise RefusedError("malformed", "Content-Length is no number.")
        if len(length) > 18 or int(length) > self.limits.body:
            raise too_large(self.limits)

    def _entrance(self, scope: Scope) -> Response | None:
        """The token in the page's address becomes a cookie, and leaves the address. RefusedError without any."""
        path = scope["path"]
        if self.token is not None and path == "/" and scope["method"] == "GET":
            query = scope["query_string"].decode("latin-1")
            with contextlib.suppress(ValueError):
                if _equal(parse_qs(query, max_num_fields=8).get("token", [""])[0], self.token):
                    answer = RedirectResponse("/", 303)
                    answer.set_cookie(self.guard.cookie, self.token, httponly=True, samesite="strict", path="/")
                    return answer
        if path in _OPEN or path.startswith("/static/") or allows(Headers(scope=scope), self.guard, self.token):
            return None
        raise RefusedError("no_token", "send the header `Authorization: Bearer TOKEN`, or open /?token=TOKEN.")


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
    `header_seconds`, all the rest within `seconds` and a little; then the connection is cut off. Where `connections`
    are open, a new one takes the place of the one that has been silent longest; where all are busy, it is told so, and
    more than twice as many are cut off unheard. One request at a time: what is sent before the answer is dropped.
    """

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        reason = f"{limits.connections} connections are busy; ask again in a second."
        await problem(RefusedError("connections", reason), metrics)(scope, receive, send)

    class Watched(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _phase = "new"
        _since = 0.0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            others = [c for c in self.connections if c is not self and isinstance(c, Watched) and c._phase != "cut"]
            if len(others) >= 2 * limits.connections:
                metrics.errors.labels("connections").inc()
                self._cut()
                return
            if len(others) >= limits.connections:
                before = self.loop.time() - _QUIET
                silent = [c for c in others if c._phase in ("head", "idle") and c._since < before]
                if silent:
                    min(silent, key=lambda c: c._since)._late()
                else:
                    self.app = full
            self._enter("head")

        def data_received(self, data: bytes) -> None:
            if self._phase == "idle":
                self._enter("head")
            # The head in pieces: what follows it is looked at only once it is known to be taken.
            while data and self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                super().data_received(data[:_PIECE])
                data = data[_PIECE:]
            sending = self.conn.their_state is h11.SEND_BODY
            if data and sending and not any(name == b"transfer-encoding" for name, _ in self.headers):
                super().data_received(data)
            elif (data or self.conn.trailing_data[0]) and not sending and self.cycle:
                self.cycle.keep_alive = False  # more than one request at once
            self._follow()

        def send_400_response(self, msg: str) -> None:
            answer = problem(RefusedError("malformed", "this is no HTTP request."), metrics)
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
                self._cut()
                return
            head = h11.Response(status_code=400, headers=[*answer.raw_headers, (b"connection", b"close")])
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._follow()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _follow(self) -> None:
            """The phase after something happened."""
            busy = self.conn.their_state is not h11.IDLE or (self.cycle and not self.cycle.response_complete)
            if busy and self._phase == "head":
                self._enter("request")
            elif not busy and self._phase == "request":
                self._enter("idle")

        def _enter(self, phase: str) -> None:
            if self._phase == "cut":
                return
            self._stop()
            self._phase, self._since = phase, self.loop.time()
            after = {
                "head": limits.header_seconds,
                "request": limits.seconds + GRACE,
                "idle": limits.idle_seconds + GRACE,
            }
            if not self.transport.is_closing():
                self._timer = self.loop.call_later(after[phase], self._late)

        def _late(self) -> None:
            if self._phase != "idle":
                metrics.errors.labels("too_slow").inc()
            self._cut()

        def _cut(self) -> None:
            self._stop()
            self._phase = "cut"
            self.transport.abort()

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

    return Watched
