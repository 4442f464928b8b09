"""The effect of corrections without leakage: what the search for a fold may see, and the gain in simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from unfreeze.metrics.nested import Corrections, judged_images, nested_predictions

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from label_statistics import effect_row

FOLDS = np.arange(40) % 4


def recorded(judged: np.ndarray, listing: dict[int, list[int]] | None = None, excluded: tuple[int, ...] = ()):
    """Runs it on 40 images of which 0 to 7 are relabeled; returns the result and what each fit and search saw."""
    given = np.zeros(40, np.int64)
    corrected = given.copy()
    corrected[:8] = 1
    fits, searches = [], []
    out = np.isin(np.arange(40), excluded)

    def fit_predict(labels, train, rows, fold):
        fits.append((labels.copy(), train.copy(), rows.copy(), fold))
        return np.tile([0.5, 0.5], (len(rows), 1))

    def rank(rows, proba):
        searches.append((rows.copy(), proba.copy()))
        hidden = (set(range(4)) - set(FOLDS[rows].tolist())).pop()
        return np.array(listing[hidden] if listing else rows, np.int64)

    found = nested_predictions(fit_predict, rank, Corrections(given, corrected, out, judged), FOLDS, range(4))
    return found, fits, searches


def test_no_search_and_no_training_label_of_a_fold_knows_that_fold() -> None:
    found, fits, searches = recorded(np.ones(40, bool))
    assert np.isfinite(found.proba).all() and len(searches) == 4 and len(fits) == 4 * 3 // 2 + 4
    for fold, (rows, proba) in enumerate(searches):
        assert not (FOLDS[rows] == fold).any() and np.isnan(proba[fold == FOLDS]).all()
        assert np.isfinite(proba[rows]).all()
    inner = [f for f in fits if len(f[2]) == 20]
    assert len(inner) == 6, "a model without two folds serves both"
    for labels, train, rows, _ in inner:
        assert not train[rows].any() and train.sum() == 20 and not labels.any(), (
            "inner models learn the labels as given"
        )
    for labels, train, rows, fold in (f for f in fits if len(f[2]) == 10):
        assert (FOLDS[rows] == fold).all() and not train[rows].any() and not labels[fold == FOLDS].any()
        assert labels[train].sum() == 6, "all corrections of the three other folds, for all were judged"
    assert found.share == 1


def test_the_list_is_followed_down_to_the_first_image_without_a_judgment() -> None:
    judged = np.ones(40, bool)
    judged[5] = False
    listing = {fold: [i for i in range(39, -1, -1) if i % 4 != fold] for fold in range(4)}
    found, fits, _ = recorded(judged, listing)
    # Image 5 (fold 1) ends the lists of folds 0, 2 and 3: of the corrected 0 to 7 only 6 and 7 come before it.
    assert found.applied == (2, 6, 1, 1) and found.possible == (6, 6, 6, 6)
    last = {fold: labels for labels, _, rows, fold in fits if len(rows) == 10}
    assert np.flatnonzero(last[0]).tolist() == [6, 7] and np.flatnonzero(last[2]).tolist() == [7]


def test_excluded_images_leave_training_only_where_the_search_finds_them() -> None:
    listing = {fold: [i for i in (0, 1, 2, 3, 30) if i % 4 != fold] for fold in range(4)}
    _, fits, _ = recorded(np.isin(np.arange(40), range(8)), listing, excluded=(1, 7))
    for _, train, rows, fold in (f for f in fits if len(f[2]) == 10):
        assert len(rows) == 10, "an excluded image is scored by the label as given"
        assert not train[1], "in the training part it is found, in its own fold it is held out"
        assert train[7] == (fold != 3), "image 7 is not on the list, so it stays"


def test_images_passed_over_above_the_corrections_count_as_judged() -> None:
    listed, words = np.arange(50)[::-1], np.zeros(60, bool)
    words[[49, 48, 45, 55]] = True
    seen = judged_images(listed, words)
    assert np.flatnonzero(seen).tolist() == [45, 46, 47, 48, 49, 55], "55 has a correction, though it is not listed"
    assert not judged_images(listed, np.zeros(60, bool)).any()
    words[0] = True  # one correction far down
    assert judged_images(listed, words).sum() < 45


def test_two_folds_are_searched_by_their_halves() -> None:
    folds, parts = np.arange(24) % 2, np.arange(24) % 4  # parts 0 and 2 are fold 0
    nothing = Corrections(np.zeros(24, np.int64), np.zeros(24, np.int64), np.zeros(24, bool), np.ones(24, bool))
    fits = []

    def fit_predict(labels, train, rows, fold):
        fits.append((train.copy(), rows.copy(), fold))
        return np.tile([0.5, 0.5], (len(rows), 1))

    found = nested_predictions(fit_predict, lambda rows, proba: rows[:0], nothing, folds, [0, 1], parts)
    assert np.isfinite(found.proba).all() and len(fits) == 2 * 2 + 2
    for train, rows, fold in fits:
        assert not train[folds == fold].any() and not train[rows].any() and train.sum() in (6, 12)
    with pytest.raises(ValueError, match="no rows are left"):
        nested_predictions(fit_predict, lambda rows, proba: rows[:0], nothing, folds, [0, 1])


@pytest.mark.parametrize(
    ("wrong", "reviewer"), [(0.0, "accepts every suggestion"), (0.0, "excludes every image"), (0.05, "knows the truth")]
)
def test_the_reported_gain_is_the_true_one_within_its_interval(wrong: float, reviewer: str) -> None:
    """100 sets in benchmarks/label_statistics.py. The ordinary figure is far above what new images show."""
    row = effect_row(wrong, reviewer, 600, 0.06, 6)
    assert row["covered"] >= 5 and abs(row["reported"] - row["truth"]) < 0.01
    if not wrong:
        assert row["positive"] <= 1 and row["flattered"] - row["truth"] > 0.015
