"""Calibration: whether probabilities mean what they say, and whether the most probable class is the one to call."""

from __future__ import annotations

import numpy as np

from unfreeze.judge.calibration import expected_calibration_error
from unfreeze.judge.paired import paired_difference
from unfreeze.judge.resampling import group_weights, interval
from unfreeze.judge.temperature import fit_scaling, nested_scaling
from unfreeze.judge.thresholds import RULES, nested_calls
from unfreeze.study.diagnosis.case import Case
from unfreeze.study.diagnosis.cause import Cause, Severity, plain, severity_of, told, zero

MEANT, CALLED = "calibration: probabilities", "calibration: which class is called"

# Calibration error from which it is worth a word and a warning, if one temperature surely lowers the log loss of folds
# that it has not seen. To be too sure of oneself misleads more than to be too timid.
SLIGHT, SURE, TIMID = 0.04, 0.10, 0.25


def calibration(case: Case) -> list[Cause]:
    """Both rows, from the out-of-fold predictions alone; each correction is fitted on the other folds."""
    return [_meant(case), _called(case)]


def _meant(case: Case) -> Cause:
    rows = case.inside
    proba, labels, folds, units = case.proba[rows], case.labels[rows], case.folds[rows], case.units[rows]
    scaled, _ = nested_scaling(proba, labels, folds)
    temperature = fit_scaling(proba, labels).temperature
    right, place = proba.argmax(1) == labels, np.arange(len(rows))
    tops = proba.max(1), scaled.max(1)
    losses = [-np.log(np.maximum(p[place, labels], 1e-15)) for p in (proba, scaled)]
    before, after = (expected_calibration_error(top, right) for top in tops)
    drawn = np.array(
        [
            [*(expected_calibration_error(top, right, w) for top in tops), w @ (losses[0] - losses[1]) / w.sum()]
            for w in group_weights(units, 500, case.run.recipe.seed)
        ]
    )
    ece, gain = interval(before, drawn[:, 0]), interval(float((losses[0] - losses[1]).mean()), drawn[:, 2])
    over = float(tops[0].mean()) > float(right.mean())
    details = {
        "ece": ece,
        "after": interval(after, drawn[:, 1]),
        "temperature": temperature,
        "log_loss": float(losses[0].mean()),
        "log_loss_gain": gain,
        "confidence": float(tops[0].mean()),
        "accuracy": float(right.mean()),
    }
    severity: Severity = "none"
    if gain["low"] > 0 and before >= SLIGHT:
        severity = "warning" if before >= (SURE if over else TIMID) else "info"
    how = "too sure of itself" if over else "too timid"
    text = (
        f"A probability is off by {told(ece)} on the average; with one temperature ({temperature:.2f}), fitted inside "
        f"the folds, by {plain(after)}. The class that is called stays the same."
    )
    if severity == "none":
        return Cause(MEANT, "none", text, zero(), details=details)
    return Cause(
        MEANT,
        severity,
        f"The model is {how}: {text[0].lower()}{text[1:]}",
        zero(),
        f"Before a threshold rests on probabilities, take their power {1 / temperature:.2f} and scale them to sum 1.",
        details=details,
    )


def _called(case: Case) -> Cause:
    rows = case.inside
    proba, labels, folds, units = case.proba[rows], case.labels[rows], case.folds[rows], case.units[rows]
    gains = {}
    for rule in RULES:
        called = np.eye(case.classes)[nested_calls(proba, labels, folds, rule)]
        gains[rule] = paired_difference(labels, proba, called, units, resamples=500, seed=case.run.recipe.seed)
    best = max(gains, key=lambda rule: gains[rule]["low"])
    cost = gains[best]
    offsets = RULES[best](proba, labels)
    details = {"rules": gains, "best": best, "offsets": (offsets - offsets.mean()).tolist()}
    severity = severity_of(cost, "warning")
    what = "an offset for each class" if best == "each class" else "a power of the class shares"
    if cost["low"] <= 0:
        text = f"{what[0].upper()}{what[1:]}, fitted inside the folds, would not surely raise macro F1"
        return Cause(CALLED, severity, f"{text}: {told(cost, True)}.", cost, details=details)
    up = case.run.classes[int(offsets.argmax())]
    return Cause(
        CALLED,
        severity,
        f"The most probable class is not the one to call for macro F1: {what}, fitted inside the folds, adds "
        f"{told(cost, True)}; '{up}' is called too seldom.",
        cost,
        "Weigh small classes more in training (balance.loss), or add the offsets of diagnosis.json to the "
        "log-probabilities.",
        f"unfreeze compare-balance {case.source}",
        details=details,
    )
