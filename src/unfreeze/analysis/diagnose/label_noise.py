"""Diagnosis of label noise: the share of the error that is due to wrong labels."""

from __future__ import annotations

import shlex

import numpy as np

from unfreeze.analysis.diagnose.cause import Cause, min_severity, not_measured, severity_of
from unfreeze.analysis.diagnose.context import DiagnosisContext
from unfreeze.analysis.label_issues import count_sentence, find_run_label_issues
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.format import format_estimate
from unfreeze.metrics.calibration import fit_scaling

WRONG = "labels: wrong ones"

# Share of labels that are likely wrong, and share of the errors that they account for, below which the severity is at
# most info.
_SHARE, _ERRORS = 0.02, 0.1
# Temperature above which the model is considered too overconfident to contradict labels.
_TEMPERATURE = 3.0


def wrong_labels(case: DiagnosisContext) -> Cause:
    """Macro F1 lost to wrong labels, as estimated by `find_run_label_issues` and shown in the report.

    Number and cost are net of the contradictions that a calibrated model would have with correct labels
    (`metrics.label_noise`). If the interval of the number includes 0, nothing is reported.
    """
    try:
        found = find_run_label_issues(case.run, None, case.reporter)
    except UnfreezeError as error:
        return not_measured(WRONG, str(error).rstrip("."))
    head = count_sentence(found.wrong, found.photos)
    details = {"wrong": found.wrong, "on_errors": found.on_errors, "listed": len(found.table)}
    severity = severity_of(found.cost)
    rows = np.flatnonzero(case.folds >= 0)
    too_sure = fit_scaling(case.proba[rows], case.labels[rows]).temperature > _TEMPERATURE
    if found.wrong["value"] < _SHARE * found.photos or found.on_errors < _ERRORS or too_sure:
        severity = min_severity(severity, "info")
    if severity == "none" or not found.detected:
        cost = f"; they cost {format_estimate(found.cost, signed=True)} of macro F1" if found.detected else ""
        return Cause(WRONG, "none", f"{head}{cost}.", found.cost, details=details)
    run = shlex.quote(str(case.run.path))
    return Cause(
        WRONG,
        severity,
        f"{head}, and {found.on_errors:.0%} of the errors lie on them; by the right labels the macro F1 of the same "
        f"predictions would be {format_estimate(found.cost, signed=True)} higher.",
        found.cost,
        "Look at the suspects and decide; then fit again with the corrections.",
        f"unfreeze review {run}",
        details=details,
    )
