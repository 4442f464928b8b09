"""The paired difference: against scikit-learn, and what its interval says."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.judge.paired import paired_difference

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def made(seed=0, n=600, wrong=(0.2, 0.2), classes=3):
    """Truth, two predictions wrong at these shares, and groups of three."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, classes, n)
    found = []
    for share in wrong:
        answer = np.where(draw.random(n) < share, draw.integers(0, classes, n), truth)
        found.append(np.eye(classes)[answer])
    return truth, *found, np.arange(n) // 3


def test_value_is_the_difference_of_the_scores():
    truth, first, second, groups = made(wrong=(0.4, 0.1))
    told = paired_difference(truth, first, second, groups)
    f1 = [sklearn_metrics.f1_score(truth, p.argmax(1), average="macro") for p in (first, second)]
    assert told["value"] == pytest.approx(f1[1] - f1[0])
    assert 0 < told["low"] < told["value"] < told["high"]


def test_equal_predictions_differ_by_nothing():
    truth, first, _, groups = made()
    assert paired_difference(truth, first, first, groups) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_interval_covers_zero_for_two_of_a_kind_nearly_always():
    missed = 0
    for seed in range(40):
        truth, first, second, groups = made(seed, n=240)
        told = paired_difference(truth, first, second, groups, resamples=200)
        missed += not told["low"] <= 0 <= told["high"]
    assert missed <= 6  # 5 % of 40 is 2


def test_what_both_get_wrong_cancels():
    truth, first, _, groups = made(n=900, wrong=(0.3, 0.3))
    second = first.copy()
    second[:20] = np.eye(3)[truth[:20]]  # the same but for a few photos
    told = paired_difference(truth, first, second, groups)
    assert told["high"] - told["low"] < 0.03
    apart = paired_difference(truth, first, made(seed=9, n=900, wrong=(0.3, 0.3))[1], groups)
    assert apart["high"] - apart["low"] > 2 * (told["high"] - told["low"])


def test_the_same_seed_gives_the_same_interval():
    truth, first, second, groups = made(wrong=(0.3, 0.25))
    assert paired_difference(truth, first, second, groups) == paired_difference(truth, first, second, groups)
    assert paired_difference(truth, first, second, groups, seed=1) != paired_difference(truth, first, second, groups)
