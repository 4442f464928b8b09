"""Diagnosis of overfitting: gap between training and out-of-fold score, and how much of it can be removed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from unfreeze.analysis.diagnose.cause import Cause, not_measured, severity_of
from unfreeze.analysis.diagnose.context import DiagnosisContext, fold_predictions
from unfreeze.analysis.diagnose.refit import Refit
from unfreeze.analysis.learning_curve import learning_curve
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.format import Interval, format_estimate
from unfreeze.core.runs import read_log
from unfreeze.metrics.differences import paired_difference

LEARNT, FEW = "overfitting: learnt too closely", "overfitting: too few groups"
LITTLE = "underfitting: learnt too little"

# Maximum number of images for the training score: for probes, and for networks, which need forward passes.
_MOST, _MOST_NETWORK = 5000, 240
# Gain in macro F1 from doubling the groups up to which the data is considered sufficient.
ENOUGH = 0.01
# Inverse regularization strengths tried in addition to those of the run, in ascending order.
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def overfitting(case: DiagnosisContext, refit: Refit | str) -> list[Cause]:
    """Measure overfitting, and the gain from more groups."""
    return [_closely(case, refit), _curve(case, refit)]


def _closely(case: DiagnosisContext, refit: Refit | str) -> Cause:
    """Training gap, and the gain of a wider range of penalties or of the probe that training started from."""
    if case.gone:
        return not_measured(LEARNT, case.gone)
    gap = training_gap(case)
    networks = case.run.strategies != ("probe",)
    against, remedy, command, better = _probe(case, refit) if networks else _penalty(case, refit)
    weaker = not networks and isinstance(refit, Refit) and _weaker(case, refit)
    details: dict[str, Any] = {"gap": gap, "epochs": epochs(case) if networks else []}
    seen = (
        f"On its training images a model's macro F1 is {format_estimate(gap, signed=True)} higher than out of fold"
        if gap
        else ""
    )
    if against is None:
        why = better or "no model to compare it with"
        return Cause(
            LEARNT, "none", f"{seen or 'The training score could not be computed'}; {why}.", None, details=details
        )
    cost = against
    if cost["value"] <= 0 or cost["low"] <= 0:
        tail = f"{better} does not score significantly higher ({format_estimate(cost, signed=True)})"
        return Cause(LEARNT, severity_of(cost), f"{seen}; {tail}.", cost, details=details)
    return Cause(
        LITTLE if weaker else LEARNT,
        severity_of(cost),
        f"{seen}; {better} scores {format_estimate(cost, signed=True)} more out of fold.",
        cost,
        remedy,
        command,
        details=details,
    )


def training_gap(case: DiagnosisContext) -> Interval | None:
    """Macro F1 on training images minus out-of-fold macro F1, paired over groups.

    Each image is predicted by the model of the next fold, which was trained on it.

    Returns:
        The gap; None if the training score cannot be computed.
    """
    count = case.run.recipe.folds.n_splits
    networks = case.run.strategies != ("probe",)
    rows = case.inside[case.same[case.inside]]
    most = _MOST_NETWORK if networks else _MOST
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(case.run.recipe.seed).choice(rows, most, replace=False))
    files = case.photos.files()
    # Only a few folds predict, because the models of each of them must be loaded.
    chosen_folds = np.arange(min(count, 5))
    by = chosen_folds[(case.folds[rows] + 1) % len(chosen_folds)]
    by = np.where(by == case.folds[rows], chosen_folds[(by + 1) % len(chosen_folds)], by)
    try:
        learnt = fold_predictions(case.run, [files[i] for i in rows], by, case.reporter)
    except UnfreezeError:
        return None
    good = np.isfinite(learnt).all(1)
    rows, learnt = rows[good], learnt[good]
    if not len(rows):
        return None
    return paired_difference(case.labels[rows], case.proba[rows], learnt, case.units[rows], resamples=500)


def epochs(case: DiagnosisContext) -> list[dict[str, Any]]:
    """Training log with one row per epoch, averaged over folds.

    Returns:
        Rows with epoch, folds, train_loss, and valid_loss and valid_macro_f1 if groups were held out.
    """
    rows = read_log(case.run.path)
    out = []
    for number in sorted({int(row["epoch"]) for row in rows if "epoch" in row}):
        own = [row for row in rows if row.get("epoch") == number]
        row: dict[str, Any] = {"epoch": number, "folds": len(own)}
        for key in ("train_loss", "valid_loss", "valid_macro_f1"):
            values = [float(row[key]) for row in own if row.get(key) is not None]
            row[key] = float(np.mean(values)) if values else None
        out.append(row)
    return out


def _penalty(case: DiagnosisContext, refit: Refit | str) -> tuple[Interval | None, str, str, str]:
    """For a probe: out-of-fold gain of a wider range of penalties, selected within each training fold as usual."""
    if isinstance(refit, str):
        return None, "", "", refit
    rows = refit.rows
    wider = tuple(sorted({*STRENGTHS, *case.run.recipe.probe.Cs}))
    found = refit.under(case.units, refit.work.folds, Cs=wider)
    cost = paired_difference(case.labels[rows], refit.proba[rows], found[rows], case.units[rows], resamples=500)
    strengths = "[" + ",".join(f"{s:g}" for s in STRENGTHS) + "]"
    command = f"{case.again} --set probe.Cs={strengths} {case.run_option('wider')}"
    remedy = "Let the penalty be chosen from a wider range (probe.Cs)."
    return cost, remedy, command, f"a penalty chosen from a wider range{refit.said}"


def _weaker(case: DiagnosisContext, refit: Refit) -> bool:
    """Whether the wider range led to weaker penalties than those of the run."""
    own = [float(row["strength"]) for row in case.run.scores()["folds"] if row.get("strength")]
    return bool(own and refit.strengths and np.median(refit.strengths) > np.median(own))


def _probe(case: DiagnosisContext, refit: Refit | str) -> tuple[Interval | None, str, str, str]:
    """For a network: gain of the probe that training started from, or of a probe on the same images."""
    command = f"unfreeze fit {case.source} --strategy probe"
    remedy = "Train fewer stages, for fewer epochs or at a lower learning rate, or freeze the backbone."
    gain = case.run.scores().get("gain")
    if gain:
        cost = {"value": -gain["value"], "low": -gain["high"], "high": -gain["low"]}
        return cost, remedy, command, "the probe that training began from"
    if isinstance(refit, str):
        return None, "", "", refit
    rows = refit.rows
    cost = paired_difference(case.labels[rows], case.proba[rows], refit.proba[rows], case.units[rows], resamples=500)
    return cost, remedy, command, "a probe on a frozen pretrained backbone"


def _curve(case: DiagnosisContext, refit: Refit | str) -> Cause:
    """Learning curve. More data is an opportunity and not a fault, so that the severity is at most info."""
    if isinstance(refit, str):
        return not_measured(FEW, refit)
    recipe = refit.work.recipe
    found = learning_curve(
        refit.probe.features,
        case.labels,
        case.units,
        refit.work.folds,
        case.run.classes,
        recipe,
        case.scratch / "curve",
        case.reporter,
    )
    details: dict[str, Any] = {"points": [{"groups": p.groups, "macro_f1": vars(p.macro_f1)} for p in found.points]}
    if found.doubled is None:
        return not_measured(FEW, found.sentence.rstrip(".").replace("Too few", "too few"))
    details["doubled"] = asdict(found.doubled)
    growth = found.doubled.growth
    if growth.low is None or growth.high is None:  # too few sizes for an interval
        return Cause(FEW, "none", found.sentence, None, details=details)
    cost = {"value": growth.value, "low": growth.low, "high": growth.high}
    if cost["value"] <= ENOUGH or cost["low"] <= 0:
        return Cause(FEW, "none", found.sentence, cost, details=details)
    return Cause(FEW, "info", found.sentence, cost, "Photos of more groups.", details=details)
