"""Probe fits on random shares of the groups: the measured points of a learning curve."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64, Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import join_names
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.features.matrix import AnyFeatureMatrix
from unfreeze.training.class_balance import for_probe
from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

# Number of shares, log-spaced from 1/16 to 1. The smallest share is larger if a class has few groups, so that every
# class keeps two groups.
SIZES, _SMALLEST = 8, 1 / 16
# (upper limit of the share, number of draws). Small shares are cheap and vary most.
_DRAWS = ((0.2, 4), (0.4, 3), (0.99, 2), (1, 1))
# Number of rows to predict; folds beyond that are not evaluated.
_JUDGED = 2_500
_RESAMPLES = 300


@dataclass(frozen=True)
class CurveData:
    """Labels, groups and folds of a learning curve.

    Attributes:
        labels: int64 (n,), class indices.
        units: int64 (n,), groups.
        folds: int64 (n,), folds; -1 for rows to ignore.
        judged: bool (C,), classes that count in the curve.
        classes: Number of classes C.
        count: Number of folds.
    """

    labels: Rows
    units: Rows
    folds: Rows
    judged: NDArray[np.bool_]
    classes: int
    count: int

    def held(self) -> list[int]:
        """Folds to evaluate: as many as needed for `_JUDGED` rows, at least two."""
        sizes = np.bincount(self.folds[self.folds >= 0], minlength=self.count)
        needed = int(np.searchsorted(np.cumsum(sizes), _JUDGED) + 1)
        return list(range(min(self.count, max(2, needed))))


@dataclass(frozen=True)
class CurvePoint:
    """Result of one draw of a share.

    Attributes:
        share: Share of the groups.
        groups: Mean number of training groups of a head.
        photos: Mean number of training images of a head.
        rows: int64 (m,), evaluated rows.
        predicted: int64 (m,), predicted class of each of them.
    """

    share: float
    groups: float
    photos: float
    rows: Rows
    predicted: Rows


def fit_shares(
    features: AnyFeatureMatrix, sheet: CurveData, recipe: Recipe, scratch: Path, reporter: Reporter, notes: list[str]
) -> list[CurvePoint]:
    """Fit and evaluate the probe for each draw of each share.

    Args:
        features: Features of the probe.
        sheet: Labels, groups and folds.
        recipe: Recipe of the probe.
        scratch: Folder for large temporary files.
        reporter: Receives progress messages.
        notes: Extended with what had to be left out.

    Returns:
        One point per draw, smallest share first.
    """
    inside = np.flatnonzero(sheet.folds >= 0)
    mark = _mark(features, inside)
    shares = _shares(sheet, inside)
    found, lacking, plan = [], set[float](), _plan(shares)
    with reporter.bar("Learning curve", len(plan)) as advance:
        for share, draw in plan:
            taken = _taken(sheet, inside, share, recipe.seed, draw)
            if _complete(sheet, taken):
                found.append(_trial(features, sheet, recipe, scratch, taken, share, mark))
            else:
                lacking.add(share)
            advance(1)
    lost = sorted(lacking - {trial.share for trial in found})
    if lost:
        notes.append(f"Left out: {join_names(f'{share:.0%}' for share in lost)} of the groups, which lack a class.")
    if shares[0] > 1.01 * _SMALLEST:
        notes.append(f"The smallest share is {shares[0]:.0%} of the groups, because a class has few groups.")
    return found


def _shares(sheet: CurveData, inside: Rows) -> list[float]:
    """Shares of the groups in ascending order, ending with 1; fewer if a class has few groups."""
    labels, units = sheet.labels[inside], sheet.units[inside]
    least = min(len(np.unique(units[labels == c])) for c in np.flatnonzero(sheet.judged))
    smallest = max(_SMALLEST, 2 / least)
    sizes = min(SIZES, least - 1)
    return [float(share) for share in np.geomspace(smallest, 1, sizes)]


def _plan(shares: list[float]) -> list[tuple[float, int]]:
    """(share, draw number) of all fits, smallest share first."""
    return [(share, i) for share in shares for i in range(next(n for most, n in _DRAWS if share <= most))]


def _taken(sheet: CurveData, inside: Rows, share: float, seed: int, draw: int) -> NDArray[np.bool_]:
    """Draw a random share of the groups, stratified by class; a group counts for its rarest class.

    Within a class, groups are drawn from the folds in turn, so that even a few groups are spread over several folds and
    the training part of each fold contains every class.

    Returns:
        bool (n,), the selected rows.
    """
    own = np.random.default_rng([seed, draw, round(1e6 * share)])
    labels, units, folds = sheet.labels[inside], sheet.units[inside], sheet.folds[inside]
    counts = np.bincount(labels, minlength=sheet.classes)
    # Stratum: rarest class of the curve within the group; groups without any such class form a stratum of their own.
    order = np.argsort(np.where(sheet.judged, counts, counts.sum() + 1)[labels], kind="stable")
    groups, first = np.unique(units[order], return_index=True)
    stratum, fold = labels[order][first], folds[order][first]
    stratum = np.where(sheet.judged[stratum], stratum, -1)
    taken = np.zeros(int(units.max()) + 1, bool)
    for c in np.unique(stratum):
        members = own.permutation(np.flatnonzero(stratum == c))
        turn = np.empty(len(members), np.int64)  # rank of each member within its fold
        for k in np.unique(fold[members]):
            there = fold[members] == k
            turn[there] = np.arange(there.sum())
        members = members[np.argsort(turn, kind="stable")]
        wanted = round(share * len(members))
        taken[groups[members[: max(wanted, min(2, len(members)) if c >= 0 else 0)]]] = True
    out = np.zeros(len(sheet.labels), bool)
    out[inside] = taken[units]
    return out


def _complete(sheet: CurveData, taken: NDArray[np.bool_]) -> bool:
    """Whether each evaluated fold has all classes of the curve in training, and the last fold is not empty."""
    wanted, left = np.flatnonzero(sheet.judged), taken & (sheet.folds >= 0)
    if not left.any() or sheet.folds[left].max() < sheet.count - 1:
        return False  # the number of heads is derived from the largest fold number
    return all(np.isin(wanted, sheet.labels[left & (sheet.folds != k)]).all() for k in sheet.held())


def _trial(
    features: AnyFeatureMatrix,
    sheet: CurveData,
    recipe: Recipe,
    scratch: Path,
    taken: NDArray[np.bool_],
    share: float,
    mark: str,
) -> CurvePoint:
    folds = np.where(taken, sheet.folds, -1)
    identity = stable_hash([mark, folds.tolist()])
    rows, predicted, groups, photos = [], [], [], []
    heads = fit_folds(
        features,
        sheet.labels,
        sheet.units,
        folds,
        sheet.classes,
        recipe.probe,
        recipe.seed,
        identity,
        scratch,
        sheet.held(),
        words=for_probe(recipe.balance),
    )
    for k, head in heads:
        own = np.flatnonzero(sheet.folds == k)
        learnt = np.flatnonzero((folds >= 0) & (folds != k))
        rows.append(own)
        predicted.append(predict_folds(features, [head], own).argmax(1))
        groups.append(len(np.unique(sheet.units[learnt])))
        photos.append(len(learnt))
    return CurvePoint(
        share, float(np.mean(groups)), float(np.mean(photos)), np.concatenate(rows), np.concatenate(predicted)
    )


def _mark(features: AnyFeatureMatrix, rows: Rows) -> str:
    """Content hash of the features of these rows, the key of cached rotations."""
    columns = np.linspace(0, features.width - 1, min(features.width, 24)).astype(np.int64)
    digest = hashlib.blake2b(digest_size=10)
    for start in range(0, len(rows), 512):
        digest.update(np.ascontiguousarray(features.rooted(rows[start : start + 512])[:, columns]).tobytes())
    features.forget_pages()
    return digest.hexdigest()


def bootstrap_f1(trial: CurvePoint, sheet: CurveData, seed: int) -> F64:
    """F1 of each class, followed by bootstrap samples over the evaluated groups.

    The same groups are drawn for all points, so that common difficulty cancels in differences.

    Returns:
        float64 (1 + resamples, C); NaN for classes that are absent.
    """
    _, member = np.unique(sheet.units[trial.rows], return_inverse=True)
    count, c = int(member.max()) + 1, sheet.classes
    truth = sheet.labels[trial.rows]
    hit = trial.predicted == truth
    hits, sizes = np.zeros((count, c), np.float32), np.zeros((count, c), np.float32)
    np.add.at(hits, (member[hit], truth[hit]), 2)
    np.add.at(sizes, (member, truth), 1)
    np.add.at(sizes, (member, trial.predicted), 1)
    out = np.full((1 + _RESAMPLES, c), np.nan)
    for i, weight in enumerate(_weights(count, seed)):
        top, bottom = weight @ hits, weight @ sizes
        np.divide(top, bottom, out=out[i], where=bottom > 0)
    return out


def _weights(count: int, seed: int) -> Iterator[NDArray[np.float32]]:
    draws = np.random.default_rng(seed)
    yield np.ones(count, np.float32)
    for _ in range(_RESAMPLES):
        yield np.bincount(draws.integers(0, count, count), minlength=count).astype(np.float32)
