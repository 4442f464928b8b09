"""Temperature scaling, and decision offsets that maximize macro F1.

Scaling: one temperature, optionally with a bias for each class, is fitted on out-of-fold probabilities. Temperature
scaling is Guo et al. 2017 (arXiv:1706.04599). With biases it is bias-corrected temperature scaling, which Alexandari,
Kundaje & Shrikumar 2020 (arXiv:1901.06852) found to work best before the estimation of class priors.

Decisions: the most probable class maximizes expected accuracy but not macro F1, which weights rare classes as much as
frequent ones (Lipton, Elkan & Narayanaswamy 2014, arXiv:1402.1892). Offsets added to the log-probabilities change the
decision. Two rules are available: a single power of the class priors that is divided out (logit adjustment: Menon et
al. 2021, arXiv:2007.07314), and one offset for each class.

The ``nested_*`` functions evaluate both without leakage: each fold uses parameters fitted on the other folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfreeze.core.arrays import F64, Rows
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.log_loss import FLOOR

_HARDEST, _SOFTEST = 50.0, 0.02
_STEPS = 40
# Ridge penalties on scale - 1 and on each bias, in units of the log loss of one image: relevant only in tiny data sets.
_RIDGE, _RIDGE_BIAS = 1e-3, 0.5


@dataclass(frozen=True)
class TemperatureScaling:
    """Calibration map p -> softmax(scale * log p + bias).

    Attributes:
        scale: Inverse temperature; above 1 sharpens the probabilities.
        bias: float64 (C,), added to the scaled log-probabilities.
    """

    scale: float
    bias: F64

    @property
    def temperature(self) -> float:
        """Temperature; above 1 if the original probabilities were overconfident."""
        return 1 / self.scale

    def moved(self, scale: float, bias: F64) -> TemperatureScaling:
        """Copy with increments `scale` and `bias` added; the scale is clipped to the range of a fitted one."""
        return TemperatureScaling(float(np.clip(self.scale + scale, _SOFTEST, _HARDEST)), self.bias + bias)

    def __call__(self, proba: F64) -> F64:
        """Calibrate probabilities, float64 (n, C)."""
        return _softmax(self.scale * _logs(proba) + self.bias)


def fit_scaling(
    proba: F64, labels: Rows, biases: bool = False, weight: F64 | None = None, start: TemperatureScaling | None = None
) -> TemperatureScaling:
    """Fit a temperature scaling by minimizing the log loss.

    The loss is convex in scale and biases; it is minimized with Newton's method.

    Args:
        proba: float64 (n, C), out-of-fold probabilities.
        labels: int64 (n,), true classes.
        biases: Whether to fit a bias for each class.
        weight: float64 (n,), sample weights, by default 1.
        start: Starting point, to reduce the number of steps.
    """
    logs, classes = _logs(proba), proba.shape[1]
    w = np.ones(len(labels)) if weight is None else weight
    place = np.arange(len(labels))
    own = np.bincount(labels, weights=w, minlength=classes)
    theta = np.r_[start.scale, start.bias] if start else np.r_[1.0, np.zeros(classes)]
    ridge = np.r_[_RIDGE, np.full(classes, _RIDGE_BIAS)]
    centre = np.r_[1.0, np.zeros(classes)]

    def loss(t: F64) -> tuple[float, F64]:
        q = _softmax(t[0] * logs + t[1:])
        fit = -float(w @ np.log(np.maximum(q[place, labels], 1e-300)))
        return fit + 0.5 * float(ridge @ (t - centre) ** 2), q

    value, q = loss(theta)
    for _ in range(_STEPS):
        mean = (q * logs).sum(1)
        slope = np.r_[w @ (mean - logs[place, labels]), w @ q - own] + ridge * (theta - centre)
        curve = np.diag(ridge + np.r_[w @ ((q * logs**2).sum(1) - mean**2), w @ q])
        mixed = w @ (q * (logs - mean[:, None]))
        curve[0, 1:] += mixed
        curve[1:, 0] += mixed
        curve[1:, 1:] -= (q * w[:, None]).T @ q
        if not biases:
            slope[1:], curve[0, 1:], curve[1:, 0] = 0, 0, 0
        step = np.linalg.solve(curve + 1e-9 * np.eye(len(curve)), slope)
        for _ in range(20):  # backtracking line search: halve the step until the loss does not increase
            tried = theta - step
            tried[0] = np.clip(tried[0], _SOFTEST, _HARDEST)
            lower, other = loss(tried)
            if lower <= value:
                break
            step = step / 2
        else:
            break
        moved = float(np.abs(tried - theta).max())
        theta, value, q = tried, lower, other
        if moved < 1e-6:
            break
    return TemperatureScaling(float(theta[0]), theta[1:])


def nested_scaling(proba: F64, labels: Rows, folds: Rows, biases: bool = False) -> tuple[F64, F64]:
    """Calibrate each fold with a scaling fitted on the other folds.

    Args:
        proba: float64 (n, C), out-of-fold probabilities.
        labels: int64 (n,), true classes.
        folds: int64 (n,), fold of each row.
        biases: Whether to fit a bias for each class.

    Returns:
        Calibrated probabilities, float64 (n, C), and the scale of each fold, float64 (folds,).
    """
    out, scales = np.empty_like(proba), []
    for fold in np.unique(folds):
        inside = folds == fold
        found = fit_scaling(proba[~inside], labels[~inside], biases)
        out[inside] = found(proba[inside])
        scales.append(found.scale)
    return out, np.array(scales)


def _logs(proba: F64) -> F64:
    logs = np.log(np.maximum(proba, FLOOR))
    return np.asarray(logs - logs.mean(1, keepdims=True))


def _softmax(logits: F64) -> F64:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


POWERS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
_OFFSETS = np.array([-1.5, -1.0, -0.6, -0.3, -0.15, 0.15, 0.3, 0.6, 1.0, 1.5])
_PASSES = 2
# Minimum improvement of macro F1 on the rows used for fitting; smaller ones are noise.
_WORTH = 1e-3


def prior_offsets(proba: F64, labels: Rows) -> F64:
    """Fit offsets by logit adjustment: minus the best of POWERS times the log of the class priors.

    Args:
        proba: float64 (n, C), out-of-fold probabilities.
        labels: int64 (n,), true classes.

    Returns:
        float64 (C,), added to log-probabilities.
    """
    classes = proba.shape[1]
    shares = (np.bincount(labels, minlength=classes) + 0.5) / (len(labels) + 0.5 * classes)
    logs = np.log(np.maximum(proba, 1e-12))
    tried = sorted(POWERS, key=abs)  # ties: the smallest change
    best = max(tried, key=lambda power: _score(logs - power * np.log(shares), labels, classes))
    return -best * np.log(shares)


def class_offsets(proba: F64, labels: Rows) -> F64:
    """Fit one offset for each class by coordinate ascent on macro F1.

    The ascent starts from `prior_offsets` and takes the rarest class first.

    Args:
        proba: float64 (n, C), out-of-fold probabilities.
        labels: int64 (n,), true classes.

    Returns:
        float64 (C,), added to log-probabilities.
    """
    classes = proba.shape[1]
    logs, offsets = np.log(np.maximum(proba, 1e-12)), prior_offsets(proba, labels)
    value = _score(logs + offsets, labels, classes)
    counts = np.bincount(labels, minlength=classes)
    for _ in range(_PASSES):
        before = value
        for c in np.argsort(counts, kind="stable"):
            scores = []
            for change in _OFFSETS:
                changed = offsets.copy()
                changed[c] += change
                scores.append(_score(logs + changed, labels, classes))
            best = int(np.argmax(scores))
            if scores[best] > value + _WORTH:
                offsets[c] += _OFFSETS[best]
                value = scores[best]
        if value <= before:
            break
    return offsets


RULES = {"shares": prior_offsets, "each class": class_offsets}


def nested_decisions(proba: F64, labels: Rows, folds: Rows, rule: str) -> Rows:
    """Predict each fold's classes with offsets fitted on the other folds.

    Args:
        proba: float64 (n, C), out-of-fold probabilities.
        labels: int64 (n,), true classes.
        folds: int64 (n,), fold of each row.
        rule: Key of RULES.

    Returns:
        Predicted classes, int64 (n,).
    """
    called = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        inside = folds == fold
        offsets = RULES[rule](proba[~inside], labels[~inside])
        called[inside] = (np.log(np.maximum(proba[inside], 1e-12)) + offsets).argmax(1)
    return called


def _score(scores: F64, labels: Rows, classes: int) -> float:
    return float(macro_f1(confusion_matrix(labels, scores.argmax(1), classes)))
