"""Splits for a race: groups stay together, classes stay on both sides, sizes are about as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unfreeze.analysis.splits import inner_split, subsample_training
from unfreeze.core.errors import FoldError

PARTS = 3


@st.composite
def tables(draw, least=1, most=9, mixed=True):
    """Labels, groups and the rows that take part: classes of a few groups of one to five photos, some groups of two
    classes, in any order; other rows take no part.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.lists(st.integers(least, most), min_size=2, max_size=5))
    labels, units = [], []
    for label, count in enumerate(counts):
        for _ in range(count):
            unit = len(set(units)) if not (mixed and units and rng.random() < 0.15) else int(rng.choice(units))
            size = int(rng.integers(1, 6))
            labels += [label] * size
            units += [unit] * size
    order = rng.permutation(len(labels))
    labels, units = np.array(labels)[order], np.array(units)[order]
    aside = rng.random(int(units.max()) + 1) < draw(st.sampled_from([0.0, 0.2]))
    return labels, units, np.flatnonzero(~aside[units])


def parted(table, seed=0):
    """The parts; a table that has too few groups for any is passed over."""
    try:
        return inner_split(*table, PARTS, seed)
    except FoldError:
        assume(False)


def groups_of(labels, units, rows, label):
    return np.unique(units[rows][labels[rows] == label])


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(0, 50))
def test_groups_stay_together_and_what_is_left_out_cannot_be_learnt(table, seed):
    labels, units, rows = table
    parts = parted(table, seed)
    assert parts.dtype == np.int64 and parts.shape == labels.shape
    outside = np.setdiff1d(np.arange(len(labels)), rows)
    assert (parts[outside] == -1).all()
    assert set(parts[rows].tolist()) - {-1} == set(range(PARTS))
    out = rows[parts[rows] == -1]
    assert not np.isin(labels[out], labels[parts > 0]).any()
    inside = rows[parts[rows] >= 0]
    for unit in np.unique(units[inside]):
        assert len(set(parts[inside][units[inside] == unit].tolist())) == 1
    assert (inner_split(*table, PARTS, seed) == parts).all()


@settings(max_examples=150, deadline=None)
@given(tables(least=4, mixed=False))
def test_classes_with_groups_enough_are_in_every_part(table):
    """Where all classes have three groups, each is judged and learnt from in both of the other parts."""
    labels, units, rows = table
    assume(all(len(groups_of(labels, units, rows, c)) >= PARTS for c in np.unique(labels[rows])))
    parts = parted(table)
    for label in np.unique(labels[rows]):
        assert set(parts[rows][labels[rows] == label].tolist()) == set(range(PARTS))


@settings(max_examples=150, deadline=None)
@given(tables())
def test_what_is_judged_can_be_learnt_from_and_two_classes_are(table):
    labels, _, rows = table
    parts = parted(table)
    judged = rows[parts[rows] == 0]
    for label in np.unique(labels[judged]):
        assert (labels[rows[parts[rows] > 0]] == label).any()
    assert len(np.unique(labels[judged])) >= 2


@settings(max_examples=60, deadline=None)
@given(tables())
def test_too_few_groups_are_refused_and_nothing_else_goes_wrong(table):
    labels, units, rows = table
    try:
        inner_split(*table, PARTS, 0)
    except FoldError as error:
        assert "strategy=" in str(error) and "\n" not in str(error)
    rich = [c for c in np.unique(labels[rows]) if len(groups_of(labels, units, rows, c)) >= PARTS]
    if len(rich) == len(np.unique(labels[rows])) and len(rich) > 1:
        inner_split(*table, PARTS, 0)  # does not raise


def test_one_group_a_class_is_refused():
    labels = np.repeat([0, 1], 4)
    with pytest.raises(FoldError, match="too few to race strategies on"):
        inner_split(labels, labels, np.arange(8), PARTS, 0)


def test_parts_are_about_equal():
    labels, units = np.repeat([0, 1, 2], 60), np.repeat(np.arange(60), 3)
    parts = inner_split(labels, units, np.arange(180), PARTS, 0)
    assert np.bincount(parts).tolist() == [60, 60, 60]
    assert (np.bincount(labels[parts == 0]) >= 18).all()


def test_another_seed_is_another_split():
    labels, units = np.repeat([0, 1, 2], 60), np.repeat(np.arange(60), 3)
    first, other = (inner_split(labels, units, np.arange(180), PARTS, seed) for seed in (0, 1))
    assert (first != other).any()


@settings(max_examples=200, deadline=None)
@given(tables(), st.integers(2, 60), st.integers(0, 50))
def test_a_smaller_part_has_whole_groups_and_both_sides_of_each_class(table, photos, seed):
    labels, units, _ = table
    folds = parted(table)
    found = subsample_training(labels, units, folds, photos, seed)
    assert ((found == folds) | (found == -1)).all()
    assert (found[folds <= 0] == folds[folds <= 0]).all()
    learnt = np.flatnonzero(folds > 0)
    for unit in np.unique(units[learnt]):
        mine = learnt[units[learnt] == unit]
        assert len(set((found[mine] > 0).tolist())) == 1
    for label in np.unique(labels[learnt]):
        for part in (1, 2):  # the penalty is chosen between these two: neither may lose a class that it had
            had, has = (((one == part) & (labels == label)).any() for one in (folds, found))
            assert has == had
    assert (subsample_training(labels, units, folds, photos, seed) == found).all()


@settings(max_examples=100, deadline=None)
@given(tables(mixed=False), st.integers(2, 60))
def test_a_smaller_part_is_about_as_large_as_asked(table, photos):
    labels, units, _ = table
    folds = parted(table)
    found = subsample_training(labels, units, folds, photos, 0)
    all_of_it, kept = int((folds > 0).sum()), int((found > 0).sum())
    if photos >= all_of_it:
        assert kept == all_of_it
        return
    largest, classes = np.bincount(units[folds > 0]).max(), len(np.unique(labels[folds > 0]))
    assert min(photos, all_of_it) <= kept <= photos + 2 * classes * (largest + 1)


def test_shares_of_classes_stay():
    """A class of three quarters of the photos has three quarters of the smaller part."""
    labels = np.repeat([0, 1], [300, 100])
    units = np.arange(400) // 2
    folds = inner_split(labels, units, np.arange(400), PARTS, 0)
    found = subsample_training(labels, units, folds, 80, 0)
    counts = np.bincount(labels[found > 0])
    assert 80 <= counts.sum() <= 88 and abs(counts[0] / counts.sum() - 0.75) < 0.03
