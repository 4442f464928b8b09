"""Group-safe stratified k-fold splits.

No group is in more than one fold, and every fold contains every class as far as the groups allow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import FoldError, join_names
from unfreeze.core.messages import setting

# Standard deviation of the noise on the log group size, by which groups are ordered. In five simulated sets, pairs of
# the 20 largest groups share a fold about as often as by chance (0.21 to 0.27 of the seeds, chance 0.19; 0.24 to 1.00
# without noise), and the largest fold stays within 1% of the mean.
_JITTER = 0.25
_ORDERS = 8


def stratified_group_kfold(
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    count: int,
    seed: int,
    classes: tuple[str, ...] | list[str],
    given: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int64], list[Finding]]:
    """Assign each image to a fold, with stratified classes and intact groups.

    Groups are assigned by iterative stratification (Sechidis et al. 2011), here over groups: those of the rarest class
    first, each to the fold that most lacks its images. Groups are then moved or swapped as long as this fills a fold
    that lacks a class. The result is deterministic for a seed.

    Args:
        labels: Class indices, int (n,).
        groups: Group of each image, (n,).
        count: Number of folds.
        seed: Random seed.
        classes: Class names, for messages.
        given: Groups before duplicates were joined, (n,), to identify the cause of an error; None if `groups` are
            original.

    Returns:
        Fold of each image, int64 (n,) in 0..count-1, and a warning for each class that is absent from a fold.

    Raises:
        FoldError: If a class has a single group, or every class has fewer groups than there are folds. A single class
            with fewer groups than folds only causes a warning, as in scikit-learn's `StratifiedGroupKFold`.

    References:
        Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011.
    """
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    table = np.zeros((int(member.max()) + 1, len(classes)), np.int32)
    np.add.at(table, (member, labels), 1)
    _refuse_impossible(table, count, classes, _joined_too_far(labels, groups, given, count))
    fold_of_group = _dealt(table, count, seed)
    return fold_of_group[member], _missing(table, fold_of_group, count, classes)


def assign_folds(
    labels: NDArray[np.integer], groups: NDArray[Any], count: int, seed: int, classes: int
) -> NDArray[np.int64]:
    """Assign folds like `stratified_group_kfold`, but without raising errors.

    A class with few groups is absent from some folds.

    Args:
        labels: Class indices, int (n,).
        groups: Group of each image, (n,).
        count: Number of folds.
        seed: Random seed.
        classes: Number of classes.

    Returns:
        Fold of each image, int64 (n,).
    """
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    table = np.zeros((int(member.max()) + 1, classes), np.int32)
    np.add.at(table, (member, labels), 1)
    return _dealt(table, count, seed)[member]


def _dealt(table: NDArray[np.int32], count: int, seed: int) -> NDArray[np.int64]:
    """Fold of each group: the first of several random orders without empty (fold, class) cells, or with the fewest."""
    draw, best, least = np.random.default_rng(seed), None, table.size
    for _ in range(_ORDERS):
        folds = _deal(table, count, draw)
        empty = _mend(table, folds, count)
        if best is None or empty < least:
            best, least = folds, empty
        if not empty:
            break
    assert best is not None
    return best


def _joined_too_far(labels: NDArray[np.integer], groups: NDArray[Any], given: NDArray[Any] | None, count: int) -> str:
    """Error text that blames joined duplicates; empty if there would be too few groups without joining as well."""
    if given is None:
        return ""
    table = pd.DataFrame({"label": labels, "group": np.asarray(groups).astype(str), "given": given.astype(str)})
    joined = int((table.groupby("group")["given"].transform("nunique") > 1).sum())
    if not joined or table.groupby("label")["given"].nunique().min() < count:
        return ""
    return (
        f"{joined:,} of {len(table):,} images were joined with others as copies. If they are no copies: "
        f"{setting('folds.group_duplicates', False)}."
    )


def _refuse_impossible(
    table: NDArray[np.integer], count: int, classes: tuple[str, ...] | list[str], joined: str
) -> None:
    group_counts = (table > 0).sum(0)
    seen = group_counts > 0
    lonely = [classes[c] for c in np.flatnonzero(group_counts == 1)]
    if lonely:
        raise FoldError(
            f"class {join_names(lonely)} has only one group, so it cannot be both learned and tested"
            + (f": {joined}" if joined else "; add photos of other groups or leave the class out.")
        )
    most = int(group_counts[seen].max())
    if count > most:
        raise FoldError(
            f"{count} folds are more than the groups of any class ({most} at most)"
            + (f": {joined} Or use fewer folds" if joined else "")
            + f"; the largest number possible is {most}: {setting('folds.n_splits', most, 'folds')}."
        )


def _deal(table: NDArray[np.int32], count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    groups = len(table)
    wanted = np.tile(table.sum(0) / count, (count, 1))  # number of images of each class that a fold still needs
    room = np.full(count, table.sum() / count)
    totals = np.maximum(table.sum(0), 1)
    frequency = (table > 0).sum(0)
    rarity = np.full(groups, np.inf)
    for c in np.argsort(-frequency, kind="stable"):  # class by class: a float groups x classes table can take gigabytes
        rarity[table[:, c] > 0] = frequency[c]
    # Rarest class first, then the largest groups, which are hardest to place. Groups of similar size are in random
    # order, so that different seeds separate different large groups.
    order = np.lexsort((-table.sum(1) * np.exp(draw.normal(0, _JITTER, groups)), rarity))
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


def _mend(table: NDArray[np.int32], folds: NDArray[np.int64], count: int) -> int:
    """Move or swap groups in place while this reduces the number of empty (fold, class) cells.

    Returns:
        The number of remaining empty cells, among classes with at least as many groups as folds.
    """
    has = table > 0
    cover = np.stack([has[folds == f].sum(0) for f in range(count)])
    for _ in range(count * table.shape[1]):
        fold, lacking = (cell[0] if len(cell) else -1 for cell in np.nonzero((cover == 0) & (has.sum(0) >= count)))
        empty = int(((cover == 0) & (has.sum(0) >= count)).sum())
        if not empty or not _mend_one(has, folds, cover, int(fold), int(lacking), count, empty):
            return empty
    return int(((cover == 0) & (has.sum(0) >= count)).sum())


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
        takers = [-1, *np.flatnonzero(folds == fold)[:200]]  # -1: move without a swap
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
        groups = int((table[:, c] > 0).sum())
        if without:
            findings.append(
                Finding(
                    "fold-without-class",
                    "warning",
                    f"class '{classes[c]}' is absent from fold {join_names(without)}: it has images of {groups} "
                    f"{'group' if groups == 1 else 'groups'}" + (", fewer than the folds" if groups < count else ""),
                    "add groups of this class, or use fewer folds",
                )
            )
    return findings
