"""Weights chosen out of fold: what complements gets weight, what is bad gets none, what chose is not what is scored."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.ensembling import greedy_ensemble_weights, nested_blend, score_of_the_best, weighted_mean
from unfreeze.metrics.log_loss import log_loss


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
    weights = greedy_ensemble_weights(truth, probas)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] == 0
    assert abs(weights[0] - weights[1]) < 0.1
    assert log_loss(truth, weighted_mean(probas, weights)) < min(log_loss(truth, p) for p in probas)


def test_alone_or_twice_the_same_changes_nothing(halves):
    truth, probas = halves
    assert greedy_ensemble_weights(truth, probas[:1]).tolist() == [1.0]
    twice = greedy_ensemble_weights(truth, [probas[0], probas[0]])
    assert np.array_equal(weighted_mean([probas[0], probas[0]], twice), probas[0])


def test_never_worse_than_the_best_on_what_it_was_chosen_on():
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 4, 80)
    probas = [draw.dirichlet(np.ones(4), 80) for _ in range(5)]
    best = min(log_loss(truth, p) for p in probas)
    assert log_loss(truth, weighted_mean(probas, greedy_ensemble_weights(truth, probas))) <= best + 1e-12


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
        greedy_ensemble_weights(np.zeros(3, int), [])


def scored(truth, predicted):
    return float(macro_f1(confusion_matrix(truth, predicted, 3)))


def test_the_best_of_twenty_equals_is_corrected_to_what_each_of_them_scores():
    highest, corrected = [], []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        truth = draw.integers(0, 3, 150)
        found = [np.where(draw.random(150) < 0.3, draw.integers(0, 3, 150), truth) for _ in range(20)]
        highest.append(max(scored(truth, p) for p in found))
        corrected.append(score_of_the_best(truth, found, np.arange(150), 3, resamples=60))
    assert np.mean(highest) > 0.84 and abs(np.mean(corrected) - 0.8) < 0.02  # 1 - .3 * 2 / 3


def test_a_best_that_is_far_ahead_is_hardly_corrected_and_never_upward():
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 300)
    found = [np.where(draw.random(300) < share, draw.integers(0, 3, 300), truth) for share in (0.1, 0.6, 0.6)]
    corrected = score_of_the_best(truth, found, np.arange(300) // 3, 3, resamples=100)
    assert scored(truth, found[0]) - 0.02 < corrected <= scored(truth, found[0])
    assert score_of_the_best(truth, found[:1], np.arange(300), 3) == pytest.approx(scored(truth, found[0]))
