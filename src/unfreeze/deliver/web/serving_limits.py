"""What a served run takes from the network at most, and the one word for each way of being refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.core.errors import RunError


@dataclass(frozen=True)
class Limits:
    """Every limit of a served run; all are positive.

    body_mb: of one request. files: photos in one request. megapixels: of one photo. seconds: from a request's head to
    its answer. waiting, waiting_mb: photos, and megabytes of photos, that are held at once. connections: that are
    answered at once. batch: photos that pass the networks together; batch_ms: how long the first of them waits for
    others. header_seconds: for a request's head. idle_seconds: that a connection may stay open with no request.
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

    @property
    def body(self) -> int:
        """Bytes of a request's body."""
        return int(self.body_mb * 1e6)

    @property
    def held(self) -> int:
        """Bytes of photos that are held at once."""
        return int(self.waiting_mb * 1e6)

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def told(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.files} photos and {self.body_mb:g} MB a request, {self.megapixels:g} megapixels a photo, "
            f"{self.seconds:g} s a request; {self.waiting} photos or {self.waiting_mb:g} MB waiting, "
            f"{self.connections} connections"
        )


class RefusedError(Exception):
    """A request that gets no predictions. kind: one of KINDS, what /metrics counts. reason: a line."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind]


# Why something is refused -> the HTTP status. Nothing but these, 200, 303 (the page's token) and 304 (a static file
# that the browser has) is ever answered; 500 would be a bug of ours.
KINDS = {
    "malformed": 400,
    "gone": 400,  # hung up: nobody reads it
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
    "damaged": 422,
    "empty": 422,
    "no_photo": 422,
    "wrong_option": 422,
    "no_map": 422,
    "failed": 500,
    "queue_full": 503,
    "overdue": 503,
    "connections": 503,
}
