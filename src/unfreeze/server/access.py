"""Access control of the local web pages: one-time login links, Host and origin checks, body size limits.

The session token is stored in a cookie and never appears in a URL. A login URL contains a one-time ticket, so URLs
found in process lists, logs, browser histories or referrers are useless.

`opened` opens a page in the browser without its URL in the process list, the way Jupyter does: the browser opens a
private file that redirects to the login URL. The file is removed when the ticket is used or the server ends.
"""

from __future__ import annotations

import contextlib
import hmac
import html
import ipaddress
import os
import re
import secrets
import socket
import stat
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unfreeze.core.processes import safe_programs

MAX_BODY = 64 * 1024
_SAFE = ("GET", "HEAD")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_GO_ON = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/"><title>unfreeze</title>'
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
class AccessPolicy:
    """Access rules of one server.

    Attributes:
        host: Address that the server listens on.
        port: Port that the server listens on.
        token: Value of the session cookie.
        form_token: CSRF token: embedded in the pages and required in the `X-Unfreeze-Token` header of every request
            that changes state.
        uploads: Regular expressions of full paths that accept bodies larger than MAX_BODY, with their limits in bytes.
        public: Additional accepted host names; "*" accepts any.
    """

    host: str
    port: int
    token: str = field(default_factory=_token, repr=False)
    form_token: str = field(default_factory=_token, repr=False)
    uploads: tuple[tuple[str, int], ...] = ()
    public: tuple[str, ...] = ()
    _tickets: dict[str, Callable[[], None] | None] = field(default_factory=dict, repr=False)

    @property
    def cookie(self) -> str:
        """Name of the cookie. It contains the port, since browsers share cookies between the ports of a host."""
        return f"unfreeze_{self.port}"

    @property
    def base(self) -> str:
        """Base URL of the pages, without a ticket."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0") else "::1" if self.host == "::" else self.host
        named = f"[{host}]" if ":" in host else host
        return f"http://{named}:{self.port}"

    def ticket(self, used: Callable[[], None] | None = None) -> str:
        """Create a one-time ticket. `used` is called when it is redeemed."""
        made = _token()
        self._tickets[made] = used
        return made

    def address(self, used: Callable[[], None] | None = None) -> str:
        """URL with a new ticket, valid for one browser. `used` is called when the ticket is redeemed."""
        return f"{self.base}/?token={self.ticket(used)}"

    def address_once(self, next_one: Callable[[str], None] | None = None) -> str:
        """URL with a new ticket, valid for one browser. Whenever it is used, `next_one` receives a new URL."""
        return self.address(lambda: next_one(self.address_once(next_one)) if next_one else None)

    def enter(self, given: str) -> bool:
        """Redeem a ticket; return whether it was valid."""
        found = next((one for one in list(self._tickets) if _equal(given, one)), None)
        if found is None:
            return False
        used = self._tickets.pop(found, None)
        if used:
            used()
        return True

    def entered(self, headers: Headers) -> Response:
        """Response to a valid ticket: set the cookie and redirect to the home page."""
        answer: Response = RedirectResponse("/", 303)
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            # Browsers do not send a SameSite=Strict cookie in a redirect that started on another site; a page with a
            # meta refresh starts a new same-site navigation.
            answer = HTMLResponse(_GO_ON)
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server (protection against DNS rebinding)."""
        name, port = _split(header)
        if name and ("*" in self.public or name in self.public):  # any port, since a proxy may listen on another one
            return True
        local = self.host in (*_LOOPBACK, "::1")
        if local and port != self.port:  # for other hosts, a container or proxy may map the port
            return False
        if name in _LOOPBACK or name == self.host.lower():
            return True
        if local:
            return name == f"[{self.host}]"
        if self.host in ("", "0.0.0.0", "::"):  # any address, and the machine's name
            return _is_address(name) or name == socket.gethostname().lower()
        return name == f"[{self.host.lower()}]"

    def same_origin(self, headers: Headers) -> bool:
        """Whether the request comes from a page of this server, or the browser sends no origin information."""
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{headers.get('host', '').lower()}":
            return False
        return headers.get("sec-fetch-site", "none") in ("same-origin", "none")

    def most(self, path: str) -> int:
        """Maximum body size of a path in bytes."""
        return next((most for pattern, most in self.uploads if re.fullmatch(pattern, path)), MAX_BODY)

    def has_cookie(self, headers: Headers) -> bool:
        """Whether the request has a valid session cookie."""
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and _equal(found.value, self.token)


