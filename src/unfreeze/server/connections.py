"""Limits below the application: timeouts per phase of a connection, header size and number of connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_BYTES = 16 * 1024
_QUIET = 1.0  # seconds without data after which a connection may be dropped for a new one
_PIECE = 4096  # bytes of a head that are parsed at once
_END = re.compile(rb"\n\r?\n")  # end of a head, as in h11
_STATUS = {"malformed": 400, "large_head": 431, "connections": 503}
_REASONS = {
    "malformed": "this is no HTTP request.",
    "large_head": f"the request's head has more than {HEAD_BYTES:,} bytes.",
}


def _plain(kind: str, reason: str) -> Response:
    return PlainTextResponse(f"Refused: {reason}\n", _STATUS[kind])


@dataclass(frozen=True)
class Rules:
    """Connection limits of a server.

    Attributes:
        head: Seconds for receiving the head of a request.
        request: Seconds from the end of the head until the body is received or, with `whole`, until the response is
            sent.
        idle: Seconds that a connection may stay open without a request.
        connections: Maximum number of open connections.
        whole: Whether `request` includes the response; otherwise the response has no time limit.
        refuse: Creates the response for a refusal of kind `malformed`, `large_head` or `connections`, from kind and
            reason.
        count: Called with the kind of each refusal without a response: `too_slow`, or `connections` if there are too
            many connections even to refuse one.
    """

    head: float = 10
    request: float = 130
    idle: float = 10
    connections: int = 64
    whole: bool = False
    refuse: Callable[[str, str], Response] = _plain
    count: Callable[[str], None] = lambda kind: None


def timed_protocol(rules: Rules) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with a timeout for each phase of a connection.

    uvicorn itself only limits the idle time after a response. If the maximum number of connections is open, a new one
    replaces the connection that has been silent longest. If all are busy, the new one gets a 503 response; beyond twice
    the maximum, new connections are closed without a response. Pipelining is not supported: data received before the
    response is sent is dropped.
    """

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        reason = f"{rules.connections} connections are busy; ask again in a second."
        await rules.refuse("connections", reason)(scope, receive, send)

    class Watched(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _phase = "new"
        _since = 0.0
        _head = b""  # bytes received so far

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            others = [c for c in self.connections if c is not self and isinstance(c, Watched) and c._phase != "cut"]
            if len(others) >= 2 * rules.connections:
                rules.count("connections")
                self._cut()
                return
            if len(others) >= rules.connections:
                before = self.loop.time() - _QUIET
                silent = [c for c in others if c._phase in ("head", "idle") and c._since < before]
                if silent:
                    min(silent, key=lambda c: c._since)._partial()
                else:
                    self.app = full
            self._enter("head")

        def data_received(self, data: bytes) -> None:
            if self._phase == "idle":
                self._enter("head")
            # Parse the head in pieces, so that the body is only parsed after the head was accepted.
            while data and self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                if self._head_is_large(data[:_PIECE]):
                    self._refuse("large_head")
                    return
                super().data_received(data[:_PIECE])
                data = data[_PIECE:]
            sending = self.conn.their_state is h11.SEND_BODY
            if data and sending and not any(name == b"transfer-encoding" for name, _ in self.headers):
                super().data_received(data)
            elif (data or self.conn.trailing_data[0]) and not sending and self.cycle:
                self.cycle.keep_alive = False  # more than one request at once
            self._follow()

        def send_400_response(self, msg: str) -> None:
            self._refuse("malformed")

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._follow()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _head_is_large(self, piece: bytes) -> bool:
            """Whether the head exceeds the limit, independent of how it is split into packets."""
            start = max(0, len(self._head) - 2)
            self._head += piece
            end = _END.search(self._head, start)
            return (end.end() if end else len(self._head)) > HEAD_BYTES

        def _refuse(self, kind: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a response has already started
                self._cut()
                return
            answer = rules.refuse(kind, _REASONS[kind])
            headers = [*answer.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=answer.status_code, headers=headers)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _follow(self) -> None:
            """Update the phase after an event."""
            busy = self.conn.their_state is not h11.IDLE or (self.cycle and not self.cycle.response_complete)
            if busy and self._phase == "head":
                self._enter("request")
            elif not busy and self._phase in ("request", "answer"):
                self._enter("idle")
            if self._phase == "request" and not rules.whole and self.conn.their_state is h11.DONE:
                self._enter("answer")

        def _enter(self, phase: str) -> None:
            if self._phase == "cut":
                return
            self._stop()
            self._phase, self._since, self._head = phase, self.loop.time(), b""
            after = {"head": rules.head, "request": rules.request, "idle": rules.idle}.get(phase)
            if after is not None and not self.transport.is_closing():
                self._timer = self.loop.call_later(after, self._partial)

        def _partial(self) -> None:
            if self._phase != "idle":
                rules.count("too_slow")
            self._cut()

        def _cut(self) -> None:
            self._stop()
            self._phase = "cut"
            self.transport.abort()

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()

    return Watched
