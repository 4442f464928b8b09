"""Macro F1 corrected for chance: known predictions, random ones, and paired draws."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.chance_corrected import beyond_chance, chance_corrected_f1


def test_separability_of_known_predictions():
    truth = np.arange(300) % 3
    groups = np.arange(300) // 2
    right = chance_corrected_f1(truth, truth, groups, 3)
    assert right["value"] == right["low"] == right["high"] == right["macro_f1"] == 1
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    predicted = np.where(draw.random(300) < 0.4, draw.integers(0, 3, 300), truth)
    found = chance_corrected_f1(truth, predicted, groups, 3)
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"))
    shuffled = [sklearn.f1_score(truth, draw.permutation(predicted), average="macro") for _ in range(300)]
    assert found["chance"] == pytest.approx(np.mean(shuffled), abs=0.01)
    assert found["value"] == pytest.approx((found["macro_f1"] - found["chance"]) / (1 - found["chance"]))
    assert found["low"] < found["value"] < found["high"]


def test_guesses_are_worth_nothing_whatever_the_shares():
    missed = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        truth, predicted = (draw.choice(4, 240, p=p) for p in ([0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]))
        found = chance_corrected_f1(truth, predicted, np.arange(240) // 2, 4, resamples=200)
        missed += not found["low"] <= 0 <= found["high"]
    assert missed <= 6  # 5% of 40 is 2
    largest = chance_corrected_f1(truth, np.zeros(240, np.int64), np.arange(240), 4)
    assert largest["value"] == pytest.approx(0)


def test_draws_of_the_same_groups_are_paired():
    truth, groups = np.arange(120) % 3, np.arange(120) // 3
    first = beyond_chance(truth, truth, groups, 3, resamples=50)[0]
    again = beyond_chance(truth, truth.copy(), groups, 3, resamples=50)[0]
    assert (first == again).all()
