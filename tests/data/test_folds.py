"""Folds: no group in two of them, every class in each, alike in size, the same for a seed."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from unfreeze.core.errors import FoldError
from unfreeze.data.splits import stratified_group_kfold


def names(count: int) -> list[str]:
    return [f"class {c}" for c in range(count)]


@st.composite
def tables(draw):
    """Labels and groups that allow `folds`: groups of any size, pure or mixed."""
    folds = draw(st.integers(2, 5))
    classes = draw(st.integers(2, 5))
    pure = draw(st.booleans())
    rows = []
    group = 0
    for c in range(classes):
        for _ in range(draw(st.integers(folds, folds + 6))):
            rows += [(c, group)] * draw(st.sampled_from([1, 1, 2, 3, 7, 30]))
            if not pure:
                rows += [(draw(st.integers(0, classes - 1)), group) for _ in range(draw(st.integers(0, 3)))]
            group += 1
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(rows))
    labels, groups = np.array(rows)[order].T
    return labels, groups, folds, classes, pure, draw(st.integers(0, 9))


@settings(deadline=None, max_examples=150)
@given(tables())
def test_properties(table):
    labels, groups, folds, classes, pure, seed = table
    found, warnings = stratified_group_kfold(labels, groups, folds, seed, names(classes))
    # No group straddles folds.
    assert pd.DataFrame({"group": groups, "fold": found}).groupby("group")["fold"].nunique().max() == 1
    # A partition: each photo in one of the folds, and none of them empty.
    assert found.shape == labels.shape
    assert set(found.tolist()) == set(range(folds))
    # Every class in every fold, or a warning that names it.
    absent = {c for c in range(classes) for f in range(folds) if not (labels[found == f] == c).any()}
    if pure:
        assert not absent
    assert {w.message.split("'")[1] for w in warnings} == {f"class {c}" for c in absent}
    # The same again.
    assert np.array_equal(stratified_group_kfold(labels, groups, folds, seed, names(classes))[0], found)


def test_mixed_groups_mostly_allow_every_class():
    draw, absent = np.random.default_rng(0), 0
    for seed in range(60):
        labels = draw.choice(8, 300, p=draw.dirichlet(np.ones(8)) * 0.8 + 0.025)
        groups = draw.integers(0, 60, 300)
        possible = pd.Series(groups).groupby(labels).nunique().min()
        absent += len(stratified_group_kfold(labels, groups, int(min(5, possible)), seed, names(8))[1])
    assert absent <= 3


@pytest.mark.parametrize("seed", [35, 58, 61, 205, 226])
def test_what_dealing_leaves_empty_is_repaired(seed):
    """Few mixed groups, where dealing them one by one leaves a fold without a class though it need not."""
    draw = np.random.default_rng(seed)
    count, photos = int(draw.integers(6, 12)), int(draw.integers(15, 40))
    labels = draw.choice(4, photos, p=draw.dirichlet(np.ones(4)))
    assert stratified_group_kfold(labels, draw.integers(0, count, photos), 3, 0, names(4))[1] == []


def test_a_warning_where_the_groups_do_not_allow_it():
    """Two classes only ever together in two groups, of which one holds a third class's only other group."""
    labels = np.array([0, 1, 2, 0, 1, 2, 2, 2])
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 3])
    assert stratified_group_kfold(labels, groups, 2, 0, names(3))[1] == []
    # Class 0 in groups 0 and 1, class 1 in 0 and 2, class 2 in 1 and 2: two folds cannot hold all three twice.
    labels, groups = np.array([0, 1, 0, 2, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    _, warnings = stratified_group_kfold(labels, groups, 2, 0, names(3))
    assert [w.severity for w in warnings] == ["warning"]
    assert "is absent from fold" in warnings[0].message and warnings[0].fix


def test_seeds_differ():
    labels, groups = np.arange(600) % 3, np.arange(600) // 3
    one, two = (stratified_group_kfold(labels, groups, 5, seed, names(3))[0] for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_group_names_do_not_matter_for_what_is_held_together():
    groups = np.array(["a", 1, "1", "b", None, "c", "d", "e"], object)
    found, _ = stratified_group_kfold(np.array([0, 0, 0, 0, 1, 1, 1, 1]), groups, 2, 0, names(2))
    assert found[1] == found[2]


@pytest.mark.parametrize("folds", [4, 5])
def test_a_class_with_fewer_groups_than_folds_is_warned_of(folds):
    labels, groups = np.repeat([0, 1], [20, 6]), np.r_[np.arange(20), 20, 20, 21, 21, 22, 22]
    found, warnings = stratified_group_kfold(labels, groups, folds, 0, names(2))
    assert [w.check for w in warnings] == ["fold-without-class"]
    assert "class 'class 1' is absent from" in warnings[0].message and "3 groups, fewer than" in warnings[0].message
    assert len(set(found[20:].tolist())) == 3, "each of its groups in another fold"
    assert stratified_group_kfold(labels, groups, 3, 0, names(2))[1] == []


def test_more_folds_than_groups_of_any_class():
    labels, groups = np.repeat([0, 1], [20, 6]), np.r_[np.arange(20), 20, 20, 21, 21, 22, 22]
    with pytest.raises(
        FoldError, match=r"any class \(20 at most\); the largest number possible is 20: recipe\.replace"
    ):
        stratified_group_kfold(labels, groups, 21, 0, names(2))


def test_a_class_with_one_group():
    with pytest.raises(FoldError, match="class 1 has only one group"):
        stratified_group_kfold(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), 2, 0, names(2))


def test_classes_without_photos_do_not_matter():
    assert stratified_group_kfold(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 3]), 2, 0, names(4))[1] == []


