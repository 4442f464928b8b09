"""Weights chosen out of fold: what complements gets weight, what is bad gets none, what chose is not what is scored."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.judge.selection import blended, greedy_weights, log_loss, nested_blend


def noisy(truth, draw, right, classes=3):
    """Probabilities that are right where `right` is true, and sure of another class elsewhere."""
    told = np.where(right, truth, (truth + 1 + draw.integers(0, classes - 1, len(truth))) % classes)
    proba = np.full((len(truth), classes), 0.1)
    proba[np.arange(len(truth)), told] = 0.8
    return proba


@pytest.fixture
def halves():
    """Two predictions, each right on what the other gets wrong half of the time, and one that is noise."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 600)
    kind = np.arange(600) % 3
    return truth, [noisy(truth, draw, kind != 0), noisy(truth, draw, kind != 1), noisy(truth, draw, kind == 9)]


def test_what_complements_is_blended_and_noise_is_not(halves):
    truth, probas = halves
    weights = greedy_weights(truth, probas)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] == 0
    assert abs(weights[0] - weights[1]) < 0.1
    assert log_loss(truth, blended(probas, weights)) < min(log_loss(truth, p) for p in probas)


def test_alone_or_twice_the_same_changes_nothing(halves):
    truth, probas = halves
    assert greedy_weights(truth, probas[:1]).tolist() == [1.0]
    twice = greedy_weights(truth, [probas[0], probas[0]])
    assert np.array_equal(blended([probas[0], probas[0]], twice), probas[0])


def test_never_worse_than_the_best_on_what_it_was_chosen_on():
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 4, 80)
    probas = [draw.dirichlet(np.ones(4), 80) for _ in range(5)]
    best = min(log_loss(truth, p) for p in probas)
    assert log_loss(truth, blended(probas, greedy_weights(truth, probas))) <= best + 1e-12


def test_nested_scores_are_of_photos_that_did_not_choose(halves):
    truth, probas = halves
    folds = np.arange(600) // 120
    blend, single = nested_blend(truth, probas, folds)
    changed = truth.copy()
    changed[folds == 2] = (changed[folds == 2] + 1) % 3  # other labels in a fold change nothing there
    again, alone = nested_blend(changed, probas, folds)
    assert np.array_equal(blend[folds == 2], again[folds == 2])
    assert np.array_equal(single[folds == 2], alone[folds == 2])
    assert log_loss(truth, blend) < log_loss(truth, single)


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="no predictions"):
        greedy_weights(np.zeros(3, int), [])
