"""Probabilities that mean what they say: one temperature, and if asked a bias of each class, fitted on other rows.

Temperature scaling is Guo et al. 2017 (arXiv:1706.04599); with biases it is the bias-corrected temperature scaling that
Alexandari, Kundaje & Shrikumar 2020 (arXiv:1901.06852) found best before class shares are estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Rows = NDArray[np.int64]

_FLOOR = 1e-7
_HARDEST, _SOFTEST = 50.0, 0.02
_STEPS = 40
# Penalties on (scale - 1) ** 2 and on each bias ** 2, in units of one photo's log loss: they only count in tiny sets.
_RIDGE, _RIDGE_BIAS = 1e-3, 0.5


@dataclass(frozen=True)
class Scaling:
    """p ** scale * exp(bias), each row brought to sum 1. scale: 1 / temperature; above 1 sharpens. bias: (C,)."""

    scale: float
    bias: F64

    @property
    def temperature(self) -> float:
        """Above 1 where the probabilities were too sure of themselves."""
        return 1 / self.scale

    def __call__(self, proba: F64) -> F64:
        """float64 (n, C) of float64 (n, C)."""
        return _softmax(self.scale * _logs(proba) + self.bias)


def fit_scaling(
    proba: F64, labels: Rows, biases: bool = False, weight: F64 | None = None, start: Scaling | None = None
) -> Scaling:
    """The scaling of least log loss on these rows, by Newton's method (the loss is convex in scale and biases).

    proba: float64 (n, C), out of fold. labels: int64 (n,). biases: whether classes get one each. weight: (n,), by
    default 1. start: from where, to need fewer steps.
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
        for _ in range(20):  # the full step, or the longest half of it that lowers the loss
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
    return Scaling(float(theta[0]), theta[1:])


def nested_scaling(proba: F64, labels: Rows, folds: Rows, biases: bool = False) -> tuple[F64, F64]:
    """Each fold's probabilities by a scaling fitted on the other folds: float64 (n, C); and their scales (folds,)."""
    out, scales = np.empty_like(proba), []
    for fold in np.unique(folds):
        inside = folds == fold
        found = fit_scaling(proba[~inside], labels[~inside], biases)
        out[inside] = found(proba[inside])
        scales.append(found.scale)
    return out, np.array(scales)


def _logs(proba: F64) -> F64:
    logs = np.log(np.maximum(proba, _FLOOR))
    return np.asarray(logs - logs.mean(1, keepdims=True))


def _softmax(logits: F64) -> F64:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
