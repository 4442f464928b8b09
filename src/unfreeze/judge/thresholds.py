"""Which class to call: offsets of the classes' log-probabilities that raise macro F1, judged on folds they never saw.

The most probable class is the best call for accuracy, not for macro F1, which counts a rare class as much as a common
one (Lipton, Elkan & Narayanaswamy 2014, arXiv:1402.1892). Two rules: one number for all classes, the power of the class
shares that is taken off (logit adjustment: Menon et al. 2021, arXiv:2007.07314), and an offset for each class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import confusion_matrix, macro_f1

F64 = NDArray[np.float64]
Rows = NDArray[np.int64]

POWERS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
_OFFSETS = np.array([-1.5, -1.0, -0.6, -0.3, -0.15, 0.15, 0.3, 0.6, 1.0, 1.5])
_PASSES = 2
# An offset must win so much of macro F1 on the rows it is fitted on: what is less is noise.
_WORTH = 1e-3


def prior_offsets(proba: F64, labels: Rows) -> F64:
    """Offsets float64 (C,): minus the best of POWERS times the log of the class shares."""
    classes = proba.shape[1]
    shares = (np.bincount(labels, minlength=classes) + 0.5) / (len(labels) + 0.5 * classes)
    logs = np.log(np.maximum(proba, 1e-12))
    tried = sorted(POWERS, key=abs)  # of equals the one that changes least
    best = max(tried, key=lambda power: _score(logs - power * np.log(shares), labels, classes))
    return -best * np.log(shares)


def class_offsets(proba: F64, labels: Rows) -> F64:
    """Offsets float64 (C,) by coordinate ascent of macro F1, rarest class first, from the best prior offsets."""
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


def nested_calls(proba: F64, labels: Rows, folds: Rows, rule: str) -> Rows:
    """The class called for each row, int64 (n,), by offsets fitted on the other folds. rule: a name of RULES."""
    called = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        inside = folds == fold
        offsets = RULES[rule](proba[~inside], labels[~inside])
        called[inside] = (np.log(np.maximum(proba[inside], 1e-12)) + offsets).argmax(1)
    return called


def _score(scores: F64, labels: Rows, classes: int) -> float:
    return float(macro_f1(confusion_matrix(labels, scores.argmax(1), classes)))
