"""Who may talk to the local pages: the token of the printed address, a known Host, the same origin, small requests."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 1024
_SAFE = ("GET", "HEAD")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def _token() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Guard:
    """The rules of one server. host, port: what it listens on. token: in the address, then in a cookie. form_token: in
    the page, sent back as `X-Unfreeze-Token` with all that changes something. uploads: patterns of whole paths to which
    more than MAX_BODY may be sent, and how many bytes.
    """

    host: str
    port: int
    token: str = field(default_factory=_token, repr=False)
    form_token: str = field(default_factory=_token, repr=False)
    uploads: tuple[tuple[str, int], ...] = ()

    @property
    def cookie(self) -> str:
        """The cookie's name; cookies are shared by all ports of a host, so the port is in it."""
        return f"unfreeze_{self.port}"

    @property
    def address(self) -> str:
        """What a person opens, token included."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0") else "::1" if self.host == "::" else self.host
        named = f"[{host}]" if ":" in host else host
        return f"http://{named}:{self.port}/?token={self.token}"

    def knows_host(self, header: str) -> bool:
        """Whether a Host header is one of this server's: a name that somebody else points here is not."""
        name, port = _split(header)
        if port != self.port:
            return False
        if name in _LOOPBACK or name == self.host.lower():
            return True
        if self.host in _LOOPBACK:
            return False
        if self.host in ("", "0.0.0.0", "::"):  # any address of this machine, and its own name
            return _is_address(name) or name == socket.gethostname().lower()
        return name == f"[{self.host.lower()}]"

    def same_origin(self, headers: Headers) -> bool:
        """Whether the browser says that a page of this very server asks, or does not say."""
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{headers.get('host', '').lower()}":
            return False
        return headers.get("sec-fetch-site", "none") in ("same-origin", "none")

    def most(self, path: str) -> int:
        """How many bytes may be sent to a path."""
        return next((most for pattern, most in self.uploads if re.fullmatch(pattern, path)), MAX_BODY)

    def has_cookie(self, headers: Headers) -> bool:
        """Whether the request carries the token."""
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and _equal(found.value, self.token)


class Guarded:
    """ASGI middleware that lets through what a Guard allows, and nothing else."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here: left unanswered, the server closes them
        refusal = self._refusal(scope) or self._entrance(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self.app(scope, _limited(receive, self.guard.most(scope["path"])), _with_headers(send))

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers, guard = Headers(scope=scope), self.guard
        if not guard.knows_host(headers.get("host", "")):
            return PlainTextResponse("Unknown host: open the address that the terminal shows.\n", 421)
        entering = scope["method"] in _SAFE and scope["path"] == "/"  # a link from elsewhere may lead here
        if not guard.same_origin(headers) and not (entering and headers.get("sec-fetch-mode") == "navigate"):
            return PlainTextResponse("Refused: another page asked for this.\n", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > guard.most(scope["path"]):
            return PlainTextResponse("Refused: too large.\n", 413)
        if scope["method"] not in _SAFE and not _equal(headers.get("x-unfreeze-token", ""), guard.form_token):
            return PlainTextResponse("Refused: reload the page and try again.\n", 403)
        return None

    def _entrance(self, scope: Scope) -> PlainTextResponse | RedirectResponse | None:
        """The token in the address becomes a cookie, and leaves the address."""
        guard = self.guard
        entrance = scope["path"] == "/" and scope["method"] in _SAFE
        if entrance and _equal(_token_in(scope["query_string"]), guard.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(guard.cookie, guard.token, httponly=True, samesite="strict", path="/")
            return answer
        if not guard.has_cookie(Headers(scope=scope)):
            return PlainTextResponse("Open the whole address that the terminal shows: its token is missing.\n", 403)
        return None


def _token_in(query: bytes) -> str:
    try:
        return parse_qs(query.decode("latin-1"), max_num_fields=8).get("token", [""])[0]
    except ValueError:  # more fields than that are no entrance of ours
        return ""


def _split(header: str) -> tuple[str, int]:
    name, colon, port = header.strip().lower().rpartition(":")
    if not colon or header.endswith("]"):
        return header.strip().lower(), 80
    return name, int(port) if port.isdecimal() and len(port) < 6 else -1


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _limited(receive: Receive, most: int) -> Receive:
    """A body without a stated length is cut off too."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > most else message

    return limited


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)  # a page of its own, as a report is, states its own policy
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
