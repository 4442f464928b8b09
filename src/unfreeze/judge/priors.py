"""The class shares of photos without labels, and what score to expect under them.

EM on a classifier's probabilities: Saerens, Latinne & Decaestecker 2002, "Adjusting the outputs of a classifier to new
a priori probabilities", Neural Computation 14(1). It asks for calibrated probabilities (Alexandari, Kundaje & Shrikumar
2020, arXiv:1901.06852) and for photos of a class that look alike in both sets: where they do not, the shares it gives
are wrong, and nothing in them says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import macro_f1
from unfreeze.judge.resampling import group_weights, interval, soft_confusion, weighted_confusion
from unfreeze.judge.temperature import Scaling, fit_scaling

F64 = NDArray[np.float64]
Rows = NDArray[np.int64]

_STEPS, _NEAR = 2000, 1e-7
_FLOOR = 1e-9
# Level of the test that a share differs, all classes at once: an alarm, so that it is wrong in one set of a hundred.
_TOLD = 0.99


def estimate_priors(proba: F64, priors: F64, weight: F64 | None = None, start: F64 | None = None) -> F64:
    """The class shares that make the photos likeliest, float64 (C,).

    proba: float64 (n, C), calibrated for the shares `priors` (C,). weight: (n,) of photos. start: first guess.
    """
    w = np.ones(len(proba)) if weight is None else weight
    ratio = proba / np.maximum(priors, _FLOOR)
    shares = np.maximum(priors if start is None else start, _FLOOR)
    for _ in range(_STEPS):
        own = ratio * shares
        own /= np.maximum(own.sum(1, keepdims=True), 1e-300)
        fresh = w @ own / w.sum()
        moved = float(np.abs(fresh - shares).max())
        shares = np.maximum(fresh, 1e-12)
        if moved < _NEAR:
            break
    return np.asarray(shares / shares.sum())


def adjusted(proba: F64, priors: F64, new: F64) -> F64:
    """Probabilities for the shares `new` of those for the shares `priors`: float64 (n, C)."""
    own = proba * (new / np.maximum(priors, _FLOOR))
    return np.asarray(own / np.maximum(own.sum(1, keepdims=True), 1e-300))


@dataclass(frozen=True)
class Expected:
    """What to expect of photos without labels. Figures are {"value", "low", "high"}, 95 % over groups of both sets.

    training: float64 (C,), class shares of the training photos. shares: a figure for each class, by EM. told: bool
    (C,), where share and training share surely differ, all classes at once. distance: total variation distance of the
    two. judged: macro F1 out of fold. by_shares: of that, what the change of shares takes away. by_doubt: what is
    taken away because the model is less sure of these photos than of those it was judged on. macro_f1: what is left.
    """

    training: F64
    shares: list[dict[str, float]]
    told: NDArray[np.bool_]
    distance: float
    judged: float
    by_shares: dict[str, float]
    by_doubt: dict[str, float]
    macro_f1: dict[str, float]


def expected_score(
    proba: F64,
    labels: Rows,
    groups: NDArray[Any],
    folds: Rows,
    test: F64,
    test_groups: NDArray[Any],
    resamples: int = 200,
    seed: int = 0,
) -> Expected:
    """The macro F1 to expect of test photos whose labels are not known.

    proba: float64 (n, C), out of fold, of rows with `labels`, `groups` and `folds`. test: float64 (m, C), by models of
    the same kind (one fold's each, not their mean). Both are calibrated, each fold by the others.

    Shares come from EM. The out-of-fold confusion is brought to them (its rows are the classes' own), which gives the
    part `by_shares`. What the model expects of its own calls, by its calibrated probabilities, is compared between the
    training photos brought to these shares and the test photos: that is `by_doubt` (difference of confidences:
    Guillory et al. 2021, arXiv:2107.03315, here of macro F1). Groups of both sets are resampled, and the calibration,
    EM and all that follows done again on each draw. A model that is surely wrong is not seen by it.
    """
    classes = proba.shape[1]
    whole = fit_scaling(proba, labels, biases=True)
    by_fold = {int(k): fit_scaling(proba[folds != k], labels[folds != k], biases=True) for k in np.unique(folds)}
    called, test_called = proba.argmax(1), test.argmax(1)

    def measured(w: F64, v: F64, start: F64 | None, scaling: Scaling) -> tuple[F64, F64, float, float, float]:
        own = np.empty_like(proba)
        for k, nested in by_fold.items():
            own[folds == k] = nested(proba[folds == k])
        training = np.bincount(labels, weights=w, minlength=classes) / w.sum()
        fresh = scaling(test)
        shares = estimate_priors(fresh, training, v, start)
        ratio = shares / np.maximum(training, _FLOOR)
        hard = weighted_confusion(labels, called, classes, w)
        judged = float(macro_f1(hard))
        moved = float(macro_f1(hard * ratio[:, None]))
        # The same photos in other shares: each counts as often as its class does now.
        before = float(macro_f1(soft_confusion(adjusted(own, training, shares), called, w * ratio[labels])))
        after = float(macro_f1(soft_confusion(adjusted(fresh, training, shares), test_called, v)))
        return training, shares, judged, judged - moved, before - after

    ones, test_ones = np.ones(len(labels)), np.ones(len(test))
    training, shares, judged, by_shares, by_doubt = measured(ones, test_ones, None, whole)
    drawn = []
    pairs = zip(group_weights(groups, resamples, seed), group_weights(test_groups, resamples, seed + 1), strict=True)
    for w, v in pairs:
        again = fit_scaling(proba, labels, biases=True, weight=w, start=whole)
        drawn.append(measured(w, v, shares, again))
    trainings, others = (np.array([d[i] for d in drawn]) for i in (0, 1))
    off = others - trainings
    spread = np.maximum(off.std(0), 1e-4)
    largest = (np.abs(off - off.mean(0)) / spread).max(1)
    told = np.abs(shares - training) > np.quantile(largest, _TOLD) * spread
    scores = np.array([d[2] - d[3] - d[4] for d in drawn])
    return Expected(
        training,
        [interval(shares[c], others[:, c]) for c in range(classes)],
        told,
        float(np.abs(shares - training).sum() / 2),
        judged,
        interval(by_shares, np.array([d[3] for d in drawn])),
        interval(by_doubt, np.array([d[4] for d in drawn])),
        interval(judged - by_shares - by_doubt, np.clip(scores, 0, 1)),
    )
