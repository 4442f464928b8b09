"""A served run under load: throughput against the offline predictor, latencies, memory; and beside bad clients.

The clients share the server's cores. They are one process that keeps 32 connections busy with requests made beforehand
(raw sockets, one epoll loop), and their CPU time is told apart. One photo a request: the worst case for a server.
The offline predictor is `uf.load(run).predict` on the same photos, with the networks converted and no photo in the
cache; its time is that of the call. Server and predictor take turns. At last 1,000 connections ask the server at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import child

from unfreeze.core.errors import PhotoError
from unfreeze.data.decode import decode, read_bytes

CLIENTS, SECONDS, SLOW, BROKEN, CROWD = 32, 60.0, 8, 8, 1000
HEADLINE = (
    "beside",
    "photos_s",
    "offline_photos_s",
    "ratio",
    "p95_ms",
    "errors",
    "server_mb_after",
    "crowd_peak_mb",
)
_BOUNDARY = "unfreezebenchmark"
_PAUSE = 0.5  # seconds between two misdeeds of a broken client


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """The demo's run: 32 clients alone, then beside slow and broken ones."""
    cache, demo = scratch / "cache", scratch / "demo"
    child.run([child.UNFREEZE, "demo", demo], {"UNFREEZE_CACHE": str(cache)})
    photos = [photo for photo in sorted((demo / "photos").rglob("*.jpg")) if _whole(photo)]
    listed = scratch / "photos.txt"
    listed.write_text("\n".join(map(str, photos)), encoding="utf-8")
    for beside in ("nobody", f"{SLOW} slow and {BROKEN} broken clients"):
        offline, served = [], []
        for turn in range(repeats):
            offline.append(_offline(demo / "run", listed, cache, scratch / f"cold-{turn}"))
            served.append(_served(demo / "run", listed, cache, beside != "nobody"))
        ratios = [one["photos_s"] / alone["photos_s"] for one, alone in zip(served, offline, strict=True)]
        row: dict[str, Any] = {"beside": beside, "clients": CLIENTS, "seconds": SECONDS, "photos": len(photos)}
        row |= {key: round(median(one[key] for one in served), 1) for key in served[0] if key != "errors"}
        row |= {
            "errors": sum(one["errors"] for one in served),
            "offline_photos_s": round(median(one["photos_s"] for one in offline), 1),
            "offline_cpu_ms_a_photo": round(median(one["cpu_ms_a_photo"] for one in offline), 3),
            "ratio": round(median(ratios), 3),
            "lowest_ratio": round(min(ratios), 3),
        }
        yield {**row, "repeats": repeats, "load": round(os.getloadavg()[0], 2)}


def _whole(photo: Path) -> bool:
    """The demo plants damaged photos, which would be errors here."""
    try:
        decode(read_bytes(photo))
    except PhotoError:
        return False
    return True


def _offline(run: Path, listed: Path, cache: Path, cold: Path) -> dict[str, float]:
    """Photos a second and CPU time of the offline predictor: a process of its own, a cache that has seen no photo."""
    cold.mkdir()
    for kept in ("engines", "cards"):
        if (cache / kept).is_dir():
            shutil.copytree(cache / kept, cold / kept)
    taken = child.run([sys.executable, __file__, "offline", run, listed], {"UNFREEZE_CACHE": str(cold)})
    shutil.rmtree(cold)
    return dict(taken.json())


def _served(run: Path, listed: Path, cache: Path, beside: bool) -> dict[str, Any]:
    """What 32 clients got of a fresh server."""
    with _server(run, cache) as (process, port):
        _client(port, listed, 3.0)  # memory is read once every buffer was used
        before, cpu = _megabytes(process.pid), _cpu(process.pid)
        bad = subprocess.Popen([sys.executable, __file__, "bad", str(port)]) if beside else None
        try:
            found = _client(port, listed, SECONDS)
        finally:
            if bad:
                bad.send_signal(signal.SIGTERM)
                bad.wait()
        spent = _cpu(process.pid) - cpu
        time.sleep(1)
        after = _megabytes(process.pid)
        crowd = _asked("crowd", str(port), str(listed))
        return {
            **found,
            "server_cpu_s": round(spent, 2),
            "server_cpu_ms_a_photo": round(1000 * spent / max(1, found["answers"]), 3),
            "server_mb_before": before,
            "server_mb_after": after,
            **crowd,
            "crowd_peak_mb": round(child._status(process.pid, "VmHWM") / 1024, 1),
        }


@contextlib.contextmanager
def _server(run: Path, cache: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [str(child.UNFREEZE), "serve", str(run), "--port", "0", "--json"]
    environment = {**os.environ, "UNFREEZE_CACHE": str(cache)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n") or text.count("{") != text.count("}"):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server ended: {process.wait()}")
            text += line
        port = int(json.loads(text)["base"].rpartition(":")[2])
        while True:  # the socket listens before the server answers
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as one:
                one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port)
                if b" 200 " in one.recv(100):
                    break
            time.sleep(0.05)
        yield process, port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _client(port: int, listed: Path, seconds: float) -> dict[str, Any]:
    return _asked("client", str(port), str(listed), str(seconds))


