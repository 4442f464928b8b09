"""Weights of several predictions of the same photos, chosen where all of them are out of fold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Proba = NDArray[np.float64]

ROUNDS = 50
_FLOOR = 1e-7


def log_loss(truth: NDArray[np.integer], proba: Proba) -> float:
    """Mean negative log-probability of the true classes: truth int (n,), proba (n, C)."""
    return float(-np.log(np.maximum(proba[np.arange(len(truth)), truth], _FLOOR)).mean())


def greedy_weights(truth: NDArray[np.integer], probas: Sequence[Proba], rounds: int = ROUNDS) -> NDArray[np.float64]:
    """Shares float64 (m,), sum 1, of m predictions: ensemble selection (Caruana et al. 2004, ICML, sections 2 and 2.2).

    truth: int (n,). probas: m arrays (n, C), out of fold. Starts from the best one alone, then adds, with repetition,
    whichever lowers the log loss of the mean most; the best of all rounds is kept, the smallest of equals. The log
    loss and not macro F1 decides: it is smooth, so that a handful of photos does not choose.
    """
    if not len(probas):
        raise ValueError("greedy_weights: no predictions to choose from")
    counts = np.zeros(len(probas), np.int64)
    total = np.zeros_like(probas[0], np.float64)
    best, kept = np.inf, counts
    for round_ in range(1, rounds + 1):
        losses = [log_loss(truth, (total + proba) / round_) for proba in probas]
        chosen = int(np.argmin(losses))
        counts = counts.copy()
        counts[chosen] += 1
        total = total + probas[chosen]
        if losses[chosen] < best - 1e-9:
            best, kept = losses[chosen], counts
    found: NDArray[np.float64] = kept / kept.sum()
    return found


def blended(probas: Sequence[Proba], weights: NDArray[np.float64]) -> Proba:
    """The weighted mean, (n, C)."""
    mean: Proba = np.tensordot(weights, np.stack(probas), 1)
    return mean


def nested_blend(
    truth: NDArray[np.integer], probas: Sequence[Proba], folds: NDArray[np.integer]
) -> tuple[Proba, Proba]:
    """What a blend, and the best single prediction, are worth on photos that had no part in choosing.

    folds: int (n,), groups whole. For each fold weights, and the best one, are chosen on the other folds. Gives
    the blend (n, C) and the single ones (n, C).
    """
    blend, single = np.empty_like(probas[0]), np.empty_like(probas[0])
    for fold in np.unique(folds):
        inner, outer = folds != fold, folds == fold
        weights = greedy_weights(truth[inner], [p[inner] for p in probas])
        blend[outer] = blended([p[outer] for p in probas], weights)
        best = int(np.argmin([log_loss(truth[inner], p[inner]) for p in probas]))
        single[outer] = probas[best][outer]
    return blend, single
