"""Refitting without likely label issues, to rank issues of one label attribute.

For each attribute, a head is fitted on the folds of the run and the cached features, and then a second time without the
rows whose labels are likely wrong. A head that is trained on the attribute alone predicts it better than the combined
classes do, and a head that was not trained on wrong labels contradicts them more clearly. The second fit is only for
ranking: its training rows were selected with the labels of all folds, so no score or count may be based on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Proba, Rows
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.scan import ImageScan
from unfreeze.features.crops import face_crops, needs_faces
from unfreeze.training.context import FitContext
from unfreeze.training.linear_probe.strategy import fit_probe


def refit_without_issues(
    photos: ImageDataset,
    looks: ImageScan,
    recipe: Recipe,
    given: Rows,
    values: tuple[str, ...],
    likely_wrong: Callable[[Rows, Proba], NDArray[np.bool_]],
    reporter: Reporter,
    first: Proba | None = None,
) -> tuple[Proba, Proba]:
    """Return out-of-fold probabilities of one attribute from the first fit, and combined with a second fit.

    The second fit leaves out the rows whose labels are likely wrong. The combination is the normalized geometric mean
    of both fits; if nothing is left out, it equals the first fit.

    Args:
        photos: The dataset, with the columns `unit` and `fold`.
        looks: The scan of the images.
        recipe: The recipe of the run.
        given: int64 (n,), value of the attribute for each image.
        values: Names of the attribute values.
        likely_wrong: Function of (given, probabilities) of the rows in folds that returns a boolean mask of the rows to
            leave out of the second fit.
        reporter: Progress reporter.
        first: Probabilities of the first fit, if the run has them.

    Returns:
        Two float64 (n, V) arrays, NaN for rows outside the folds: first fit, and combination of both.
    """
    # Extra samples refer to classes, and label parts are derived from class names: neither applies to an attribute.
    recipe = recipe.replace(**{"balance.extra_views": (), "labels.model": "joint"})
    table = photos.table
    units, folds = table["unit"].to_numpy(np.int64), table["fold"].to_numpy(np.int64)
    inside = np.flatnonzero(folds >= 0)
    with tempfile.TemporaryDirectory(prefix="unfreeze-look-") as scratch:
        named = replace(
            photos, table=table.assign(label=np.array(values, object)[given]), classes=values, answers=values
        )
        work = FitContext(named, looks, given, units, folds, recipe, Path(scratch) / "0", reporter, trial=True)
        if needs_faces(recipe):
            found = face_crops(recipe, photos.files(), looks.keys, looks.readable, reporter)
            work.squares = None if found is None else found.cut
        if first is None:
            first = fit_probe(work).out_of_fold(work)
        doubted = np.zeros(len(given), bool)
        doubted[inside] = likely_wrong(given[inside], first[inside])
        without = np.where(doubted, -1, folds)
        if not doubted.any() or not _learnable(given, folds, without):
            return first, first
        again = fit_probe(replace(work, folds=without, folder=Path(scratch) / "1", spent={}, failed={}))
        both = np.sqrt(first * again.out_of_fold(work))  # geometric mean
        return first, both / both.sum(1, keepdims=True)


def _learnable(given: Rows, before: Rows, after: Rows) -> bool:
    """Return whether every training part still contains all values that it had before."""
    for fold in np.unique(before[before >= 0]):
        had = np.unique(given[(before >= 0) & (before != fold)])
        has = np.unique(given[(after >= 0) & (after != fold)])
        if len(has) < len(had) or not (after == fold).any():
            return False
    return True
