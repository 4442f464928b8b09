"""Pool of decoder processes that isolates slow and hostile images from the others.

Every image is first tried by a quick decoder, one per core, with low limits on time and memory. Images that are large
or unusual or exceed the limits go to the single slow decoder, which has a lower priority and the full limits. A decoder
that exceeds its limits is killed and replaced; only its image fails.

In both queues, images of the clients with the lowest recent cost come first; among equals, requests take turns.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from unfreeze.core.errors import EngineError, PhotoError
from unfreeze.core.parallel import cores
from unfreeze.data.decode_process import (
    Allowance,
    CostError,
    Decoder,
    DecoderLostError,
    Look,
    NotQuickError,
    Part,
    Wanted,
)
from unfreeze.server.serve.limits import Limits
from unfreeze.server.serve.metrics import Metrics

_log = logging.getLogger(__name__)
_MOST = 8  # quick decoders at most
_NICE = 5  # niceness of the slow decoder
_LOOK = 0.05  # seconds between two checks of the busy decoders
# Time limit of a quick attempt: 20 times the recent average, so that hostile images among small ones fail early.
_SHORTEST, _FIRST, _LONGEST, _TIMES = 0.1, 0.25, 1.0, 20
_WEIGHT = 0.05  # weight of the last image in the moving average
_HALF_LIFE = 30.0  # seconds until the recorded cost of a client is halved
_CLIENTS = 4096  # maximum number of clients with a recorded cost
_TRIES = 3
# Signal that killed a decoder -> exceeded limit.
_ENDS = {getattr(signal, "SIGXCPU", 0): "time", getattr(signal, "SIGKILL", 0): "memory"}


class LeftError(Exception):
    """The client no longer waits for the image."""


@dataclass(eq=False)
class Account:
    """Decoding cost of one request.

    Attributes:
        client: Host and port of the connection, or an empty tuple.
        seconds: CPU seconds.
        slow: One of the images was not quick; the others then go to the slow decoder directly.
        left: The client no longer waits for the response.
    """

    client: tuple[Any, ...] = ()
    seconds: float = 0.0
    slow: bool = False
    left: bool = False


@dataclass(eq=False)
class _Task:
    work: Callable[[Look], Any]
    account: Account
    done: Callable[[Any], None]  # called with the result of `work` or its exception


@dataclass
class _Clients:
    """CPU seconds that clients have used beyond quick images, by address and by connection, with exponential decay."""

    known: dict[tuple[Any, ...], tuple[float, float]] = field(default_factory=dict)

    def add(self, account: Account, seconds: float) -> None:
        now = time.monotonic()
        for key in self._keys(account):
            self.known[key] = (self._now(key, now) + seconds, now)
        if len(self.known) > _CLIENTS:
            least = sorted(self.known, key=lambda key: self._now(key, now))
            for key in least[: _CLIENTS // 2]:
                del self.known[key]

    def cost(self, account: Account, now: float) -> float:
        return sum(self._now(key, now) for key in self._keys(account)) if self.known else 0.0

    def _now(self, key: tuple[Any, ...], now: float) -> float:
        value, then = self.known.get(key, (0.0, now))
        return value * 0.5 ** ((now - then) / _HALF_LIFE)

    @staticmethod
    def _keys(account: Account) -> list[tuple[Any, ...]]:
        return [account.client[:1], account.client] if account.client else []


class _Queue:
    """Queue of tasks, grouped by request."""

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._tasks: dict[Account, deque[_Task]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: _Task) -> None:
        self._tasks.setdefault(task.account, deque()).append(task)

    def next(self) -> _Task:
        now = time.monotonic()
        account = min(self._tasks, key=lambda one: self._clients.cost(one, now))
        tasks = self._tasks.pop(account)
        task = tasks.popleft()
        if tasks:
            self._tasks[account] = tasks
        return task

    def drop(self, account: Account) -> list[_Task]:
        return list(self._tasks.pop(account, ()))

    def clear(self) -> list[_Task]:
        found = [task for tasks in self._tasks.values() for task in tasks]
        self._tasks.clear()
        return found


@dataclass(eq=False)
class _Slot:
    """A decoder and its thread. `account` and `allowance` belong to the image being decoded, None if it is idle."""

    slow: bool
    decoder: Decoder | None = None
    account: Account | None = None
    allowance: Allowance | None = None
    cost: float = 0.0
    why: str = ""  # reason it was killed for


class Decoders:
    """The decoder processes. All methods are thread-safe."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._lock = threading.Lock()
        self._wake = {slow: threading.Condition(self._lock) for slow in (False, True)}
        self._clients = _Clients()
        self._queues = {slow: _Queue(self._clients) for slow in (False, True)}
        self._slots = [_Slot(False) for _ in range(min(cores(), _MOST))] + [_Slot(True)]
        self._spare: Decoder | None = None
        self._typical = _FIRST / _TIMES
        self._busy = threading.Event()
        self._stopping = True
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start processes and threads without waiting for the decoders."""
        self._stopping = False
        for slot in self._slots:
            self._threads.append(threading.Thread(target=self._work, args=(slot,), name="decode", daemon=True))
        self._threads.append(threading.Thread(target=self._watch, name="watch decoders", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop processes and threads; pending images are dropped."""
        with self._lock:
            self._stopping = True
            dropped = [task for queue in self._queues.values() for task in queue.clear()]
            for condition in self._wake.values():
                condition.notify_all()
            for slot in self._slots:
                if slot.decoder:
                    slot.decoder.kill()
        self._busy.set()
        for task in dropped:
            task.done(LeftError())
        for thread in self._threads:
            thread.join(5)
        self._threads.clear()
        for one in [slot.decoder for slot in self._slots] + [self._spare]:
            if one:
                one.close()
        for slot in self._slots:
            slot.decoder = None
        self._spare = None

    def submit(self, account: Account, work: Callable[[Look], Any], done: Callable[[Any], None]) -> None:
        """Queue a function that decodes in one of the processes.

        Args:
            account: Account of the request.
            work: Called in a decoder thread with a decoding function. It may be called twice, if the quick decoder
                fails.
            done: Called once with the result of `work` or its exception: PhotoError with the reason, CostError if
                decoding exceeds the limits, LeftError if the client has left.
        """
        with self._lock:
            if not self._stopping:
                slow = account.slow
                self._queues[slow].add(_Task(work, account, done))
                self._wake[slow].notify()
                return
        done(LeftError())

    def leave(self, account: Account) -> None:
        """Drop the pending images of a request and abort its slow ones, since the client no longer waits."""
        account.left = True
        with self._lock:
            dropped = [task for queue in self._queues.values() for task in queue.drop(account)]
        for task in dropped:
            task.done(LeftError())

    def look(
        self, account: Account, seconds: float, data: bytes, max_pixels: int, wanted: Sequence[Wanted]
    ) -> list[Part]:
        """Decode an image and wait for the result.

        Raises:
            TimeoutError: After `seconds`.
            PhotoError: As `submit`.
            CostError: As `submit`.
            LeftError: As `submit`.
        """
        future: Future[list[Part]] = Future()

        def done(found: Any) -> None:
            future.set_exception(found) if isinstance(found, BaseException) else future.set_result(found)

        self.submit(account, lambda look: look(data, max_pixels, wanted), done)
        return future.result(seconds)

    @property
    def waiting(self) -> int:
        """Number of requests with pending images."""
        with self._lock:
            return sum(map(len, self._queues.values()))

    def _work(self, slot: _Slot) -> None:
        while True:
            try:
                self._ensure(slot)
                if (task := self._next(slot)) is None:
                    return
                self._do(slot, task)
            except BaseException as error:  # no image may end the thread
                if self._stopping:
                    return
                _log.error("a decoder failed", exc_info=error)
                time.sleep(0.5)

    def _next(self, slot: _Slot) -> _Task | None:
        queue, condition = self._queues[slot.slow], self._wake[slot.slow]
        with condition:
            condition.wait_for(lambda: queue or self._stopping)
            return None if self._stopping else queue.next()

    def _do(self, slot: _Slot, task: _Task) -> None:
        found: Any
        try:
            found = LeftError() if task.account.left else task.work(partial(self._decode, slot, task.account))
        except NotQuickError:
            with self._lock:
                if not self._stopping and not task.account.left:
                    # The request's other images follow, since each would use up the quick time limit first.
                    for one in (task, *self._queues[False].drop(task.account)):
                        self._queues[True].add(one)
                    self._wake[True].notify()
                    return
            found = LeftError()
        except BaseException as error:
            if not isinstance(error, PhotoError | LeftError):
                _log.error("an image could not be prepared", exc_info=error)
            found = error if isinstance(error, Exception) else RuntimeError(repr(error))
        task.done(found)

    def _decode(
        self, slot: _Slot, account: Account, data: bytes, max_pixels: int, wanted: Sequence[Wanted]
    ) -> list[Part]:
        """Decode in the slot's process."""
        seconds = self._limits.decode_seconds - account.seconds
        if seconds <= 0:
            raise self._too_slow()
        if not slot.slow:
            quick = min(_LONGEST, max(_SHORTEST, _TIMES * self._typical))
            allowance = Allowance(int(self._limits.quick_mb * 1e6), min(seconds, quick), True)
        else:
            allowance = Allowance(int(self._limits.decode_mb * 1e6), seconds)
        decoder = self._ready(slot)
        with self._lock:
            slot.cost, slot.why, slot.account, slot.allowance = 0.0, "", account, allowance
        self._busy.set()
        try:
            parts = decoder.ask(data, max_pixels, wanted, allowance)
        except DecoderLostError:
            raise self._lost(slot, account, allowance) from None
        except NotQuickError:
            self._charge(account, decoder.cpu)
            account.slow = True
            raise
        except CostError:
            self._charge(account, decoder.cpu)
            raise self._too_much_memory() from None
        except PhotoError:
            self._charge(account, decoder.cpu, slot.slow)
            raise
        finally:
            with self._lock:
                slot.account = slot.allowance = None
                if slot.why:  # killed, possibly after the result was sent
                    slot.decoder = None
            if slot.decoder is None:
                decoder.close()
        self._charge(account, decoder.cpu, slot.slow)
        if decoder.cpu < _LONGEST:  # within the range of quick attempts
            self._typical += _WEIGHT * (decoder.cpu - self._typical)
        return parts

    def _lost(self, slot: _Slot, account: Account, allowance: Allowance) -> Exception:
        """The error for an image whose decoder was killed or crashed."""
        decoder = slot.decoder
        code = decoder.process.wait() if decoder else 0
        why = slot.why or _ENDS.get(-code, "crash")
        with self._lock:
            slot.decoder, slot.why = None, why
        self._metrics.decoders.labels(why).inc()
        self._charge(account, max(slot.cost, allowance.seconds if why == "time" else 0.0))
        account.slow = True
        if account.left or self._stopping:
            return LeftError()
        if allowance.quick:
            return NotQuickError()
        if why == "time":
            return self._too_slow()
        if why == "memory":
            return self._too_much_memory()
        return PhotoError("photo", "damaged (its decoder crashed)")

    def _too_slow(self) -> CostError:
        seconds = self._limits.decode_seconds
        return CostError("photo", f"decoding takes more than the {seconds:g} s that a request has; send it smaller")

    def _too_much_memory(self) -> CostError:
        return CostError("photo", f"decoding needs more than {self._limits.decode_mb:,.0f} MB of memory")

    def _charge(self, account: Account, seconds: float, slow: bool = True) -> None:
        with self._lock:
            account.seconds += seconds
            if slow:
                self._clients.add(account, seconds)

    def _ensure(self, slot: _Slot) -> Decoder:
        """The slot's decoder: the current one, the spare one or a new one."""
        with self._lock:
            if self._stopping:
                raise LeftError
            if slot.decoder is None:
                if slot.slow:
                    slot.decoder = Decoder(_NICE)
                else:
                    slot.decoder, self._spare = self._spare or Decoder(), Decoder()
            return slot.decoder

    def _ready(self, slot: _Slot) -> Decoder:
        """The slot's decoder, ready for an image.

        Raises:
            EngineError: No decoder can be started.
        """
        for _ in range(_TRIES):
            decoder = self._ensure(slot)
            try:
                decoder.wait()
                return decoder
            except DecoderLostError:  # died before it got the image
                with self._lock:
                    slot.decoder = None
                decoder.close()
        raise EngineError(f"the decoder process ended {_TRIES} times before it was ready.")

    def _watch(self) -> None:
        """Kill decoders that exceed their limits or work for a client that has left."""
        while not self._stopping:
            self._busy.wait()
            time.sleep(_LOOK)
            with contextlib.suppress(Exception):
                if not sum(self._judge(slot) for slot in self._slots):
                    self._busy.clear()
                    if any(slot.account for slot in self._slots):  # started in the meantime
                        self._busy.set()

    def _judge(self, slot: _Slot) -> bool:
        account, allowance, decoder = slot.account, slot.allowance, slot.decoder
        if account is None or allowance is None or decoder is None:
            return False
        cost, memory = decoder.spent()
        why = (
            "time"
            if cost > allowance.seconds
            else "memory"
            if memory > allowance.memory
            else "left"
            if account.left and cost > _SHORTEST
            else ""
        )
        with self._lock:  # it may decode another image by now
            if why and slot.account is account and slot.allowance is allowance:
                slot.cost, slot.why = cost, why
                decoder.kill()
        return True
