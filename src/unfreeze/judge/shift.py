"""Two sets of photos told apart by their features: if a classifier can, a score on one says less of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FOLDS = 5
_DIMENSIONS = 128
_STRENGTH = 1.0  # inverse penalty, for rows whose mean squared length is 1; of .1 to 30 it told clothing apart best
_STEPS = 12


@dataclass(frozen=True)
class ToldApart:
    """How well a classifier tells the second set from the first, out of fold.

    auc: chance that a photo of the second set looks more like it than one of the first; .5 cannot be told apart.
    low, high: 95 % interval over groups. first, second: float64, probability of belonging to the second set, for
    each row of either set, by a model that has not seen the row's group. groups: how many were resampled.
    """

    auc: float
    low: float
    high: float
    first: Floats
    second: Floats
    groups: int

    @property
    def apart(self) -> bool:
        """Whether the interval lies above .5."""
        return self.low > 0.5


def told_apart(
    features_a: NDArray[np.floating],
    features_b: NDArray[np.floating],
    groups_a: NDArray[Any] | None = None,
    groups_b: NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int = 500,
) -> ToldApart:
    """A classifier two-sample test (Lopez-Paz & Oquab 2017) of two feature tables with the same columns.

    features: (n_a, D) and (n_b, D). groups: of each row, any hashable; by default each row. A group that is in both
    sets stays in one fold. Columns are standardised, brought to their 128 first principal components and told apart
    by a ridge-penalised logistic regression that gives both sets the same weight, in 5 folds. The AUC compares rows
    within a fold, for scores of two models cannot be compared. Interval: percentile bootstrap over groups; with
    resamples=0 there is none. The same seed gives the same answer. Raises ValueError if a set has fewer than 10
    groups, for each fold needs some of both.
    """
    n, m = len(features_a), len(features_b)
    names_a = np.arange(n) if groups_a is None else np.asarray(groups_a)
    names_b = np.arange(n, n + m) if groups_b is None else np.asarray(groups_b)
    group = np.unique(np.concatenate([names_a.astype(str), names_b.astype(str)]), return_inverse=True)[1]
    second = np.r_[np.zeros(n, bool), np.ones(m, bool)]
    least = min(len(np.unique(group[~second])), len(np.unique(group[second])))
    if least < 2 * FOLDS:
        raise ValueError(f"told_apart: {least} groups in a set; at least {2 * FOLDS} are needed")
    draws = np.random.default_rng(seed)
    x = _reduced(np.concatenate([features_a, features_b]).astype(np.float64))
    fold = _folds(group, second, draws)
    scores = np.empty(n + m)
    for f in range(FOLDS):
        train, test = fold != f, fold == f
        scores[test] = _logistic(x[train], second[train], x[test])
    count = int(group.max()) + 1
    ranked = _Ranked(scores, second, fold)
    value = ranked.auc(np.ones(n + m))
    drawn = (np.bincount(draws.integers(0, count, count), minlength=count) for _ in range(resamples))
    sampled = np.array([ranked.auc(weight[group].astype(np.float64)) for weight in drawn])
    low, high = np.percentile(sampled[np.isfinite(sampled)], [2.5, 97.5]) if resamples else (value, value)
    probability = 1 / (1 + np.exp(-scores))
    return ToldApart(float(value), float(low), float(high), probability[:n], probability[n:], count)


def _reduced(x: Floats) -> Floats:
    """Standardised columns on their first principal components, mean squared row length 1."""
    x -= x.mean(0)
    deviation = x.std(0)
    x /= np.maximum(deviation, 0.05 * deviation.mean() + 1e-12)
    if min(x.shape) > _DIMENSIONS:
        if x.shape[1] <= x.shape[0]:
            _, vectors = np.linalg.eigh(x.T @ x)
            x = x @ vectors[:, -_DIMENSIONS:]
        else:
            values, vectors = np.linalg.eigh(x @ x.T)
            x = vectors[:, -_DIMENSIONS:] * np.sqrt(np.maximum(values[-_DIMENSIONS:], 0))
    return x / max(float(np.sqrt((x**2).sum(1).mean())), 1e-12)


def _folds(group: NDArray[np.int64], second: NDArray[np.bool_], draws: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each row: groups whole, and those of the first set, the second and both spread evenly."""
    count = int(group.max()) + 1
    kind = np.zeros(count, np.int64)
    kind[group[~second]] |= 1
    kind[group[second]] |= 2
    of_group = np.empty(count, np.int64)
    for k in (1, 2, 3):
        members = draws.permutation(np.flatnonzero(kind == k))
        of_group[members] = np.arange(len(members)) % FOLDS
    return of_group[group]


def _logistic(x: Floats, second: NDArray[np.bool_], asked: Floats) -> Floats:
    """Log odds of the second set for `asked`; both sets weigh the same. Newton's method (Hastie et al. 2009, 4.4)."""
    x, asked = np.column_stack([x, np.ones(len(x))]), np.column_stack([asked, np.ones(len(asked))])
    target = second.astype(np.float64)
    weight = np.where(second, 0.5 / max(target.mean(), 1e-12), 0.5 / max(1 - target.mean(), 1e-12))
    penalty = np.full(x.shape[1], 1 / _STRENGTH)
    penalty[-1] = 1e-6
    w = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (weight * (p - target)) + penalty * w
        curve = (x * (weight * np.maximum(p * (1 - p), 1e-4))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    return np.clip(asked @ w, -30, 30)


def chance_larger(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """The AUC: chance that a value of one (n,) is larger than one of other (m,), ties half."""
    ranked = np.sort(other)
    below = (np.searchsorted(ranked, one, "left") + np.searchsorted(ranked, one, "right")) / 2
    return float(below.mean() / len(other))


class _Ranked:
    """Scores in order, fold by fold, so that their AUC under other weights needs no sorting again."""

    def __init__(self, scores: Floats, second: NDArray[np.bool_], fold: NDArray[np.int64]) -> None:
        self.second, self.parts = second, []
        for f in np.unique(fold).tolist():
            rows = np.flatnonzero(fold == f)
            self.parts.append((rows, np.unique(scores[rows], return_inverse=True)[1]))

    def auc(self, weight: Floats) -> float:
        """Weighted share of pairs within a fold in which the second set's row scores higher; ties count half."""
        won = pairs = 0.0
        for rows, place in self.parts:
            mine = weight[rows]
            a = np.bincount(place, weights=mine * ~self.second[rows])
            b = np.bincount(place, weights=mine * self.second[rows])
            won += float(b @ (np.cumsum(a) - a / 2))
            pairs += float(a.sum() * b.sum())
        return won / pairs if pairs else float("nan")
