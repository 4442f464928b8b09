"""A served run while hostile clients send files that cost far more than their size.

Ordinary clients send a photo each, wait for the answer, pause and send the next. Hostile ones send the files of
tests/costly.py one after the other, as fast as they are answered. All share the server's cores. Memory is that of the
server and its decoders together, their highest sum.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child
import psutil
import serving

sys.path.append(str(Path(__file__).parents[1] / "tests"))
SECONDS, QUIET_SECONDS, ORDINARY, PAUSE = 60.0, 20.0, 4, 0.1
HEADLINE = ("beside", "answers", "errors", "p50_ms", "p95_ms", "slowest_ms", "peak_mb", "hostile_answers")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """The demo's run: ordinary clients alone, then beside two hostile ones."""
    import costly

    cache, demo, files = scratch / "cache", scratch / "demo", scratch / "files"
    child.run([child.UNFREEZE, "demo", demo], {"UNFREEZE_CACHE": str(cache)})
    photos = [photo for photo in sorted((demo / "photos").rglob("*.jpg")) if serving._whole(photo)]
    listed = scratch / "photos.txt"
    listed.write_text("\n".join(map(str, photos)), encoding="utf-8")
    files.mkdir()
    for name, make in costly.COSTLY.items():
        (files / name.replace(" ", "-")).write_bytes(make())
    with serving._server(demo / "run", cache) as (process, port):
        for hostile in (0, 2):
            yield _measured(process.pid, port, listed, files, hostile)


def _measured(pid: int, port: int, listed: Path, files: Path, hostile: int) -> dict[str, Any]:
    seconds = SECONDS if hostile else QUIET_SECONDS
    peak, over = [0.0], threading.Event()
    watching = threading.Thread(target=_watch, args=(pid, peak, over))
    watching.start()
    bad = [
        subprocess.Popen(
            [sys.executable, __file__, "hostile", str(port), str(files), str(i), str(seconds)], stdout=subprocess.PIPE
        )
        for i in range(hostile)
    ]
    found = serving_asked("ordinary", str(port), str(listed), str(seconds))
    told = [json.loads(one.communicate()[0]) for one in bad]
    over.set()
    watching.join()
    return {
        "beside": f"{hostile} hostile clients" if hostile else "nobody",
        "clients": ORDINARY,
        "seconds": seconds,
        **found,
        "peak_mb": round(peak[0]),
        "hostile_answers": sum(sum(one.values()) for one in told),
        "hostile_statuses": " ".join(f"{k}:{n}" for k, n in sorted(sum(map(Counter, told), Counter()).items())),
        "load": round(os.getloadavg()[0], 2),
    }


def serving_asked(*words: str) -> dict[str, Any]:
    """What this file answers in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _watch(pid: int, peak: list[float], over: threading.Event) -> None:
    """The highest resident memory of the server and its children, MB."""
    server = psutil.Process(pid)
    while not over.wait(0.05):
        total = 0
        for one in (server, *server.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total / 1e6)


def _ask(one: socket.socket, request: bytes) -> int:
    """The status of the answer."""
    one.sendall(request)
    answer = b""
    while True:
        head, gap, body = answer.partition(b"\r\n\r\n")
        if gap and len(body) >= int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0]):
            return int(head[9:12])
        more = one.recv(1 << 16)
        if not more:
            raise ConnectionError("closed")
        answer += more


def ordinary(port: int, listed: Path, seconds: float) -> None:
    """Some clients with a photo each, again and again; prints latencies and errors."""
    requests = [serving._request(port, Path(name)) for name in listed.read_text("utf-8").splitlines()]
    times, errors, until = list[float](), list[str](), time.monotonic() + seconds

    def client(number: int) -> None:
        one, i = socket.create_connection(("127.0.0.1", port), 60), number
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                if (status := _ask(one, requests[i % len(requests)])) != 200:
                    errors.append(str(status))
            except OSError as error:
                errors.append(repr(error))
                one = socket.create_connection(("127.0.0.1", port), 60)
            times.append(time.monotonic() - began)
            i += ORDINARY
            time.sleep(PAUSE)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(ORDINARY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    told = {f"p{p}_ms": round(1000 * times[min(len(times) - 1, len(times) * p // 100)], 1) for p in (50, 95)}
    print(json.dumps({"answers": len(times), "errors": len(errors), **told, "slowest_ms": round(1000 * times[-1], 1)}))


def hostile(port: int, folder: Path, number: int, seconds: float) -> None:
    """One client that sends costly files one after the other; prints how many were answered how."""
    files, ends, until = sorted(folder.iterdir()), Counter[str](), time.monotonic() + seconds
    while time.monotonic() < until:
        for file in files[number * len(files) // 2 :] + files[: number * len(files) // 2]:
            if time.monotonic() > until:
                break
            try:
                with socket.create_connection(("127.0.0.1", port), 60) as one:
                    ends[str(_ask(one, serving._request(port, file)))] += 1
            except OSError:
                ends["cut off"] += 1
    print(json.dumps(ends))


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "ordinary":
        ordinary(int(words[0]), Path(words[1]), float(words[2]))
    else:
        hostile(int(words[0]), Path(words[1]), int(words[2]), float(words[3]))
