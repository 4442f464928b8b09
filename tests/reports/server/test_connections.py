"""Connections to every server: heads in time and of bounded size, a bounded number, known hosts, and an end in time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servedruns import Here, form, head, rest_of, served, until
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server import app as server
from unfreeze.server.access import AccessPolicy
from unfreeze.server.connections import HEAD_BYTES, Rules

SLACK = 5.0  # seconds that a busy machine may be partial


# Heads


def head_of(port: int, size: int) -> bytes:
    """A request's head of exactly so many bytes."""
    start = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    lines = [f"X-{i}: {'a' * 900}\r\n" for i in range(size // 1000)]
    text = start + "".join(lines)
    return (text + f"X-Last: {'b' * (size - len(text) - len('X-Last: ') - 4)}\r\n\r\n").encode()


@pytest.mark.parametrize("cut", [1 << 20, 4096, 1000, 16383, 16385])
@pytest.mark.parametrize(("more", "status"), [(-1, 200), (0, 200), (1, 431), (2, 431), (600, 431), (9000, 431)])
def test_a_head_is_accepted_up_to_its_size_however_it_is_sent(here: Here, more: int, status: int, cut: int) -> None:
    text = head_of(here.port, HEAD_BYTES + more)
    assert len(text) == HEAD_BYTES + more
    before = here.count("large_head")
    with here.connect() as one, contextlib.suppress(ConnectionError):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(text), cut):
            one.sendall(text[i : i + cut])
            time.sleep(0.001 if cut < 5000 else 0.02)
        answer = rest_of(one)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:100]
    assert here.count("large_head") == before + (status == 431)


def test_a_head_without_an_end_is_refused_at_its_size(here: Here, photo: bytes) -> None:
    with here.connect() as one, contextlib.suppress(ConnectionError):
        one.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000)
        assert b" 431 " in rest_of(one)[:20]
    with here.connect() as one, contextlib.suppress(ConnectionError):
        one.sendall(b"a" * 20_000)
        assert rest_of(one)[9:12] in (b"431", b"400")
    assert here.predict(("a.jpg", photo)).status_code == 200


def test_a_large_body_is_no_large_head(here: Here, photo: bytes) -> None:
    body = form(photo, b"x" * 100_000)
    with here.connect() as one:
        one.sendall(head(here.port, len(body), "Connection: close\r\n") + body)
        assert rest_of(one).startswith(b"HTTP/1.1 200 ")


# The local pages


