"""Several predictions of the same photos against one: differences with intervals that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import macro_f1, rates

Confusions = NDArray[np.float64]
# Name -> function of (..., C, C) confusion counts to (...,) scores.
Metrics = Mapping[str, Callable[[Confusions], NDArray[np.float64]]]


def recall_of(classes: list[int]) -> Callable[[Confusions], NDArray[np.float64]]:
    """Mean recall of these classes; a draw of photos without one of them counts the others."""

    def score(confusion: Confusions) -> NDArray[np.float64]:
        per_class = rates(confusion)
        there = per_class["support"][..., classes] > 0
        total = (per_class["recall"][..., classes] * there).sum(-1)
        found: NDArray[np.float64] = total / np.maximum(there.sum(-1), 1)
        return found

    return score


def accuracy(confusion: Confusions) -> NDArray[np.float64]:
    """Share of photos told right."""
    right: NDArray[np.float64] = np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-1, -2))
    return right


def macro(confusion: Confusions) -> NDArray[np.float64]:
    """Macro F1."""
    return macro_f1(confusion)


def many_differences(
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
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Scores of each prediction, and what it scores more than `base`, over the same resampled groups.

    truth, base, others: int (n,), classes of the same photos. groups: (n,) any hashable. Gives for each of `others`,
    and for "" which is `base`, for each metric {"score": {"value", "low", "high"}, "difference": {...}}.

    A score's interval is the percentile interval of the bootstrap over groups (Davison & Hinkley 1997, 3.8). Those of
    the differences are simultaneous for all of `others`, a metric at a time: value +- q times its bootstrap deviation,
    where q is the `level` quantile of the largest studentised deviation of a draw (max-t: Westfall & Young 1993;
    Romano & Wolf 2005). With one of `others` it is the usual interval; with many, that none of them excludes 0 by
    chance alone has the probability `level`.
    """
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    count, draws = int(member.max()) + 1, np.random.default_rng(seed)
    names = ["", *others]
    cells = [truth.astype(np.int64) * classes + p for p in (base, *others.values())]
    tables = np.empty((len(names), 1 + resamples, classes, classes))
    for i in range(1 + resamples):
        times = np.bincount(draws.integers(0, count, count), minlength=count) if i else np.ones(count)
        weight = times[member]
        for k, cell in enumerate(cells):
            tables[k, i] = np.bincount(cell, weights=weight, minlength=classes**2).reshape(classes, classes)
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {} for name in names}
    for metric, of in metrics.items():
        scores = of(tables)  # (1 + others, 1 + resamples)
        ends = np.percentile(scores[:, 1:], tails, axis=1).T
        differences = scores - scores[:1]
        values, deviation = differences[:, 0], differences[:, 1:].std(1)
        sure = np.maximum(deviation, 1e-12)
        largest = (np.abs(differences[:, 1:] - values[:, None]) / sure[:, None])[1:].max(0, initial=0)
        half = np.quantile(largest, level) * deviation
        for k, name in enumerate(names):
            found[name][metric] = {
                "score": _interval(scores[k, 0], *ends[k]),
                "difference": _interval(values[k], values[k] - half[k], values[k] + half[k]),
            }
    return found


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": float(value), "low": float(low), "high": float(high)}
