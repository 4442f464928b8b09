"""A search's trials: one that is being judged, and what is known of those that have ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import UnfreezeError
from unfreeze.core.recipe import Recipe
from unfreeze.judge.metrics import confusion_matrix, macro_f1
from unfreeze.learn.fitting import Work
from unfreeze.learn.tryout import Tried
from unfreeze.study.sides import Side

if TYPE_CHECKING:
    import optuna

# Decimals of macro F1 that count: of recipes that are as good by them the first is taken.
SHOWN = 3
# What a trial keeps beside its values: who judges it, how long that took, why it could not be fitted.
WORKER, SECONDS, NOTE = "worker", "seconds", "note"


@dataclass(frozen=True)
class Row:
    """One tried recipe. number: its place in the search. changes: where it differs from the recipe as it was given.

    scores: macro F1 after each part that was judged, of all parts so far. state: complete, pruned or failed. value: the
    last of `scores` of a complete one, else NaN. seconds: of learning. note: why it failed.
    """

    number: int
    state: str
    changes: dict[str, Any]
    scores: tuple[float, ...]
    seconds: float
    note: str = ""

    @property
    def value(self) -> float:
        return self.scores[-1] if self.state == "complete" and self.scores else float("nan")


@dataclass(frozen=True)
class Searched:
    """A side and what was tried on it, in order; the first is the recipe as it was given."""

    side: Side
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row:
        """The best complete recipe, the first of equals."""
        return max((r for r in self.rows if r.state == "complete"), key=lambda r: (round(r.value, SHOWN), -r.number))

    @property
    def distinct(self) -> tuple[Row, ...]:
        """The rows without those that try a recipe again: of a small space the same is drawn more than once."""
        first: dict[str, Row] = {}
        for row in self.rows:
            first.setdefault(json.dumps(row.changes, sort_keys=True), row)
        return tuple(first.values())


@dataclass
class Asked:
    """A trial that is being judged. proba: float64 (n, C), NaN where nothing is predicted yet. seconds: of learning."""

    side: Side
    study: optuna.Study
    trial: optuna.Trial
    recipe: Recipe
    work: Work
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.proba: NDArray[np.float64] = np.full((len(self.work.labels), self.work.classes), np.nan)
        # Parts that a process has judged which left the trial behind: none but the last of them can end it now.
        self.known = len(self.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values)

    def take(self, tried: Tried) -> None:
        """Keeps what one part has shown."""
        rows = np.flatnonzero(np.isfinite(tried.proba[:, 0]))
        self.proba[rows] = tried.proba[rows]
        self.seconds += tried.seconds

    def goes_on(self, part: int, parts: int) -> bool:
        """Tells the score of all parts so far, and ends the trial after the last or where it is behind the others."""
        import optuna

        rows = np.flatnonzero(np.isfinite(self.proba[:, 0]))
        table = confusion_matrix(self.work.labels[rows], self.proba[rows].argmax(1), self.work.classes)
        score, step = float(macro_f1(table)), part + 1
        if step > self.known:
            self.trial.report(score, step)
        whole = step == parts
        if not whole and not (self.trial.number and step >= self.known and self.trial.should_prune()):
            return True
        self.trial.set_user_attr(SECONDS, round(self.seconds, 3))
        if whole:
            self.study.tell(self.trial, score)
        else:
            self.study.tell(self.trial, state=optuna.trial.TrialState.PRUNED)
        return False

    def fail(self, why: UnfreezeError) -> None:
        """The recipe cannot be fitted. Raises `why` if it is the one that was given."""
        import optuna

        if not self.trial.number:
            raise why
        self.trial.set_user_attr(NOTE, str(why))
        self.study.tell(self.trial, state=optuna.trial.TrialState.FAIL)