@pytest.fixture(params=["studio", "review"])
def pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What both the studio and the review are served by, with little time: its port."""
    import uvicorn
    from fastapi import FastAPI

    from unfreeze.server.app import create_app

    monkeypatch.setattr(server, "Rules", lambda: Rules(head=0.5, request=1.0, idle=0.5, connections=8))
    running = list[uvicorn.Server]()
    begin = uvicorn.Server.__init__

    def seen(self: uvicorn.Server, config: uvicorn.Config) -> None:
        begin(self, config)
        running.append(self)

    monkeypatch.setattr(uvicorn.Server, "__init__", seen)
    with server.listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        app: FastAPI = create_app([], AccessPolicy("127.0.0.1", port))
        thread = threading.Thread(target=server.serve, args=(app, listener))
        thread.start()
        until(lambda: running and running[0].started)
        yield port
        running[0].should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def is_answered(port: int) -> bool:
    with connect(port) as one, contextlib.suppress(OSError):
        one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port)
        return rest_of(one).startswith(b"HTTP/1.1 403 ")
    return False


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"])
def test_half_a_head_is_cut_off(pages: int, sent: bytes) -> None:
    with connect(pages) as one:
        one.sendall(sent)
        began = time.monotonic()
        rest_of(one, SLACK)
        assert time.monotonic() - began < 0.5 + SLACK
    assert is_answered(pages)


def test_half_a_body_is_cut_off(pages: int) -> None:
    with connect(pages) as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 60000\r\n\r\nabc" % pages)
        rest_of(one, 1 + SLACK)
    assert is_answered(pages)


def test_many_silent_connections_block_no_client(pages: int) -> None:
    with contextlib.ExitStack() as every:
        for _ in range(150):
            with contextlib.suppress(OSError):
                every.enter_context(connect(pages)).sendall(b"GET / HTTP/1.1\r\n")
        until(lambda: is_answered(pages), SLACK)


def test_local_pages_refuse_a_large_head_too(pages: int) -> None:
    for size, status in ((HEAD_BYTES, b"403"), (HEAD_BYTES + 1, b"431")):
        with connect(pages) as one, contextlib.suppress(ConnectionError):
            one.sendall(head_of(pages, size))
            assert rest_of(one)[9:12] == status


# Hosts


@pytest.mark.parametrize(
    ("host", "public", "header", "known"),
    [
        ("127.0.0.1", (), "127.0.0.1:80", True),
        ("127.0.0.1", (), "localhost:80", True),
        ("127.0.0.1", (), "evil.example:80", False),
        ("127.0.0.1", (), "127.0.0.1:81", False),
        ("127.0.0.1", (), "10.0.0.1:80", False),
        ("::1", (), "[::1]:80", True),
        ("::1", (), "[::2]:80", False),
        ("0.0.0.0", (), "10.0.0.1:80", True),
        ("0.0.0.0", (), "10.0.0.1:9000", True),
        ("0.0.0.0", (), "[fe80::1]:80", True),
        ("0.0.0.0", (), "evil.example:80", False),
        ("0.0.0.0", (), "evil.example", False),
        ("0.0.0.0", (), "10.0.0.1.evil.example:80", False),
        ("0.0.0.0", (), f"{socket.gethostname()}:80", True),
        ("0.0.0.0", (), "", False),
        ("::", (), "rebound.example:80", False),
        ("192.168.1.5", (), "192.168.1.5:80", True),
        ("192.168.1.5", (), "evil.example:80", False),
        ("192.168.1.5", (), "10.0.0.1:80", False),
        ("0.0.0.0", ("photos.example.org",), "photos.example.org", True),
        ("0.0.0.0", ("photos.example.org",), "PHOTOS.example.org:443", True),
        ("0.0.0.0", ("photos.example.org",), "evil.example", False),
        ("127.0.0.1", ("photos.example.org",), "photos.example.org", True),
        ("0.0.0.0", ("*",), "anything.example", True),
        ("0.0.0.0", ("*",), "", False),
    ],
)
def test_which_hosts_are_known(host: str, public: tuple[str, ...], header: str, known: bool) -> None:
    assert AccessPolicy(host, 80, public=public).knows_host(header) is known


def test_a_service_for_others_without_a_token_cannot_be_rebound(direct: InMemoryPredictor, photo: bytes) -> None:
    with served(direct, host="0.0.0.0", public=("photos.example.org",)) as here:
        for name, status in (
            ("rebound.example", 421),
            (f"rebound.example:{here.port}", 421),
            (f"127.0.0.1:{here.port}", 200),
            ("photos.example.org", 200),
        ):
            assert here.client.get("/healthz", headers={"Host": name}).status_code == status, name
            assert here.predict(("a.jpg", photo), headers={"Host": name}).status_code == status, name


# The end


def studio(tmp_path: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    runs = tmp_path / "runs"
    command = [sys.executable, "-u", "-m", "unfreeze.cli.main", "studio", str(runs), "--no-open", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, next(m[0] for line in process.stdout if (m := re.search(r"http://\S+", line)))


@pytest.mark.skipif(os.name != "posix", reason="pipes in folders")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_studio_ends_within_five_seconds_whatever_hangs(tmp_path: Path, number: int) -> None:
    """Open connections, a job that does not listen, and threads in a file that never answers."""
    import httpx2

    broken = tmp_path / "runs" / "broken"
    broken.mkdir(parents=True)
    os.mkfifo(broken / "run.json")
    jobs = tmp_path / "runs" / ".studio" / "jobs"
    process, address = studio(tmp_path)
    home = address.partition("?")[0]
    client = httpx2.Client(timeout=1)
    client.get(address)
    for _ in range(3):
        with contextlib.suppress(httpx2.TimeoutException):
            client.get(home)
    port = int(home.rstrip("/").rpartition(":")[2])
    with contextlib.ExitStack() as every:
        for sent in (b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"):
            every.enter_context(connect(port)).sendall(sent)
        began = time.monotonic()
        process.send_signal(number)
        code = process.wait(30)
    assert time.monotonic() - began < 5 + SLACK / 2
    assert code in ((0,) if number == signal.SIGINT else (-number, 128 + number))
    assert not jobs.exists()
    client.close()


@pytest.mark.skipif(os.name != "posix", reason="pipes in folders")
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "folder", "link to itself", "file"])
def test_a_lock_that_is_no_file_hangs_nothing(tmp_path: Path, kind: str) -> None:
    from unfreeze.server.studio.layout import is_being_written

    lock = tmp_path / ".lock"
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        lock.symlink_to(tmp_path / "pipe")
    elif kind == "folder":
        lock.mkdir()
    elif kind == "link to itself":
        lock.symlink_to(lock)
    else:
        lock.touch()
    found = list[Any]()
    thread = threading.Thread(target=lambda: found.append(is_being_written(tmp_path)), daemon=True)
    thread.start()
    thread.join(5)
    assert found == [False]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_job_that_does_not_listen_is_ended_with_the_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unfreeze.server.studio import jobs as studio_jobs
    from unfreeze.server.studio.jobs import Jobs

    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    monkeypatch.setattr(studio_jobs, "COMMAND", (sys.executable, "-c", code))
    jobs = Jobs(tmp_path / "jobs")
    job = jobs.start("check", [])
    until(lambda: "deaf" in jobs.lines(job))
    process = jobs._processes[job.id]
    began = time.monotonic()
    closing = [threading.Thread(target=jobs.close) for _ in range(3)]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(10)
    assert time.monotonic() - began < 3 + SLACK and process.poll() is not None
    assert json.loads((tmp_path / "jobs" / job.id / "job.json").read_text())["state"] == "stopped"


def test_closing_jobs_does_not_wait_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unfreeze.server.studio import jobs as studio_jobs
    from unfreeze.server.studio.jobs import Jobs

    monkeypatch.setattr(studio_jobs, "COMMAND", (sys.executable, "-c", "import time; time.sleep(99)"))
    jobs = Jobs(tmp_path / "jobs")
    job = jobs.start("check", [])
    process, taken, free = jobs._processes[job.id], threading.Event(), threading.Event()

    def hold() -> None:
        with jobs._lock:
            taken.set()
            free.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(5)
    began = time.monotonic()
    jobs.close()
    assert time.monotonic() - began < 4 and process.wait(5) is not None
    free.set()
    holder.join(5)
