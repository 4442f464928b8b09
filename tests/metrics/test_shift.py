"""Two sets of one kind are not told apart, two kinds are, and a group is never on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.metrics.two_sample_test import _Ranked, classifier_two_sample_test, roc_auc


def draw(n, seed, shift=0.0, width=40):
    x = np.random.default_rng(seed).normal(0, 1, (n, width))
    x[:, 0] += shift
    return x


def test_one_kind_lies_within_its_interval():
    inside = 0
    for seed in range(20):
        r = classifier_two_sample_test(draw(120, seed), draw(100, 1000 + seed), seed=seed, resamples=200)
        assert 0.3 < r.auc < 0.7
        inside += r.low <= 0.5 <= r.high
    assert inside >= 17  # 95% of 20, less what chance takes


def test_sets_of_one_kind_raise_few_alarms_and_the_interval_is_as_wide_as_the_auc_varies():
    """Known groups of seven; a bootstrap alone has two thirds of the deviation and an alarm in every tenth set."""
    draws, aucs, halves, alarms = np.random.default_rng(0), [], [], 0
    for seed in range(40):
        people = draws.normal(0, 1, (45, 30))
        x = np.repeat(people, 7, 0) * 0.84 + draws.normal(0, 0.55, (315, 30))
        group = np.repeat(np.arange(45), 7)
        r = classifier_two_sample_test(
            x[:210], x[210:], group[:210], group[210:], seed=seed, resamples=100, permutations=99
        )
        aucs.append(r.auc)
        halves.append((r.high - r.low) / 2)
        alarms += r.apart
    assert alarms <= 4  # 1 is expected; 5 or more have a probability of 0.3%
    assert 0.75 < np.mean(halves) / (1.96 * np.std(aucs)) < 1.6
    assert sum(abs(a - 0.5) <= h for a, h in zip(aucs, halves, strict=True)) >= 34


def test_permutations_keep_groups_whole_and_those_of_both_sets_where_they_are():
    x = draw(60, 0)
    both = np.arange(60) // 2 % 15  # each group is in both sets: nothing can be permuted
    r = classifier_two_sample_test(x[:30], x[30:], both[:30], both[30:], resamples=20, permutations=19)
    assert r.p_value == 1.0 and not r.apart
    none = classifier_two_sample_test(x[:30], x[30:], resamples=20, permutations=0)
    assert none.p_value == 1.0 and none.low < none.auc < none.high


def test_two_kinds():
    r = classifier_two_sample_test(draw(150, 0), draw(150, 1, shift=2.0))
    assert r.apart and r.p_value == 1 / 200 and r.low > 0.8 and r.low < r.auc < r.high <= 1
    assert r.first.shape == (150,) and r.second.mean() > 0.6 > 0.4 > r.first.mean()


def test_more_columns_than_rows():
    r = classifier_two_sample_test(draw(60, 0, width=900), draw(60, 1, shift=30.0, width=900), resamples=50)
    assert np.isfinite(r.auc) and r.groups == 120


def test_the_same_seed_gives_the_same():
    a, b = draw(60, 0), draw(60, 1, shift=0.7)
    one, two = (
        classifier_two_sample_test(a, b, seed=3, resamples=50),
        classifier_two_sample_test(a, b, seed=3, resamples=50),
    )
    assert (one.auc, one.low, one.high) == (two.auc, two.low, two.high)
    assert np.array_equal(one.first, two.first) and np.array_equal(one.second, two.second)
    assert classifier_two_sample_test(a, b, seed=4, resamples=50).auc != one.auc


def test_knowing_groups_keeps_a_classifier_from_recognising_them():
    """Five photos of each of 40 people, all of one kind: with the groups known it is guessing, without it is not."""
    draws = np.random.default_rng(0)
    people = draws.normal(0, 3, (40, 30))
    x = np.repeat(people, 5, 0) + draws.normal(0, 0.3, (200, 30))
    group = np.repeat(np.arange(40), 5)
    known = classifier_two_sample_test(x[:100], x[100:], group[:100], group[100:], resamples=200)
    hidden = classifier_two_sample_test(x[:100], x[100:], resamples=200)
    assert known.low < 0.5 < known.high
    assert hidden.auc > known.auc + 0.2
    assert known.groups == 40


def test_order_of_rows_does_not_matter_to_the_auc():
    scores = np.array([0.1, 0.9, 0.4, 0.4, 0.7, 0.2])
    second = np.array([False, True, False, True, True, False])
    fold = np.zeros(6, np.int64)
    wins = [(b > a) + 0.5 * (b == a) for a in scores[~second] for b in scores[second]]
    assert _Ranked(scores, second, fold).auc(np.ones(6)) == pytest.approx(np.mean(wins))
    weight = np.array([1.0, 2, 0, 1, 3, 1])
    both = [
        (wa * wb, wa * wb * ((b > a) + 0.5 * (b == a)))
        for a, wa in zip(scores[~second], weight[~second], strict=True)
        for b, wb in zip(scores[second], weight[second], strict=True)
    ]
    assert _Ranked(scores, second, fold).auc(weight) == pytest.approx(sum(w for _, w in both) / sum(w for w, _ in both))


def test_columns_that_do_not_vary():
    r = classifier_two_sample_test(np.ones((30, 4)), np.ones((30, 4)), resamples=20)
    assert r.auc == 0.5 and not r.apart


def test_too_few():
    with pytest.raises(ValueError, match="9 groups in a set; at least 10"):
        classifier_two_sample_test(draw(9, 0), draw(30, 1))
    with pytest.raises(ValueError, match="3 groups"):
        classifier_two_sample_test(draw(30, 0), draw(30, 1), np.arange(30) % 3)


@given(
    one=st.lists(st.integers(0, 5), min_size=1, max_size=20), other=st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
def test_the_chance_of_being_larger_counts_ties_half(one, other):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in one for b in other]
    assert roc_auc(np.array(one), np.array(other)) == pytest.approx(np.mean(pairs))
