"""A served run under abuse: every misdeed ends in bounded time and memory, and others are answered meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from servedruns import Here, form, head, picture, rest_of, served, until
from unfreeze.core.runs import Run
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.serve.batching import GRACE
from unfreeze.server.serve.limits import Limits

SLACK = 5.0  # seconds that a busy machine may be partial
TIGHT = Limits(body_mb=1, seconds=1.0, header_seconds=0.5, idle_seconds=0.5, connections=8)


@pytest.fixture(scope="module")
def tight(direct: InMemoryPredictor) -> Iterator[Here]:
    """A server with little time and few connections."""
    with served(direct, TIGHT) as one:
        yield one


def answers(here: Here, photo: bytes) -> None:
    """Somebody else is answered."""
    assert here.predict(("other.jpg", photo)).status_code == 200


def drip(one: socket.socket, text: bytes, seconds: float) -> float:
    """A byte every 50 ms until the server has enough of it; returns after how long."""
    began = time.monotonic()
    one.settimeout(0.05)
    for i in range(int(seconds / 0.05)):
        try:
            one.sendall(text[i : i + 1])
            if not one.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        pytest.fail(f"still open after {seconds} s")
    return time.monotonic() - began


def test_more_than_is_allowed_is_refused_before_it_is_read(tight: Here, photo: bytes) -> None:
    with tight.connect() as one:
        one.sendall(head(tight.port, 10**12))
        assert one.recv(4096).startswith(b"HTTP/1.1 413 ")
        assert tight.served.held.bytes == 0
        answers(tight, photo)


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 40, "0x10", "٣"])
def test_lengths_that_are_none(tight: Here, photo: bytes, length: str) -> None:
    with tight.connect() as one:
        one.sendall(head(tight.port, length))
        assert b" 413 " in (answer := one.recv(4096)[:20]) or b" 400 " in answer
    answers(tight, photo)


def test_a_slow_head_is_cut_off(tight: Here, photo: bytes) -> None:
    before = tight.count("too_slow")
    with tight.connect() as one:
        assert drip(one, head(tight.port, 100) * 9, 0.5 + SLACK) >= 0.4
    assert tight.count("too_slow") == before + 1
    answers(tight, photo)


def test_a_slow_body_is_refused_and_others_are_answered_meanwhile(tight: Here, photo: bytes) -> None:
    with tight.connect() as one:
        one.sendall(head(tight.port, 900_000) + form(bytes(300), ended=False))
        answers(tight, photo)
        answer = rest_of(one, 1 + GRACE + SLACK)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"too_slow"' in answer
    assert tight.served.held.bytes == 0


def test_one_who_never_reads_is_cut_off(tight: Here, photo: bytes) -> None:
    """Asks for a long answer again and again, and takes none."""
    ask = f"GET /static/unfreeze.css HTTP/1.1\r\nHost: 127.0.0.1:{tight.port}\r\n\r\n".encode()
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", tight.port))
        with contextlib.suppress(OSError):
            for _ in range(50):
                one.sendall(ask)
        answers(tight, photo)
        rest_of(one, 1 + GRACE + SLACK)


def test_half_closed_and_broken_off(tight: Here, photo: bytes) -> None:
    body = form(photo)
    for sent in (b"", b"POST /pre", head(tight.port, len(body)), head(tight.port, len(body)) + body[:100]):
        with tight.connect() as one:
            one.sendall(sent)
            one.shutdown(socket.SHUT_WR)
            rest_of(one, SLACK)
        with tight.connect() as one:
            one.sendall(sent)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset
    until(lambda: tight.served.held.bytes == 0)
    answers(tight, photo)


def test_tiny_chunks_are_not_read(tight: Here, photo: bytes) -> None:
    asked = head(tight.port, 1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
    with tight.connect() as one, contextlib.suppress(ConnectionError):
        one.sendall(asked + b"1\r\na\r\n" * 200_000)
        assert b" 411 " in rest_of(one, SLACK)[:20]
    answers(tight, photo)


def test_requests_on_top_of_each_other_get_one_answer(tight: Here, photo: bytes) -> None:
    ask = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{tight.port}\r\n\r\n".encode()
    with tight.connect() as one:
        one.sendall(ask * 500)
        assert rest_of(one, SLACK).count(b"HTTP/1.1 200") == 1
    answers(tight, photo)


def test_silent_connections_give_way(tight: Here, direct: InMemoryPredictor, photo: bytes) -> None:
    with (
        served(direct, Limits(connections=8, header_seconds=60, idle_seconds=60)) as here,
        contextlib.ExitStack() as all_,
    ):
        silent = [all_.enter_context(here.connect()) for _ in range(8)]
        until(lambda: here.client.get("/healthz").status_code == 200, SLACK)
        assert sum(not rest_of(one, 0.05) for one in silent[:1]) == 1, "the one that was silent longest"


def test_where_all_are_busy_a_new_one_is_refused(tight: Here, photo: bytes) -> None:
    with contextlib.ExitStack() as every:
        for _ in range(TIGHT.connections):
            every.enter_context(tight.connect()).sendall(head(tight.port, 900_000) + b"-")
        until(lambda: tight.count("connections") or _is_full(tight), SLACK)
    until(lambda: tight.predict(("a.jpg", photo)).status_code == 200)


def _is_full(here: Here) -> bool:
    answer = here.client.get("/healthz")
    return answer.status_code == 503 and answer.json()["kind"] == "connections" and "retry-after" in answer.headers


@pytest.fixture(scope="module")
def alone(probe_run: Run) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process of its own, so that its memory can be told: process and port."""
    command = [sys.executable, "-m", "unfreeze.cli.main", "serve", str(probe_run.path), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        text += (line := process.stdout.readline())
        assert line, f"the server ended: {process.wait()}"
    yield process, int(json.loads(text)["base"].rpartition(":")[2])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def megabytes(process: subprocess.Popen[str]) -> float:
    return psutil.Process(process.pid).memory_info().rss / 1e6


def ask(port: int, body: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 30) as one:
        one.sendall(head(port, len(body), "Connection: close\r\n") + body)
        return rest_of(one)


def test_a_thousand_at_once(alone: tuple[subprocess.Popen[str], int], photo: bytes) -> None:
    """Each is answered, told to come again, or cut off; memory hardly grows, and then all is as before."""
    process, port = alone
    body = form(photo)
    assert ask(port, body).startswith(b"HTTP/1.1 200 ")
    before = megabytes(process)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    try:
        ends = Counter(thousand(port, head(port, len(body), "Connection: close\r\n") + body))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(ends.values()) == 1000 and set(ends) <= {"200", "503", "cut off"}
    assert ends["200"] >= 100
    assert ask(port, body).startswith(b"HTTP/1.1 200 ")
    assert megabytes(process) < before + 100


def thousand(port: int, request: bytes) -> list[str]:
    """How a thousand requests that are sent at once end: a status, or `cut off`."""
    chooser, ends = selectors.DefaultSelector(), list[str]()
    for _ in range(1000):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        chooser.register(one, selectors.EVENT_WRITE, request)
    end = time.monotonic() + 40
    while chooser.get_map():
        assert time.monotonic() < end, f"{len(chooser.get_map())} of them hang"
        for key, _ in chooser.select(1):
            one = key.fileobj
            assert isinstance(one, socket.socket)
            try:
                if key.data:
                    left = key.data[one.send(key.data) :]
                    chooser.modify(one, selectors.EVENT_WRITE if left else selectors.EVENT_READ, left)
                    continue
                answer = one.recv(1 << 16)
            except OSError:
                answer = b""
            ends.append(answer[9:12].decode() or "cut off")
            chooser.unregister(one)
            one.close()
    return ends


def test_memory_does_not_grow_with_what_is_sent(alone: tuple[subprocess.Popen[str], int], photo: bytes) -> None:
    """Bodies of every size that break off, are too large or are no photos, over and over."""
    process, port = alone
    draw = random.Random(0)
    large = form(*[picture((2000, 1500), "PNG")] * 2)

    def misdeeds() -> None:
        for _ in range(5):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as one:
                one.sendall(head(port, 30_000_000) + draw.randbytes(6_000_000))  # and gone
            ask(port, form(draw.randbytes(1_000_000)))
            assert ask(port, large).startswith(b"HTTP/1.1 200 ")

    misdeeds()
    before = megabytes(process)
    misdeeds()
    misdeeds()
    assert megabytes(process) < before + 60
    assert ask(port, form(photo)).startswith(b"HTTP/1.1 200 ")


def test_the_pixels_of_large_photos_are_given_back(alone: tuple[subprocess.Popen[str], int]) -> None:
    process, port = alone
    before = megabytes(process)
    assert ask(port, form(picture((6000, 3500), "PNG"))).startswith(b"HTTP/1.1 200 ")
    until(lambda: megabytes(process) < before + 50, 10)


def test_what_is_sent_is_never_on_the_disk(direct: InMemoryPredictor, photo: bytes, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path))
        patch.setattr("tempfile.tempdir", None)
        with served(direct) as here:
            for _ in range(3):
                here.predict(("a.jpg", photo), ("b.png", picture((2000, 2000), "PNG")), ("c", bytes(3_000_000)))
            assert not list(tmp_path.iterdir())