def _asked(*words: str) -> dict[str, Any]:
    """What this file answers in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _megabytes(pid: int) -> float:
    return round(child._status(pid, "VmRSS") / 1024, 1)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Caller:
    """One client: a connection, a request on its way, an answer coming."""

    def __init__(self, port: int, requests: list[bytes], number: int) -> None:
        self.port, self.requests, self.next = port, requests, number
        self.latencies: list[float] = []
        self.errors = 0
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.begin()

    def begin(self) -> None:
        """The next request; small enough for the kernel to take it whole, nearly always."""
        self.left = memoryview(self.requests[self.next % len(self.requests)])
        self.next += CLIENTS
        self.answer = b""
        self.started = time.perf_counter()
        self.socket.setblocking(True)
        self.socket.sendall(self.left)
        self.socket.setblocking(False)

    def read(self) -> None:
        """More of the answer; once it is whole it is judged, and the next request goes out."""
        try:
            more = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self.errors += 1
            self.socket.close()
            self.connect()
            return
        self.answer += more
        head, gap, body = self.answer.partition(b"\r\n\r\n")
        if not gap:
            return
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.latencies.append(time.perf_counter() - self.started)
        if not head.startswith(b"HTTP/1.1 200 ") or b'"error":null' not in body:
            self.errors += 1
        self.begin()


def client(port: int, listed: Path, seconds: float) -> None:
    """32 connections kept busy for some seconds; prints what came of it."""
    requests = [_request(port, Path(name)) for name in listed.read_text("utf-8").splitlines()]
    random.Random(0).shuffle(requests)
    chooser = selectors.DefaultSelector()
    callers = [_Caller(port, requests, i) for i in range(CLIENTS)]
    for caller in callers:
        chooser.register(caller.socket, selectors.EVENT_READ, caller)
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for key, _ in chooser.select(0.2):
            caller = key.data
            caller.read()
            if caller.socket is not key.fileobj:
                chooser.unregister(key.fileobj)
                chooser.register(caller.socket, selectors.EVENT_READ, caller)
    took = time.perf_counter() - began
    times = sorted(t for caller in callers for t in caller.latencies)
    told = {f"p{p}_ms": round(1000 * times[min(len(times) - 1, len(times) * p // 100)], 1) for p in (50, 95, 99)}
    print(
        json.dumps(
            {
                "photos_s": len(times) / took,
                "answers": len(times),
                **told,
                "slowest_ms": round(1000 * times[-1], 1),
                "errors": sum(caller.errors for caller in callers),
                "client_cpu_s": round(time.process_time() - cpu, 2),
            }
        )
    )


def crowd(port: int, listed: Path) -> None:
    """1,000 connections at once, each with a photo; prints how many were answered, refused (503) and cut off."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * CROWD), hard))
    request = _request(port, Path(listed.read_text("utf-8").splitlines()[0]))
    request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    chooser, ends = selectors.DefaultSelector(), {"200": 0, "503": 0, "": 0}
    for _ in range(CROWD):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        chooser.register(one, selectors.EVENT_WRITE, request)
    while chooser.get_map():
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
            ends[answer[9:12].decode()] += 1
            chooser.unregister(one)
            one.close()
    print(json.dumps({"crowd_answered": ends["200"], "crowd_refused": ends["503"], "crowd_cut_off": ends[""]}))


def _request(port: int, photo: Path, path: str = "/predict") -> bytes:
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{photo.name}"\r\n\r\n'
    body = part.encode() + photo.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return _head(port, len(body), path) + body


def _head(port: int, length: int, path: str = "/predict") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def bad(port: int) -> None:
    """8 clients that send a byte a second, and 8 that break off, send rubbish or never read; until they are ended."""
    threads = [threading.Thread(target=_slow, args=(port, i), daemon=True) for i in range(SLOW)]
    threads += [threading.Thread(target=_broken, args=(port, i), daemon=True) for i in range(BROKEN)]
    for thread in threads:
        thread.start()
    signal.pause()


def _slow(port: int, number: int) -> None:
    """Half of them are slow with the head, half with the body."""
    text = _head(port, 5_000_000)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as one:
            if number % 2:
                one.sendall(text)
            for i in range(1000):
                one.sendall(text[i % len(text) :][:1])
                time.sleep(1)


def _broken(port: int, number: int) -> None:
    draw = random.Random(number)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as one:
            deed = draw.randrange(6)
            if deed == 0:  # rubbish
                one.sendall(draw.randbytes(2000))
            elif deed == 1:  # half a body, then gone
                one.sendall(_head(port, 100_000) + draw.randbytes(50_000))
            elif deed == 2:  # no form inside
                one.sendall(_head(port, 20_000) + draw.randbytes(20_000))
                one.recv(1000)
            elif deed == 3:  # closes its half, with all unsent
                one.sendall(_head(port, 9))
                one.shutdown(socket.SHUT_WR)
                one.recv(1000)
            elif deed == 4:  # says it is larger than allowed, and hangs up on the answer
                one.sendall(_head(port, 10**9) + draw.randbytes(10_000))
            else:  # a photo that is none, and a reset
                part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x.jpg"\r\n\r\n'
                body = part.encode() + draw.randbytes(30_000) + f"\r\n--{_BOUNDARY}--\r\n".encode()
                one.sendall(_head(port, len(body)) + body)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        time.sleep(_PAUSE)


def offline(run: Path, listed: Path) -> None:
    """Photos a second of `uf.load(run).predict`."""
    import unfreeze as uf

    photos = listed.read_text("utf-8").splitlines()
    classifier = uf.load(run)
    started, cpu = time.perf_counter(), time.process_time()
    found = classifier.predict(photos)
    took, spent = time.perf_counter() - started, time.process_time() - cpu
    assert (found["error"] == "").all()
    print(json.dumps({"photos_s": len(photos) / took, "cpu_ms_a_photo": 1000 * spent / len(photos)}))


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "client":
        client(int(words[0]), Path(words[1]), float(words[2]))
    elif what == "crowd":
        crowd(int(words[0]), Path(words[1]))
    elif what == "bad":
        bad(int(words[0]))
    else:
        offline(Path(words[0]), Path(words[1]))
