"""Work in threads: in order, bounded, and stopped when nobody wants more."""

from __future__ import annotations

import threading
import time

import pytest

from unfreeze.core.work import cores, in_threads


def test_cores():
    assert cores() >= 1


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 1), (4, 64), (None, 3)])
def test_results_in_order(workers, ahead):
    def slow_start(i):
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(in_threads(slow_start, range(50), workers, ahead)) == [i * i for i in range(50)]


def test_nothing():
    assert list(in_threads(str, [])) == []


def test_never_more_than_ahead():
    taken = []

    def tasks():
        for i in range(100):
            taken.append(i)
            yield i

    for done, _ in enumerate(in_threads(str, tasks(), 2, ahead=5)):
        assert len(taken) <= done + 5


def test_an_error_reaches_the_caller_and_stops_the_rest():
    ran = []
    gate = threading.Event()

    def task(i):
        ran.append(i)
        if i == 1:
            raise RuntimeError("task 1")
        gate.wait(0.01)

    with pytest.raises(RuntimeError, match="task 1"):
        list(in_threads(task, range(1000), 2, ahead=64))
    assert len(ran) < 100


def test_closing_early_stops():
    ran = []
    results = in_threads(ran.append, range(1000), 2, ahead=4)
    next(results)
    results.close()
    assert len(ran) <= 6
