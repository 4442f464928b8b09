"""Diagnosis of calibration: expected calibration error, and class offsets that would raise macro F1.

Everything is computed from out-of-fold predictions, and each correction is fitted on the other folds.
"""

from __future__ import annotations

import numpy as np

from unfreeze.analysis.diagnose.cause import Cause, Severity, severity_of, zero
from unfreeze.analysis.diagnose.context import DiagnosisContext
from unfreeze.core.format import format_estimate, format_score
from unfreeze.metrics.bootstrap import Sum, bootstrap_group_sums, group_ids, interval
from unfreeze.metrics.calibration import RULES, fit_scaling, nested_decisions, nested_scaling
from unfreeze.metrics.classification import BINS, bin_index, calibration_error
from unfreeze.metrics.differences import paired_difference
from unfreeze.metrics.log_loss import clipped, log_loss, log_losses

MEANT, CALLED = "calibration: probabilities", "calibration: which class is called"

# Calibration error from which to report info, and a warning for overconfident or underconfident predictions, provided
# that nested temperature scaling significantly lowers the log loss. Overconfidence is more misleading.
SLIGHT, SURE, TIMID = 0.03, 0.08, 0.25


def calibration(case: DiagnosisContext) -> list[Cause]:
    """Measure the calibration of the probabilities and of the decision rule.

    Returns:
        A row for the probabilities (`MEANT`) and a row for the predicted class (`CALLED`).
    """
    return [_meant(case), _called(case)]


def _meant(case: DiagnosisContext) -> Cause:
    rows = case.inside
    proba, labels, folds, units = case.proba[rows], case.labels[rows], case.folds[rows], case.units[rows]
    scaled, _ = nested_scaling(proba, labels, folds)
    temperature = fit_scaling(proba, labels).temperature
    right, n = proba.argmax(1) == labels, len(rows)
    losses = log_losses(labels, proba) - log_losses(labels, scaled)
    member, _ = group_ids(units)
    tops = proba.max(1), scaled.max(1)
    sums: list[Sum] = [(bin_index(top), top - right, BINS) for top in tops]
    sums += [(np.zeros(n, np.int64), losses, 1), (np.zeros(n, np.int64), None, 1)]
    *gaps, saved, counts = bootstrap_group_sums(member, sums, 500, case.run.recipe.seed)
    ece, after = (calibration_error(top, right, gap / counts) for top, gap in zip(tops, gaps, strict=True))
    gain = interval(float(losses.mean()), saved[:, 0] / counts[:, 0])
    over = float(tops[0].mean()) > float(right.mean())
    before = ece["value"]
    details = {
        "ece": ece,
        "after": after,
        "temperature": temperature,
        "log_loss": log_loss(labels, proba),
        "log_loss_gain": gain,
        "log_loss_clipped": clipped(labels, proba),
        "confidence": float(tops[0].mean()),
        "accuracy": float(right.mean()),
    }
    severity: Severity = "none"
    if gain["low"] > 0 and before >= SLIGHT:
        severity = "warning" if before >= (SURE if over else TIMID) else "info"
    how = "overconfident" if over else "underconfident"
    text = (
        f"The expected calibration error is {format_estimate(ece)}; with temperature scaling ({temperature:.2f}), "
        f"fitted inside the folds, {format_score(after['value'])}. The predicted class stays the same."
    )
    if severity == "none":
        return Cause(MEANT, "none", text, zero(), details=details)
    return Cause(
        MEANT,
        severity,
        f"The model is {how}: {text[0].lower()}{text[1:]}",
        zero(),
        f"Before you set a threshold, raise the probabilities to the power {1 / temperature:.2f} and normalize them.",
        details=details,
    )


def _called(case: DiagnosisContext) -> Cause:
    rows = case.inside
    proba, labels, folds, units = case.proba[rows], case.labels[rows], case.folds[rows], case.units[rows]
    gains = {}
    level = 1 - 0.05 / len(RULES)  # Bonferroni: the better rule is reported
    for rule in RULES:
        called = np.eye(case.classes)[nested_decisions(proba, labels, folds, rule)]
        gains[rule] = paired_difference(
            labels, proba, called, units, resamples=1000, level=level, seed=case.run.recipe.seed
        )
    best = max(gains, key=lambda rule: gains[rule]["low"])
    cost = gains[best]
    offsets = RULES[best](proba, labels)
    details = {"rules": gains, "best": best, "offsets": (offsets - offsets.mean()).tolist()}
    severity = severity_of(cost, "warning")
    what = "an offset for each class" if best == "each class" else "a power of the class shares"
    if cost["low"] <= 0:
        text = f"{what[0].upper()}{what[1:]}, fitted inside the folds, does not raise macro F1 significantly"
        return Cause(CALLED, severity, f"{text}: {format_estimate(cost, signed=True)}.", cost, details=details)
    up = case.run.classes[int(offsets.argmax())]
    return Cause(
        CALLED,
        severity,
        f"The most probable class does not maximize macro F1: {what}, fitted inside the folds, adds "
        f"{format_estimate(cost, signed=True)}; '{up}' is predicted too rarely.",
        cost,
        "Weigh small classes more in training (balance.loss), or add the offsets of diagnosis.json to the "
        "log-probabilities.",
        f"unfreeze compare {case.source} --preset balance",
        details=details,
    )
