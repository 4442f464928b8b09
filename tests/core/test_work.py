"""Work in threads: in order, bounded, and stopped when nobody wants more."""

from __future__ import annotations

import threading
import time

import pytest

from unfreeze.core.parallel import Budget, cores, map_threads


def test_cores():
    assert cores() >= 1


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 1), (4, 64), (None, 3)])
def test_results_in_order(workers, ahead):
    def slow_start(i):
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(map_threads(slow_start, range(50), workers, ahead)) == [i * i for i in range(50)]


def test_nothing():
    assert list(map_threads(str, [])) == []


def test_never_more_than_ahead():
    taken = []

    def tasks():
        for i in range(100):
            taken.append(i)
            yield i

    for done, _ in enumerate(map_threads(str, tasks(), 2, ahead=5)):
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
        list(map_threads(task, range(1000), 2, ahead=64))
    assert len(ran) < 100


def test_closing_early_stops():
    ran = []
    results = map_threads(ran.append, range(1000), 2, ahead=4)
    next(results)
    results.close()
    assert len(ran) <= 6


def test_a_budget_is_never_exceeded_and_a_large_one_goes_alone():
    budget, most, held, lock = Budget(100), [0], [0], threading.Lock()

    def work(units):
        with budget.held(units):
            with lock:
                held[0] += units
                most[0] = max(most[0], held[0])
                assert held[0] <= 100 or held[0] == units
            time.sleep(0.001)
            with lock:
                held[0] -= units

    assert len(list(map_threads(work, [10, 40, 90, 250, 60, 30] * 20, workers=8))) == 120
    assert most[0] == 250 and held[0] == 0
    with pytest.raises(ValueError), budget.held(70):
        raise ValueError
    with budget.held(100):
        pass
