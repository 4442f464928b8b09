"""Classifier two-sample test: whether two sets of features differ, as far as a linear classifier separates them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from unfreeze.metrics.intervals import quantile

Floats = NDArray[np.float64]

FOLDS = 5
_DIMENSIONS = 128
_STRENGTH = 1.0  # inverse penalty for rows of mean squared norm 1; best of 0.1 to 30 at separating clothing
_STEPS = 12
# Penalty of the ridge regression in the permutation test: that of the logistic regression at even odds.
_RIDGE = 4 / _STRENGTH
PERMUTATIONS = 199
# Significance level of the one-sided permutation test.
LEVEL = 0.025


@dataclass(frozen=True)
class TwoSampleResult:
    """Result of `classifier_two_sample_test`.

    Attributes:
        auc: Probability that an image of the second set scores higher than one of the first; 0.5 means inseparable.
        low: Lower end of the 95% interval over groups.
        high: Upper end of the interval.
        p_value: One-sided p-value of the permutation test of equal distributions.
        first: float64 (n_a,), out-of-fold probability of the second set, for each row of the first.
        second: float64 (n_b,), the same for each row of the second set.
        groups: Number of groups.
    """

    auc: float
    low: float
    high: float
    p_value: float
    first: Floats
    second: Floats
    groups: int

    @property
    def apart(self) -> bool:
        """Whether the permutation test is significant."""
        return self.p_value <= LEVEL


def classifier_two_sample_test(
    features_a: NDArray[np.floating],
    features_b: NDArray[np.floating],
    groups_a: NDArray[Any] | None = None,
    groups_b: NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int = 500,
    permutations: int = PERMUTATIONS,
) -> TwoSampleResult:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017) of two feature tables with the same columns.

    Columns are standardized and reduced to their first 128 principal components. A ridge-penalized logistic regression,
    which weights both sets equally, is evaluated in 5 folds. A group that occurs in both sets stays in one fold. The
    AUC compares rows within a fold only, since the scores of two models are not comparable. The result is deterministic
    for a given seed.

    The test permutes the set membership of groups within each fold and compares the AUC of a ridge regression, which
    has a closed form, with those of the permutations (Kim, Ramdas, Singh & Wasserman 2021, Ann. Stat. 49). It assumes
    that the groups of both sets are of the same kind. The interval is the AUC plus or minus Student's t times the
    larger standard deviation of a bootstrap over groups and of the permutations; the latter is scaled by sqrt(auc (1 -
    auc)) away from .5. A bootstrap alone is a third too narrow, because all training folds share one sample.

    Args:
        features_a: (n_a, D).
        features_b: (n_b, D).
        groups_a: (n_a,) any hashable; by default each row is a group.
        groups_b: (n_b,) any hashable; by default each row is a group.
        seed: Seed of folds, draws and permutations.
        resamples: Bootstrap draws; 0 for no interval.
        permutations: Permutations; 0 for no test (the p-value is 1).

    Raises:
        ValueError: If a set has fewer than 10 groups, since each fold needs some of both.
    """
    n, m = len(features_a), len(features_b)
    names_a = np.arange(n) if groups_a is None else np.asarray(groups_a)
    names_b = np.arange(n, n + m) if groups_b is None else np.asarray(groups_b)
    group = np.unique(np.concatenate([names_a.astype(str), names_b.astype(str)]), return_inverse=True)[1]
    second = np.r_[np.zeros(n, bool), np.ones(m, bool)]
    least = min(len(np.unique(group[~second])), len(np.unique(group[second])))
    if least < 2 * FOLDS:
        raise ValueError(f"classifier_two_sample_test: {least} groups in a set; at least {2 * FOLDS} are needed")
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
    null = _permuted_aucs(x, group, second, fold, permutations, draws) if permutations else np.full(1, np.inf)
    p_value = (1 + int((null[1:] >= null[0] - 1e-12).sum())) / (1 + permutations)
    deviations = [float(np.std(sampled[np.isfinite(sampled)]))] if resamples else [0.0]
    if resamples and permutations:
        deviations.append(float(null[1:].std()) * 2 * np.sqrt(max(value * (1 - value), 0.0)))
    half = quantile(0.95, least) * max(deviations)
    probability = 1 / (1 + np.exp(-scores))
    low, high = max(0.0, value - half), min(1.0, value + half)
    return TwoSampleResult(float(value), float(low), float(high), p_value, probability[:n], probability[n:], count)