def imbalance(labels, found, folds) -> float:
    """Mean over classes of the spread of their shares over folds."""
    counts = np.zeros((folds, labels.max() + 1))
    np.add.at(counts, (found, labels), 1)
    return float((counts / counts.sum(0)).std(0).mean())


TYPICAL = {
    "people in 7 photos, 18 classes": lambda draw: (
        np.repeat(draw.integers(0, 6, 300), 7) + 6 * np.tile([0, 0, 0, 0, 0, 1, 2], 300),
        np.repeat(np.arange(300), 7),
    ),
    "senders of one to many photos": lambda draw: (
        draw.choice(10, 900, p=draw.dirichlet(np.full(10, 3.0))),
        draw.choice(250, 900, p=draw.dirichlet(np.full(250, 0.6))),
    ),
    "one class a group": lambda draw: tuple(
        np.repeat(column, draw_sizes)
        for draw_sizes in [draw.integers(1, 9, 200)]
        for column in (np.repeat(range(6), [80, 40, 30, 20, 20, 10]), np.arange(200))
    ),
    "each photo its own group": lambda draw: (draw.choice(4, 500, p=[0.6, 0.2, 0.15, 0.05]), np.arange(500)),
}


@pytest.mark.parametrize("kind", TYPICAL)
def test_as_balanced_as_scikit_learn(kind):
    ours, theirs, sizes = [], [], []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        labels, groups = TYPICAL[kind](draw)
        found, _ = stratified_group_kfold(labels, groups, 5, seed, names(labels.max() + 1))
        other = np.zeros_like(found)
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for f, (_, rows) in enumerate(splitter.split(labels, labels, groups)):
            other[rows] = f
        ours.append(imbalance(labels, found, 5))
        theirs.append(imbalance(labels, other, 5))
        sizes.append(np.bincount(found).std() / np.bincount(found).mean())
    assert np.mean(ours) <= np.mean(theirs) * 1.05 + 1e-3
    assert np.mean(sizes) < 0.12


