"""Offsets for macro F1: worth having where a rare class is called too seldom, and no gain where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.calibration import RULES, class_offsets, nested_decisions, prior_offsets
from unfreeze.metrics.classification import confusion_matrix, macro_f1


def drawn(n=1500, shares=(0.6, 0.35, 0.05), bias=(0.0, 0.0, 0.0), seed=0):
    """Bayes' own probabilities of Gaussian classes, with a bias of the logits if asked."""
    draws = np.random.default_rng(seed)
    labels = draws.choice(3, n, p=shares)
    x = draws.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels]
    logits = 1.5 * x + np.log(shares) + np.asarray(bias)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), labels


def f1(labels, called):
    return float(macro_f1(confusion_matrix(labels, called, 3)))


@pytest.mark.parametrize("rule", RULES)
def test_a_rare_class_is_called_more_often_and_macro_f1_rises_on_other_folds(rule):
    proba, labels = drawn(bias=(0.0, 0.0, -1.5))
    called = nested_decisions(proba, labels, np.arange(len(labels)) % 5, rule)
    assert f1(labels, called) > f1(labels, proba.argmax(1)) + 0.02
    assert (called == 2).sum() > (proba.argmax(1) == 2).sum()


def test_a_biased_class_needs_its_own_offset():
    proba, labels = drawn(shares=(0.34, 0.33, 0.33), bias=(2.0, 0.0, 0.0))
    folds = np.arange(len(labels)) % 5
    one, each = (f1(labels, nested_decisions(proba, labels, folds, rule)) for rule in ("shares", "each class"))
    assert each > one + 0.05
    assert class_offsets(proba, labels).argmin() == 0


def test_where_nothing_is_to_be_gained_nothing_is():
    gains = []
    for seed in range(8):
        proba, labels = drawn(300, (0.34, 0.33, 0.33), seed=seed)
        called = nested_decisions(proba, labels, np.arange(300) % 5, "each class")
        gains.append(f1(labels, called) - f1(labels, proba.argmax(1)))
    assert np.mean(gains) < 0.005


def test_offsets_are_fitted_without_the_fold_that_they_call():
    proba, labels = drawn(300)
    folds = np.arange(300) % 3
    called = nested_decisions(proba, labels, folds, "each class")
    other = np.where(folds == 0, (labels + 1) % 3, labels)
    assert np.array_equal(nested_decisions(proba, other, folds, "each class")[folds == 0], called[folds == 0])


def test_equal_shares_need_no_prior_offsets():
    proba, labels = drawn(600, (0.34, 0.33, 0.33))
    assert np.ptp(prior_offsets(proba, labels)) < 0.2
