"""Limits of the prediction API, and the kinds of refusals with their HTTP statuses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.core.errors import RunError


@dataclass(frozen=True)
class Limits:
    """Limits of the prediction API; all are positive.

    Attributes:
        body_mb: Megabytes of a request body.
        files: Images per request.
        megapixels: Megapixels of an image.
        seconds: Seconds from the head of a request to its response.
        waiting: Images that are held at once.
        waiting_mb: Megabytes of images that are held at once.
        connections: Connections that are served at once.
        batch: Batch size.
        batch_ms: Milliseconds that the first image of a batch waits for others.
        header_seconds: Seconds for receiving the head of a request.
        idle_seconds: Seconds that a connection may stay open without a request.
        decode_seconds: CPU seconds for decoding all images of a request.
        decode_mb: Megabytes of memory of the decoder for large and slow images.
        quick_mb: Megabytes of memory of each other decoder.

    Raises:
        RunError: A limit is not positive, or limits contradict each other.
    """

    body_mb: float = 32
    files: int = 64
    megapixels: float = 50
    seconds: float = 20
    waiting: int = 256
    waiting_mb: float = 256
    connections: int = 128
    batch: int = 16
    batch_ms: float = 3
    header_seconds: float = 5
    idle_seconds: float = 5
    decode_seconds: float = 5
    decode_mb: float = 1200
    quick_mb: float = 400

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise RunError(f"serve: {name} = {value}: a limit is a positive number.")
        if self.files > self.waiting:
            raise RunError(f"serve: {self.files} files a request are more than the {self.waiting} that may be waiting.")
        if self.body_mb > self.waiting_mb:
            raise RunError(
                f"serve: a body of {self.body_mb:g} MB is more than the {self.waiting_mb:g} MB of memory for photos."
            )
        if self.quick_mb > self.decode_mb:
            raise RunError(f"serve: quick_mb = {self.quick_mb:g} is more than decode_mb = {self.decode_mb:g}.")

    @property
    def body(self) -> int:
        """Bytes of a request body."""
        return int(self.body_mb * 1e6)

    @property
    def held(self) -> int:
        """Bytes of images that are held at once."""
        return int(self.waiting_mb * 1e6)

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
        return asdict(self)

    def describe(self) -> str:
        """One-line summary for the terminal."""
        return (
            f"{self.files} photos and {self.body_mb:g} MB a request, {self.megapixels:g} megapixels a photo, "
            f"{self.seconds:g} s a request; {self.waiting} photos or {self.waiting_mb:g} MB waiting, "
            f"{self.connections} connections"
        )


class RefusedError(Exception):
    """A request that is refused.

    Attributes:
        kind: Key of KINDS, counted in /metrics.
        reason: One-line explanation.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)

    @property
    def status(self) -> int:
        """HTTP status."""
        return KINDS[self.kind]


# Kind of refusal -> HTTP status. Apart from these, the server only returns 200, 303 (redirect after login) and 304
# (cached static file); 500 is a bug.
KINDS = {
    "malformed": 400,
    "gone": 400,  # client disconnected; never sent
    "no_token": 401,
    "foreign_page": 403,
    "not_found": 404,
    "wrong_method": 405,
    "too_slow": 408,
    "no_length": 411,
    "too_large": 413,
    "too_many_files": 413,
    "too_many_pixels": 413,
    "not_multipart": 415,
    "not_an_image": 415,
    "wrong_host": 421,
    "large_head": 431,
    "damaged": 422,
    "too_costly": 422,
    "empty": 422,
    "no_photo": 422,
    "wrong_option": 422,
    "no_map": 422,
    "failed": 500,
    "queue_full": 503,
    "overdue": 503,
    "connections": 503,
}
