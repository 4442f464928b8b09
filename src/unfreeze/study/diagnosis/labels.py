"""Wrong labels: how much of the error may be the labels' own."""

from __future__ import annotations

import shlex

import numpy as np

from unfreeze.core.errors import UnfreezeError
from unfreeze.judge.metrics import confusion_matrix, macro_f1
from unfreeze.judge.resampling import group_weights, interval, weighted_confusion
from unfreeze.study.diagnosis.case import Case
from unfreeze.study.diagnosis.cause import Cause, milder, not_measured, severity_of, told
from unfreeze.study.suspects import find_suspects

WRONG = "labels: wrong ones"

_RESAMPLES = 400
# Share of labels that are likely wrong, and share of the errors that lie on them, under which it is no more than worth
# a word: a model that reads a class badly doubts its labels a little, each of them.
_SHARE, _ERRORS = 0.02, 0.1


def wrong_labels(case: Case) -> Cause:
    """Macro F1 that is lost to labels which are likely wrong.

    A suspect's score is about how likely its label is wrong: in each draw of groups each suspect gets its suggested
    label with that probability, and the same predictions are scored by these labels. Leaving out all suspects, or
    believing all of them, would call every contradiction of the model a wrong label; both are in the details.
    """
    try:
        found = find_suspects(case.run, None, case.reporter)
    except UnfreezeError as error:
        return not_measured(WRONG, str(error).rstrip("."))
    rows = case.inside
    place = {path: i for i, path in enumerate(case.photos.table["path"].to_numpy()[rows])}
    labels, called, classes = case.labels[rows], case.proba[rows].argmax(1), case.classes
    doubt, suggested = np.zeros(len(rows)), labels.copy()
    number = {name: i for i, name in enumerate(case.run.classes)}
    for path, score, rather in found.table[["path", "score", "suggested"]].itertuples(index=False):
        if path in place:
            doubt[place[path]], suggested[place[path]] = score, number[rather]
    draws = np.random.default_rng(case.run.recipe.seed)
    gains, plain = [], macro_f1(confusion_matrix(labels, called, classes))
    for w in group_weights(case.units[rows], _RESAMPLES, case.run.recipe.seed):
        true = np.where(draws.random(len(rows)) < doubt, suggested, labels)
        mended = macro_f1(weighted_confusion(true, called, classes, w))
        gains.append(float(mended - macro_f1(weighted_confusion(labels, called, classes, w))))
    cost = interval(float(np.mean(gains)), np.array(gains))
    likely = doubt > 0.5
    # What is as likely right as wrong stays in: only the likely ones are left out, or believed.
    without = macro_f1(confusion_matrix(labels[~likely], called[~likely], classes)) if (~likely).any() else plain
    believed = macro_f1(confusion_matrix(np.where(likely, suggested, labels), called, classes))
    expected = float(doubt.sum())
    details = {
        "expected": expected,
        "likely": int(likely.sum()),
        "left_out": float(without - plain),
        "believed": float(believed - plain),
        "on_errors": float((likely & (called != labels)).sum() / max(int((called != labels).sum()), 1)),
    }
    severity = severity_of(cost)
    if expected < _SHARE * len(rows) or details["on_errors"] < _ERRORS:
        severity = milder(severity, "info")
    head = f"About {expected:.0f} of {len(rows):,} labels are likely wrong"
    if severity == "none":
        return Cause(WRONG, "none", f"{head}; that costs {told(cost, True)} of macro F1.", cost, details=details)
    run = shlex.quote(str(case.run.path))
    return Cause(
        WRONG,
        severity,
        f"{head}, and {details['on_errors']:.0%} of the errors lie on them; by the labels that they should rather "
        f"have, macro F1 would be {told(cost, True)} higher.",
        cost,
        "Look at the suspects and decide; then fit again with the verdicts.",
        f"unfreeze review {run}",
        details=details,
    )
