"""Calibration error and reliability against the definition, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.judge.calibration import expected_calibration_error, reliability


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
