"""Draws of groups: whole groups, the same again for the same seed, and confusions that fit them."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.bootstrap import (
    bootstrap_group_sums,
    effective_groups,
    group_ids,
    group_weights,
    interval,
    soft_confusion,
    weighted_confusion,
)
from unfreeze.metrics.classification import confusion_matrix


def test_effective_groups_are_all_of_equal_ones_and_fewer_of_uneven_ones():
    assert effective_groups(np.repeat(np.arange(12), 5)) == pytest.approx(12)
    assert effective_groups(np.array(["a"] * 8 + ["b", "c"])) == pytest.approx(100 / 66)


def test_a_group_is_drawn_whole_and_the_same_seed_draws_the_same():
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    draws = list(group_weights(groups, 50, 3))
    assert all(w[0] == w[1] and w[3] == w[4] == w[5] and w[0] + w[2] + w[3] == 3 for w in draws)
    assert all((one == two).all() for one, two in zip(draws, group_weights(groups, 50, 3), strict=True))
    assert len({tuple(w) for w in draws}) > 3


def test_intervals_pass_over_what_is_no_number():
    found = interval(1.0, np.array([np.nan, 0.0, 2.0]))
    assert found == pytest.approx({"value": 1.0, "low": 0.05, "high": 1.95})
    assert interval(1.0, np.array([np.nan])) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_confusions_of_weights_and_of_certain_probabilities_are_the_plain_one():
    draws = np.random.default_rng(0)
    truth, called = draws.integers(0, 3, 40), draws.integers(0, 3, 40)
    plain = confusion_matrix(truth, called, 3)
    assert (weighted_confusion(truth, called, 3) == plain).all()
    assert (weighted_confusion(truth, called, 3, np.full(40, 2.0)) == 2 * plain).all()
    assert (soft_confusion(np.eye(3)[truth], called) == plain).all()
    half = soft_confusion(np.full((40, 3), 1 / 3), called, np.full(40, 3.0))
    assert half.sum(0) == pytest.approx(3 * np.bincount(called, minlength=3))


def test_sums_of_draws_are_those_of_the_weighted_rows():
    """Over a thousand rows in groups of all sizes, as summing row by row gives them."""
    draws = np.random.default_rng(0)
    groups = draws.integers(0, 90, 1000).astype(str)
    bins, values = draws.integers(0, 4, 1000), draws.normal(0, 1, 1000)
    sums = [(bins, None, 4), (np.zeros(1000, int), values, 1), (bins, values, 5)]
    counts, whole, parts = bootstrap_group_sums(group_ids(groups)[0], sums, 21, 7)
    assert (counts.shape, whole.shape, parts.shape) == ((21, 4), (21, 1), (21, 5))
    for i, weight in enumerate(group_weights(groups, 21, 7)):
        assert (counts[i] == np.bincount(bins, weight, 4)).all()
        assert whole[i] == pytest.approx(weight @ values)
        assert parts[i] == pytest.approx(np.bincount(bins, weight * values, 5))
