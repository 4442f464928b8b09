"""Chance is what a model that knows nothing of the images scores, not the lowest such score."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unfreeze.metrics.classification import chance_scores, confusion_matrix, macro_f1, score_predictions

SHARES = {
    "3 equal": np.full(3, 1 / 3),
    "10 equal": np.full(10, 0.1),
    "18 equal": np.full(18, 1 / 18),
    "73/21/6": np.array([0.73, 0.21, 0.06]),
    "10 uneven": np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01]),
}


def names(classes):
    return tuple(f"c{c}" for c in range(classes))


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_a_model_that_knows_only_the_shares_is_at_chance(shares):
    draw, k = np.random.default_rng(0), len(shares)
    truth, called = draw.choice(k, 4000, p=shares), draw.choice(k, 4000, p=shares)
    found = score_predictions(truth, np.eye(k)[called], np.arange(4000), names(k), resamples=200)
    assert found["macro_f1"]["low"] <= found["chance"]["macro_f1"] <= found["macro_f1"]["high"]
    assert found["chance"]["macro_f1_of"] == "random predictions by the class shares"
    # The bar that was used before: always the largest class.
    always = float(macro_f1(confusion_matrix(truth, np.full(4000, shares.argmax()), k)))
    assert always < found["chance"]["macro_f1"]


@pytest.mark.parametrize("rates", [(0.6, 0.3, 0.1), (1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (0.1, 0.1, 0.8)])
def test_no_strategy_without_knowledge_scores_more(rates):
    """Whatever the rates of the predictions: permuted over the images they score no more than chance, on average."""
    draw = np.random.default_rng(1)
    truth, called = draw.choice(3, 600, p=(0.6, 0.3, 0.1)), draw.choice(3, 600, p=rates)
    chance = chance_scores(confusion_matrix(truth, called, 3), names(3))["macro_f1"]
    scores = [float(macro_f1(confusion_matrix(truth, draw.permutation(called), 3))) for _ in range(200)]
    assert np.mean(scores) <= chance + 0.004


def test_the_other_scores_are_those_of_the_shares():
    found = chance_scores(np.array([[30, 0], [0, 10]]), ("a", "b"))
    assert found["class"] == "a" and found["accuracy"] == 0.75
    assert found["log_loss"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert found["macro_f1"] == pytest.approx(0.5)
    assert json.loads(json.dumps(found)) == found


def test_a_class_that_never_occurs_has_no_part_in_it():
    found = chance_scores(np.array([[20, 0, 0], [0, 20, 0], [0, 0, 0]]), names(3))
    assert found["macro_f1"] == pytest.approx(0.5)
    only = chance_scores(np.array([[20, 0], [0, 0]]), names(2))
    assert only["macro_f1"] == only["accuracy"] == 1.0
