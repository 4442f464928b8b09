"""Paired differences between predictions of the same images, with simultaneous intervals by randomization.

`exchange` computes differences of arbitrary figures and their distribution under random exchange of the two predictions
within groups. `simultaneous` turns these into intervals that hold for all differences at once. The remaining functions
apply both to named metrics (`simultaneous_differences`) and to the F1 of each class (`class_differences`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.core.format import Interval
from unfreeze.metrics.bootstrap import bootstrap_confusions, group_ids, interval
from unfreeze.metrics.classification import confusion_matrix, macro_f1, precision_recall_f1
from unfreeze.metrics.intervals import TRAINING_VARIANCE, Estimates

# Two predictions of the same images: classes, int (n,) each. The difference is the score of the second minus that of
# the first.
Pair = tuple[NDArray[np.integer], NDArray[np.integer]]
# Maps confusion matrices (..., C, C) to figures (..., M).
Figures = Callable[[F64], F64]

# Lower bound on the critical value (normal quantile): identical predictions leave nothing to exchange.
_NORMAL = 1.96
# Maximum number of table cells, or of group signs, held at once.
_MOST_CELLS = 4 << 20


@dataclass(frozen=True)
class Exchanges:
    """Differences of P pairs in M figures, and their values under random exchange of the predictions within groups.

    Attributes:
        values: float64 (P, M), observed differences.
        exchanged: float64 (draws, P, M), differences after exchange.
        even: float64 (draws, M), the same for a difference of 1 that is constant over all groups.
        concentration: float64 (M,), mean square of `even`.
        one_image: float64 (M,), contribution of a disagreement on a single image.
    """

    values: F64
    exchanged: F64
    even: F64
    concentration: F64
    one_image: F64

    @property
    def spread(self) -> F64:
        """Root mean square of the exchanged differences, float64 (P, M)."""
        spread: F64 = np.sqrt((self.exchanged**2).mean(0))
        return spread


@dataclass(frozen=True)
class Differences:
    """Differences and the ends of their intervals.

    Attributes:
        values: float64 (P, M).
        low: float64 (P, M).
        high: float64 (P, M).
    """

    values: F64
    low: F64
    high: F64

    def at(self, pair: int, figure: int = 0) -> dict[str, float]:
        """{"value", "low", "high"} of one pair and figure."""
        return {
            "value": float(self.values[pair, figure]),
            "low": float(self.low[pair, figure]),
            "high": float(self.high[pair, figure]),
        }


def paired_difference(
    truth: NDArray[np.integer],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    groups: NDArray[np.generic],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Macro F1 of `second` minus that of `first`, with the interval of `simultaneous` for one pair.

    Args:
        truth: int (n,), true classes.
        first: (n, C), out-of-fold probabilities.
        second: (n, C), out-of-fold probabilities of the same images.
        groups: (n,) any hashable.
        resamples: Number of random exchanges.
        level: Confidence level.
        seed: Seed of the exchanges.

    Returns:
        {"value", "low", "high"}.
    """
    pair = (first.argmax(1), second.argmax(1))
    found = exchange(truth, [pair], groups, first.shape[1], macro_figure, resamples=resamples, seed=seed)
    return simultaneous([found], level)[0].at(0)


def macro_figure(tables: F64) -> F64:
    """Macro F1 as the only figure, (..., 1)."""
    return macro_f1(tables)[..., None]