def _permuted_aucs(
    x: Floats,
    group: NDArray[np.int64],
    second: NDArray[np.bool_],
    fold: NDArray[np.int64],
    permutations: int,
    draws: np.random.Generator,
) -> Floats:
    """AUC of a ridge regression for the actual sets and for permuted ones: float64 (1 + permutations,).

    The set membership of groups is permuted within folds, so that each fold keeps its number of groups of each set.
    Groups that occur in both sets are not permuted.
    """
    count = int(group.max()) + 1
    share = np.bincount(group, second, count) / np.maximum(np.bincount(group, minlength=count), 1)
    of_group = np.empty(count, np.int64)
    of_group[group] = fold
    whole = (share == 0) | (share == 1)
    member = np.repeat(share[:, None], 1 + permutations, 1)
    for k in range(FOLDS):
        own = np.flatnonzero(whole & (of_group == k))
        for j in range(1, 1 + permutations):
            member[own, j] = share[draws.permutation(own)]
    sets = np.where(whole[group, None], member[group], second[:, None]).astype(np.float64)
    won, pairs = np.zeros(1 + permutations), np.zeros(1 + permutations)
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        middle = x[train].mean(0)
        own, target = x[train] - middle, sets[train] - sets[train].mean(0)
        weight = np.linalg.solve(own.T @ own + _RIDGE * np.eye(own.shape[1]), own.T @ target)
        scores = (x[test] - middle) @ weight
        ranks = rankdata(scores, axis=0)  # midranks: ties count half
        there = sets[test]
        size = there.sum(0)
        won += (ranks * there).sum(0) - size * (size + 1) / 2
        pairs += size * (len(there) - size)
    return won / np.maximum(pairs, 1)


def _reduced(x: Floats) -> Floats:
    """Standardize the columns and project on the first principal components; the mean squared row norm becomes 1."""
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
    """Fold of each row. Groups are not split; those of the first set, of the second, and of both are spread evenly."""
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
    """Log odds of the second set for the rows of `asked`, by Newton's method (Hastie et al. 2009, section 4.4).

    The two sets have equal total weight.
    """
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


def roc_auc(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """ROC AUC: probability that a value of `one` (n,) exceeds a value of `other` (m,); ties count half."""
    ranked = np.sort(other)
    below = (np.searchsorted(ranked, one, "left") + np.searchsorted(ranked, one, "right")) / 2
    return float(below.mean() / len(other))


class _Ranked:
    """Scores sorted within each fold, so that their AUC under other weights needs no further sorting."""

    def __init__(self, scores: Floats, second: NDArray[np.bool_], fold: NDArray[np.int64]) -> None:
        self.second, self.parts = second, []
        for f in np.unique(fold).tolist():
            rows = np.flatnonzero(fold == f)
            self.parts.append((rows, np.unique(scores[rows], return_inverse=True)[1]))

    def auc(self, weight: Floats) -> float:
        """Weighted fraction of within-fold pairs in which the row of the second set scores higher; ties count half."""
        won = pairs = 0.0
        for rows, place in self.parts:
            mine = weight[rows]
            a = np.bincount(place, weights=mine * ~self.second[rows])
            b = np.bincount(place, weights=mine * self.second[rows])
            won += float(b @ (np.cumsum(a) - a / 2))
            pairs += float(a.sum() * b.sum())
        return won / pairs if pairs else float("nan")
