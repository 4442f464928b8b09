"""Differences to one prediction, with intervals that hold for all of the others at once."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from unfreeze.metrics.differences import (
    accuracy,
    class_differences,
    macro,
    mean_recall,
    paired_difference,
    simultaneous_differences,
)

METRICS = {"macro_f1": macro, "accuracy": accuracy, "small": mean_recall([2]), "two": mean_recall([1, 2])}


def noisy(truth, share, draw):
    return np.where(draw.random(len(truth)) < share, draw.integers(0, 3, len(truth)), truth)


@pytest.fixture
def told():
    draw = np.random.default_rng(0)
    truth = draw.choice(3, 400, p=[0.6, 0.3, 0.1])
    others = {f"w{i}": noisy(truth, 0.4, draw) for i in range(6)} | {"good": noisy(truth, 0.1, draw)}
    return truth, noisy(truth, 0.4, draw), others, np.arange(400) // 2


def test_scores_are_scikit_learns(told):
    truth, base, others, groups = told
    found = simultaneous_differences(truth, base, others, groups, 3, METRICS)
    for name, predicted in {"": base, **others}.items():
        recalls = recall_score(truth, predicted, average=None)
        for metric, want in {
            "macro_f1": f1_score(truth, predicted, average="macro"),
            "accuracy": accuracy_score(truth, predicted),
            "small": recalls[2],
            "two": recalls[1:].mean(),
        }.items():
            score = found[name][metric]["score"]
            assert score["value"] == pytest.approx(want) and score["low"] <= score["value"] <= score["high"]
            more = found[name][metric]["difference"]
            assert more["value"] == pytest.approx(score["value"] - found[""][metric]["score"]["value"])
    assert found[""]["macro_f1"]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert found["good"]["macro_f1"]["difference"]["low"] > 0


def test_intervals_of_many_are_wider_than_of_one(told):
    truth, base, others, groups = told
    one, only = {"good": others["good"]}, {"macro_f1": macro}
    alone = simultaneous_differences(truth, base, one, groups, 3, only)["good"]["macro_f1"]["difference"]
    among = simultaneous_differences(truth, base, others, groups, 3, only)["good"]["macro_f1"]["difference"]
    assert alone == paired_difference(truth, np.eye(3)[base], np.eye(3)[others["good"]], groups)
    width = alone["high"] - alone["low"]
    assert among["value"] == alone["value"] and among["high"] - among["low"] > 1.2 * width


def test_all_metrics_are_one_family(told):
    truth, base, others, groups = told
    one = simultaneous_differences(truth, base, others, groups, 3, {"macro_f1": macro})["w0"]["macro_f1"]["difference"]
    four = simultaneous_differences(truth, base, others, groups, 3, METRICS)["w0"]["macro_f1"]["difference"]
    assert four["value"] == one["value"] and four["high"] > one["high"]


def test_the_same_prediction_differs_by_at_most_one_image(told):
    truth, base, _, groups = told
    found = simultaneous_differences(truth, base, {"same": base.copy()}, groups, 3, METRICS)
    wanted = {"value": 0, "low": -1.96 / 400, "high": 1.96 / 400}
    assert found["same"]["macro_f1"]["difference"] == pytest.approx(wanted, rel=0.02)


def test_classes_of_all_others_are_one_family(told):
    truth, base, others, groups = told
    of_one = class_differences(truth, base, {"good": others["good"]}, groups, 3)["good"]
    of_many = class_differences(truth, base, others, groups, 3)
    assert list(of_many) == list(others)
    wanted = f1_score(truth, base, average=None), f1_score(truth, others["good"], average=None)
    for c, (alone, among) in enumerate(zip(of_one, of_many["good"], strict=True)):
        assert (among["class"], among["support"]) == (c, (truth == c).sum())
        assert (among["base"], among["other"]) == pytest.approx((wanted[0][c], wanted[1][c]))
        assert among["difference"]["value"] == alone["difference"]["value"]
        assert among["difference"]["high"] > alone["difference"]["high"]


def uneven(seed: int, others: int):
    """Equally good predictions of 60 groups of lognormal sizes; images of a group are alike in difficulty."""
    draw = np.random.default_rng([seed, others])
    groups = np.repeat(np.arange(60), np.maximum(1, draw.lognormal(1.0, 1.2, 60).astype(int)))
    truth = draw.choice(4, len(groups), p=[0.5, 0.3, 0.15, 0.05])
    hard = 1.3 + draw.normal(0, 1, 60)[groups] + draw.normal(0, 1.5, len(groups))
    found = []
    for _ in range(others + 1):
        right = hard + draw.normal(0, 0.7, 60)[groups] + draw.logistic(0, 0.7, len(groups)) > 0
        found.append(np.where(right, truth, (truth + draw.integers(1, 4, len(groups))) % 4))
    return truth, found[0], {str(i): p for i, p in enumerate(found[1:])}, groups


def excludes(difference: dict[str, float]) -> bool:
    return difference["low"] > 0 or difference["high"] < 0


@pytest.mark.parametrize("others", [1, 5])
def test_family_wise_error_with_few_uneven_groups(others):
    """Of 200 sets of equals about ten may have a significant difference. (The bootstrap over groups: 9 and 13%.)"""
    wrong = of_classes = 0
    for seed in range(200):
        truth, base, more, groups = uneven(seed, others)
        found = simultaneous_differences(truth, base, more, groups, 4, {"a": macro}, resamples=300, seed=seed)
        wrong += any(excludes(found[name]["a"]["difference"]) for name in more)
        classes = class_differences(truth, base, more, groups, 4, resamples=300, seed=seed)
        of_classes += any(excludes(row["difference"]) for rows in classes.values() for row in rows)
    assert wrong <= 17 and of_classes <= 17  # of Binomial(200, 0.05) 98.6% are at most 17


def test_a_real_difference_is_detected():
    found = 0
    for seed in range(40):
        truth, base, more, groups = uneven(seed, 1)
        better = np.where(np.random.default_rng(seed).random(len(truth)) < 0.5, truth, base)
        d = simultaneous_differences(truth, base, {**more, "better": better}, groups, 4, {"a": macro}, resamples=300)
        found += d["better"]["a"]["difference"]["low"] > 0
    assert found >= 36


def test_groups_are_resampled_together(told):
    truth, base, others, _ = told
    wide = simultaneous_differences(truth, base, others, np.arange(400) // 40, 3, METRICS)
    narrow = simultaneous_differences(truth, base, others, np.arange(400), 3, METRICS)
    assert wide != narrow
