"""A group's photos agree on what they share, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.metrics.ensembling import SHARPNESS, apply_group_vote, choose_exponent, nested_votes

# Four classes: two kinds of mask, two ages; age is shared. mask-age: 0-0, 0-1, 1-0, 1-1.
AGE = np.array([0, 1, 0, 1])


def people(groups=80, photos=7, seed=0):
    """Truth, probabilities and groups: each photo tells its mask well and the person's age badly."""
    draw = np.random.default_rng(seed)
    age = np.repeat(draw.integers(0, 2, groups), photos)
    mask = np.tile(np.arange(photos) % 2, groups)
    logit = np.where(age == 1, 0.7, -0.7) + draw.normal(0, 1.2, len(age))
    older = 1 / (1 + np.exp(-logit))
    worn = np.where(mask == 1, 0.9, 0.1)
    proba = np.stack([(1 - worn) * (1 - older), (1 - worn) * older, worn * (1 - older), worn * older], 1)
    return 2 * mask + age, proba, np.repeat(np.arange(groups), photos)


def test_a_vote_corrects_what_is_shared():
    truth, proba, groups = people()
    agreed = apply_group_vote(proba, AGE, groups, 2.0)
    before, after = (np.mean(p.argmax(1) == truth) for p in (proba, agreed))
    assert after > before + 0.1
    for group in range(80):
        told = AGE[agreed[groups == group].argmax(1)]
        assert len(np.unique(told)) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SHARPNESS))
def test_what_is_not_shared_stays_each_photos_own(seed, sharpness):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 30))
    proba, groups = draw.dirichlet(np.ones(4), n), draw.integers(0, 5, n)
    agreed = apply_group_vote(proba, AGE, groups, sharpness)
    assert np.allclose(agreed.sum(1), 1)
    assert (agreed >= 0).all()
    for value in (0, 1):  # odds between classes of one age are untouched
        a, b = np.flatnonzero(value == AGE)
        assert np.allclose(agreed[:, a] * proba[:, b], agreed[:, b] * proba[:, a])
    shares = np.stack([agreed[:, value == AGE].sum(1) for value in (0, 1)], 1)
    for group in np.unique(groups):
        assert np.ptp(shares[groups == group], axis=0).max() < 1e-9


def test_a_photo_alone_and_the_order_of_photos():
    _truth, proba, groups = people(20)
    alone = apply_group_vote(proba, AGE, np.arange(len(proba)), 5.0)
    assert np.allclose(alone, proba)
    mixed = np.random.default_rng(3).permutation(len(proba))
    assert np.allclose(apply_group_vote(proba, AGE, groups)[mixed], apply_group_vote(proba[mixed], AGE, groups[mixed]))


def test_a_sure_mistake_is_no_end_of_the_world():
    proba = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    agreed = apply_group_vote(proba, AGE, np.zeros(2), 5.0)
    assert np.isfinite(agreed).all()


def test_independent_photos_may_be_sharper_than_copies():
    truth, proba, groups = people(200)
    one = truth[::7], proba[::7]
    copies = [np.repeat(part, 7, axis=0) for part in one]  # seven times the same photo is one opinion
    assert choose_exponent(copies[0], copies[1], AGE, groups) == 1.0
    assert choose_exponent(truth, proba, AGE, groups) > 2


def test_nested_votes_are_chosen_elsewhere():
    truth, proba, groups = people()
    folds = groups % 4
    first = nested_votes(truth, proba, AGE, groups, folds)
    changed = np.where(folds == 1, 3 - truth, truth)
    again = nested_votes(changed, proba, AGE, groups, folds)
    assert np.array_equal(first[folds == 1], again[folds == 1])
    assert np.mean(first.argmax(1) == truth) == pytest.approx(
        np.mean(apply_group_vote(proba, AGE, groups, 2).argmax(1) == truth), abs=0.03
    )
