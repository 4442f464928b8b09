"""Group-safe splits inside training data for a race, and smaller training parts of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import FoldError
from unfreeze.data.folds import deal

Rows = NDArray[np.int64]


def inner_parts(labels: Rows, units: Rows, rows: Rows, parts: int, seed: int) -> Rows:
    """A part 0..parts-1 for the photos of `rows`, -1 for all others; int64 (n,). No group is in two parts.

    labels, units: int64 (n,). Part 0 is what is judged: the one in which most classes are both judged and learnt from
    the other parts, and of those the one nearest to its share of the photos. Photos of a class that could not be learnt
    from are not judged. FoldError if the groups are fewer than the parts, or no two classes can be told apart.
    """
    groups = len(np.unique(units[rows]))
    if groups < parts:
        raise FoldError(f"{groups} groups are too few to race strategies on; name one with --strategy.")
    classes = int(labels.max()) + 1
    dealt = deal(labels[rows], units[rows], parts, seed, classes)
    counts = np.zeros((parts, classes))
    np.add.at(counts, (dealt, labels[rows]), 1)
    both = ((counts > 0) & (counts.sum(0) - counts > 0)).sum(1)
    if both.max() < 2:
        raise FoldError("the classes have too few groups to race strategies on; name one with --strategy.")
    off = np.abs(counts.sum(1) - len(rows) / parts)
    judged = min(range(parts), key=lambda part: (-both[part], off[part]))
    found = np.full(len(labels), -1, np.int64)
    found[rows] = np.where(dealt == judged, 0, np.where(dealt == 0, judged, dealt))
    # A class that cannot be learnt from tells nothing about who learns better.
    unknown = np.setdiff1d(labels[found == 0], labels[found > 0])
    found[(found == 0) & np.isin(labels, unknown)] = -1
    return found


def smaller(labels: Rows, units: Rows, folds: Rows, photos: int, seed: int) -> Rows:
    """The folds with about `photos` photos learnt from (numbers above 0), whole groups, classes in their shares.

    What is judged (0) stays. Every class keeps a group on either side of the inner choice, where it had one.
    """
    train = np.flatnonzero(folds > 0)
    if photos >= len(train):
        return folds
    counts = np.zeros((int(folds.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (folds[train], labels[train]), 1)
    wanted = np.ceil(counts * photos / len(train))  # one at least where there is any
    members = {g: train[units[train] == g] for g in np.unique(units[train])}
    order = np.random.default_rng(seed).permutation(list(members))
    have = np.zeros_like(wanted)
    out = folds.copy()
    out[train] = -1
    for group in order:
        part = folds[members[group][0]]
        brought = np.bincount(labels[members[group]], minlength=wanted.shape[1])
        if ((have[part] < wanted[part]) & (brought > 0)).any():
            have[part] += brought
            out[members[group]] = folds[members[group]]
    if len(np.unique(out[out > 0])) < 2:  # all of one part: the inner choice halves the groups itself
        out[out > 0] = 1
    return out
