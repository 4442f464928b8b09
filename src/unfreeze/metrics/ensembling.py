"""Ensembling: greedy blending weights, the expected score of a selected model, and group votes.

Group votes combine the predictions of all images of a group for attributes that they share, such as the age of a
person.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Proba, Rows
from unfreeze.core.errors import ProbabilityError
from unfreeze.core.messages import setting
from unfreeze.metrics.bootstrap import group_ids, group_weights
from unfreeze.metrics.classification import macro_f1
from unfreeze.metrics.log_loss import log_loss

ROUNDS = 50


def greedy_ensemble_weights(
    truth: NDArray[np.integer], probas: Sequence[Proba], rounds: int = ROUNDS
) -> NDArray[np.float64]:
    """Blending weights by greedy ensemble selection with replacement.

    Starts from the best single prediction. Each round adds the prediction that most reduces the log loss of the mean.
    The weights of the best round are returned, those of the earliest one in case of ties. The criterion is log loss,
    not macro F1: it is smooth, so that a few images do not decide.

    Args:
        truth: int (n,), true classes.
        probas: m arrays (n, C), out-of-fold probabilities.
        rounds: Number of rounds.

    Returns:
        float64 (m,), sum 1.

    Raises:
        ValueError: If there are no predictions.

    References:
        Caruana et al. 2004, ICML, sections 2 and 2.2.
    """
    if not len(probas):
        raise ValueError("greedy_ensemble_weights: no predictions to choose from")
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


def require_finite(proba: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities after a check for NaN and infinity, whose argmax would be class 0.

    Raises:
        ProbabilityError: If a value is not finite.
    """
    if not np.isfinite(proba).all():
        raise ProbabilityError(
            "the networks give probabilities that are not finite numbers. The weights are damaged, or the precision of "
            f"the engine is too low for them; fit the run again, or try {setting('engine', 'torch')}."
        )
    return proba


def weighted_mean(probas: Sequence[Proba], weights: NDArray[np.float64]) -> Proba:
    """Weighted mean of m arrays (n, C), with weights (m,): (n, C)."""
    mean: Proba = np.tensordot(weights, np.stack(probas), 1)
    return mean


def nested_blend(
    truth: NDArray[np.integer], probas: Sequence[Proba], folds: NDArray[np.integer]
) -> tuple[Proba, Proba]:
    """Nested evaluation of blending: weights are selected on the other folds.

    Args:
        truth: int (n,), true classes.
        probas: m arrays (n, C), out-of-fold probabilities.
        folds: int (n,), fold of each image; groups must not be split.

    Returns:
        Blended probabilities (n, C), and those of the best single prediction (n, C); for each fold, the weights and the
        best one are selected on the other folds.
    """
    blend, single = np.empty_like(probas[0]), np.empty_like(probas[0])
    for fold in np.unique(folds):
        inner, outer = folds != fold, folds == fold
        weights = greedy_ensemble_weights(truth[inner], [p[inner] for p in probas])
        blend[outer] = weighted_mean([p[outer] for p in probas], weights)
        best = int(np.argmin([log_loss(truth[inner], p[inner]) for p in probas]))
        single[outer] = probas[best][outer]
    return blend, single


# Maximum number of table cells, or of group weights, of the draws held at once.
_MOST_CELLS = 4 << 20