class AccessMiddleware:
    """ASGI middleware that rejects all requests that the policy does not allow."""

    def __init__(self, app: ASGIApp, guard: AccessPolicy) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSocket support: the server closes unanswered connections
        refusal = self._refusal(scope) or self._entrance(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self.app(scope, _limited(receive, self.guard.most(scope["path"])), _with_headers(send))

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers, guard = Headers(scope=scope), self.guard
        if not guard.knows_host(headers.get("host", "")):
            return PlainTextResponse("Unknown host: open the address that the terminal shows.\n", 421)
        entering = scope["method"] in _SAFE and scope["path"] == "/"  # links from other sites are fine
        if not guard.same_origin(headers) and not (entering and headers.get("sec-fetch-mode") == "navigate"):
            return PlainTextResponse("Refused: the request comes from another site.\n", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > guard.most(scope["path"]):
            return PlainTextResponse("Refused: too large.\n", 413)
        if scope["method"] not in _SAFE and not _equal(headers.get("x-unfreeze-token", ""), guard.form_token):
            return PlainTextResponse("Refused: reload the page and try again.\n", 403)
        return None

    def _entrance(self, scope: Scope) -> Response | None:
        """Exchange the ticket in the URL for a cookie and redirect; reject requests without a cookie."""
        guard = self.guard
        headers = Headers(scope=scope)
        given = _token_in(scope["query_string"]) if scope["path"] == "/" and scope["method"] == "GET" else ""
        if given and (guard.has_cookie(headers) or guard.enter(given)):  # a reload with a used ticket is fine
            return guard.entered(headers)
        if guard.has_cookie(headers):
            return None
        return PlainTextResponse(
            "Open the newest whole address that the terminal shows: the token is missing, or was used already; each "
            "address opens the pages in one browser.\n",
            403,
        )


def _token_in(query: bytes) -> str:
    try:
        return parse_qs(query.decode("latin-1"), max_num_fields=8).get("token", [""])[0]
    except ValueError:  # too many fields
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
    """Abort bodies that exceed the limit, also those without a Content-Length."""
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
                headers.setdefault(name, value)  # pages such as reports set their own policy
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
    '<meta http-equiv="refresh" content="0; url={address}"><title>unfreeze</title>'
    '<p><a href="{address}">Open the page</a></p></html>\n'
)


@contextlib.contextmanager
def opened(guard: AccessPolicy, wanted: bool = True) -> Iterator[None]:
    """Context manager that opens the pages in the browser and removes the redirect file at the end.

    If the file cannot be written, nothing is opened; the user can open the printed URL.

    Args:
        guard: Policy of the server, which must be listening already.
        wanted: If false, do nothing.
    """
    file: Path | None = None

    def remove() -> None:
        if file:
            with contextlib.suppress(OSError):
                file.unlink()

    if wanted:
        with contextlib.suppress(OSError):
            file = _written(guard.address(remove))
            threading.Thread(target=_open, args=(file,), name="browser", daemon=True).start()
    try:
        yield
    finally:
        remove()


def _open(file: Path) -> None:
    """Open the file in the browser; runs in a thread, since terminal browsers block until they are closed."""
    with safe_programs(), contextlib.suppress(Exception):
        webbrowser.open(file.as_uri())


def _written(address: str) -> Path:
    folder = runtime_folder()
    file = folder / f"open-{secrets.token_hex(8)}.html"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(file, flags, 0o600), "w", encoding="utf-8") as out:
        out.write(_PAGE.format(address=html.escape(address)))
    return file


def runtime_folder() -> Path:
    """A folder that only this user can access, for files that live as long as a process.

    Raises:
        OSError: The folder cannot be created or belongs to another user.
    """
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "unfreeze" / "runtime"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support" / "unfreeze" / "runtime"
    else:
        given = Path(os.environ.get("XDG_STATE_HOME", ""))
        state = given if given.is_absolute() else Path.home() / ".local" / "state"
        folder = state / "unfreeze" / "runtime"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(str(folder))
    if hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            raise PermissionError(str(folder))
        folder.chmod(0o700)
    return folder
