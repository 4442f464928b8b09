"""Overfitting: how far the training score lies above the out-of-fold one, and how much of that can be taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import UnfreezeError
from unfreeze.core.runs import read_log
from unfreeze.judge.paired import paired_difference
from unfreeze.study.curve import learning_curve
from unfreeze.study.diagnosis.case import Case
from unfreeze.study.diagnosis.cause import Cause, Figure, not_measured, severity_of, told
from unfreeze.study.diagnosis.refit import Refit
from unfreeze.study.diagnosis.voices import spoken

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]
LEARNT, FEW = "overfitting: learnt too closely", "overfitting: too few groups"
LITTLE = "underfitting: learnt too little"

# Photos whose training score is taken, and of a network, which must be run for it.
_MOST, _MOST_NETWORK = 5000, 240
# Macro F1 that twice the groups would bring, under which they are enough.
ENOUGH = 0.01
# Penalties that are tried beside the run's own: from far stronger to far weaker ones.
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def overfitting(case: Case, refit: Refit | str) -> list[Cause]:
    """What is learnt too closely, and what more groups would bring."""
    return [_closely(case, refit), _curve(case, refit)]


def _closely(case: Case, refit: Refit | str) -> Cause:
    """The gap, and what a stronger penalty or the probe that training began from would score more."""
    if case.gone:
        return not_measured(LEARNT, case.gone)
    gap = training_gap(case)
    networks = case.run.strategies != ("probe",)
    against, remedy, command, better = _probe(case, refit) if networks else _penalty(case, refit)
    weaker = not networks and isinstance(refit, Refit) and _weaker(case, refit)
    details: dict[str, Any] = {"gap": gap, "epochs": epochs(case) if networks else []}
    seen = (
        f"On photos that a model has learnt from, macro F1 is {told(gap, True)} higher than out of fold" if gap else ""
    )
    if against is None:
        why = better or "nothing to hold it against"
        return Cause(
            LEARNT, "none", f"{seen or 'The training score could not be taken'}; {why}.", None, details=details
        )
    cost = against
    if cost["value"] <= 0 or cost["low"] <= 0:
        tail = f"{better} does not surely score more ({told(cost, True)})"
        return Cause(LEARNT, severity_of(cost), f"{seen}; {tail}.", cost, details=details)
    return Cause(
        LITTLE if weaker else LEARNT,
        severity_of(cost),
        f"{seen}; {better} scores {told(cost, True)} more out of fold.",
        cost,
        remedy,
        command,
        details=details,
    )


def training_gap(case: Case) -> Figure | None:
    """Macro F1 of photos by a model that has learnt from them less that out of fold, paired over groups.

    Each photo is told by the model of the next fold, of which it was a training photo.
    """
    count = case.run.recipe.folds.count
    networks = case.run.strategies != ("probe",)
    rows = case.inside[case.same[case.inside]]
    most = _MOST_NETWORK if networks else _MOST
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(case.run.recipe.seed).choice(rows, most, replace=False))
    files = case.photos.files()
    # Of many folds a few speak: each one's models must be opened for it.
    voices = np.arange(min(count, 5))
    by = voices[(case.folds[rows] + 1) % len(voices)]
    by = np.where(by == case.folds[rows], voices[(by + 1) % len(voices)], by)
    try:
        learnt = spoken(case.run, [files[i] for i in rows], by, case.reporter)
    except UnfreezeError:
        return None
    good = np.isfinite(learnt).all(1)
    rows, learnt = rows[good], learnt[good]
    if not len(rows):
        return None
    return paired_difference(case.labels[rows], case.proba[rows], learnt, case.units[rows], resamples=500)


def epochs(case: Case) -> list[dict[str, Any]]:
    """A row an epoch, the mean over folds: train_loss, and valid_loss and valid_macro_f1 where groups were held."""
    rows = read_log(case.run.path)
    out = []
    for number in sorted({int(row["epoch"]) for row in rows if "epoch" in row}):
        own = [row for row in rows if row.get("epoch") == number]
        told_of: dict[str, Any] = {"epoch": number, "folds": len(own)}
        for key in ("train_loss", "valid_loss", "valid_macro_f1"):
            values = [float(row[key]) for row in own if row.get(key) is not None]
            told_of[key] = float(np.mean(values)) if values else None
        out.append(told_of)
    return out


def _penalty(case: Case, refit: Refit | str) -> tuple[Figure | None, str, str, str]:
    """Of a probe: a penalty chosen from a wider range, inside each training fold as ever."""
    if isinstance(refit, str):
        return None, "", "", refit
    rows = refit.rows
    wider = tuple(sorted({*STRENGTHS, *case.run.recipe.probe.strengths}))
    found = refit.under(case.units, refit.work.folds, strengths=wider)
    cost = paired_difference(case.labels[rows], refit.proba[rows], found[rows], case.units[rows], resamples=500)
    strengths = "[" + ",".join(f"{s:g}" for s in STRENGTHS) + "]"
    command = f"{case.again} --set probe.strengths={strengths} {case.beside('wider')}"
    remedy = "Let the penalty be chosen from a wider range (probe.strengths)."
    return cost, remedy, command, f"a penalty chosen from a wider range{refit.said}"


def _weaker(case: Case, refit: Refit) -> bool:
    """Whether the wider range led to weaker penalties than the run's own."""
    own = [float(row["strength"]) for row in case.run.scores()["folds"] if row.get("strength")]
    return bool(own and refit.strengths and np.median(refit.strengths) > np.median(own))


def _probe(case: Case, refit: Refit | str) -> tuple[Figure | None, str, str, str]:
    """Of a network: the probe that it began from, or one on the same photos."""
    command = f"unfreeze fit {case.source} --strategy probe"
    remedy = "Train less of it, for fewer epochs or more gently, or keep the backbone frozen."
    gain = case.run.scores().get("gain")
    if gain:
        cost = {"value": -gain["value"], "low": -gain["high"], "high": -gain["low"]}
        return cost, remedy, command, "the probe that training began from"
    if isinstance(refit, str):
        return None, "", "", refit
    rows = refit.rows
    cost = paired_difference(case.labels[rows], case.proba[rows], refit.proba[rows], case.units[rows], resamples=500)
    return cost, remedy, command, "a probe on a frozen pretrained backbone"


def _curve(case: Case, refit: Refit | str) -> Cause:
    """The learning curve: room, not a fault, so that it is never more than info."""
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
    details = {"points": [{"groups": p.groups, "macro_f1": vars(p.macro_f1)} for p in found.points]}
    if found.gain is None:
        return not_measured(FEW, found.sentence.rstrip(".").replace("Too few", "too few"))
    cost = {"value": found.gain.value, "low": found.gain.low, "high": found.gain.high}
    if cost["value"] <= ENOUGH or cost["low"] <= 0:
        return Cause(FEW, "none", found.sentence, cost, details=details)
    return Cause(FEW, "info", found.sentence, cost, "Photos of more groups.", details=details)
