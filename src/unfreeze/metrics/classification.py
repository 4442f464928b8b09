"""Scores of out-of-fold predictions: accuracy, F1, log loss and calibration error, with intervals over groups.

`score_predictions` computes all scores of a run. `chance_scores` gives the baseline of predictions without any
knowledge of the images. `delivered_scores` estimates the scores of the delivered model.

The delivered model averages the K fold models, each trained on a fraction 1 - 1/K of the images, whereas each
out-of-fold prediction comes from a single fold model. The gain of averaging is estimated without an additional test set
by the same comparison one level down: inside the training part of each fold, models that leave out one further fold
each predict the images of the fold, alone and averaged (`Tally`, `relative_reduction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.core.format import Interval
from unfreeze.metrics.bootstrap import bootstrap_group_sums, group_ids
from unfreeze.metrics.intervals import RATES, TRAINING_VARIANCE, Estimates
from unfreeze.metrics.log_loss import clipped, log_losses

BINS = 10
# Candidate sizes of the true gaps, relative to the observed ones, over which the test is inverted.
_SCALES = np.linspace(0, 2.5, 101)


def expected_calibration_error(
    confidence: NDArray[np.floating],
    right: NDArray[np.bool_],
    weight: NDArray[Any] | None = None,
    bins: int = BINS,
) -> float:
    """Expected calibration error (ECE): mean distance of confidence from accuracy over equal-width bins.

    The estimate is biased upward, because sampling noise alone adds to the distance in each bin. `calibration_error`
    corrects for it.

    Args:
        confidence: (n,), probability of the predicted class.
        right: bool (n,), whether the prediction is correct.
        weight: (n,), by default 1.
        bins: Number of bins.

    References:
        Guo et al. 2017, arXiv:1706.04599.
    """
    weight = np.ones(len(confidence)) if weight is None else weight
    which = bin_index(confidence, bins)
    gap = np.bincount(which, weight * (confidence - right), minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def calibration_error(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], drawn: F64, level: float = 0.95
) -> dict[str, float]:
    """Bias-corrected expected calibration error with an interval.

    Even perfectly calibrated probabilities have an observed error above 0, about 0.04 for 400 images, and a percentile
    interval of resampled errors is biased twice (Kumar, Liang & Ma 2019; Roelofs et al. 2022). Here the true gaps of
    the bins are modeled as the observed ones times a scale, and the resampled deviations are added. The interval
    contains the scales under which an error as large as the observed one is neither too rare nor too frequent (test
    inversion). The value is that of the scale under which the observed error is the median. Scale 0 is the consistency
    test of Broecker & Smith 2007, so `low` is 0 unless that test rejects calibration.

    Args:
        confidence: (n,), probability of the predicted class.
        right: bool (n,), whether the prediction is correct.
        drawn: float64 (resamples, BINS), for each bootstrap draw of groups the sum of confidence - right in each bin,
            divided by the number of rows.
        level: Confidence level.

    Returns:
        {"value", "low", "high"}.

    References:
        Kumar, Liang & Ma 2019, arXiv:1909.10155.
        Roelofs et al. 2022, arXiv:2012.08668.
        Broecker & Smith 2007, Weather and Forecasting 22.
    """
    n, which = len(confidence), bin_index(confidence)
    gaps = np.bincount(which, confidence - right, minlength=BINS) / n
    # Bins without errors vary too little under resampling: use at least the variance of calibrated predictions.
    least = np.bincount(which, confidence * (1 - confidence), minlength=BINS) / n**2
    noise = drawn - gaps
    noise = noise * np.clip(np.sqrt(least / np.maximum(noise.var(0), 1e-12)), 1, 3)
    observed = float(np.abs(gaps).sum())
    as_large = np.array([(np.abs(scale * gaps + noise).sum(1) >= observed).mean() for scale in _SCALES])

    def at(share: float) -> float:
        reached = np.flatnonzero(as_large >= share)
        return float(min(1.0, observed * _SCALES[reached[0] if len(reached) else -1]))

    return {"value": at(0.5), "low": at((1 - level) / 2), "high": at((1 + level) / 2)}


def bin_index(confidence: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """Index of the equal-width bin of each confidence (n,) in 0..1: int64 (n,)."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def reliability(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS) -> list[dict[str, float]]:
    """Reliability curve.

    Args:
        confidence: (n,), probability of the predicted class.
        right: bool (n,), whether the prediction is correct.
        bins: Number of equal-width bins.

    Returns:
        For each nonempty bin `low`, `high`, mean `confidence`, `accuracy` and `count`.
    """
    which = bin_index(np.asarray(confidence), bins)
    curve = []
    for b in range(bins):
        inside = which == b
        if inside.any():
            curve.append(
                {
                    "low": b / bins,
                    "high": (b + 1) / bins,
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return curve


def chance_scores(confusion: NDArray[Any], classes: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Scores of the best baseline strategies without any knowledge of the images.

    Accuracy is that of always predicting the largest class. Log loss is that of the class priors. Macro F1 is the
    largest expected value of three strategies: always the largest class; random predictions by the class priors; and
    the evaluated predictions themselves, permuted over the images (chance agreement as in Cohen 1960, "A coefficient of
    agreement for nominal scales", applied to macro F1). The first alone is far too low: with K equal classes it scores
    2 / (K (K + 1)), whereas a model that knows only the priors scores 1 / K (Lipton, Elkan & Narayanaswamy 2014,
    arXiv:1402.1892).

    Args:
        confusion: (C, C), confusion matrix of the evaluated predictions, rows are true classes.
        classes: Names of the classes.

    Returns:
        JSON-serializable dict: class (the largest one), accuracy, macro_f1, macro_f1_of (name of its strategy) and
        log_loss.
    """
    support = np.asarray(confusion, np.float64).sum(1)
    predicted = np.asarray(confusion, np.float64).sum(0)
    shares = support / support.sum()
    largest = int(support.argmax())
    always = np.eye(len(support))[largest]
    strategies = {
        "random predictions by the class shares": shares,
        f"always '{classes[largest]}'": always,
        "the predictions permuted over the images": predicted / predicted.sum(),
    }
    expected = {name: _expected_macro_f1(shares, rate) for name, rate in strategies.items()}
    best = max(expected, key=lambda name: round(expected[name], 12))  # ties: the simplest strategy
    there = shares[shares > 0]
    return {
        "class": classes[largest],
        "accuracy": float(shares[largest]),
        "macro_f1": expected[best],
        "macro_f1_of": best,
        "log_loss": float(-np.sum(there * np.log(there))),
    }


def _expected_macro_f1(shares: F64, predicted: F64) -> float:
    """Expected macro F1 of predictions that are independent of the truth, over the classes that occur.

    Args:
        shares: float64 (C,), class priors.
        predicted: float64 (C,), rate at which each class is predicted.
    """
    both = shares + predicted
    f1 = np.divide(2 * shares * predicted, both, out=np.zeros_like(both), where=both > 0)
    return float(f1[both > 0].mean())


MEMBERS = 4  # number of models per fold that leave out one further fold
_LEAST, _MOST = -0.2, 0.5  # bounds of the relative reduction; values beyond are noise of very few errors


@dataclass(frozen=True)
class Tally:
    """Sums over the images of a fold, for the predictions of an averaged model and of its M members.

    Attributes:
        counts: float64 (1 + M, 3, C), numbers of images of each class: correct predictions, true class, predicted
            class. The average is first.
        losses: float64 (1 + M,), sums of log losses.
    """

    counts: F64
    losses: F64

    @classmethod
    def of(cls, truth: NDArray[np.integer], members: Sequence[F64]) -> Tally:
        """Compute the sums from labels and member predictions.

        Args:
            truth: int (n,), true classes.
            members: float64 (n, C) each, probabilities of the members.
        """
        counts, losses, classes = [], [], members[0].shape[1]
        for proba in (np.mean(members, axis=0), *members):
            called = proba.argmax(1)
            kinds = (truth[called == truth], truth, called)
            counts.append(np.stack([np.bincount(kind, minlength=classes) for kind in kinds]))
            losses.append(log_losses(truth, proba).sum())
        return cls(np.array(counts, np.float64), np.array(losses, np.float64))


def relative_reduction(tallies: Sequence[Tally], folds: int) -> dict[str, float]:
    """Relative reduction of each error by averaging the fold models.

    The errors are 1 - accuracy, 1 - macro F1 and log loss. Suppose that errors fall as 1/n with the number n of
    training images, and that an average of models that leave out one part each is as good as one model trained on all
    parts. Then averaging K models gains 1/(1 - 1/K) - 1 in units of that error. The models measured here leave out two
    of K folds and gain 1/(1 - 2/K) - 1/(1 - 1/K). The measured gain is multiplied by the ratio of the two, which is .6
    for five folds. In the draws of docs/method.md the actual ratio was 0.8 to 1.1; the difference is left to the
    training variance, since the measurement is noisy.

    Args:
        tallies: Sums of all folds.
        folds: Number of folds K.

    Returns:
        Relative reductions with the keys accuracy, macro_f1 and log_loss; empty with fewer than three folds.
    """
    if not tallies or folds < 3:
        return {}
    counts, losses = sum(t.counts for t in tallies), sum(t.losses for t in tallies)
    hits, support, called = (np.asarray(counts)[:, i] for i in range(3))
    bottom = support + called
    f1 = np.divide(2 * hits, bottom, out=np.zeros_like(hits), where=bottom > 0)
    errors = {
        "accuracy": 1 - hits.sum(1) / support.sum(1),
        "macro_f1": 1 - f1.sum(1) / (bottom > 0).sum(1),
        "log_loss": np.asarray(losses) / support.sum(1),
    }
    one, two = 1 / (1 - 1 / folds), 1 / (1 - 2 / folds)
    scale = (one - 1) / (two - one)
    return {name: _share(error, scale) for name, error in errors.items()}


def _share(error: F64, scale: float) -> float:
    alone = float(error[1:].mean())
    return float(np.clip(scale * (alone - error[0]) / alone, _LEAST, _MOST)) if alone > 0 else 0.0


def reduced(name: str, value: float, reduction: float) -> float:
    """Score after its error is reduced by a fraction.

    Args:
        name: accuracy, macro_f1 or log_loss.
        value: The score.
        reduction: Fraction of the error that is removed.
    """
    return value * (1 - reduction) if name == "log_loss" else value + reduction * (1 - value)


Scores = dict[str, Any]
Values = dict[str, float]  # accuracy, macro_f1 and log_loss without intervals


def confusion_matrix(truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Confusion matrix, int64 (classes, classes): rows are true classes, columns predicted classes."""
    cells = truth.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def precision_recall_f1(confusion: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall, F1 and support of each class.

    As with scikit-learn's ``zero_division=0``, a class that is never predicted has precision 0, and one without images
    has recall 0.

    Args:
        confusion: (..., C, C), confusion matrices.

    Returns:
        float64 (..., C) for the keys precision, recall, f1, support, and present: 1 for classes that occur in truth or
        prediction, else 0.
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
    """Macro F1: mean F1 over the classes that occur in truth or prediction.

    Args:
        confusion: (..., C, C), confusion matrices.

    Returns:
        float64 (...).
    """
    per_class = precision_recall_f1(confusion)
    return _ratio(per_class["f1"].sum(-1), per_class["present"].sum(-1))


def score_values(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> Values:
    """Accuracy, macro F1 and log loss, without intervals.

    Args:
        truth: int (n,), true classes.
        probabilities: (n, C).
    """
    predicted = probabilities.argmax(1)
    return {
        "accuracy": float((predicted == truth).mean()),
        "macro_f1": float(macro_f1(confusion_matrix(truth, predicted, probabilities.shape[1]))),
        "log_loss": float(log_losses(truth, probabilities).mean()),
    }


def delivered_scores(
    truth: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    groups: NDArray[Any],
    mean: Values,
    reduction: Values,
    *,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Expected scores of the delivered model, the average of all fold models, on images of unseen groups.

    Args:
        truth: As in `score_predictions`.
        probabilities: As in `score_predictions`.
        groups: As in `score_predictions`.
        mean: Out-of-fold scores, averaged over the fold assignments if there are several.
        reduction: Relative reduction of each error by averaging (`relative_reduction`); missing keys mean 0.
        level: Confidence level.

    Returns:
        accuracy, macro_f1 and log_loss as {"value", "low", "high"}. The interval of macro F1 is centered on the value
        minus its jackknife bias.
    """
    count, predicted = probabilities.shape[1], probabilities.argmax(1)
    member, _ = group_ids(groups)
    losses = log_losses(truth, probabilities)
    estimate = Estimates.of(truth, predicted, losses, member, count, level, TRAINING_VARIANCE)
    by_class = precision_recall_f1(confusion_matrix(truth, predicted, count))["f1"]
    values = {name: reduced(name, value, reduction.get(name, 0.0)) for name, value in mean.items()}
    corrected = min(max(values["macro_f1"] - estimate.groups.bias, 0.0), 1.0)
    return {
        "accuracy": estimate.accuracy(values["accuracy"]),
        "macro_f1": estimate.macro_f1(corrected, by_class, corrected=True),
        "log_loss": estimate.log_loss(values["log_loss"]),
    }


def score_predictions(
    truth: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    groups: NDArray[Any],
    classes: tuple[str, ...] | list[str],
    *,
    held_out: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Compute all scores of out-of-fold or held-out predictions.

    Args:
        truth: int (n,), true classes.
        probabilities: (n, C), rows sum to 1, columns in the order of `classes`.
        groups: (n,) any hashable; images of a group are treated as dependent.
        classes: Class names.
        held_out: Whether the images had no part in training at all, as in a test split. Intervals then exclude the
            variance that cross-validation adds (`intervals.TRAINING_VARIANCE`).
        resamples: Bootstrap draws of the groups for the interval of the calibration error.
        level: Confidence level.
        seed: Seed of the draws.

    Returns:
        JSON-serializable dict:
        accuracy, macro_f1, log_loss, ece: {"value", "low", "high"} (see `metrics.intervals`);
        log_loss_clipped: number of images whose probability is below the floor of `metrics.log_loss`;
        per_class: list of {"class", "support", "precision", "recall", "f1"};
        confusion, classes, photos (number of images), groups (number of groups), level;
        approximate: why the intervals are approximate, or empty;
        chance: scores without any knowledge of the images (`chance_scores`).
    """
    count, n = len(classes), len(truth)
    predicted = probabilities.argmax(1)
    losses = log_losses(truth, probabilities)
    confusion = confusion_matrix(truth, predicted, count)
    right = predicted == truth

    member, group_count = group_ids(groups)
    estimate = Estimates.of(truth, predicted, losses, member, count, level, 0.0 if held_out else TRAINING_VARIANCE)
    top = probabilities.max(1).astype(np.float64)
    (gaps,) = bootstrap_group_sums(member, [(bin_index(top), top - right, BINS)], resamples, seed)
    (photos,) = bootstrap_group_sums(member, [(np.zeros(n, np.int64), None, 1)], resamples, seed)

    per_class = precision_recall_f1(confusion)
    return {
        "accuracy": estimate.accuracy(float(right.mean())),
        "macro_f1": estimate.macro_f1(float(macro_f1(confusion)), per_class["f1"]),
        "log_loss": estimate.log_loss(float(losses.mean())),
        "log_loss_clipped": clipped(truth, probabilities),
        "ece": calibration_error(top, right, gaps / photos, level),
        "per_class": [
            {
                "class": called,
                "support": int(per_class["support"][c]),
                **{name: estimate.of_class(name, c, float(per_class[name][c])) for name in RATES},
            }
            for c, called in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
        "classes": list(classes),
        "photos": n,
        "groups": group_count,
        "level": level,
        "approximate": estimate.why_approximate(classes),
        "chance": chance_scores(confusion, classes),
    }


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> NDArray[np.float64]:
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)
