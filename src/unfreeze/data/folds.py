"""Group-safe, stratified folds: no group in two folds, every class in each fold where the groups allow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import FoldError, listed
from unfreeze.core.tables import Finding


def make_folds(
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    count: int,
    seed: int,
    classes: tuple[str, ...] | list[str],
) -> tuple[NDArray[np.int64], list[Finding]]:
    """Fold of each photo, int64 (n,) in 0..count-1, and a warning for each class that some fold lacks.

    labels: int (n,), class indices. groups: (n,). Groups are dealt rarest class first, each to the fold that
    most lacks what it brings (iterative stratification, Sechidis et al. 2011, here over groups); then
    groups are moved or swapped while that fills a fold that lacks a class. Deterministic for a seed.
    Raises FoldError if a class has fewer groups than two, or the folds outnumber the groups of a class.
    """
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    table = np.zeros((int(member.max()) + 1, len(classes)), np.int32)
    np.add.at(table, (member, labels), 1)
    _refuse_impossible(table, count, classes)
    fold_of_group = _dealt(table, count, seed)
    return fold_of_group[member], _missing(table, fold_of_group, count, classes)


def deal(labels: NDArray[np.integer], groups: NDArray[Any], count: int, seed: int, classes: int) -> NDArray[np.int64]:
    """The same without a refusal: a class of few groups is then absent from some folds; int64 (n,)."""
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    table = np.zeros((int(member.max()) + 1, classes), np.int32)
    np.add.at(table, (member, labels), 1)
    return _dealt(table, count, seed)[member]


def _dealt(table: NDArray[np.int32], count: int, seed: int) -> NDArray[np.int64]:
    fold_of_group = _deal(table, count, np.random.default_rng(seed))
    _mend(table, fold_of_group, count)
    return fold_of_group


def _refuse_impossible(table: NDArray[np.integer], count: int, classes: tuple[str, ...] | list[str]) -> None:
    group_counts = (table > 0).sum(0)
    seen = group_counts > 0
    lonely = [classes[c] for c in np.flatnonzero(group_counts == 1)]
    if lonely:
        raise FoldError(
            f"class {listed(lonely)} has only one group, so it cannot be both learned and tested; "
            "add photos of other groups or leave the class out."
        )
    least = int(group_counts[seen].min())
    if count > least:
        scarce = listed(
            f"'{classes[c]}' ({int(group_counts[c])})" for c in np.flatnonzero(seen & (group_counts < count))
        )
        raise FoldError(
            f"{count} folds are more than the groups of class {scarce}; "
            f"the largest number possible is {least}: --folds {least}."
        )


def _deal(table: NDArray[np.int32], count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    groups = len(table)
    wanted = np.tile(table.sum(0) / count, (count, 1))  # photos of each class that a fold still lacks
    room = np.full(count, table.sum() / count)
    totals = np.maximum(table.sum(0), 1)
    frequency = (table > 0).sum(0)
    rarity = np.full(groups, np.inf)
    for c in np.argsort(-frequency, kind="stable"):  # class by class: a table of groups and classes may take gigabytes
        rarity[table[:, c] > 0] = frequency[c]
    # Rarest class first, then the largest groups (they are hardest to place); ties by the seed.
    order = np.lexsort((draw.permutation(groups), -table.sum(1), rarity))
    folds = np.empty(groups, np.int64)
    for g in order:
        brings = table[g] / totals
        scores = wanted @ brings + 1e-6 * room / max(room.max(), 1)
        best = np.flatnonzero(scores >= scores.max() - 1e-12)
        fold = best[draw.integers(len(best))] if len(best) > 1 else best[0]
        folds[g] = fold
        wanted[fold] -= table[g]
        room[fold] -= table[g].sum()
    return folds


def _mend(table: NDArray[np.int32], folds: NDArray[np.int64], count: int) -> None:
    """Moves or swaps groups in place as long as each step leaves fewer (fold, class) cells empty."""
    has = table > 0
    cover = np.stack([has[folds == f].sum(0) for f in range(count)])
    for _ in range(count * table.shape[1]):
        fold, lacking = (cell[0] if len(cell) else -1 for cell in np.nonzero((cover == 0) & (has.sum(0) >= count)))
        empty = int(((cover == 0) & (has.sum(0) >= count)).sum())
        if not empty or not _mend_one(has, folds, cover, int(fold), int(lacking), count, empty):
            return


def _mend_one(
    has: NDArray[np.bool_],
    folds: NDArray[np.int64],
    cover: NDArray[np.int64],
    fold: int,
    lacking: int,
    count: int,
    empty: int,
) -> bool:
    allowed = has.sum(0) >= count
    givers = np.flatnonzero(has[:, lacking] & (folds != fold))
    for g in givers[np.argsort(has[givers].sum(1), kind="stable")][:200]:
        home = folds[g]
        takers = [-1, *np.flatnonzero(folds == fold)[:200]]  # -1: a plain move, nothing comes back
        for back in takers:
            changed = cover.copy()
            changed[home] -= has[g]
            changed[fold] += has[g]
            if back >= 0:
                changed[fold] -= has[back]
                changed[home] += has[back]
            if int(((changed == 0) & allowed).sum()) < empty:
                folds[g] = fold
                if back >= 0:
                    folds[back] = home
                cover[:] = changed
                return True
    return False


def _missing(
    table: NDArray[np.int32], folds: NDArray[np.int64], count: int, classes: tuple[str, ...] | list[str]
) -> list[Finding]:
    findings = []
    for c in np.flatnonzero(table.sum(0) > 0):
        without = [f for f in range(count) if not table[folds == f, c].any()]
        if without:
            findings.append(
                Finding(
                    "fold-without-class",
                    "warning",
                    f"class '{classes[c]}' is absent from fold {listed(without)}: its groups do not allow better",
                    "use fewer folds, or add groups of this class",
                )
            )
    return findings
