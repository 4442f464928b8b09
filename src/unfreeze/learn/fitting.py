"""What every strategy is given, and what it gives back: the two ends between which they differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import FoldError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.tables import Finding, Photos
from unfreeze.data.looks import Looks
from unfreeze.learn.added import AddedRows, choose_rows

Rows = NDArray[np.int64]


@dataclass
class Work:
    """Photos with folds, ready to be learnt from.

    labels, units: int64 (n,), class and group of every photo. folds: int64 (n,), -1 for rows that take no part.
    folder: the run's. spent: seconds a stage, filled as it goes. failed: photos that could not be read after their
    first look, and why. squares: float64 (n, 4), the square around each photo's face if the recipe asks for it.
    which: the folds to learn and predict, all if None. trial: a try within the training data; the test split is not
    looked at.
    """

    photos: Photos
    looks: Looks
    labels: Rows
    units: Rows
    folds: Rows
    recipe: Recipe
    folder: Path
    reporter: Reporter
    spent: dict[str, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    squares: NDArray[np.float64] | None = None
    which: tuple[int, ...] | None = None
    trial: bool = False

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.photos.classes)

    @property
    def todo(self) -> tuple[int, ...]:
        """The folds to learn and predict."""
        return tuple(range(self.recipe.folds.count)) if self.which is None else self.which

    @property
    def involved(self) -> NDArray[np.bool_]:
        """Which photos are learnt from or predicted, and can be read."""
        involved = self.usable & (self.folds >= 0)
        involved[self.tested()] = True
        return involved

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which photos can be read."""
        usable = self.looks.readable.copy()
        usable[list(self.failed)] = False
        return usable

    def tested(self) -> Rows:
        """Rows of a given test split that can be read."""
        if self.trial:
            return np.zeros(0, np.int64)
        return np.flatnonzero((self.photos.table["split"] == "test").to_numpy() & self.usable)

    def identity(self) -> str:
        """Names the photos' contents, their order and folds."""
        return fingerprint([[h, int(f)] for h, f in zip(self.photos.table["hash"], self.folds, strict=True)])

    def leave_out(self, failed: dict[int, str]) -> None:
        """Photos that failed after their first look leave their fold, with a finding. FoldError if a fold is gone."""
        new = {i: why for i, why in failed.items() if i not in self.failed}
        if not new:
            return
        self.failed |= new
        before, self.folds = self.folds, self.folds.copy()
        self.folds[list(new)] = -1
        if len(np.unique(self.folds[self.folds >= 0])) < len(np.unique(before[before >= 0])):
            why = next(iter(new.values()))
            raise FoldError(f"a whole fold of photos cannot be read any more ({why}); run the same command again.")
        paths, todo = self.photos.table["path"], "mend or remove the file; it is left out of training"
        findings = [Finding("unreadable", "warning", why, todo, str(paths[i])) for i, why in new.items()]
        for finding in findings[:3]:
            self.reporter.say(f"Found (warning): {finding.path}: {finding.message}; it is left out.")
        self.photos = self.photos.with_table(self.photos.table.assign(fold=self.folds), *findings)

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Notes the seconds that a stage took, all its turns together."""
        started = perf_counter()
        yield
        self.spent[what] = round(self.spent.get(what, 0.0) + perf_counter() - started, 3)


def added_rows(work: Work) -> AddedRows:
    """The rows that the recipe adds to these photos."""
    keys = work.looks.keys
    return choose_rows(work.recipe, work.photos.classes, work.labels, work.units, work.folds, keys)


@dataclass(frozen=True)
class Outcome:
    """What a strategy has found out.

    proba: float64 (n, C), out of fold; NaN for rows in no fold. test: float64 (n_test, C) of `Work.tested()`, the mean
    over the folds learnt. folds: extra columns of scores.json, by fold. info: what run.json must know to predict.
    beside: other out-of-fold probabilities worth a score, by name.
    """

    proba: NDArray[np.float64]
    test: NDArray[np.float64]
    folds: dict[int, dict[str, Any]]
    info: dict[str, Any]
    beside: dict[str, NDArray[np.float64]] = field(default_factory=dict)
