"""A served run under costly images: they end in an error in time, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from costly import COSTLY
from servedruns import Here, form, head, picture, rest_of, served, until
from slow_decoder import CRASH, LARGE, SLOW, use
from unfreeze.core.errors import EngineError, PhotoError
from unfreeze.core.runs import Run
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.serve import batching
from unfreeze.server.serve.batching import Batcher
from unfreeze.server.serve.decoders import Account, _Clients, _Queue, _Task
from unfreeze.server.serve.launch import serve
from unfreeze.server.serve.limits import KINDS, Limits

SHORT = Limits(decode_seconds=0.5)
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of the system")


@pytest.fixture(scope="module", autouse=True)
def _made_up_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        yield


@pytest.fixture(scope="module")
def short(direct: InMemoryPredictor) -> Iterator[Here]:
    """A server whose decoders have little time and memory."""
    with served(direct, SHORT) as one:
        yield one


@pytest.fixture(scope="module")
def ample(direct: InMemoryPredictor) -> Iterator[Here]:
    """A server with the usual limits."""
    with served(direct) as one:
        yield one


def ended(here: Here, reason: str) -> float:
    return float(here.served.metrics.decoders.labels(reason)._value.get())


def test_a_slow_image_gets_an_error_and_its_neighbors_are_predicted(short: Here, photo: bytes) -> None:
    before = short.count("too_costly")
    alone = short.predict(("slow", SLOW))
    assert alone.status_code == KINDS["too_costly"] == 422
    assert "decoding takes more than the 0.5 s" in alone.json()["photos"][0]["error"]
    answer = short.predict(("a.jpg", photo), ("slow", SLOW), ("b.jpg", photo))
    first, second, third = answer.json()["photos"]
    assert answer.status_code == 200 and "decoding takes" in second["error"]
    assert first["label"] and first["probabilities"] == third["probabilities"]
    assert short.count("too_costly") == before + 2 and ended(short, "time") > 0
    assert short.served.held.photos == short.served.held.bytes == 0


@linux
def test_an_image_that_needs_much_memory_gets_an_error(direct: InMemoryPredictor, photo: bytes) -> None:
    with served(direct, Limits(decode_mb=150, quick_mb=100)) as here:
        answer = here.predict(("large", LARGE), ("a.jpg", photo))
        large, ordinary = answer.json()["photos"]
        assert "needs more than 150 MB" in large["error"] and ordinary["error"] is None
        assert here.predict(("large", LARGE)).status_code == 422
        for slot in here.served.batcher.decoders._slots:
            if slot.decoder:
                assert slot.decoder.spent()[1] < 120e6, "memory is given back"
        assert here.predict(("a.jpg", photo)).status_code == 200


@pytest.mark.parametrize("name", COSTLY)
def test_real_files_that_cost_much_cost_at_most_what_is_allowed(ample: Here, photo: bytes, name: str) -> None:
    """As hostile clients send them; most are refused by their structure."""
    began = time.monotonic()
    answer = ample.predict((name, COSTLY[name]()))
    assert answer.status_code in (200, 413, 415, 422, 503)  # on a busy machine a large one may be partial
    assert time.monotonic() - began < 23
    assert ample.predict(("a.jpg", photo)).status_code == 200


def test_the_images_of_a_request_share_its_time(short: Here, photo: bytes) -> None:
    before = ended(short, "time")
    answer = short.predict(*[("slow", SLOW)] * 12, ("a.jpg", photo))
    assert all("decoding takes" in one["error"] for one in answer.json()["photos"][:12])
    assert ended(short, "time") - before <= 4, "a quick attempt or two side by side, and the rest of the time"
    assert short.predict(("a.jpg", photo)).status_code == 200


def test_ordinary_images_pass_those_that_are_slow(direct: InMemoryPredictor, photo: bytes) -> None:
    """Hostile clients with twelve connections and eight images each; others wait a fraction of a second."""
    body = form(*[SLOW] * 8)
    with served(direct) as here, contextlib.ExitStack() as every:
        hostile = [every.enter_context(here.connect()) for _ in range(12)]
        sending = [threading.Thread(target=one.sendall, args=(head(here.port, len(body)) + body,)) for one in hostile]
        for thread in sending:
            thread.start()
        until(lambda: here.served.batcher.decoders.waiting >= 4)
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert here.predict(("a.jpg", photo)).status_code == 200
            times.append(time.monotonic() - began)
        assert sorted(times)[-2] < 4, "the hostile ones would take a minute"
        assert here.client.get("/healthz").json()["status"] == "ok"
        for thread in sending:
            thread.join()


def test_costly_requests_leave_room_for_small_ones(direct: InMemoryPredictor, photo: bytes) -> None:
    large = form(bytes(3_000_000))
    with served(direct, Limits(body_mb=4, waiting_mb=8, seconds=10)) as here, contextlib.ExitStack() as every:
        for _ in range(4):  # all but their last bytes
            one = every.enter_context(here.connect())
            one.sendall(head(here.port, len(large)) + large[:-50])
        until(lambda: here.count("queue_full"))
        assert here.served.held.bytes < 8e6
        assert here.predict(("a.jpg", photo)).status_code == 200


def test_a_crash_is_the_images_own(ample: Here, photo: bytes) -> None:
    """Of its own, and killed from outside."""
    own = ample.predict(("crash", CRASH), ("a.jpg", photo))
    assert [one["error"] for one in own.json()["photos"]] == ["damaged (its decoder crashed)", None]

    def slow() -> psutil.Process | None:
        slot = ample.served.batcher.decoders._slots[-1]
        return psutil.Process(slot.decoder.process.pid) if slot.account and slot.decoder else None

    with ThreadPoolExecutor(1) as pool:
        partial = pool.submit(ample.predict, ("slow", SLOW))
        until(slow)
        slow().send_signal(signal.SIGSEGV)  # type: ignore[union-attr]
        assert ample.predict(("a.jpg", photo)).status_code == 200
        answer = partial.result()
    assert answer.status_code == 422 and "its decoder crashed" in answer.json()["photos"][0]["error"]
    before = ended(ample, "crash")
    assert before >= 1
    for slot in ample.served.batcher.decoders._slots:  # idle ones are replaced, and no image is lost
        if slot.decoder:
            os.kill(slot.decoder.process.pid, signal.SIGKILL)
    assert [one["error"] for one in ample.predict(*[("a.jpg", photo)] * 4).json()["photos"]] == [None] * 4


def test_who_hangs_up_frees_the_decoder(direct: InMemoryPredictor, photo: bytes) -> None:
    body = form(SLOW)
    with served(direct, Limits(decode_seconds=60, seconds=60)) as here:
        slots = here.served.batcher.decoders._slots
        with here.connect() as one:
            one.sendall(head(here.port, len(body)) + body)
            until(lambda: slots[-1].account)
        until(lambda: slots[-1].account is None)
        assert ended(here, "left") == 1 and here.served.held.photos == 0
        assert here.predict(("large.png", picture((5000, 4000), "PNG"))).status_code == 200, "a new one decodes"


def test_maps_are_drawn_of_what_the_processes_decode(
    short: Here, direct: InMemoryPredictor, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded in the server's process")

    for place in ("unfreeze.data.decode.decode_sized", "unfreeze.data.decode_process.decode_sized"):
        monkeypatch.setattr(place, refused)
    monkeypatch.setattr("unfreeze.data.decode_process.load_crop", refused)
    for method in ("auto", "occlusion"):
        answer = short.client.post("/explain", files={"file": ("a.jpg", photo)}, params={"method": method})
        assert answer.status_code == 200, answer.text
    slow = short.client.post("/explain", files={"file": ("a.ppm", SLOW)})
    assert (slow.status_code, slow.json()["kind"]) == (422, "too_costly")
    assert short.predict(("a.jpg", photo)).status_code == 200


def test_who_cost_much_comes_last_and_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    # Not `time.monotonic` itself, by which the other servers' loops go.
    monkeypatch.setattr("unfreeze.server.serve.decoders.time", SimpleNamespace(monotonic=lambda: now[0]))
    clients = _Clients()
    queue = _Queue(clients)
    bad, worse, good = (Account(("10.0.0.1", 1)), Account(("10.0.0.1", 2)), Account(("10.0.0.2", 1)))
    clients.add(bad, 1.0)
    clients.add(worse, 4.0)
    tasks = [_Task(lambda look: None, account, print) for account in (worse, worse, bad, good, good)]
    for task in tasks:
        queue.add(task)
    assert [tasks.index(queue.next()) for _ in range(len(tasks))] == [3, 4, 2, 0, 1]
    assert clients.cost(worse, now[0]) == 9 and clients.cost(good, now[0]) == 0
    now[0] += 300
    assert clients.cost(worse, now[0]) < 0.01
    for i in range(5000):
        clients.add(Account((f"10.1.{i}", 1)), 1.0)
    assert len(clients.known) <= 4097


def test_equals_take_turns() -> None:
    queue = _Queue(_Clients())
    one, two = Account(("a", 1)), Account(("a", 2))
    tasks = [_Task(lambda look: None, account, print) for account in (one, one, one, two, two)]
    for task in tasks:
        queue.add(task)
    assert [tasks.index(queue.next()) for _ in tasks] == [0, 3, 1, 4, 2] and not len(queue)


def test_a_request_without_a_client_and_a_stopped_server(direct: InMemoryPredictor, photo: bytes) -> None:
    import asyncio

    from unfreeze.server.serve.metrics import Metrics

    batcher = Batcher(direct, Limits(), Metrics())
    batcher.start()
    processes = [slot.decoder.process for slot in batcher.decoders._slots if slot.decoder]
    assert isinstance(asyncio.run(batcher.predict([photo], None))[0], np.ndarray)
    batcher.stop()
    assert all(process.poll() is not None for process in processes)
    assert not isinstance(asyncio.run(batcher.predict([photo], None))[0], np.ndarray | PhotoError)


# The worker


def test_engine_failures_are_answered_and_the_next_photo_is_predicted(
    direct: InMemoryPredictor, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = (
        InMemoryPredictor.probabilities,
        iter([RuntimeError("out of memory"), SystemExit(1), KeyboardInterrupt()]),
    )

    def probabilities(self: InMemoryPredictor, *rest: Any) -> Any:
        for error in failures:
            raise error
        return whole(self, *rest)

    with served(direct) as here:
        monkeypatch.setattr(InMemoryPredictor, "probabilities", probabilities)
        statuses = [here.predict(("a.jpg", photo)).status_code for _ in range(3)]
        assert statuses == [500] * 3
        answer = here.predict(("a.jpg", photo))
        assert answer.status_code == 200
        monkeypatch.setattr(InMemoryPredictor, "probabilities", whole)
        assert here.predict(("a.jpg", photo)).json() == answer.json()
        assert here.client.get("/healthz").json()["status"] == "ok"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_is_replaced(
    direct: InMemoryPredictor, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Batcher._closed

    def closed(self: Batcher) -> Any:
        monkeypatch.setattr(Batcher, "_closed", whole)
        raise SystemExit(1)

    with served(direct) as here:
        assert here.predict(("a.jpg", photo)).status_code == 200
        monkeypatch.setattr(Batcher, "_closed", closed)
        assert here.predict(("a.jpg", photo)).status_code == 200, "the next worker takes it"
        assert here.served.metrics.restarts._value.get() == 1
        until(lambda: here.client.get("/healthz").status_code == 200)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_always_ends_ends_the_service(
    probe_run: Run, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(self: Batcher) -> Any:
        raise SystemExit(1)

    monkeypatch.setattr(Batcher, "_closed", closed)
    told, address = list[Exception](), list[str]()

    def run() -> None:
        try:
            serve(probe_run, port=0, ready=lambda one: address.append(one.base))
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: address)
    port = int(address[0].rpartition(":")[2])
    until(lambda: _answers(port))
    with socket.create_connection(("127.0.0.1", port)) as one:
        body = form(photo)
        one.sendall(head(port, len(body)) + body)
        rest_of(one)
    thread.join(10)
    assert not thread.is_alive() and isinstance(told[0], EngineError)
    assert "the worker has ended 4 times" in str(told[0]) and "\n" not in str(told[0])


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port)
        return bool(rest_of(one))
    return False


def test_health_fails_while_nothing_is_predicted(
    direct: InMemoryPredictor, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GRACE", 0.2)
    monkeypatch.setattr(batching, "_HOPELESS", 1e9)
    go, whole = threading.Event(), InMemoryPredictor.probabilities

    def probabilities(self: InMemoryPredictor, *rest: Any) -> Any:
        go.wait(30)
        return whole(self, *rest)

    monkeypatch.setattr(InMemoryPredictor, "probabilities", probabilities)
    with served(direct, Limits(seconds=1)) as here:
        assert here.predict(("a.jpg", photo)).status_code == 503
        until(lambda: here.client.get("/healthz").status_code == 503)
        assert "no photo was predicted for" in here.client.get("/healthz").json()["status"]
        go.set()
        until(lambda: here.predict(("a.jpg", photo)).status_code == 200)
        assert here.client.get("/healthz").status_code == 200


def test_networks_that_never_answer_end_the_service(
    direct: InMemoryPredictor, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GRACE", 0.1)
    monkeypatch.setattr(batching, "_HOPELESS", 1)
    go, reasons = threading.Event(), list[str]()
    monkeypatch.setattr(InMemoryPredictor, "probabilities", lambda *_: go.wait(30))
    with served(direct, Limits(seconds=2)) as here:
        here.served.batcher.failed = reasons.append
        until(lambda: here.predict(("a.jpg", photo)) and reasons)
        go.set()
    assert "the networks have not answered" in reasons[0]


def test_clients_that_hang_up_are_no_sign_of_trouble(
    direct: InMemoryPredictor, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GRACE", 0.1)
    with served(direct, Limits(seconds=1)) as here:
        body = form(*[SLOW] * 4)
        for _ in range(3):
            with here.connect() as one:
                one.sendall(head(here.port, len(body)) + body)
                until(lambda: here.served.held.photos)
            until(lambda: here.served.held.photos == 0)
        time.sleep(1.5)
        assert here.client.get("/healthz").status_code == 200
