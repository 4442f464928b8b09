"""Where work runs: tasks in, results out in order. The one door that parallel work passes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Cores this process may use (respects affinity, which containers and job queues set)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def in_threads(
    function: Callable[[T], R], tasks: Iterable[T], workers: int | None = None, ahead: int = 64
) -> Iterator[R]:
    """Results of `function` for each task, in order, computed by threads at most `ahead` tasks early.

    Threads, because the work that passes here (decoding, reading, inference) releases Python's lock;
    the bound on `ahead` keeps memory independent of the number of tasks.
    """
    with ThreadPoolExecutor(workers or cores()) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
