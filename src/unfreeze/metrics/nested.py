"""Nested evaluation of label corrections: each fold is scored with corrections that were found without it.

Label issues are found by models trained on the labels of all other folds, so a correction in the training part of a
fold depends in part on the labels that score the fold. Selection outside of the cross-validation inflates the score
(Ambroise & McLachlan 2002, PNAS 99; Cawley & Talbot 2010, JMLR 11). Here the search for issues is repeated inside the
training part of each fold, by cross-validation over the other folds.

Reviewers have judged the issues listed by the whole run, not those that the inner search lists. The inner list is
therefore followed from the top down to the first image without a correction: within that part no correction is missing
because the scored fold did not contribute to the list. Skipping the missing corrections in an inner list as long as the
judged one still inflates the score (see benchmarks/label_statistics.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfreeze.core.arrays import Mask, Proba, Rows

# Arguments: labels (n,), mask of the training rows (n,), rows to predict (m,), and the fold that is excluded from
# training. Returns probabilities, float64 (m, C).
FitPredict = Callable[[Rows, Mask, Rows, int], Proba]
# Arguments: rows to search, and out-of-fold probabilities (n, C). Returns the listed rows, most suspicious first.
Rank = Callable[[Rows, Proba], Rows]


@dataclass(frozen=True)
class Corrections:
    """Corrections of reviewers on n images.

    Attributes:
        given: int64 (n,), original classes.
        corrected: int64 (n,), corrected classes.
        excluded: bool (n,), images that were excluded.
        judged: bool (n,), images that were reviewed, including those that were kept.
    """

    given: Rows
    corrected: Rows
    excluded: Mask
    judged: Mask

    @property
    def changed(self) -> Mask:
        """bool (n,): images that were relabeled or excluded."""
        return self.excluded | (self.corrected != self.given)


@dataclass(frozen=True)
class NestedPredictions:
    """Out-of-fold predictions under corrections that were found without the scored fold.

    Attributes:
        proba: float64 (n, C), NaN outside of the scored folds.
        applied: For each scored fold, the number of corrections that its model was trained with.
        possible: For each scored fold, the number of corrections in its training part.
    """

    proba: Proba
    applied: tuple[int, ...]
    possible: tuple[int, ...]

    @property
    def share(self) -> float:
        """Mean fraction of the corrections that were found without the scored fold."""
        return sum(self.applied) / max(sum(self.possible), 1)


def widened(difference: dict[str, float], folds: int) -> dict[str, float]:
    """Widen the interval of a gain by the factor K / (K - 1).

    Resampling images treats the models as fixed, but the evaluated models learn from other corrections than those of
    the run, and from the remainder of a list that the scored fold contributed to. The factor grows with the fraction of
    the data that the search cannot use (compare Nadeau & Bengio 2003, Machine Learning 52). Its size was selected with
    benchmarks/label_statistics.py, where the coverage of the intervals is then about nominal.

    Args:
        difference: {"value", "low", "high"}.
        folds: Number of folds K.
    """
    factor, value = folds / (folds - 1), difference["value"]
    return {end: value + factor * (difference[end] - value) for end in ("value", "low", "high")}


def judged_images(listed: Rows, words: Mask) -> Mask:
    """Images that reviewers have judged, including those skipped above other corrections in the list.

    Reviewers may skip images, and a table written by hand need not contain the labels that are kept. The list counts as
    reviewed down to the 90th percentile of the positions of corrections, so that a single correction far down does not
    mark all of it as reviewed.

    Args:
        listed: int (m,), list of the whole run, most suspicious first.
        words: bool (n,), images with a correction.

    Returns:
        bool (n,).
    """
    seen = words.copy()
    places = np.flatnonzero(words[listed])
    if len(places):
        seen[listed[: int(np.percentile(places, 90)) + 1]] = True
    return seen


def nested_predictions(
    fit_predict: FitPredict,
    rank: Rank,
    corrections: Corrections,
    folds: Rows,
    scored: Sequence[int],
    parts: Rows | None = None,
) -> NestedPredictions:
    """For each scored fold: search for issues without it, apply the corrections that are found, refit and predict.

    Args:
        fit_predict: Trains a model and predicts.
        rank: Lists label issues.
        corrections: Corrections of reviewers.
        folds: int64 (n,), -1 for rows that take no part; groups must not be split.
        scored: Folds to score.
        parts: int64 (n,), parts of the inner cross-validation, numbered over all folds; groups must not be split. By
            default the folds, in which case K (K - 1) / 2 inner fits suffice: a model trained without folds a and b
            predicts b for a and a for b.

    Raises:
        ValueError: If a training part consists of a single part, so that no inner cross-validation is possible, or if
            no fold is scored.
    """
    inside, by_fold = folds >= 0, parts is None
    parts = folds if parts is None else parts
    out: Proba | None = None
    without = dict[tuple[int, int], Proba]()  # for the rows of both, in order
    applied, possible = [], []
    for fold in scored:
        inner: Proba | None = None
        turns = np.unique(parts[inside & (folds != fold)]).tolist()
        if len(turns) < 2:
            raise ValueError("no rows are left for the search without the fold and the part of the others.")
        for part in turns:
            pair = (min(fold, part), max(fold, part)) if by_fold else (fold, part)
            held = np.flatnonzero(inside & ((folds == fold) | (parts == part)))
            if pair not in without:
                train = inside.copy()
                train[held] = False
                without[pair] = fit_predict(corrections.given, train, held, fold)
            if inner is None:
                inner = np.full((len(folds), without[pair].shape[1]), np.nan)
            inner[inside & (parts == part)] = without[pair][parts[held] == part]
        assert inner is not None
        training = inside & (folds != fold)
        listed = rank(np.flatnonzero(training), inner)
        unjudged = np.flatnonzero(~corrections.judged[listed])
        found_without = np.zeros(len(folds), bool)
        found_without[listed[: unjudged[0] if len(unjudged) else len(listed)]] = True
        use = found_without & corrections.changed
        applied.append(int(use.sum()))
        possible.append(int((training & corrections.changed).sum()))
        labels = np.where(use, corrections.corrected, corrections.given)
        rows = np.flatnonzero(folds == fold)
        found = fit_predict(labels, training & ~(use & corrections.excluded), rows, fold)
        if out is None:
            out = np.full(inner.shape, np.nan)
        out[rows] = found
    if out is None:
        raise ValueError("no fold is scored.")
    return NestedPredictions(out, tuple(applied), tuple(possible))
