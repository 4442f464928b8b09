"""Diagnosis of a run: why a test score may differ from the cross-validated score.

Every cause is measured and reported in one table, most severe first.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.analysis.diagnose.calibration import calibration
from unfreeze.analysis.diagnose.cause import Cause, in_order, not_measured
from unfreeze.analysis.diagnose.context import DiagnosisContext, FoldPredictions, fold_predictions, open_case
from unfreeze.analysis.diagnose.exported_file import check_exported
from unfreeze.analysis.diagnose.label_noise import wrong_labels
from unfreeze.analysis.diagnose.leakage import leakage
from unfreeze.analysis.diagnose.overfitting import overfitting
from unfreeze.analysis.diagnose.preprocessing import parity
from unfreeze.analysis.diagnose.refit import open_refit
from unfreeze.analysis.diagnose.shift import forecast_score, shift
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import StorageError, UnfreezeError
from unfreeze.core.files import write_json
from unfreeze.core.format import Interval, format_estimate
from unfreeze.core.messages import Brief
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Source
from unfreeze.core.runs import Run, as_run
from unfreeze.inference.predictor import Classifier

FILE = "diagnosis.json"
VERSION = 1


@dataclass(frozen=True, repr=False)
class Diagnosis(Brief):
    """Result of `diagnose`. Estimates are {"value", "low", "high"} with 95% intervals over groups.

    Attributes:
        run: Path of the run.
        causes: The causes by severity, then cost; those that could not be measured come last.
        score: Out-of-fold macro F1.
        expected: Macro F1 expected on the test images, estimated without their labels.
        real: Macro F1 on the test images, if their labels are known.
        test: Description of the test images; empty if there are none.
        test_photos: Number of test images.
        notes: What was left out.
        seconds: Duration.
    """

    run: str
    causes: tuple[Cause, ...]
    score: Interval
    expected: Interval | None
    real: Interval | None
    test: str
    test_photos: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def first(self) -> Cause | None:
        """The most severe cause if it is at least a warning, else None."""
        found = self.causes[0] if self.causes else None
        return found if found and found.severity in ("error", "warning") else None

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        first = self.first
        scores = f"macro F1 is {format_estimate(self.score)} out of fold"
        if self.expected:
            scores += f", {format_estimate(self.expected)} is expected on {self.test}"
        if self.real:
            scores += f", and {format_estimate(self.real)} is measured there"
        missing = sum(not cause.measured for cause in self.causes)
        rest = f" {missing} cause(s) could not be measured." if missing else ""
        if first is None:
            return f"No problem found: {scores}.{rest}"
        cost = (
            f" ({format_estimate(first.cost, signed=True)} of macro F1)"
            if first.cost and first.cost["value"] > 0
            else ""
        )
        return f"First look at {first.name}{cost}: {scores}.{rest}"

    def table(self) -> pd.DataFrame:
        """Table with cause, severity, cost, low, high (NaN without a cost), evidence, remedy, command, measured."""
        rows = [
            {
                "cause": c.name,
                "severity": c.severity,
                **{name: c.cost[key] if c.cost else np.nan for name, key in _ENDS.items()},
                "evidence": c.evidence,
                "remedy": c.remedy,
                "command": c.command,
                "measured": c.measured,
            }
            for c in self.causes
        ]
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "version": VERSION,
            "run": self.run,
            "sentence": self.sentence,
            "score": self.score,
            "expected": self.expected,
            "real": self.real,
            "test": self.test,
            "test_photos": self.test_photos,
            "causes": [cause.to_json() for cause in self.causes],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


_ENDS = {"cost": "value", "low": "low", "high": "high"}


def diagnose(
    run: str | Path | Run,
    test: str | Path | None = None,
    *,
    path: str = "",
    root: str | Path = "",
    encoding: str = "",
    exported: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Diagnosis:
    """Measure possible causes of a gap between the test score and the out-of-fold score.

    The result is stored as diagnosis.json in the run folder. Causes that cannot be measured are reported with the
    reason.

    Args:
        run: A finished run of any strategy, or its folder.
        test: Folder or table of test images; by default the test split of the run. Labels are used if they are classes
            of the run.
        path: Path column of a test table; detected by default.
        root: Folder that the paths of a test table are relative to; by default the folder of the table, or the root of
            the run.
        encoding: Text encoding of a test table; detected by default.
        exported: A file written by `unfreeze export`, to be checked against the run.
        reporter: Receives progress messages.

    Returns:
        The diagnosis.

    Raises:
        RunError: If the run is incomplete.
        SourceError: If `test` cannot be read.
        StorageError: If `exported` does not exist or has another suffix.
    """
    started = time.perf_counter()
    run, reporter = as_run(run), reporter or Reporter()
    checked = [check_exported(run, exported, reporter)] if exported else []
    with tempfile.TemporaryDirectory(prefix="unfreeze-diagnose-") as scratch:
        asked = Source(path_column=path, root=str(root), encoding=encoding)
        case = open_case(run, test, asked, Path(scratch), reporter)
        if case.test is not None:
            case.answers = _answers(case)
        reporter.say("Diagnose: leakage and overfitting.")
        refit = open_refit(case)
        foreseen = forecast_score(case)
        causes = _each("leakage", lambda: leakage(case, refit))
        causes += _each("overfitting", lambda: overfitting(case, refit))
        reporter.say("Diagnose: shift, preprocessing, calibration and labels.")
        causes += _each("shift", lambda: shift(case, foreseen))
        causes += _each("preprocessing", lambda: [parity(case)])
        causes += _each("calibration", lambda: calibration(case))
        causes += _each("labels", lambda: [wrong_labels(case)])
        causes += checked
    expected = None if isinstance(foreseen.expected, str) else foreseen.expected.macro_f1
    found = Diagnosis(
        str(run.path),
        tuple(in_order(causes)),
        run.scores()["out_of_fold"]["macro_f1"],
        expected,
        foreseen.real["macro_f1"] if foreseen.real else None,
        case.test.name if case.test else "",
        len(case.test.labels) if case.test else 0,
        tuple(case.notes),
        round(time.perf_counter() - started, 2),
    )
    _keep(run.path, found, reporter)
    return found


def _each(family: str, measure: Callable[[], list[Cause]]) -> list[Cause]:
    """Measure a family of causes. An error becomes a row, so that the other families are still measured."""
    try:
        return measure()
    except UnfreezeError as error:
        return [not_measured(family, str(error).rstrip("."))]


def _answers(case: DiagnosisContext) -> FoldPredictions | str:
    """Predictions of the run for the test images, as a whole and by single folds."""
    assert case.test is not None
    files, count = case.test.photos.files(), min(case.run.recipe.folds.n_splits, 5)
    try:
        found = Classifier.load(case.run).predict(list(files), reporter=case.reporter)
        by_fold = fold_predictions(case.run, files, np.arange(len(files), dtype=np.int64) % count, case.reporter)
    except UnfreezeError as error:
        return f"the run cannot predict here: {error}".rstrip(".")
    return FoldPredictions(found[probability_columns(case.run.classes)].to_numpy(np.float64), by_fold)


def _keep(run: Path, found: Diagnosis, reporter: Reporter) -> None:
    try:
        write_json(run / FILE, json.loads(json.dumps(found.to_json(), default=float)))
    except StorageError as error:  # a read-only run can still be diagnosed
        reporter.say(f"The diagnosis is not kept: {error}")