def score_of_the_best(
    truth: NDArray[np.integer],
    predictions: Sequence[NDArray[np.integer]],
    groups: NDArray[np.generic],
    classes: int,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> float:
    """Expected macro F1 of the best of several predictions, corrected for the selection on the same images.

    The highest score is biased upward by the selection. In each bootstrap draw of groups, the best prediction is
    selected on the drawn groups and scored on the groups that were not drawn. Its advantage there over the mean of all
    predictions, averaged over the draws, is added to their mean score on all images. The result is at most the highest
    score. Only the advantage is taken from the draws, because macro F1 on the third of the groups that is not drawn is
    lower than on all groups; the mean needs no correction.

    Args:
        truth: int (n,), true classes.
        predictions: int (n,) each, predicted classes of the same images.
        groups: (n,) any hashable.
        classes: Number of classes.
        resamples: Number of draws.
        seed: Seed of the draws.

    References:
        Bootstrap bias corrected cross-validation: Tsamardinos, Greasidou & Borboudakis 2018, Machine Learning 107.
    """
    from scipy.sparse import csr_array

    member, count = group_ids(groups)
    rows, ones = truth.astype(np.int64) * classes, np.ones(len(truth))
    of_groups = [csr_array((ones, (rows + p, member)), (classes**2, count)) for p in predictions]

    def scored(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Macro F1 (predictions, draws) for group weights (groups, draws)."""
        tables = np.stack([(table @ weights).T.reshape(-1, classes, classes) for table in of_groups])
        return macro_f1(tables)

    whole = scored(np.ones((count, 1)))[:, 0]
    at_once = max(1, _MOST_CELLS // max(count, len(predictions) * classes**2))
    draws, more = group_weights(np.arange(count), resamples, seed), list[NDArray[np.float64]]()
    while some := list(islice(draws, at_once)):
        times = np.stack(some, 1)
        left = (times == 0).astype(np.float64)
        times, left = times[:, left.any(0)], left[:, left.any(0)]
        best, apart = scored(times).argmax(0), scored(left)
        more.append(apart[best, np.arange(len(best))] - apart.mean(0))
    found = np.concatenate(more)
    corrected = whole.mean() + (float(found.mean()) if len(found) else 0.0)
    return float(min(whole.max(), corrected))


# Candidate exponents: 1 is the confidence of the mean image; the number of images would be right for independent ones.
SHARPNESS = (1.0, 1.5, 2.0, 3.0, 5.0)
_FLOOR = 1e-9


def apply_group_vote(proba: Proba, shared: Rows, groups: NDArray[np.generic], sharpness: float = 1.0) -> Proba:
    """Combine the predictions of each group's images for the attribute that they share.

    The group's probability of a value is the geometric mean over its images, to the power `sharpness`, normalized
    (product of experts: Hinton 2002). Within a value, each image keeps its own class probabilities: p'(class) = p(class
    | value) P(value of the group).

    Args:
        proba: (n, C), class probabilities.
        shared: int (C,), for each class the number of the shared attribute's value; `arange(C)` if the class itself is
            shared.
        groups: (n,) any hashable.
        sharpness: Exponent of the group's probabilities; groups of a single image use 1.

    Returns:
        (n, C).
    """
    values = int(shared.max()) + 1
    own = np.zeros((len(proba), values))
    for value in range(values):
        own[:, value] = proba[:, shared == value].sum(1)
    logs = np.log(np.maximum(own, _FLOOR))
    _, member, counts = np.unique(np.asarray(groups).astype(str), return_inverse=True, return_counts=True)
    total = np.zeros((len(counts), values))
    np.add.at(total, member, logs)
    mean = total / counts[:, None]
    # Nothing to combine in a group of one image.
    power = np.where(counts > 1, sharpness, 1.0)[:, None]
    scaled = power * mean
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    agreed = (scaled / scaled.sum(1, keepdims=True))[member]
    ratio = agreed / np.maximum(own, _FLOOR)
    found: Proba = proba * ratio[:, shared]
    found /= np.maximum(found.sum(1, keepdims=True), _FLOOR)
    return found


def choose_exponent(truth: Rows, proba: Proba, shared: Rows, groups: NDArray[np.generic]) -> float:
    """Select the exponent from SHARPNESS with the smallest log loss.

    Args:
        truth: int (n,), true classes.
        proba: (n, C), out-of-fold probabilities.
        shared: As in `apply_group_vote`.
        groups: As in `apply_group_vote`.
    """
    losses = [log_loss(truth, apply_group_vote(proba, shared, groups, power)) for power in SHARPNESS]
    return SHARPNESS[int(np.argmin(losses))]


def nested_votes(truth: Rows, proba: Proba, shared: Rows, groups: NDArray[np.generic], folds: Rows) -> Proba:
    """Group votes of each fold with the exponent selected on the other folds: (n, C)."""
    out = np.empty_like(proba)
    for fold in np.unique(folds):
        inner, outer = folds != fold, folds == fold
        power = choose_exponent(truth[inner], proba[inner], shared, groups[inner])
        out[outer] = apply_group_vote(proba[outer], shared, groups[outer], power)
    return out
