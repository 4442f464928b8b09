"""Differences to one prediction, with intervals that hold for all of the others at once."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from unfreeze.judge.many import accuracy, macro, many_differences, recall_of
from unfreeze.judge.paired import paired_difference

METRICS = {"macro_f1": macro, "accuracy": accuracy, "small": recall_of([2]), "two": recall_of([1, 2])}


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
    found = many_differences(truth, base, others, groups, 3, METRICS)
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


def test_with_one_other_it_is_about_the_usual_interval_and_with_many_a_wider_one(told):
    truth, base, others, groups = told
    one = {"good": others["good"]}
    alone = many_differences(truth, base, one, groups, 3, METRICS)["good"]["macro_f1"]["difference"]
    among = many_differences(truth, base, others, groups, 3, METRICS)["good"]["macro_f1"]["difference"]
    usual = paired_difference(truth, np.eye(3)[base], np.eye(3)[others["good"]], groups)
    width = usual["high"] - usual["low"]
    assert alone["high"] - alone["low"] == pytest.approx(width, rel=0.1)
    assert among["value"] == alone["value"] and among["high"] - among["low"] > 1.2 * width


def test_the_same_prediction_differs_by_nothing(told):
    truth, base, _, groups = told
    found = many_differences(truth, base, {"same": base.copy()}, groups, 3, METRICS)
    assert found["same"]["macro_f1"]["difference"] == {"value": 0, "low": 0, "high": 0}


def test_of_equals_none_is_told_better_more_often_than_the_level_says():
    """Sixty draws of eight predictions that are all as good as the base: at 95 % about three draws may tell one."""
    wrong = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        truth = draw.choice(3, 150)
        others = {str(i): noisy(truth, 0.5, draw) for i in range(8)}
        found = many_differences(
            truth, noisy(truth, 0.5, draw), others, np.arange(150), 3, {"a": accuracy}, resamples=200, seed=seed
        )
        wrong += any(not d["a"]["difference"]["low"] <= 0 <= d["a"]["difference"]["high"] for d in found.values())
    assert wrong <= 8


def test_groups_are_resampled_together(told):
    truth, base, others, _ = told
    wide = many_differences(truth, base, others, np.arange(400) // 40, 3, METRICS)
    narrow = many_differences(truth, base, others, np.arange(400), 3, METRICS)
    assert wide != narrow
