"""Photos wait here: threads decode them, one worker predicts those that are ready together, and both are bounded.

Requests take turns, a photo each, and large photos have a thread of their own: who sends many, or slow ones, does not
keep the others waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from unfreeze.core.errors import PhotoError
from unfreeze.core.work import cores
from unfreeze.deliver.web.serving_limits import Limits, RefusedError
from unfreeze.deliver.web.serving_metrics import Metrics
from unfreeze.deliver.web.serving_photos import LARGE, give_back_memory, pixels_of
from unfreeze.learn.direct import Direct
from unfreeze.learn.direct_sight import Prepared

_log = logging.getLogger(__name__)
_DECODERS = 8  # threads at most: they hold Python's lock for some of their time
Looks = tuple[str, ...] | None
# A photo's probabilities (C,), or why it has none.
Outcome = NDArray[np.float64] | PhotoError | Exception


@dataclass(eq=False)
class _Job:
    """The photos of one request. done: resolved when each has an outcome; nobody waits for it any more once `left`.

    photos: those that are not decoded yet; the others are empty, so that no byte stays longer than it is needed.
    """

    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    photos: list[bytes | bytearray]
    outcomes: list[Outcome | None]
    looks: Looks
    missing: int
    left: bool = False


class _Turns:
    """Photos by request: one of each in turn."""

    def __init__(self) -> None:
        self._places: dict[_Job, deque[int]] = {}

    def add(self, job: _Job, *places: int) -> None:
        self._places.setdefault(job, deque()).extend(places)

    def next(self) -> tuple[_Job, int]:
        job = next(iter(self._places))
        places = self._places.pop(job)
        place = places.popleft()
        if places:
            self._places[job] = places
        return job, place


@dataclass
class _Ready:
    job: _Job
    place: int
    photo: Prepared


@dataclass
class _Task:
    """Something else for the worker to do, between two batches."""

    run: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


@dataclass
class Held:
    """Photos and bytes that requests hold. Counted on the event loop alone."""

    limits: Limits
    metrics: Metrics
    photos: int = 0
    bytes: int = 0

    def take(self, photos: int = 0, size: int = 0) -> None:
        """RefusedError where the queue is full."""
        if self.photos + photos > self.limits.waiting or self.bytes + size > self.limits.held:
            raise RefusedError("queue_full", "too much is waiting to be predicted; ask again in a second.")
        self._count(photos, size)

    def give(self, photos: int = 0, size: int = 0) -> None:
        """Gives back what was taken."""
        self._count(-photos, -size)

    def _count(self, photos: int, size: int) -> None:
        self.photos += photos
        self.bytes += size
        self.metrics.waiting.set(self.photos)
        self.metrics.held.set(self.bytes)


@dataclass
class Batcher:
    """Closes a batch when it is full, when nothing more is being decoded, or when its first photo has waited enough."""

    direct: Direct
    limits: Limits
    metrics: Metrics
    _change: threading.Condition = field(default_factory=threading.Condition)
    _turns: _Turns = field(default_factory=_Turns)
    _large: _Turns = field(default_factory=_Turns)
    _ready: deque[_Ready] = field(default_factory=deque)
    _tasks: deque[_Task] = field(default_factory=deque)
    _decoding: int = 0
    _stopping: bool = False
    _worker: threading.Thread | None = None

    def start(self) -> None:
        """Starts the threads."""
        self._stopping = False
        self._decoders = ThreadPoolExecutor(min(cores(), _DECODERS), "decode")
        self._unpacker = ThreadPoolExecutor(1, "unpack")
        self._worker = threading.Thread(target=self._work, name="predict", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Ends the threads, if they have begun and not ended; what still waits is dropped."""
        with self._change:
            if self._worker is None or self._stopping:
                return
            self._stopping = True
            self._change.notify_all()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._unpacker.shutdown(wait=True, cancel_futures=True)
        self._worker.join()

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._worker is not None and self._worker.is_alive()

    async def predict(self, photos: Sequence[bytes | bytearray], looks: Looks) -> list[Outcome]:
        """An outcome for each photo. Cancelled, what has not begun is never done."""
        loop = asyncio.get_running_loop()
        job = _Job(loop, loop.create_future(), list(photos), [None] * len(photos), looks, len(photos))
        with self._change:
            self._decoding += len(photos)
            self._turns.add(job, *range(len(photos)))
        for _ in photos:
            self._decoders.submit(self._decode_next)
        try:
            await job.done
        finally:
            job.left = True
            with self._change:
                job.photos = [b""] * len(photos)
        return [o if o is not None else RuntimeError("no outcome") for o in job.outcomes]

    async def run(self, task: Callable[[], Any]) -> Any:
        """Runs something in the worker's thread, which alone may ask the networks."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        with self._change:
            self._tasks.append(_Task(task, loop, done))
            self._change.notify()
        return await done

    def _decode_next(self) -> None:
        """One photo of the request whose turn it is; a large one is left to the thread for them."""
        with self._change:
            job, place = self._turns.next()
            data = bytes(job.photos[place])
        try:
            large = pixels_of(data) > LARGE
        except PhotoError as error:
            self._decoded(job, place, error)
            return
        if not large:
            self._decode(job, place, data)
            return
        with self._change:
            self._large.add(job, place)
        with contextlib.suppress(RuntimeError):  # the server is ending
            self._unpacker.submit(self._unpack_next)

    def _unpack_next(self) -> None:
        with self._change:
            job, place = self._large.next()
            data = bytes(job.photos[place])
        self._decode(job, place, data)
        give_back_memory()

    def _decode(self, job: _Job, place: int, data: bytes) -> None:
        found: Prepared | Exception = RuntimeError("nobody waits for it")
        if not job.left:
            try:
                found = self.direct.prepare(data)
            except PhotoError as error:
                found = error
            except Exception as error:  # a photo must never end a thread, whatever its decoder raises
                _log.error("a photo could not be prepared", exc_info=error)
                found = error
        self._decoded(job, place, found)

    def _decoded(self, job: _Job, place: int, found: Prepared | Exception) -> None:
        if isinstance(found, Exception):
            _resolve([(job, place, found)])
        with self._change:
            job.photos[place] = b""
            self._decoding -= 1
            if not isinstance(found, Exception):
                self._ready.append(_Ready(job, place, found))
            self._change.notify()

    def _work(self) -> None:
        # The heads' product is small: threads of its own would only fight those of the engine for the cores.
        with threadpool_limits(1, "blas"):
            task: _Task | None = None
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._ready or self._tasks or self._stopping)
                    if self._stopping:
                        return
                    # By turns: whoever asks for one task after another may have the next one here before this thread
                    # has come round, and photos would wait for all of them.
                    task = self._tasks.popleft() if self._tasks and not (task and self._ready) else None
                    batch = [] if task else self._closed()
                if task:
                    _settle(task)
                elif batch:
                    self._predict(batch)

    def _closed(self) -> list[_Ready]:
        """The next batch; the lock is held."""
        full = self.limits.batch
        until = time.monotonic() + self.limits.batch_ms / 1000
        while len(self._ready) < full and self._decoding and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._change.wait(left):
                break
        taken = [self._ready.popleft() for _ in range(min(full, len(self._ready)))]
        return [one for one in taken if not one.job.left]

    def _predict(self, batch: list[_Ready]) -> None:
        alike: dict[Looks, list[_Ready]] = {}
        for one in batch:
            alike.setdefault(one.job.looks, []).append(one)
        for looks, some in alike.items():
            started = time.perf_counter()
            found: list[Outcome]
            try:
                found = list(self.direct.probabilities([one.photo for one in some], looks))
            except Exception as error:  # the next batch may fit where this one did not
                _log.error("a batch of %d photos failed", len(some), exc_info=error)
                found = [error] * len(some)
            self.metrics.batches.observe(len(some))
            self.metrics.inference.observe(time.perf_counter() - started)
            _resolve([(one.job, one.place, outcome) for one, outcome in zip(some, found, strict=True)])


def _resolve(found: list[tuple[_Job, int, Outcome]]) -> None:
    """Hands outcomes to their loops: one call for each loop, however many photos."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[_Job, int, Outcome]]] = {}
    for entry in found:
        loops.setdefault(entry[0].loop, []).append(entry)
    for loop, entries in loops.items():
        _call(loop, partial(_note_all, entries))


def _note_all(entries: list[tuple[_Job, int, Outcome]]) -> None:
    for job, place, outcome in entries:
        job.outcomes[place] = outcome
        job.missing -= 1
        if not job.missing and not job.done.done():
            job.done.set_result(None)


def _settle(task: _Task) -> None:
    if task.done.cancelled():
        return
    try:
        value, error = task.run(), None
    except Exception as caught:
        value, error = None, caught

    def set_() -> None:
        if not task.done.done():
            task.done.set_exception(error) if error else task.done.set_result(value)

    _call(task.loop, set_)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    if not loop.is_closed():  # the server may have ended meanwhile
        loop.call_soon_threadsafe(function)
