"""Several predictions of the same photos against one: differences with intervals that hold for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import macro_f1, rates
from unfreeze.judge.resampling import drawn_confusions

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
    names = ["", *others]
    told: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in metrics}
    for tables in drawn_confusions(truth, [base, *others.values()], groups, classes, resamples, seed):
        for metric, of in metrics.items():
            told[metric].append(of(tables))
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {name: {} for name in names}
    for metric, parts in told.items():
        every = np.concatenate(parts, axis=1)
        ends = np.percentile(every[:, 1:], tails, axis=1).T
        differences = every - every[:1]
        values, half = differences[:, 0], _half_widths(differences[1:], level)
        for k, name in enumerate(names):
            wide = half[k - 1] if k else 0.0
            found[name][metric] = {
                "score": _interval(every[k, 0], *ends[k]),
                "difference": _interval(values[k], values[k] - wide, values[k] + wide),
            }
    return found


def class_differences(
    truth: NDArray[np.integer],
    base: NDArray[np.integer],
    other: NDArray[np.integer],
    groups: NDArray[np.generic],
    classes: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """F1 of each class by two predictions of the same photos, and what `other` has more than `base`.

    Arguments as of `many_differences`. One dict for each class with photos, in class order: "class" (its number),
    "support", "base", "other" (F1) and "difference" {"value", "low", "high"}, whose intervals hold for all classes at
    once, by the same max-t. A draw without photos of a class counts its F1 as 0 in both.
    """
    drawn = drawn_confusions(truth, [base, other], groups, classes, resamples, seed)
    f1 = np.concatenate([rates(tables)["f1"] for tables in drawn], axis=1)
    support = np.bincount(truth, minlength=classes)
    there = np.flatnonzero(support)
    more = (f1[1] - f1[0])[:, there].T
    half = _half_widths(more, level)
    return [
        {
            "class": int(c),
            "support": int(support[c]),
            "base": float(f1[0, 0, c]),
            "other": float(f1[1, 0, c]),
            "difference": _interval(more[k, 0], more[k, 0] - half[k], more[k, 0] + half[k]),
        }
        for k, c in enumerate(there)
    ]


def _half_widths(differences: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """(k,) half widths of simultaneous intervals for differences (k, 1 + draws), the first column as they are."""
    if not len(differences):
        return np.zeros(0)
    values, deviation = differences[:, :1], differences[:, 1:].std(1)
    sure = np.maximum(deviation, 1e-12)
    largest = (np.abs(differences[:, 1:] - values) / sure[:, None]).max(0)
    wide: NDArray[np.float64] = np.quantile(largest, level) * deviation
    return wide


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": float(value), "low": float(low), "high": float(high)}
