"""One floor for the log loss, whatever it is computed for."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as oracle

from unfreeze.metrics.classification import score_predictions
from unfreeze.metrics.ensembling import nested_blend
from unfreeze.metrics.label_columns import group_scores
from unfreeze.metrics.log_loss import FLOOR, clipped, log_loss, log_losses


def predictions(n=200, classes=4, seed=0):
    draw = np.random.default_rng(seed)
    proba = draw.dirichlet(np.ones(classes), n)
    return draw.integers(0, classes, n), proba


def test_it_is_scikit_learns():
    truth, proba = predictions()
    assert log_loss(truth, proba) == pytest.approx(oracle.log_loss(truth, proba, labels=range(4)))
    sure = np.eye(4, dtype=np.float32)[(truth + 1) % 4]
    sure[::2] = np.eye(4)[truth[::2]]
    assert log_loss(truth, sure) == pytest.approx(oracle.log_loss(truth, sure, labels=range(4)), rel=1e-6)
    assert clipped(truth, sure) == 100 and clipped(truth, proba) == 0
    assert log_losses(truth, sure).max() == pytest.approx(-np.log(FLOOR)) == pytest.approx(15.94, abs=0.01)


def test_the_scores_and_what_is_chosen_by_them_agree_on_sure_errors():
    """A blend is chosen by the same loss that is reported: one sure error weighs the same in both."""
    truth, proba = predictions()
    proba[:7] = np.eye(4)[(truth[:7] + 1) % 4]
    groups = np.arange(200)
    scores = score_predictions(truth, proba, groups, ("a", "b", "c", "d"), resamples=20)
    assert scores["log_loss"]["value"] == pytest.approx(log_loss(truth, proba))
    assert scores["log_loss_clipped"] == 7
    assert group_scores(truth, proba, groups, ("a", "b", "c", "d"))["log_loss"].mean() == pytest.approx(
        log_loss(truth, proba)
    )
    blend, single = nested_blend(truth, [proba, proba], groups % 3)
    assert log_loss(truth, blend) == pytest.approx(log_loss(truth, single)) == pytest.approx(log_loss(truth, proba))
