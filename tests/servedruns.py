"""A run served for a test: the real server on a port of this machine, and clients that do as they should not."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from PIL import Image

from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.access import AccessPolicy
from unfreeze.server.app import listening
from unfreeze.server.serve.app import Served
from unfreeze.server.serve.launch import server_of
from unfreeze.server.serve.limits import Limits

BOUNDARY = "testboundary"


@dataclass
class Here:
    """A server that runs in a thread of this process."""

    served: Served
    port: int
    client: httpx2.Client
    guard: AccessPolicy

    def predict(self, *files: tuple[str, bytes], **more: Any) -> httpx2.Response:
        return self.client.post("/predict", files=[("file", one) for one in files], **more)

    def count(self, kind: str) -> float:
        """How often something was refused for this reason."""
        return float(self.served.metrics.errors.labels(kind)._value.get())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)


@contextmanager
def served(
    direct: InMemoryPredictor,
    limits: Limits | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    public: tuple[str, ...] = (),
) -> Iterator[Here]:
    """token: None where everybody may ask."""
    with listening(host, 0) as listener:
        port = listener.getsockname()[1]
        guard = AccessPolicy(host, port, token=token or "0" * 32, public=public)
        run = Served(direct, limits or Limits())
        server = server_of(run, guard, token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            # No connection is reused: the server may close an idle one in the moment in which a request is sent on it.
            fresh = httpx2.Limits(max_keepalive_connections=0)
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=fresh) as client:
                yield Here(run, port, client, guard)
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive(), "the server does not end"


def until(true: Callable[[], object], seconds: float = 30.0) -> float:
    """Waits; returns how many seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - began


def picture(size: tuple[int, int], kind: str, **options: Any) -> bytes:
    """A plain photo's file."""
    to = io.BytesIO()
    Image.new("RGB", size, (90, 30, 200)).save(to, kind, **options)
    return to.getvalue()


def form(*files: bytes, ended: bool = True) -> bytes:
    """A multipart body of these files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{i}.jpg"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for i, data in enumerate(files)
    ]
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if ended else b"")


def head(port: int, length: int | str, more: str = "") -> bytes:
    """Of a request to predict, as it goes over the wire."""
    return (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n{more}\r\n"
    ).encode()


def rest_of(one: socket.socket, seconds: float = 30.0) -> bytes:
    """All that still comes until the server closes; what a reset cut off is lost. Fails if it does not close."""
    one.settimeout(seconds)
    found = b""
    while True:
        try:
            more = one.recv(1 << 16)
        except ConnectionError:
            return found
        if not more:
            return found
        found += more
