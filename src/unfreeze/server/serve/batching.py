"""Dynamic batching for the prediction API: decoding in processes, prediction in one worker thread, bounded queues.

A worker that dies is replaced. If it dies repeatedly or hangs, the service ends, so that a supervisor can restart it.

`Maps` draws heat maps next to the predictions: in short steps between batches, and only until the request's deadline.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from unfreeze.core.errors import PhotoError
from unfreeze.data.decode_process import Look
from unfreeze.features.crops import Prepared
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.serve.decoders import Account, Decoders, LeftError
from unfreeze.server.serve.limits import Limits, RefusedError
from unfreeze.server.serve.metrics import Metrics

_log = logging.getLogger(__name__)
GRACE = 2.0  # seconds after `Limits.seconds` when a request is ended in any case
_WATCH = 0.25  # seconds between two checks of the worker
_REMEMBERED = 60.0  # seconds that a timed-out request counts as a sign of trouble
_RESTARTS, _WITHIN = 3, 60.0  # the service ends after more restarts within so many seconds
_HOPELESS = 3  # the service ends if one batch takes longer than this multiple of `patience`
ViewNames = tuple[str, ...] | None
# An image's probabilities float64 (C,), or the error.
Outcome = NDArray[np.float64] | PhotoError | Exception


@dataclass(eq=False)
class _Job:
    """The images of one request.

    Attributes:
        loop: Event loop of the request.
        done: Resolved when every image has an outcome.
        photos: Encoded images. Replaced by empty bytes once decoded, to free the memory.
        outcomes: Outcome of each image, None while it is pending.
        looks: Views to average over.
        missing: Number of pending images.
        account: Decoding account of the request.
    """

    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    photos: list[bytes | bytearray]
    outcomes: list[Outcome | None]
    looks: ViewNames
    missing: int
    account: Account


@dataclass
class _Ready:
    job: _Job
    place: int
    photo: Prepared


@dataclass
class _Task:
    """A function to run in the worker thread between two batches."""

    run: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


@dataclass
class Quota:
    """Number of images and bytes that requests hold. Only used on the event loop.

    A request may take at most half of what the other requests leave free, so that there is always room for small ones.
    """

    limits: Limits
    metrics: Metrics
    photos: int = 0
    bytes: int = 0

    def take(self, photos: int = 0, size: int = 0, own: int = 0) -> None:
        """Reserve more for a request that already holds `own` bytes.

        Raises:
            RefusedError: The queue is full.
        """
        if not self._fits(photos, self.photos, self.limits.waiting) or not self._fits(
            own + size, self.bytes - own, self.limits.held
        ):
            raise RefusedError("queue_full", "too much is waiting to be predicted; ask again in a second.")
        self._count(photos, size)

    @staticmethod
    def _fits(wanted: int, others: int, most: int) -> bool:
        return wanted <= ((most - others) / 2 if others else most)

    def give(self, photos: int = 0, size: int = 0) -> None:
        """Release what was reserved."""
        self._count(-photos, -size)

    def _count(self, photos: int, size: int) -> None:
        self.photos += photos
        self.bytes += size
        self.metrics.waiting.set(self.photos)
        self.metrics.held.set(self.bytes)


@dataclass
class Batcher:
    """Forms and predicts batches.

    A batch is closed when it is full, when nothing else is being decoded, or when its first image has waited for
    `batch_ms`.

    Attributes:
        direct: The run in memory.
        limits: Limits of the server.
        metrics: Metrics of the server.
        failed: Called with the reason if the service cannot continue.
    """

    direct: InMemoryPredictor
    limits: Limits
    metrics: Metrics
    failed: Callable[[str], None] | None = None
    _change: threading.Condition = field(default_factory=threading.Condition)
    _ready: deque[_Ready] = field(default_factory=deque)
    _tasks: deque[_Task] = field(default_factory=deque)
    _decoding: int = 0
    _stopping: bool = False
    _worker: threading.Thread | None = None
    _busy: float = 0.0  # start time of the worker's batch or task; 0 if it is idle
    _unanswered: float = 0.0  # arrival time of the first image since the last outcome; 0 if there is none
    _given_up: float = 0.0  # time of the last request that timed out

    def __post_init__(self) -> None:
        self.decoders = Decoders(self.limits, self.metrics)

    def start(self) -> None:
        """Start threads and processes."""
        self._stopping = False
        self.decoders.start()
        self._begin()
        self._watcher = threading.Thread(target=self._watch, name="watch worker", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Stop threads and processes if they run; pending images are dropped."""
        with self._change:
            if self._worker is None or self._stopping:
                return
            self._stopping = True
            self._change.notify_all()
        self.decoders.stop()
        self._watcher.join(GRACE)
        self._worker.join(GRACE)  # a thread that hangs in a library ends with the process

    @property
    def alive(self) -> bool:
        """Whether the worker thread runs."""
        return self._worker is not None and self._worker.is_alive()

    @property
    def patience(self) -> float:
        """Seconds after which every request has ended."""
        return self.limits.seconds + GRACE

    def trouble(self) -> str:
        """Why no images are being predicted; empty if the worker is healthy."""
        if not self.alive:
            return "the worker has ended"
        now = time.monotonic()
        # A timed-out request is only a sign of trouble while others wait, and for a while afterwards.
        lately = self._decoding or self._ready or now - self._given_up < _REMEMBERED
        since = min((at for at in (self._busy, self._unanswered if lately else 0.0) if at), default=0.0)
        stuck = now - since if since else 0.0
        return f"no photo was predicted for {stuck:.0f} s" if stuck > self.patience else ""

    async def predict(
        self, photos: Sequence[bytes | bytearray], looks: ViewNames, account: Account | None = None
    ) -> list[Outcome]:
        """Predict images.

        If the call is cancelled, images that have not been started are dropped.

        Args:
            photos: Encoded images.
            looks: Views to average over; None for those used in training.
            account: Decoding account of the request.

        Returns:
            The outcome of each image.
        """
        loop, account = asyncio.get_running_loop(), account or Account()
        job = _Job(loop, loop.create_future(), list(photos), [None] * len(photos), looks, len(photos), account)
        began = time.monotonic()
        with self._change:
            self._decoding += len(photos)
            self._unanswered = self._unanswered or began
        for place in range(len(photos)):
            self.decoders.submit(account, partial(self._prepare, job, place), partial(self._decoded, job, place))
        try:
            await job.done
        finally:
            self.decoders.leave(account)
            with self._change:
                job.photos = [b""] * len(photos)
                now = time.monotonic()
                if now - began >= self.limits.seconds / 2:
                    self._given_up = now
                elif self._unanswered == began:
                    self._unanswered = 0.0  # the client disconnected; not the worker's fault
        return [o if o is not None else RuntimeError("no outcome") for o in job.outcomes]

    async def run(self, task: Callable[[], Any]) -> Any:
        """Run a function in the worker thread, the only one that may use the networks."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        with self._change:
            self._tasks.append(_Task(task, loop, done))
            self._change.notify()
        return await done

    def _prepare(self, job: _Job, place: int, look: Look) -> Prepared:
        """Decode an image; runs in a decoder thread."""
        data: Any = job.photos[place]  # avoids copying a bytearray to bytes
        return self.direct.prepare(data, look)

    def _decoded(self, job: _Job, place: int, found: Prepared | Exception) -> None:
        if isinstance(found, LeftError):
            _hand_over([(job, place, found)])  # not progress: `_unanswered` stays set
        elif isinstance(found, Exception):
            self._resolve([(job, place, found)])
        with self._change:
            job.photos[place] = b""
            self._decoding -= 1
            if not isinstance(found, Exception):
                self._ready.append(_Ready(job, place, found))
            self._change.notify()

    def _begin(self) -> None:
        self._busy = 0.0
        self._worker = threading.Thread(target=self._work, name="predict", daemon=True)
        self._worker.start()

    def _watch(self) -> None:
        """Replace a worker that has died; end the service if that does not help."""
        restarts = deque[float](maxlen=_RESTARTS)
        while not self._stopping:
            time.sleep(_WATCH)
            busy, now = self._busy, time.monotonic()
            if self.alive or self._stopping:
                if busy and now - busy > _HOPELESS * self.patience:
                    self._give_up(f"the networks have not answered for {now - busy:.0f} s")
                    return
                continue
            if len(restarts) == _RESTARTS and now - restarts[0] < _WITHIN:
                self._give_up(f"the worker has ended {_RESTARTS + 1} times within {_WITHIN:.0f} s")
                return
            restarts.append(now)
            self.metrics.restarts.inc()
            _log.error("the worker has ended; another one goes on")
            self._begin()

    def _give_up(self, reason: str) -> None:
        _log.error("%s", reason)
        if self.failed:
            self.failed(reason)

    def _work(self) -> None:
        # The matrix product of the heads is small: BLAS threads would only compete with those of the engine.
        with threadpool_limits(1, "blas"):
            task: _Task | None = None
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._ready or self._tasks or self._stopping)
                    if self._stopping:
                        return
                    # Alternate between tasks and batches: a client that submits one task after another would
                    # otherwise starve the images.
                    task = self._tasks.popleft() if self._tasks and not (task and self._ready) else None
                    batch = [] if task else self._closed()
                self._busy = time.monotonic()
                if task:
                    _settle(task)
                elif batch:
                    self._predict(batch)
                self._busy = 0.0

    def _closed(self) -> list[_Ready]:
        """Take the next batch from the queue; the lock must be held."""
        full = self.limits.batch
        until = time.monotonic() + self.limits.batch_ms / 1000
        while len(self._ready) < full and self._decoding and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._change.wait(left):
                break
        taken = [self._ready.popleft() for _ in range(min(full, len(self._ready)))]
        return [one for one in taken if not one.job.account.left]

    def _predict(self, batch: list[_Ready]) -> None:
        alike: dict[ViewNames, list[_Ready]] = {}
        for one in batch:
            alike.setdefault(one.job.looks, []).append(one)
        for looks, some in alike.items():
            started = time.perf_counter()
            found: list[Outcome]
            try:
                found = list(self.direct.probabilities([one.photo for one in some], looks))
            except BaseException as error:  # for example out of memory; the next batch may be smaller
                _log.error("a batch of %d photos failed", len(some), exc_info=error)
                found = [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(some)
            self.metrics.batches.observe(len(some))
            self.metrics.inference.observe(time.perf_counter() - started)
            self._resolve([(one.job, one.place, outcome) for one, outcome in zip(some, found, strict=True)])

    def _resolve(self, found: list[tuple[_Job, int, Outcome]]) -> None:
        self._unanswered = 0.0
        _hand_over(found)


def _hand_over(found: list[tuple[_Job, int, Outcome]]) -> None:
    """Pass outcomes to their event loops, with one call per loop."""
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
    except BaseException as caught:  # a task must not end the worker
        value, error = None, caught if isinstance(caught, Exception) else RuntimeError(repr(caught))

    def set_() -> None:
        if not task.done.done():
            task.done.set_exception(error) if error else task.done.set_result(value)

    _call(task.loop, set_)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    if not loop.is_closed():  # the server may have stopped
        loop.call_soon_threadsafe(function)
