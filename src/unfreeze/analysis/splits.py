"""Group-safe splits nested in the training data, for strategy races and hyperparameter search.

`inner_split` and `subsample_training` serve the race of strategies. `search_splits` provides the splits of a nested
search: all images for the final answer, and each half of the outer folds for the unbiased estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfreeze.core.arrays import Rows
from unfreeze.core.errors import FoldError
from unfreeze.core.messages import wording
from unfreeze.data.splits import assign_folds
from unfreeze.training.context import FitContext


def inner_split(labels: Rows, units: Rows, rows: Rows, parts: int, seed: int) -> Rows:
    """Split rows into parts without splitting groups. Part 0 is for evaluation.

    Part 0 is the one in which most classes can be both evaluated and learned from the other parts; among equals, the
    one closest to its share of the images. Images in part 0 of a class that the other parts lack are excluded.

    Args:
        labels: int64 (n,), class indices.
        units: int64 (n,), groups.
        rows: int64 (m,), rows to split.
        parts: Number of parts.
        seed: Seed of the split.

    Returns:
        int64 (n,), part 0..parts-1 for the given rows and -1 for all others.

    Raises:
        FoldError: If there are fewer groups than parts, or fewer than two classes can be evaluated.
    """
    groups = len(np.unique(units[rows]))
    if groups < parts:
        raise FoldError(
            f"{groups} groups are too few to race strategies on; name one with {wording('--strategy', 'strategy=')}."
        )
    classes = int(labels.max()) + 1
    dealt = assign_folds(labels[rows], units[rows], parts, seed, classes)
    counts = np.zeros((parts, classes))
    np.add.at(counts, (dealt, labels[rows]), 1)
    both = ((counts > 0) & (counts.sum(0) - counts > 0)).sum(1)
    if both.max() < 2:
        raise FoldError(
            "the classes have too few groups to race strategies on; name one with "
            f"{wording('--strategy', 'strategy=')}."
        )
    off = np.abs(counts.sum(1) - len(rows) / parts)
    judged = min(range(parts), key=lambda part: (-both[part], off[part]))
    found = np.full(len(labels), -1, np.int64)
    found[rows] = np.where(dealt == judged, 0, np.where(dealt == 0, judged, dealt))
    # A class without training images cannot rank the candidates.
    unknown = np.setdiff1d(labels[found == 0], labels[found > 0])
    found[(found == 0) & np.isin(labels, unknown)] = -1
    return found


def subsample_training(labels: Rows, units: Rows, folds: Rows, photos: int, seed: int) -> Rows:
    """Reduce the training rows of a split to about `photos` images, by whole groups and stratified by class.

    Args:
        labels: int64 (n,), class indices.
        units: int64 (n,), groups.
        folds: int64 (n,), 0 for evaluation, 1 and above for training, -1 for ignored rows.
        photos: Number of training images to keep.
        seed: Seed of the sample.

    Returns:
        int64 (n,), folds with the dropped training rows set to -1. Each class keeps a group in every training part that
        contained it, and evaluation rows are unchanged.
    """
    train = np.flatnonzero(folds > 0)
    if photos >= len(train):
        return folds
    counts = np.zeros((int(folds.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (folds[train], labels[train]), 1)
    wanted = np.ceil(counts * photos / len(train))  # at least one where there is any
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
    if len(np.unique(out[out > 0])) < 2:  # a single part left: the inner model selection then splits the groups itself
        out[out > 0] = 1
    return out


@dataclass(frozen=True)
class SearchSplit:
    """Images visible to a search, split into group-safe parts.

    Attributes:
        name: Name of the split.
        parts: int64 (n,), part of each image; -1 for images hidden from the search.
        chosen_for: Outer folds that the search selects a recipe for, none of whose images are visible; empty for the
            search on all images.
    """

    name: str
    parts: Rows
    chosen_for: tuple[int, ...] = ()

    @property
    def photos(self) -> int:
        """Number of visible images."""
        return int((self.parts >= 0).sum())

    def judging(self, part: int, labels: Rows) -> Rows:
        """Folds for evaluation on one part.

        Returns:
            int64 (n,), 0 for the images of that part, 1 and above for training images, -1 for all others, including
            images of the part whose class the training images lack.
        """
        folds = np.where(self.parts == part, 0, np.where(self.parts < 0, -1, self.parts + 1))
        learnt = np.unique(labels[folds > 0])
        folds[(folds == 0) & ~np.isin(labels, learnt)] = -1  # their class cannot be learned
        return folds


def search_splits(work: FitContext, parts: int) -> tuple[SearchSplit, ...]:
    """Splits of a nested search: all images, and each half of the outer folds, which selects for the other half.

    Raises:
        FoldError: If a half has fewer groups than parts, or fewer than two classes that can be learned and evaluated.
    """
    seed, folds = work.recipe.seed, work.todo
    first, second = folds[: len(folds) // 2], folds[len(folds) // 2 :]
    return (
        _side(work, "all", np.flatnonzero(work.folds >= 0), (), parts, seed),
        _side(work, "first", np.flatnonzero(np.isin(work.folds, second)), first, parts, seed + 1),
        _side(work, "second", np.flatnonzero(np.isin(work.folds, first)), second, parts, seed + 2),
    )


def _side(work: FitContext, name: str, rows: Rows, chosen_for: tuple[int, ...], parts: int, seed: int) -> SearchSplit:
    labels, units = work.labels[rows], work.units[rows]
    groups, where = len(np.unique(units)), "half of the folds" if chosen_for else "all folds"
    if groups < parts:
        raise FoldError(f"{groups} groups in {where} are too few to judge a search on; {parts} are needed.")
    dealt = np.full(len(work.labels), -1, np.int64)
    dealt[rows] = assign_folds(labels, units, parts, seed, work.classes)
    side = SearchSplit(name, dealt, chosen_for)
    usable = [c for c in np.unique(labels) if len(np.unique(dealt[rows][labels == c])) > 1]
    if len(usable) < 2 or not all((side.judging(part, work.labels) == 0).any() for part in range(parts)):
        raise FoldError(
            f"the classes have too few groups in {where} to search on: two classes need groups in two parts."
        )
    return side
