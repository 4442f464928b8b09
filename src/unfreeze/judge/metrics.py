"""Scores of out-of-fold predictions, each with an interval from resampling groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.calibration import BINS, bins_of, expected_calibration_error
from unfreeze.judge.resampling import numbered, resampled_sums

Scores = dict[str, Any]


def confusion_matrix(truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Counts, int64 (classes, classes): row = true class, column = predicted class."""
    cells = truth.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def rates(confusion: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall, F1 and support per class from (..., C, C) confusion counts.

    A class that is never predicted has precision 0, one without photos recall 0 (scikit-learn's
    zero_division=0); macro F1 averages over the classes that occur in truth or prediction.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    support, called = confusion.sum(-1), confusion.sum(-2)
    return {
        "precision": _ratio(hits, called),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + called),
        "support": support.astype(np.float64),
        "present": (support + called > 0).astype(np.float64),
    }


def macro_f1(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Macro F1 of (..., C, C) confusion counts: mean F1 over the classes that occur."""
    per_class = rates(confusion)
    return _ratio(per_class["f1"].sum(-1), per_class["present"].sum(-1))


def out_of_fold_scores(
    truth: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    groups: NDArray[Any],
    classes: tuple[str, ...] | list[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Every score of predictions that no model made for a photo it was trained on.

    truth: int (n,), class indices. probabilities: (n, C), rows sum to 1, class order of `classes`.
    groups: (n,) any hashable; photos of a group are resampled together.

    Intervals are percentile bootstrap intervals over groups (Efron & Tibshirani 1993, ch. 13; cluster
    resampling: Davison & Hinkley 1997, 3.8). They tell how the score would vary with other
    groups of photos, not with another training set. Returns a dict that is JSON as it stands:
    accuracy, macro_f1, log_loss, ece: {"value", "low", "high"}; per_class: list of {"class", "support",
    "precision", "recall", "f1"}; confusion; classes; photos; groups; level; resamples; chance: what
    always guessing the largest class scores (and, as log loss, always telling the class shares).
    """
    count, n = len(classes), len(truth)
    predicted = probabilities.argmax(1)
    losses = -np.log(np.clip(probabilities[np.arange(n), truth].astype(np.float64), 1e-15, 1.0))
    confusion = confusion_matrix(truth, predicted, count)
    right = predicted == truth

    member, group_count = numbered(groups)
    cells = truth.astype(np.int64) * count + predicted
    top = probabilities.max(1).astype(np.float64)
    counts, lost, gaps = resampled_sums(
        member,
        [(cells, None, count**2), (np.zeros(n, np.int64), losses, 1), (bins_of(top), top - right, BINS)],
        resamples,
        seed,
    )
    drawn, photos = counts.reshape(-1, count, count), counts.sum(1)
    drawn_loss, drawn_ece = lost[:, 0] / photos, np.abs(gaps).sum(1) / photos

    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])

    def interval(value: float, samples: NDArray[np.float64]) -> dict[str, float]:
        low, high = np.percentile(samples, tails)
        return {"value": float(value), "low": float(low), "high": float(high)}

    per_class, drawn_rates = rates(confusion), rates(drawn)

    def class_interval(name: str, c: int) -> dict[str, float]:
        # A draw without photos of the class says nothing about it.
        there = drawn_rates["support"][:, c] > 0
        value = per_class[name][c]
        return interval(value, drawn_rates[name][there, c] if there.any() else np.array([value]))

    largest = int(confusion.sum(1).argmax())
    shares = confusion.sum(1) / n
    always = np.zeros_like(confusion)
    always[:, largest] = confusion.sum(1)
    accuracy = np.trace(drawn, axis1=1, axis2=2) / drawn.sum((1, 2))
    return {
        "accuracy": interval(right.mean(), accuracy),
        "macro_f1": interval(float(macro_f1(confusion)), macro_f1(drawn)),
        "log_loss": interval(losses.mean(), drawn_loss),
        "ece": interval(expected_calibration_error(top, right), drawn_ece),
        "per_class": [
            {
                "class": called,
                "support": int(per_class["support"][c]),
                **{name: class_interval(name, c) for name in ("precision", "recall", "f1")},
            }
            for c, called in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
        "classes": list(classes),
        "photos": n,
        "groups": group_count,
        "level": level,
        "resamples": resamples,
        "chance": {
            "class": classes[largest],
            "accuracy": float(shares[largest]),
            "macro_f1": float(macro_f1(always)),
            "log_loss": float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0]))),
        },
    }


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> NDArray[np.float64]:
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)
