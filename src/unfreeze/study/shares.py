"""The probe fitted again on shares of the groups: what a learning curve is drawn through."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import listed
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.folds import make_folds
from unfreeze.learn.balance import for_probe
from unfreeze.learn.probe.heads import fit_folds, predict_folds
from unfreeze.learn.probe.inputs import AnyFeatures

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]

# Shares of the groups that are learnt from, in sixteenths where every class has groups enough, and draws of each: the
# small shares are cheap and differ most.
_PARTS = 16
_DRAWS = ((1 / 8, 4), (1 / 4, 3), (0.99, 2), (1, 1))
# Rows that are predicted; beyond, not all folds take their turn.
_JUDGED = 2_500
_ATTEMPTS = 8
_RESAMPLES = 300


@dataclass(frozen=True)
class Sheet:
    """What is learnt and judged. judged: bool (C,), classes that the curve counts. count: of folds."""

    labels: Rows
    units: Rows
    folds: Rows
    judged: NDArray[np.bool_]
    classes: int
    count: int

    def held(self) -> list[int]:
        """The folds that are judged: as many as _JUDGED rows need, at least two."""
        sizes = np.bincount(self.folds[self.folds >= 0], minlength=self.count)
        needed = int(np.searchsorted(np.cumsum(sizes), _JUDGED) + 1)
        return list(range(min(self.count, max(2, needed))))


@dataclass(frozen=True)
class Trial:
    """One draw of a share: groups and photos that a head has learnt from, and the prediction of every judged row."""

    share: float
    groups: float
    photos: float
    rows: Rows
    predicted: Rows


def fit_shares(
    features: AnyFeatures, sheet: Sheet, recipe: Recipe, scratch: Path, reporter: Reporter, notes: list[str]
) -> list[Trial]:
    inside = np.flatnonzero(sheet.folds >= 0)
    mark = _mark(features, inside)
    parts, count = _dealt(sheet, inside, recipe.seed)
    found, lacking, plan = [], set[float](), _plan(count)
    with reporter.bar("Learning curve", len(plan)) as advance:
        for size, draw in plan:
            taken = _taken(parts, count, size, draw)
            if _complete(sheet, taken):
                found.append(_trial(features, sheet, recipe, scratch, taken, size / count, mark))
            else:
                lacking.add(size / count)
            advance(1)
    lost = sorted(lacking - {trial.share for trial in found})
    if lost:
        notes.append(f"Left out: {listed(f'{share:.0%}' for share in lost)} of the groups, which lack a class.")
    if count < _PARTS:
        notes.append(f"The smallest share is 1/{count}: a class has few groups.")
    return found


def _sizes(count: int) -> list[int]:
    """Numbers of parts in a share: all, and halved until one."""
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes[::-1]


def _draws(share: float) -> int:
    """How many draws a share has."""
    return next(draws for most, draws in _DRAWS if share <= most)


def _plan(count: int) -> list[tuple[int, int]]:
    """Parts in a share, and number of the draw; the smallest share first."""
    return [(size, draw) for size in _sizes(count) for draw in range(min(count, _draws(size / count)))]


def _taken(parts: Rows, count: int, size: int, draw: int) -> NDArray[np.bool_]:
    return np.isin(parts, [(draw * size + i) % count for i in range(size)])


def _dealt(sheet: Sheet, inside: Rows, seed: int) -> tuple[Rows, int]:
    """Part of every row (-1 outside), dealt by groups and classes, and how many parts there are.

    Parts know nothing of folds, so that a class's few groups in a part may all lie in one fold: then the training part
    of that fold lacks it. Of a few ways to deal, the one with the fewest such draws is taken.
    """
    labels, units = sheet.labels[inside], sheet.units[inside]
    counted = sheet.judged[labels]
    least = min(len(np.unique(units[labels == c])) for c in np.flatnonzero(sheet.judged))
    count = max(2, min(_PARTS, least // 2))
    best, fewest = np.zeros(0, np.int64), -1
    for attempt in range(_ATTEMPTS):
        own = np.random.default_rng([seed, attempt])
        part_of = own.integers(0, count, int(units.max()) + 1)  # of groups without a class of the curve
        names = tuple(map(str, range(sheet.classes)))
        part_of[units[counted]] = make_folds(labels[counted], units[counted], count, int(own.integers(1 << 31)), names)[
            0
        ]
        parts = np.full(len(sheet.labels), -1)
        parts[inside] = part_of[units]
        lacking = sum(not _complete(sheet, _taken(parts, count, *trial)) for trial in _plan(count))
        if fewest < 0 or lacking < fewest:
            best, fewest = parts, lacking
        if not lacking:
            break
    return best, count


def _complete(sheet: Sheet, taken: NDArray[np.bool_]) -> bool:
    """Whether every judged class is in the training part of every held fold, and the last fold is not emptied."""
    wanted, left = np.flatnonzero(sheet.judged), taken & (sheet.folds >= 0)
    if not left.any() or sheet.folds[left].max() < sheet.count - 1:
        return False  # heads are counted by the largest number of a fold
    return all(np.isin(wanted, sheet.labels[left & (sheet.folds != k)]).all() for k in sheet.held())


def _trial(
    features: AnyFeatures,
    sheet: Sheet,
    recipe: Recipe,
    scratch: Path,
    taken: NDArray[np.bool_],
    share: float,
    mark: str,
) -> Trial:
    folds = np.where(taken, sheet.folds, -1)
    identity = fingerprint([mark, folds.tolist()])
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
    return Trial(share, float(np.mean(groups)), float(np.mean(photos)), np.concatenate(rows), np.concatenate(predicted))


def _mark(features: AnyFeatures, rows: Rows) -> str:
    """Names the rows' features by their values: rotations are kept under it."""
    columns = np.linspace(0, features.width - 1, min(features.width, 24)).astype(np.int64)
    digest = hashlib.blake2b(digest_size=10)
    for start in range(0, len(rows), 512):
        digest.update(np.ascontiguousarray(features.rooted(rows[start : start + 512])[:, columns]).tobytes())
    features.forget_pages()
    return digest.hexdigest()


def f1_of(trial: Trial, sheet: Sheet, seed: int) -> F64:
    """F1 of each class, float64 (1 + resamples, C): as it is, then with the judged groups resampled. NaN: absent.

    The groups are drawn alike for all trials, so that what is hard for all of them cancels in differences.
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
