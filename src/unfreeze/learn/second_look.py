"""A second look at a finished probe's photos: a head for each attribute, then once more without what is likely wrong.

Out of fold like the run itself, on the same folds, from the cached features. A head that learns the attribute alone
reads it better than the combined classes do, and one that has not learnt from wrong labels contradicts them more
clearly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.tables import Photos
from unfreeze.data.looks import Looks
from unfreeze.learn.fitting import Work
from unfreeze.learn.probe.probing import fit_probe
from unfreeze.learn.sight import squares_of, wants_faces

Rows = NDArray[np.int64]
Proba = NDArray[np.float64]


def look_again(
    photos: Photos,
    looks: Looks,
    recipe: Recipe,
    given: Rows,
    values: tuple[str, ...],
    likely_wrong: Callable[[Rows, Proba], NDArray[np.bool_]],
    reporter: Reporter,
    first: Proba | None = None,
) -> Proba:
    """Out-of-fold probabilities float64 (n, V) of one attribute, NaN outside the folds.

    Two looks, their geometric mean. photos: with `unit` and `fold`. given: int64 (n,), the attribute's value of each
    photo. likely_wrong: which labels the second look leaves out of training, from (given, probabilities) of the rows
    in folds. first: the first look, where the run has it.
    """
    # Added rows name classes, and parts are those of classes: an attribute has neither.
    recipe = recipe.replace(**{"balance.add": (), "labels.model": "joint"})
    table = photos.table
    units, folds = table["unit"].to_numpy(np.int64), table["fold"].to_numpy(np.int64)
    inside = np.flatnonzero(folds >= 0)
    with tempfile.TemporaryDirectory(prefix="unfreeze-look-") as scratch:
        named = replace(
            photos, table=table.assign(label=np.array(values, object)[given]), classes=values, answers=values
        )
        work = Work(named, looks, given, units, folds, recipe, Path(scratch) / "0", reporter, trial=True)
        if wants_faces(recipe):
            found = squares_of(recipe, photos.files(), looks.keys, looks.readable, reporter)
            work.squares = None if found is None else found.cut
        if first is None:
            first = fit_probe(work).out_of_fold(work)
        doubted = np.zeros(len(given), bool)
        doubted[inside] = likely_wrong(given[inside], first[inside])
        without = np.where(doubted, -1, folds)
        if not doubted.any() or not _learnable(given, folds, without):
            return first
        again = fit_probe(replace(work, folds=without, folder=Path(scratch) / "1", spent={}, failed={}))
        both = np.sqrt(first * again.out_of_fold(work))  # the mean of the logarithms
        return both / both.sum(1, keepdims=True)


def _learnable(given: Rows, before: Rows, after: Rows) -> bool:
    """Whether each training part still has every value that it had."""
    for fold in np.unique(before[before >= 0]):
        had = np.unique(given[(before >= 0) & (before != fold)])
        has = np.unique(given[(after >= 0) & (after != fold)])
        if len(has) < len(had) or not (after == fold).any():
            return False
    return True
