"""Label shift: class priors of a test set by EM, and the score to expect there.

The expected score follows from the estimated priors and the calibrated probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64, Rows
from unfreeze.metrics.bootstrap import group_ids, group_weights, interval, soft_confusion, weighted_confusion
from unfreeze.metrics.calibration import TemperatureScaling, fit_scaling
from unfreeze.metrics.classification import macro_f1
from unfreeze.metrics.intervals import quantile

_EM_STEPS, _NEAR = 2000, 1e-7
_FLOOR = 1e-9
# Simultaneous confidence level of the test that a class prior differs: an alarm that is false in one set of a hundred.
_LEVEL = 0.99


def estimate_priors(proba: F64, priors: F64, weight: F64 | None = None, start: F64 | None = None) -> F64:
    """Maximum likelihood class priors of unlabeled images, by EM.

    Args:
        proba: float64 (n, C), probabilities calibrated for the class priors `priors`.
        priors: float64 (C,).
        weight: float64 (n,), sample weights, by default 1.
        start: float64 (C,), starting point, by default `priors`.

    Returns:
        float64 (C,), sum 1.
    """
    w = np.ones(len(proba)) if weight is None else weight
    ratio = proba / np.maximum(priors, _FLOOR)
    shares = np.maximum(priors if start is None else start, _FLOOR)
    for _ in range(_EM_STEPS):
        own = ratio * shares
        own /= np.maximum(own.sum(1, keepdims=True), 1e-300)
        fresh = w @ own / w.sum()
        moved = float(np.abs(fresh - shares).max())
        shares = np.maximum(fresh, 1e-12)
        if moved < _NEAR:
            break
    return np.asarray(shares / shares.sum())


def adjust_to_priors(proba: F64, priors: F64, new: F64) -> F64:
    """Convert probabilities from the class priors `priors` to `new`: float64 (n, C)."""
    own = proba * (new / np.maximum(priors, _FLOOR))
    return np.asarray(own / np.maximum(own.sum(1, keepdims=True), 1e-300))


@dataclass(frozen=True)
class ExpectedScore:
    """Expected score on unlabeled images.

    Figures are {"value", "low", "high"} with 95% intervals over the groups of both sets.

    Attributes:
        training: float64 (C,), class priors of the training images.
        shares: Figure of the prior of each class in the test set, by EM.
        significant: bool (C,), whether that prior differs significantly from the training prior, simultaneously over
        all
            classes.
        distance: Total variation distance of the two priors.
        judged: Out-of-fold macro F1.
        by_shares: Figure: loss of macro F1 due to the change of priors.
        by_doubt: Figure: loss of macro F1 due to lower confidence on the test images than on the out-of-fold images.
        macro_f1: Figure: the remaining macro F1, with a prediction interval for this number of images.
        spread: Design effect by which the effective size of the test set is divided because its groups are unknown; 1
            if they are known.
    """

    training: F64
    shares: list[dict[str, float]]
    significant: NDArray[np.bool_]
    distance: float
    judged: float
    by_shares: dict[str, float]
    by_doubt: dict[str, float]
    macro_f1: dict[str, float]
    spread: float


def expected_score(
    proba: F64,
    labels: Rows,
    groups: NDArray[Any],
    folds: Rows,
    test: F64,
    test_groups: NDArray[Any],
    resamples: int = 200,
    seed: int = 0,
) -> ExpectedScore:
    """Expected macro F1 on unlabeled test images.

    Both sets of probabilities are calibrated here, those of each fold by a scaling fitted on the other folds. Class
    priors are estimated by EM. The rows of the out-of-fold confusion matrix are reweighted to them, which gives
    `by_shares`. The macro F1 that the calibrated probabilities imply is compared between the training images,
    reweighted to these priors, and the test images, which gives `by_doubt` (difference of confidences: Guillory et al.
    2021, arXiv:2107.03315, here for macro F1). Confident errors are not detected.

    For the intervals, the groups of both sets are resampled, and calibration, EM and everything that follows are
    repeated on each draw; the calibrations of the folds are shifted by the change of the overall one. The interval of
    macro_f1 is centered on its value, as resampled macro F1 is biased downward. It is a prediction interval for this
    test set: resampling its groups stands for the sampling of its labels. If the training images come in groups and
    every test image is its own group, the test groups are considered unknown. The effective size of the test set is
    then divided by the design effect of the training images (`design_effect`).

    Args:
        proba: float64 (n, C), out-of-fold probabilities of the training images.
        labels: int64 (n,), true classes of the training images.
        groups: (n,) any hashable.
        folds: int64 (n,), fold of each training image.
        test: float64 (m, C), probabilities of the test images by models of the same kind (one fold model each, not
            their mean).
        test_groups: (m,) any hashable.
        resamples: Number of draws.
        seed: Seed of the draws.
    """
    classes = proba.shape[1]
    whole = fit_scaling(proba, labels, biases=True)
    every = np.unique(folds)
    nested = {int(k): fit_scaling(proba[folds != k], labels[folds != k], biases=True) for k in every}
    called, test_called = proba.argmax(1), test.argmax(1)

    def measured(
        w: F64, v: F64, start: F64 | None, scaling: TemperatureScaling, by_fold: dict[int, TemperatureScaling]
    ) -> tuple[F64, F64, float, float, float]:
        own = np.empty_like(proba)
        for k, fitted in by_fold.items():
            own[folds == k] = fitted(proba[folds == k])
        training = np.bincount(labels, weights=w, minlength=classes) / w.sum()
        fresh = scaling(test)
        shares = estimate_priors(fresh, training, v, start)
        ratio = shares / np.maximum(training, _FLOOR)
        hard = weighted_confusion(labels, called, classes, w)
        judged = float(macro_f1(hard))
        moved = float(macro_f1(hard * ratio[:, None]))
        # Training images are reweighted to the estimated priors.
        before = float(macro_f1(soft_confusion(adjust_to_priors(own, training, shares), called, w * ratio[labels])))
        after = float(macro_f1(soft_confusion(adjust_to_priors(fresh, training, shares), test_called, v)))
        return training, shares, judged, judged - moved, before - after

    ones, test_ones = np.ones(len(labels)), np.ones(len(test))
    training, shares, judged, by_shares, by_doubt = measured(ones, test_ones, None, whole, nested)
    hidden = groups_hidden(groups, test_groups)
    spread = design_effect(proba, labels, groups) if hidden else 1.0
    draws = np.random.default_rng([seed, 1])
    test_member, test_count = group_ids(test_groups)
    size = max(2, round(test_count / spread))
    drawn = []
    for w in group_weights(groups, resamples, seed):
        v = np.bincount(draws.integers(0, test_count, size), minlength=test_count)[test_member].astype(np.float64)
        again = fit_scaling(proba, labels, biases=True, weight=w, start=whole)
        by_fold = {k: own.moved(again.scale - whole.scale, again.bias - whole.bias) for k, own in nested.items()}
        drawn.append(measured(w, v, shares, again, by_fold))
    trainings, others = (np.array([d[i] for d in drawn]) for i in (0, 1))
    # With few groups a bootstrap is too narrow; the smaller set counts.
    factor = quantile(_LEVEL, min(group_ids(groups)[1], size)) / quantile(_LEVEL, 1_000_000)
    off = others - trainings
    deviation = np.maximum(off.std(0), 1e-4) * factor
    largest = (np.abs(off - off.mean(0)) / np.maximum(off.std(0), 1e-4)).max(1)
    significant = np.abs(shares - training) > np.quantile(largest, _LEVEL, method="higher") * deviation
    scores = np.array([d[2] - d[3] - d[4] for d in drawn])
    return ExpectedScore(
        training,
        [interval(shares[c], others[:, c]) for c in range(classes)],
        significant,
        float(np.abs(shares - training).sum() / 2),
        judged,
        interval(by_shares, np.array([d[3] for d in drawn])),
        interval(by_doubt, np.array([d[4] for d in drawn])),
        _around(judged - by_shares - by_doubt, float(scores.std(ddof=1)), min(group_ids(groups)[1], size)),
        spread,
    )


def groups_hidden(groups: NDArray[Any], test_groups: NDArray[Any]) -> bool:
    """Whether the training images come in groups but the test images do not.

    Images come in groups if there are fewer than 0.9 groups per image.
    """
    return group_ids(groups)[1] < 0.9 * len(groups) and group_ids(test_groups)[1] >= 0.9 * len(test_groups)


def design_effect(proba: F64, labels: Rows, groups: NDArray[Any]) -> float:
    """Design effect of the groups: variance of a mean relative to that of as many independent rows, at least 1.

    It is the largest over the mean probability of each class and the accuracy.

    Args:
        proba: float64 (n, C).
        labels: int64 (n,), true classes.
        groups: (n,) any hashable.

    References:
        Kish 1965, "Survey Sampling".
    """
    member, count = group_ids(groups)
    columns = np.column_stack([proba, proba.argmax(1) == labels])
    off = columns - columns.mean(0)
    sums = np.zeros((count, off.shape[1]))
    np.add.at(sums, member, off)
    alone = (off**2).sum(0)
    there = alone > 0
    return float(max(1.0, ((sums**2).sum(0)[there] / alone[there]).max(initial=1.0)))


def _around(value: float, deviation: float, count: int, level: float = 0.95) -> dict[str, float]:
    """Normal interval within 0..1, centered on the value.

    Used instead of a percentile interval, because macro F1 of resamples is biased downward in small samples.
    """
    half = quantile(level, count) * deviation
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