def exchange(
    truth: NDArray[np.integer],
    pairs: Sequence[Pair],
    groups: NDArray[np.generic],
    classes: int,
    figures: Figures,
    *,
    by_class: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Exchanges:
    """Differences of each pair, and their values when predictions are exchanged in each group with probability 1/2.

    The same groups are exchanged in all pairs and, for the same groups and seed, in all calls.

    Args:
        truth: int (n,), true classes.
        pairs: P pairs of predictions.
        groups: (n,) any hashable.
        classes: Number of classes C.
        figures: Maps confusion matrices (..., C, C) to figures (..., M).
        by_class: Whether there is one figure for each class that occurs in `truth`, in class order; otherwise each
            figure is of all images.
        resamples: Number of random exchanges.
        seed: Seed of the exchanges.
    """
    member, count = group_ids(groups)
    tables = [(_counts(truth, first, classes), _counts(truth, second, classes)) for first, second in pairs]
    moved = [_moved(truth, pair, member, count, classes) for pair in pairs]
    shares = _shares(truth, member, count, by_class)
    values = np.stack([figures(second) - figures(first) for first, second in tables])
    exchanged, even = np.empty((resamples, *values.shape)), np.empty((resamples, shares.shape[0]))
    at_once = max(1, min(resamples, _MOST_CELLS // max(classes**2, count)))
    starts = [*range(0, resamples, at_once), resamples]
    for (start, stop), signs in zip(pairwise(starts), _signs(count, starts, seed), strict=True):
        even[start:stop] = (shares @ signs).T
        for p, ((first, second), change) in enumerate(zip(tables, moved, strict=True)):
            half = (change @ signs).T.reshape(stop - start, classes, classes) / 2
            middle = (first + second) / 2
            exchanged[start:stop, p] = figures(middle + half) - figures(middle - half)
    figure = np.ones(values.shape[1])
    concentration = np.asarray(shares.multiply(shares).sum(1)).ravel() * figure
    one = figure / (np.bincount(truth)[np.unique(truth)] if by_class else len(truth))
    return Exchanges(values, exchanged, even * figure, concentration, one)


def simultaneous(families: Sequence[Exchanges], level: float = 0.95) -> list[Differences]:
    """Simultaneous intervals for all differences of all families.

    If two predictions are equally good, exchanging them in some of the groups changes the difference only by chance
    (paired randomization test: Fisher 1935; for F scores Yeh 2000, COLING; for a score that is a sum over groups it is
    the wild cluster bootstrap with the null imposed, Cameron, Gelbach & Miller 2008). The test is therefore valid with
    few and uneven groups, for which intervals from resampled groups are too short.

    A difference D is significant if it exceeds q times the root mean square of its exchanged values D*. The critical
    value q is the `level` quantile of the largest standardized D* of a draw (max-t: Westfall & Young 1993; Romano &
    Wolf 2005). The interval is the inverted test: all d for which the test does not reject D - d, where d is constant
    over all groups. If that set is unbounded because too few groups dominate, the interval is D +- q times the root
    mean square. The contribution of one image on which the two disagree is added to each mean square (Agresti & Min
    2005); otherwise two identical predictions would have an interval of width zero.

    Args:
        families: Results of `exchange` for the same groups, seed and number of draws.
        level: Simultaneous confidence level.

    Returns:
        One interval object for each family.
    """
    largest = np.zeros(len(families[0].exchanged))
    for one in families:
        varies = one.spread > 1e-12
        if varies.any():
            largest = np.maximum(largest, (np.abs(one.exchanged[:, varies]) / one.spread[varies]).max(1))
    q = max(_NORMAL, float(np.quantile(largest, level, method="higher")))
    return [_inverted(one, q) for one in families]


def _inverted(found: Exchanges, q: float) -> Differences:
    """All d with (D - d)^2 <= q^2 E[(D* - d W*)^2], where W* is `even`: the range between the roots of a parabola."""
    value, square = found.values, found.spread**2 + found.one_image**2
    half = q * np.sqrt(square)
    low, high = value - half, value + half
    leading = 1 - q**2 * found.concentration + np.zeros_like(value)
    middle = value - q**2 * (found.exchanged * found.even[:, None]).mean(0)
    under = middle**2 - leading * (value**2 - q**2 * square)
    ends = (leading > 0.1) & (under >= 0)
    centre, root = middle / np.where(ends, leading, 1), np.sqrt(np.maximum(under, 0)) / np.where(ends, leading, 1)
    return Differences(value, np.where(ends, centre - root, low), np.where(ends, centre + root, high))


def _shares(truth: NDArray[np.integer], member: NDArray[np.int64], count: int, by_class: bool) -> Any:
    """Fraction of each class's images in each group.

    Returns:
        Sparse array (classes that occur, groups), or its mean over classes (1, groups) unless `by_class` is set.
    """
    from scipy.sparse import csr_array

    _, row, support = np.unique(truth, return_inverse=True, return_counts=True)
    weight = 1 / support[row]
    if not by_class:
        row, weight = np.zeros_like(row), weight / len(support)
    return csr_array((weight, (row, member)), (len(support) if by_class else 1, count))


def _counts(truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> F64:
    cells = truth.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def _moved(truth: NDArray[np.integer], pair: Pair, member: NDArray[np.int64], count: int, classes: int) -> Any:
    """Sparse (C * C, groups): images of each group in each cell by the second prediction minus those by the first."""
    from scipy.sparse import csr_array

    first, second = pair
    apart = np.flatnonzero(first != second)
    row = truth[apart].astype(np.int64) * classes
    ones, own = np.ones(len(apart)), member[apart]
    cells = np.concatenate([row + second[apart], row + first[apart]])
    return csr_array((np.concatenate([ones, -ones]), (cells, np.concatenate([own, own]))), (classes**2, count))


def _signs(count: int, starts: Sequence[int], seed: int) -> Iterator[F64]:
    """Yield blocks (groups, draws) of signs, -1 if the group's predictions are exchanged.

    The signs do not depend on the block boundaries.
    """
    draws = np.random.default_rng(seed)
    words = -(-count // 64)  # whole 64-bit words per draw: no random bits are carried over between blocks
    for start, stop in pairwise(starts):
        bits = draws.integers(0, 2**64 - 1, (stop - start, words), np.uint64, endpoint=True)
        signs = np.ones((count, stop - start))
        signs[np.unpackbits(bits.view(np.uint8), axis=1)[:, :count].T == 1] = -1
        yield signs


Confusions = NDArray[np.float64]
# Name -> function from (..., C, C) confusion matrices to (...) scores.
Metrics = Mapping[str, Callable[[Confusions], NDArray[np.float64]]]


def mean_recall(classes: list[int]) -> Callable[[Confusions], NDArray[np.float64]]:
    """Metric: mean recall of the given classes; in resamples, classes without images are left out."""

    def score(confusion: Confusions) -> NDArray[np.float64]:
        per_class = precision_recall_f1(confusion)
        there = per_class["support"][..., classes] > 0
        total = (per_class["recall"][..., classes] * there).sum(-1)
        found: NDArray[np.float64] = total / np.maximum(there.sum(-1), 1)
        return found

    return score


def accuracy(confusion: Confusions) -> NDArray[np.float64]:
    """Fraction of images that are predicted correctly."""
    right: NDArray[np.float64] = np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-1, -2))
    return right


def macro(confusion: Confusions) -> NDArray[np.float64]:
    """Macro F1."""
    return macro_f1(confusion)


def macro_of_present(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Macro F1 over the classes that have images.

    For single folds, where a class without images would count as 0 if it is predicted.
    """
    per_class = precision_recall_f1(confusion)
    present = per_class["support"] > 0
    found: NDArray[np.float64] = (per_class["f1"] * present).sum(-1) / np.maximum(present.sum(-1), 1)
    return found


def differences(
    truth: NDArray[np.integer],
    predictions: Mapping[str, NDArray[np.integer]],
    pairs: Mapping[str, str],
    groups: NDArray[np.generic],
    classes: int,
    metrics: Metrics,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Exchanges:
    """Difference of each metric between each prediction and its reference, as input for `simultaneous`.

    Args:
        truth: int (n,), true classes.
        predictions: Name -> predicted classes of the same images, int (n,).
        pairs: Name -> name of the prediction that it is compared with.
        groups: (n,) any hashable.
        classes: Number of classes.
        metrics: Name -> metric.
        resamples: Number of random exchanges.
        seed: Seed of the exchanges.

    Returns:
        Pairs in the order of `pairs`, figures in the order of `metrics`.
    """

    def figures(tables: Confusions) -> NDArray[np.float64]:
        return np.stack([of(tables) for of in metrics.values()], -1)

    named = [(predictions[base], predictions[name]) for name, base in pairs.items()]
    return exchange(truth, named, groups, classes, figures, resamples=resamples, seed=seed)


def simultaneous_differences(
    truth: NDArray[np.integer],
    base: NDArray[np.integer],
    others: Mapping[str, NDArray[np.integer]],
    groups: NDArray[np.generic],
    classes: int,
    metrics: Metrics,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Scores of each prediction and differences to `base`.

    The intervals of the differences are one family over all `others` and all `metrics` (see `simultaneous`): the
    probability that any of them excludes 0 by chance is 1 - `level`. The intervals of the scores are those of
    `score_intervals` and are not simultaneous.

    Args:
        truth: int (n,), true classes.
        base: int (n,), predicted classes of the reference.
        others: Name -> predicted classes of the same images, int (n,).
        groups: (n,) any hashable.
        classes: Number of classes.
        metrics: Name -> metric.
        resamples: Number of random exchanges and of bootstrap draws.
        level: Confidence level.
        seed: Seed of both.

    Returns:
        For each of `others`, and for "", which is `base`, for each metric: {"score": {"value", "low", "high"},
        "difference": {"value", "low", "high"}}.
    """
    predictions = {"": base, **others}
    pairs = dict.fromkeys(others, "")
    found = score_intervals(truth, predictions, groups, classes, metrics, resamples=resamples, level=level, seed=seed)
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    out = {name: {m: {"score": scores[m], "difference": nothing} for m in metrics} for name, scores in found.items()}
    if others:
        family = differences(truth, predictions, pairs, groups, classes, metrics, resamples=resamples, seed=seed)
        (more,) = simultaneous([family], level)
        for p, name in enumerate(pairs):
            for m, metric in enumerate(metrics):
                out[name][metric]["difference"] = more.at(p, m)
    return out


def score_intervals(
    truth: NDArray[np.integer],
    predictions: Mapping[str, NDArray[np.integer]],
    groups: NDArray[np.generic],
    classes: int,
    metrics: Metrics,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Differences of each metric for each prediction.

    Accuracy and macro F1 have the intervals of `classification.score_predictions`, so that a run shows the same
    interval in every comparison. Other metrics have percentile intervals of the cluster bootstrap (Davison & Hinkley
    1997, 3.8).

    Args:
        truth: int (n,), true classes.
        predictions: Name -> predicted classes of the same images, int (n,).
        groups: (n,) any hashable.
        classes: Number of classes.
        metrics: Name -> metric.
        resamples: Number of bootstrap draws.
        level: Confidence level.
        seed: Seed of the draws.

    Returns:
        Prediction -> metric -> {"value", "low", "high"}.
    """
    found: dict[str, dict[str, Interval]] = {name: {} for name in predictions}
    member, losses = group_ids(groups)[0], np.zeros(len(truth))
    for name, predicted in predictions.items():
        of = Estimates.of(truth, predicted, losses, member, classes, level, TRAINING_VARIANCE)
        table = confusion_matrix(truth, predicted, classes)
        for metric, how in metrics.items():
            if how is accuracy:
                found[name][metric] = of.accuracy(float((predicted == truth).mean()))
            elif how is macro:
                found[name][metric] = of.macro_f1(float(macro_f1(table)), precision_recall_f1(table)["f1"])
    others = {metric: how for metric, how in metrics.items() if how not in (accuracy, macro)}
    if not others:
        return found
    drawn: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in others}
    for tables in bootstrap_confusions(truth, [*predictions.values()], groups, classes, resamples, seed):
        for metric, how in others.items():
            drawn[metric].append(how(tables))
    for metric, parts in drawn.items():
        every = np.concatenate(parts, axis=1)
        for k, name in enumerate(predictions):
            found[name][metric] = interval(float(every[k, 0]), every[k, 1:], level)
    return {name: {metric: scores[metric] for metric in metrics} for name, scores in found.items()}


def class_differences(
    truth: NDArray[np.integer],
    base: NDArray[np.integer],
    others: Mapping[str, NDArray[np.integer]],
    groups: NDArray[np.generic],
    classes: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """F1 of each class by `base` and by each of `others`, with simultaneous intervals of the differences.

    The intervals are one family over all classes and all `others` (see `simultaneous`), so that they remain valid for a
    prediction that is selected among them. For the arguments see `simultaneous_differences`.

    Returns:
        For each of `others`, one dict for each class with images, in class order: "class" (its number), "support",
        "base" and "other" (F1), and "difference" {"value", "low", "high"}.
    """
    support = np.bincount(truth, minlength=classes)
    there = np.flatnonzero(support)

    def figures(tables: Confusions) -> NDArray[np.float64]:
        return precision_recall_f1(tables)["f1"][..., there]

    pairs = [(base, other) for other in others.values()]
    family = exchange(truth, pairs, groups, classes, figures, by_class=True, resamples=resamples, seed=seed)
    (more,) = simultaneous([family], level)
    cells = truth.astype(np.int64) * classes
    f1 = precision_recall_f1(np.bincount(cells + base, minlength=classes**2).reshape(classes, classes))["f1"]
    return {
        name: [
            {
                "class": int(c),
                "support": int(support[c]),
                "base": float(f1[c]),
                "other": float(f1[c] + more.values[p, k]),
                "difference": more.at(p, k),
            }
            for k, c in enumerate(there)
        ]
        for p, name in enumerate(others)
    }
