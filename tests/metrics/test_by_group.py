"""Scores of each group, the worst first."""

from __future__ import annotations

import numpy as np

from unfreeze.metrics.label_columns import group_scores


def test_worst_first_with_the_commonest_mistake():
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    told = np.array([0, 1, 1, 1, 1, 0, 1, 0])
    proba = np.full((8, 2), 0.2)
    proba[np.arange(8), told] = 0.8
    groups = np.array(["a", "a", "a", "b", "b", "c", "d", "d"])
    table = group_scores(truth, proba, groups, ("cat", "dog"))
    assert table["group"].tolist() == ["c", "a", "b", "d"]
    assert table["photos"].tolist() == [1, 3, 2, 2]
    assert table["right"].tolist() == [0, 1, 2, 2]
    assert table["mistake"].tolist() == ["cat for dog: 1", "dog for cat: 2", "", ""]
    assert np.allclose(table["log_loss"], [-np.log(0.2), -(np.log(0.8) + 2 * np.log(0.2)) / 3, *[-np.log(0.8)] * 2])
