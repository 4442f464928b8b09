"""Scores against scikit-learn; intervals against simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as oracle

from unfreeze.metrics.classification import confusion_matrix, macro_f1, precision_recall_f1, score_predictions


def predictions(n=400, classes=5, groups=60, seed=0):
    """Truth, probabilities and groups; the classes are unequal and the model is often right."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(classes, n, p=draw.dirichlet(np.full(classes, 2.0)))
    raw = draw.gamma(0.5, size=(n, classes))
    raw[np.arange(n), truth] += draw.gamma(0.7, size=n)
    return truth, raw / raw.sum(1, keepdims=True), draw.integers(0, groups, n)


def scored(truth, probabilities, groups, **options):
    names = [f"c{i}" for i in range(probabilities.shape[1])]
    return score_predictions(truth, probabilities, groups, names, **{"resamples": 200, **options})


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed):
    truth, probabilities, groups = predictions(seed=seed)
    predicted, every = probabilities.argmax(1), np.arange(5)
    scores = scored(truth, probabilities, groups)
    assert scores["confusion"] == oracle.confusion_matrix(truth, predicted, labels=every).tolist()
    assert scores["accuracy"]["value"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert scores["macro_f1"]["value"] == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))
    assert scores["log_loss"]["value"] == pytest.approx(oracle.log_loss(truth, probabilities, labels=every))
    table = oracle.precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    for column, values in zip(("precision", "recall", "f1"), table, strict=False):
        assert [row[column]["value"] for row in scores["per_class"]] == pytest.approx(values.tolist())
    assert [row["support"] for row in scores["per_class"]] == table[3].tolist()


def test_classes_never_predicted_or_never_there():
    """Class 2 is never predicted, 3 never true, 4 neither; scikit-learn leaves only 4 out of macro F1."""
    truth, predicted = np.array([0, 0, 1, 2, 2, 0]), np.array([0, 1, 1, 0, 3, 0])
    found = precision_recall_f1(confusion_matrix(truth, predicted, 5))
    table = oracle.precision_recall_fscore_support(truth, predicted, labels=range(5), zero_division=0)
    for column, values in zip(("precision", "recall", "f1", "support"), table, strict=True):
        assert found[column].tolist() == pytest.approx(values.tolist())
    expected = oracle.f1_score(truth, predicted, average="macro", zero_division=0)
    assert float(macro_f1(confusion_matrix(truth, predicted, 5))) == pytest.approx(expected)


def test_rates_of_many_confusions_at_once():
    stack = np.random.default_rng(0).integers(0, 9, (7, 4, 4))
    for key, values in precision_recall_f1(stack).items():
        assert np.array_equal(values, np.stack([precision_recall_f1(one)[key] for one in stack]))


def test_chance_is_what_the_shares_score():
    truth, probabilities, groups = predictions()
    chance = scored(truth, probabilities, groups)["chance"]
    largest = np.bincount(truth).argmax()
    always = np.full(len(truth), largest)
    shares = np.tile(np.bincount(truth, minlength=5) / len(truth), (len(truth), 1))
    assert chance["class"] == f"c{largest}"
    assert chance["accuracy"] == pytest.approx(oracle.accuracy_score(truth, always))
    assert chance["macro_f1"] == pytest.approx(1 / 5)
    assert chance["log_loss"] == pytest.approx(oracle.log_loss(truth, shares, labels=range(5)))


def test_is_json_and_deterministic():
    given = predictions()
    scores = scored(*given)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert scored(*given) == scores


def test_group_names_do_not_matter():
    truth, probabilities, groups = predictions()
    named = np.array([str(g) for g in groups], object)
    assert scored(truth, probabilities, named) == scored(truth, probabilities, groups)


def test_intervals_hold_their_values():
    scores = scored(*predictions())
    for part in (scores["accuracy"], scores["macro_f1"], scores["log_loss"]):
        assert part["low"] < part["value"] < part["high"]
    for row in scores["per_class"]:
        assert all(row[k]["low"] <= row[k]["value"] <= row[k]["high"] for k in ("precision", "recall", "f1"))


def test_photos_that_belong_together_carry_less_information():
    """Ten equal photos a group: as wide as the groups alone, and sqrt(10) times as wide as photo by photo."""
    truth, probabilities, _ = predictions(n=100)
    truth, probabilities, groups = (np.repeat(a, 10, axis=0) for a in (truth, probabilities, np.arange(100)))

    def width(scores):
        return scores["accuracy"]["high"] - scores["accuracy"]["low"]

    grouped = width(scored(truth, probabilities, groups, held_out=True))
    single = width(scored(truth, probabilities, np.arange(1000), held_out=True))
    once = width(scored(truth[::10], probabilities[::10], groups[::10], held_out=True))
    assert grouped == pytest.approx(once, rel=1e-6)
    assert grouped / single == pytest.approx(np.sqrt(10), rel=0.05)


def test_coverage():
    """In 200 worlds of 60 people with a skill each, the interval for accuracy holds the truth in about 95%."""
    draw, held = np.random.default_rng(1), 0
    for _ in range(200):
        skill = draw.beta(4, 2, 60)
        groups = np.repeat(np.arange(60), 7)
        right = draw.random(420) < skill[groups]
        truth = draw.integers(0, 2, 420)
        probabilities = np.eye(2)[np.where(right, truth, 1 - truth)]
        interval = scored(truth, probabilities, groups, held_out=True, resamples=2)["accuracy"]
        held += interval["low"] <= 4 / 6 <= interval["high"]
    assert 0.92 <= held / 200 <= 0.99


def test_no_error_in_few_groups_is_not_certain():
    """One class in two groups of sixty, always right: its interval is that of a share of two trials."""
    truth = np.r_[np.zeros(300, int), np.ones(4, int)]
    groups = np.r_[np.arange(300) // 5, 60, 60, 61, 61]
    scores = score_predictions(truth, np.eye(2)[truth], groups, ["common", "rare"], held_out=True, resamples=2)
    recall = scores["per_class"][1]["recall"]
    assert recall["high"] == 1 and recall["low"] == pytest.approx(0.025**0.5)
    assert scores["macro_f1"]["low"] < 0.99 and scores["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 61), abs=0.01)
    assert scores["approximate"] == "class 'rare' has images of only 2 groups"


def test_one_group_leaves_the_variance_unknown():
    scores = score_predictions(np.array([0, 1]), np.eye(2)[[1, 1]], np.array(["a", "a"]), ["x", "y"], resamples=10)
    assert scores["accuracy"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert np.isfinite(scores["log_loss"]["value"])
    assert scores["groups"] == 1
