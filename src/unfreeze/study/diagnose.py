"""Why is the test score worse than validation promised? Every cause measured, in one table, the gravest first."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.errors import StorageError, UnfreezeError
from unfreeze.core.files import write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Source
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.learn.classifier import Classifier
from unfreeze.study.diagnosis.calibration import calibration
from unfreeze.study.diagnosis.case import Answers, Case, open_case
from unfreeze.study.diagnosis.cause import Cause, Figure, in_order, not_measured, told
from unfreeze.study.diagnosis.labels import wrong_labels
from unfreeze.study.diagnosis.leakage import leakage
from unfreeze.study.diagnosis.overfitting import overfitting
from unfreeze.study.diagnosis.parity import parity
from unfreeze.study.diagnosis.refit import open_refit
from unfreeze.study.diagnosis.shift import foresee, shift
from unfreeze.study.diagnosis.voices import spoken

FILE = "diagnosis.json"
VERSION = 1


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a run.

    causes: the gravest first, of these the most costly; what could not be measured last. score: macro F1 out of fold;
    expected: of the test photos, before their labels are known; real: where they are. Figures are {"value", "low",
    "high"}, 95 % over groups. test: what the test photos are, '' if there are none. notes: what was left out.
    """

    run: str
    causes: tuple[Cause, ...]
    score: Figure
    expected: Figure | None
    real: Figure | None
    test: str
    test_photos: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def first(self) -> Cause | None:
        """The gravest cause, if any is more than a word."""
        found = self.causes[0] if self.causes else None
        return found if found and found.severity in ("error", "warning") else None

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        first = self.first
        scores = f"macro F1 is {told(self.score)} out of fold"
        if self.expected:
            scores += f", {told(self.expected)} is expected of {self.test}"
        if self.real:
            scores += f", and {told(self.real)} is what it gets"
        missing = sum(not cause.measured for cause in self.causes)
        rest = f" {missing} cause(s) could not be measured." if missing else ""
        if first is None:
            return f"No cause of alarm: {scores}.{rest}"
        cost = f" ({told(first.cost, True)} of macro F1)" if first.cost and first.cost["value"] > 0 else ""
        return f"First look at {first.name}{cost}: {scores}.{rest}"

    def table(self) -> pd.DataFrame:
        """cause, severity, cost, low, high (NaN where it has no size), evidence, remedy, command, measured."""
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
        """All of it as JSON."""
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
    path_column: str = "",
    root: str | Path = "",
    beside: Sequence[Cause] = (),
    reporter: Reporter | None = None,
) -> Diagnosis:
    """Measures what may make a test score differ from the out-of-fold one; kept in the run as diagnosis.json.

    run: a finished run or its folder, of any strategy. test: the photos to be judged on, a folder or a table; labels,
    if they are there and the run knows them, give the real score beside. By default the run's own test split, if it has
    one. path_column, root: of a table, the column with the photos' paths and the folder that they start from; by
    default they are found, and paths start at the table, or where the run's own do. beside: rows measured elsewhere,
    such as that of an exported file. What cannot be measured is a row that says why. Raises RunError where the run is
    not whole, SourceError where `test` cannot be read.
    """
    started = time.perf_counter()
    run, reporter = run if isinstance(run, Run) else open_run(run), reporter or Reporter()
    with tempfile.TemporaryDirectory(prefix="unfreeze-diagnose-") as scratch:
        asked = Source(path_column=path_column, root=str(root))
        case = open_case(run, test, asked, Path(scratch), reporter)
        if case.test is not None:
            case.answers = _answers(case)
        reporter.say("Diagnose: leakage and overfitting.")
        refit = open_refit(case)
        foreseen = foresee(case)
        causes = _each("leakage", lambda: leakage(case, refit))
        causes += _each("overfitting", lambda: overfitting(case, refit))
        reporter.say("Diagnose: shift, preprocessing, calibration and labels.")
        causes += _each("shift", lambda: shift(case, foreseen))
        causes += _each("preprocessing", lambda: [parity(case)])
        causes += _each("calibration", lambda: calibration(case))
        causes += _each("labels", lambda: [wrong_labels(case)])
    expected = None if isinstance(foreseen.expected, str) else foreseen.expected.macro_f1
    found = Diagnosis(
        str(run.path),
        tuple(in_order([*causes, *beside])),
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
    """A family's rows; an error that people can mend is a row that says so, and the others are still measured."""
    try:
        return measure()
    except UnfreezeError as error:
        return [not_measured(family, str(error).rstrip("."))]


def _answers(case: Case) -> Answers | str:
    """What the run says of the test photos, as a whole and fold by fold."""
    assert case.test is not None
    files, count = case.test.photos.files(), min(case.run.recipe.folds.count, 5)
    try:
        found = Classifier.load(case.run).predict(list(files), reporter=case.reporter)
        voices = spoken(case.run, files, np.arange(len(files), dtype=np.int64) % count, case.reporter)
    except UnfreezeError as error:
        return f"the run cannot predict here: {error}".rstrip(".")
    return Answers(found[probability_columns(case.run.classes)].to_numpy(np.float64), voices)


def _keep(run: Path, found: Diagnosis, reporter: Reporter) -> None:
    try:
        write_json(run / FILE, json.loads(json.dumps(found.to_json(), default=float)))
    except StorageError as error:  # a run that may only be read can be diagnosed all the same
        reporter.say(f"The diagnosis is not kept: {error}")