def test_the_baselines_traps():
    """Folds split people, not photos; a fifth of the people each, drawn without replacement; nothing grows."""
    people = 100
    labels = np.repeat(np.arange(people) % 6, 7) + 6 * np.tile([0, 0, 0, 0, 0, 1, 2], people)
    groups = np.repeat([f"{p:06d}" for p in range(people)], 7)
    before = labels.copy(), groups.copy()
    found, warnings = stratified_group_kfold(labels, groups, 5, 0, names(18))
    again, _ = stratified_group_kfold(labels, groups, 5, 0, names(18))
    assert np.array_equal(found, again)
    assert np.array_equal(before[0], labels) and np.array_equal(before[1], groups)
    fold_of = pd.Series(found).groupby(groups).agg(["min", "max"])
    assert (fold_of["min"] == fold_of["max"]).all()
    assert set(fold_of["min"].value_counts()) <= {19, 20, 21}
    assert warnings == []


def test_speed():
    draw = np.random.default_rng(0)
    labels, groups = draw.choice(20, 100_000, p=draw.dirichlet(np.full(20, 3.0))), draw.integers(0, 20_000, 100_000)
    started = time.perf_counter()
    found, _ = stratified_group_kfold(labels, groups, 5, 0, names(20))
    assert time.perf_counter() - started < 6
    assert np.ptp(np.bincount(found)) < 100


@pytest.mark.parametrize("spread", [0.0, 1.0, 1.5])
def test_another_seed_separates_other_large_groups(spread):
    """Pairs of the 20 largest groups meet in a fold about as often over seeds as chance has it (4 of 19)."""
    draw = np.random.default_rng(3)
    sizes = np.maximum(1, draw.lognormal(1.5, spread, 150)).astype(int)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = draw.integers(0, 4, len(groups))
    large = [int(np.flatnonzero(groups == g)[0]) for g in np.argsort(-sizes, kind="stable")[:20]]
    cut = [stratified_group_kfold(labels, groups, 5, seed, names(4))[0] for seed in range(8)]
    for folds in cut:
        assert np.bincount(folds).max() <= max(1.05 * len(folds) / 5, sizes.max())
    pairs = [np.equal.outer(folds[large], folds[large])[np.triu_indices(20, 1)] for folds in cut]
    together = np.mean([(a & b).sum() / a.sum() for i, a in enumerate(pairs) for b in pairs[:i]])
    assert together < 0.32


def test_an_error_names_joined_copies_as_its_cause():
    """Each class had ten groups; joining copies made one of each, or three."""
    labels, given = np.repeat([0, 1], 10), np.arange(20)
    with pytest.raises(
        FoldError,
        match=r"class .*0, .*1 has only one group.*: 20 of 20 images were joined with "
        r"others as copies\. If they are no copies: recipe\.replace\(.*folds\.group_duplicates.*False",
    ):
        stratified_group_kfold(labels, np.zeros(20, int), 5, 0, names(2), given)
    few = np.r_[np.arange(3), np.repeat(2, 7), np.arange(10, 13), np.repeat(12, 7)]
    with pytest.raises(
        FoldError,
        match=r"more than the groups of any class \(3 at most\): 16 of 20 images were joined .* Or use fewer "
        r"folds; the largest number possible is 3",
    ):
        stratified_group_kfold(labels, few, 5, 0, names(2), given)


def test_joined_copies_are_no_cause_where_groups_are_too_few_without_them():
    labels = np.r_[np.zeros(10, int), np.ones(4, int)]
    given, joined = np.r_[np.arange(10), 10, 10, 10, 10], np.r_[0, 0, np.arange(2, 10), 10, 10, 10, 10]
    with pytest.raises(FoldError, match=r"has only one group, so it .*; add photos of other groups"):
        stratified_group_kfold(labels, joined, 2, 0, names(2), given)
    with pytest.raises(FoldError, match=r"has only one group, so it .*; add photos"):
        stratified_group_kfold(labels, given, 2, 0, names(2), given)
