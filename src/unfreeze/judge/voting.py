"""Photos of a group vote on what all of them share: a person's age is the same in each of his photos."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.selection import log_loss

Proba = NDArray[np.float64]
Rows = NDArray[np.int64]

# How much surer than the mean photo a group may be; as many as its photos would be independent evidence.
SHARPNESS = (1.0, 1.5, 2.0, 3.0, 5.0)
_FLOOR = 1e-9


def voted(proba: Proba, shared: Rows, groups: NDArray[np.generic], sharpness: float = 1.0) -> Proba:
    """Probabilities (n, C) after the photos of each group have agreed on what they share.

    proba: (n, C). shared: int (C,), for each class the number of the value that all photos of a group have; where the
    class itself is shared, `arange(C)`. groups: (n,) any hashable. The group's probability of a value is the geometric
    mean of its photos' (product of experts: Hinton 2002), to the power `sharpness`, made to sum to 1. What is not
    shared stays each photo's own: p'(class) = p(class | value) P(value of the group).
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
    # A photo alone has nobody to agree with.
    power = np.where(counts > 1, sharpness, 1.0)[:, None]
    scaled = power * mean
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    agreed = (scaled / scaled.sum(1, keepdims=True))[member]
    ratio = agreed / np.maximum(own, _FLOOR)
    found: Proba = proba * ratio[:, shared]
    found /= np.maximum(found.sum(1, keepdims=True), _FLOOR)
    return found


def choose_sharpness(truth: Rows, proba: Proba, shared: Rows, groups: NDArray[np.generic]) -> float:
    """The sharpness of SHARPNESS with the least log loss; truth int (n,), the rest as of `voted`, out of fold."""
    losses = [log_loss(truth, voted(proba, shared, groups, power)) for power in SHARPNESS]
    return SHARPNESS[int(np.argmin(losses))]


def nested_votes(truth: Rows, proba: Proba, shared: Rows, groups: NDArray[np.generic], folds: Rows) -> Proba:
    """(n, C): each fold's photos voted with the sharpness chosen on the other folds."""
    out = np.empty_like(proba)
    for fold in np.unique(folds):
        inner, outer = folds != fold, folds == fold
        power = choose_sharpness(truth[inner], proba[inner], shared, groups[inner])
        out[outer] = voted(proba[outer], shared, groups[outer], power)
    return out
