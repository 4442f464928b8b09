"""Closed-form jackknife against leaving groups out one by one; coverage of a fixed model on new groups."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.classification import confusion_matrix, macro_f1, precision_recall_f1, score_predictions
from unfreeze.metrics.intervals import Cells, Estimates, positive_interval, share_interval, spread


def predictions(seed=0, n=240, classes=4, groups=30):
    draw = np.random.default_rng(seed)
    truth = draw.choice(classes, n, p=[0.5, 0.3, 0.17, 0.03])
    predicted = np.where(draw.random(n) < 0.8, truth, draw.integers(0, classes, n))
    return truth, predicted, draw.gamma(1, 1, n), draw.integers(0, groups, n) ** 2 % groups


def test_jackknife_is_that_of_leaving_groups_out():
    truth, predicted, losses, groups = predictions()
    _, member = np.unique(groups, return_inverse=True)
    found = spread(Cells.of(truth, predicted, losses, member, 4))
    kept = [member != g for g in range(member.max() + 1)]
    left = [(truth[k], predicted[k], losses[k]) for k in kept]

    def variance(values):
        values = np.array(values, float)
        return (len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()

    macro = [float(macro_f1(confusion_matrix(t, p, 4))) for t, p, _ in left]
    assert found.accuracy == pytest.approx(variance([(t == p).mean() for t, p, _ in left]))
    assert found.log_loss == pytest.approx(variance([x.mean() for *_, x in left]))
    assert found.macro_f1 == pytest.approx(variance(macro))
    whole = float(macro_f1(confusion_matrix(truth, predicted, 4)))
    assert found.bias == pytest.approx((len(left) - 1) * (np.mean(macro) - whole))
    for c in range(4):
        own = [i for i, k in enumerate(kept) if (truth[~k] == c).any()]
        recalls = [precision_recall_f1(confusion_matrix(*left[i][:2], 4))["recall"][c] for i in own]
        assert found.rates["recall"][c] == pytest.approx(variance(recalls))
        sizes = np.array([(truth[member == g] == c).sum() for g in range(len(left))])
        assert found.effective["recall"][c] == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum())
        assert found.groups[c] == (sizes > 0).sum()


def test_a_class_that_leaves_with_its_group():
    truth, predicted, member = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 0, 2]), np.array([0, 1, 0, 1, 2])
    found = spread(Cells.of(truth, predicted, np.ones(5), member, 3))
    left = [float(macro_f1(confusion_matrix(truth[member != g], predicted[member != g], 3))) for g in range(3)]
    assert found.macro_f1 == pytest.approx(2 / 3 * ((np.array(left) - np.mean(left)) ** 2).sum())


def test_intervals_stay_inside():
    for value in (0.001, 0.5, 0.999):
        interval = share_interval(value, 0.04, 3, 20, 0.95)
        assert 0 <= interval["low"] <= value <= interval["high"] <= 1
    assert share_interval(1.0, 0.0, 9, 10, 0.95)["low"] == pytest.approx(0.025**0.1)
    assert share_interval(0.0, 0.0, 9, 10, 0.95)["high"] == pytest.approx(1 - 0.025**0.1)
    assert share_interval(0.5, 0.0, 0, 0.64, 0.95) == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert 0 < positive_interval(0.3, 0.5, 4, 0.95)["low"] < 0.3


def test_training_variance_widens():
    truth, predicted, losses, groups = predictions()
    _, member = np.unique(groups, return_inverse=True)
    fixed, trained = (Estimates.of(truth, predicted, losses, member, 4, 0.95, t).accuracy(0.8) for t in (0.0, 0.56))
    assert trained["low"] < fixed["low"] < fixed["high"] < trained["high"]


@pytest.mark.parametrize(("groups", "size", "rare"), [(60, 7, 0.05), (60, 0, 0.1), (150, 1, 0.05)])
def test_coverage_of_a_fixed_model(groups, size, rare):
    """Of 150 samples at least 91% cover accuracy and macro F1; percentile bootstrap: 0.81 to 0.91 of macro F1."""
    hits, few = np.zeros(3), 0
    truths = _sample(np.random.default_rng(99), 4000, size, rare)
    whole = _scores(*truths)
    recall = whole["per_class"][2]["recall"]["value"]
    for seed in range(150):
        scores = _scores(*_sample(np.random.default_rng(seed), groups, size, rare))
        for i, name in enumerate(("accuracy", "macro_f1")):
            hits[i] += scores[name]["low"] <= whole[name]["value"] <= scores[name]["high"]
        own = scores["per_class"][2]
        few += own["support"] > 0
        hits[2] += own["support"] > 0 and own["recall"]["low"] <= recall <= own["recall"]["high"]
    assert hits[0] >= 0.91 * 150 and hits[1] >= 0.91 * 150 and hits[2] >= 0.9 * few


def _sample(draw, groups, size, rare):
    """Groups of `size` images, lognormal where it is 0, with an effect of the group on the logits."""
    sizes = np.full(groups, size) if size else np.ceil(draw.lognormal(1.5, 1, groups)).astype(int)
    member = np.repeat(np.arange(groups), sizes)
    truth = draw.choice(3, len(member), p=[0.6 - rare, 0.4, rare])
    logits = draw.normal(0, 1, (len(member), 3)) + draw.normal(0, 1, (groups, 3))[member]
    logits[np.arange(len(member)), truth] += 2.2
    return truth, logits, member


def _scores(truth, logits, member):
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return score_predictions(truth, proba, member, ["a", "b", "c"], held_out=True, resamples=2)
