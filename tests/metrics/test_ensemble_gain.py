"""What an average of fold models gains: sums by fold, the scale from inner to outer models, and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.classification import Tally, reduced, relative_reduction


def test_sums_of_the_average_and_of_each_model():
    truth = np.array([0, 1, 1])
    members = [np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([[0.3, 0.7], [0.1, 0.9], [0.4, 0.6]])]
    tally = Tally.of(truth, members)
    assert tally.counts[0].tolist() == [[1, 2], [1, 2], [1, 2]]  # the average is right in all three
    assert tally.counts[1].tolist() == [[1, 1], [1, 2], [2, 1]]
    assert tally.counts[2].tolist() == [[0, 2], [1, 2], [0, 3]]
    assert tally.losses[1] == pytest.approx(-np.log([0.9, 0.4, 0.8]).sum())


def test_the_gain_is_scaled_to_models_of_more_images():
    truth = np.array([0, 1, 1])
    members = [np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([[0.3, 0.7], [0.1, 0.9], [0.1, 0.9]])]
    tallies = [Tally.of(truth, members)] * 2
    # Alone each has one error in three, averaged none: a reduction by all, times .6 with five folds, kept below .5.
    assert relative_reduction(tallies, 5)["accuracy"] == 0.5
    # With three folds the scale is (1.5 - 1) / (3 - 1.5).
    assert relative_reduction(tallies, 3)["accuracy"] == pytest.approx(1 / 3)
    assert relative_reduction(tallies, 2) == {} and relative_reduction([], 5) == {}


def test_no_error_to_reduce():
    found = relative_reduction([Tally.of(np.array([0, 1]), [np.eye(2)] * 3)], 5)
    assert found["accuracy"] == found["macro_f1"] == 0


def test_reduced():
    assert reduced("accuracy", 0.8, 0.1) == pytest.approx(0.82)
    assert reduced("log_loss", 0.5, 0.1) == pytest.approx(0.45)


def test_models_that_err_independently_gain_and_equal_ones_do_not():
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 4000)

    def member():
        logits = draw.normal(0, 1.5, (4000, 3))
        logits[np.arange(4000), truth] += 1.5
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    members = [member() for _ in range(4)]
    assert relative_reduction([Tally.of(truth, members)], 5)["macro_f1"] > 0.2
    alike = relative_reduction([Tally.of(truth, [members[0]] * 4)], 5)
    assert alike == pytest.approx({"accuracy": 0, "macro_f1": 0, "log_loss": 0}, abs=1e-9)
