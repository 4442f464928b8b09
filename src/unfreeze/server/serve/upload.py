"""Streaming multipart parser that keeps uploaded images in memory and never writes them to disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.types import Receive

from unfreeze.server.serve.limits import Limits, RefusedError

_NAME = 255  # characters of a file name in the response
_HEAD = 8192  # bytes of a part's header line
_FIELDS = 64  # parts without a file; each costs as much parsing time as kilobytes of image data


@dataclass
class Upload:
    """An uploaded image file."""

    name: str
    data: bytearray


@dataclass
class _Parts:
    """Collects the parts of a form; parts without a file name are discarded."""

    limits: Limits
    photos: list[Upload] = field(default_factory=list)
    ended: bool = False
    fields: int = 0
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _key: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _current: Upload | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._key.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._headed,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers.clear()
        self._current = None

    def _header(self) -> None:
        self._headers[bytes(self._key).lower()] = bytes(self._value)
        self._key.clear()
        self._value.clear()

    def _headed(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        if not name:
            self.fields += 1
            if self.fields > _FIELDS:
                raise RefusedError("malformed", f"the form has more than {_FIELDS} parts that are no files.")
            return
        if len(self.photos) == self.limits.files:
            raise RefusedError("too_many_files", f"more than {self.limits.files} files; send them in several requests.")
        self._current = Upload(name[:_NAME], bytearray())
        self.photos.append(self._current)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._current is not None:
            self._current.data += data[start:end]

    def _end(self) -> None:
        self.ended = True


def boundary_of(headers: Headers) -> bytes:
    """Boundary of a multipart request.

    Raises:
        RefusedError: The request is not multipart or has no valid boundary.
    """
    kind, options = parse_options_header(headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data":
        raise RefusedError(
            "not_multipart", "send photos as multipart/form-data, as `curl -F file=@photo.jpg` and HTML forms do."
        )
    if not 0 < len(boundary) <= 200:
        raise RefusedError("malformed", "the Content-Type names no boundary, or one that is too long.")
    return boundary


async def photos_in(headers: Headers, receive: Receive, limits: Limits, hold: Callable[[int], None]) -> list[Upload]:
    """Parse the files of a request, in order.

    Args:
        headers: Headers of the request.
        receive: ASGI receive function.
        limits: Limits of the server.
        hold: Called with the size of each chunk before it is stored; may raise RefusedError.

    Raises:
        RefusedError: The form is invalid, too large or empty, has too many files, or the client disconnected.
    """
    parts = _Parts(limits)
    parser = MultipartParser(boundary_of(headers), parts.callbacks(), max_header_size=_HEAD)  # type: ignore[arg-type]
    received = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise gone()
            chunk = message.get("body", b"")
            received += len(chunk)
            if received > limits.body:
                raise too_large(limits)
            if chunk:
                hold(len(chunk))
                parser.write(chunk)
            if not message.get("more_body", False):
                break
    except FormParserError as error:
        raise RefusedError("malformed", f"the form cannot be read ({_line(error)}).") from None
    if not parts.ended:
        raise RefusedError("malformed", "the form ends before its last boundary.")
    if not parts.photos:
        raise RefusedError("no_photo", "the form has no file; send one or more, as `curl -F file=@photo.jpg`.")
    return parts.photos


def gone() -> RefusedError:
    """Refusal for a client that disconnected."""
    return RefusedError("gone", "the connection was closed before the answer.")


def too_large(limits: Limits) -> RefusedError:
    """Refusal for a body over the limit."""
    return RefusedError("too_large", f"more than {limits.body_mb:g} MB; send fewer or smaller photos.")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
