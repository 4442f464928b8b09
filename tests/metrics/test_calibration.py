"""Calibration error and reliability against the definition, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.metrics.bootstrap import bootstrap_group_sums
from unfreeze.metrics.classification import BINS, bin_index, calibration_error, expected_calibration_error, reliability


def by_definition(confidence, right, weight, bins=10) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins <= c < (b + 1) / bins or (b == bins - 1 and c == 1)]
        if inside and sum(weight[i] for i in inside):
            share = sum(weight[i] for i in inside)
            sure = sum(weight[i] * confidence[i] for i in inside) / share
            good = sum(weight[i] * right[i] for i in inside) / share
            total += share / sum(weight) * abs(sure - good)
    return total


# Halves between the bins' borders, where no rounding can move a value to the next one.
values = st.lists(
    st.tuples(st.integers(0, 100).map(lambda i: min(i / 100 + 0.005, 1.0)), st.booleans(), st.integers(1, 4)),
    min_size=1,
    max_size=40,
)


@given(values)
def test_against_the_definition(rows):
    confidence, right, weight = (np.array(column) for column in zip(*rows, strict=True))
    expected = by_definition(confidence, right, weight)
    assert expected_calibration_error(confidence, right, weight) == pytest.approx(expected, abs=1e-12)
    # A weight of 3 is the same photo three times.
    again = expected_calibration_error(np.repeat(confidence, weight), np.repeat(right, weight))
    assert again == pytest.approx(expected, abs=1e-12)


def test_ends():
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([False, False])) == 1


def test_honest_probabilities_are_calibrated():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.2, 1, 100_000)
    assert expected_calibration_error(confidence, draw.random(100_000) < confidence) < 0.01
    assert expected_calibration_error(confidence, draw.random(100_000) < confidence - 0.2) == pytest.approx(
        0.2, abs=0.01
    )


@given(values)
def test_reliability_sums_up_to_the_error(rows):
    confidence, right, _ = (np.array(column) for column in zip(*rows, strict=True))
    curve = reliability(confidence, right)
    assert sum(point["count"] for point in curve) == len(rows)
    error = sum(p["count"] * abs(p["confidence"] - p["accuracy"]) for p in curve) / len(rows)
    assert error == pytest.approx(expected_calibration_error(confidence, right), abs=1e-9)
    for point in curve:
        assert point["low"] <= point["confidence"] <= point["high"]
    assert [p["low"] for p in curve] == sorted(p["low"] for p in curve)


def drawn(seed, n=420, classes=4, power=1.0, each=1):
    """Confidence and right of predictions whose probabilities are calibrated before they are taken to `power`."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (n, classes))
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    group = np.arange(n) // each
    level = np.where(draw.random(n) < 0.3, draw.random(n)[group], draw.random(n))  # rows of a group go wrong together
    truth = (proba.cumsum(1) < level[:, None]).sum(1).clip(0, classes - 1)
    proba = proba**power / (proba**power).sum(1, keepdims=True)
    return proba.max(1), proba.argmax(1) == truth, group


def measured(top, right, group, resamples=300):
    sums = [(bin_index(top), top - right, BINS), (np.zeros(len(top), np.int64), None, 1)]
    gaps, counts = bootstrap_group_sums(group, sums, resamples, 0)
    return calibration_error(top, right, gaps / counts)


@pytest.mark.parametrize(("n", "classes", "each"), [(100, 4, 1), (420, 4, 1), (420, 10, 7)])
def test_calibrated_probabilities_have_an_error_of_zero_in_the_interval(n, classes, each):
    """Their observed error is 0.04 to 0.09, and its percentile interval never came near 0."""
    found = [measured(*drawn(seed, n, classes, each=each)) for seed in range(80)]
    assert all(0 <= one["low"] <= one["value"] <= one["high"] for one in found)
    assert sum(one["low"] <= 0.005 for one in found) >= 75
    plain = np.mean([expected_calibration_error(*drawn(seed, n, classes, each=each)[:2]) for seed in range(80)])
    assert np.mean([one["value"] for one in found]) < 0.5 * plain


@pytest.mark.parametrize(("power", "each"), [(2.0, 1), (1.3, 1), (0.6, 7)])
def test_the_interval_holds_the_true_error(power, each):
    top, right, _ = drawn(1000, 200_000, power=power)
    truth = expected_calibration_error(top, right)
    found = [measured(*drawn(seed, power=power, each=each)) for seed in range(80)]
    assert sum(one["low"] <= truth <= one["high"] for one in found) >= 69
    assert np.mean([one["value"] for one in found]) == pytest.approx(truth, abs=0.012)


def test_no_error_at_all():
    assert measured(np.ones(50), np.ones(50, bool), np.arange(50)) == {"value": 0, "low": 0, "high": 0}
