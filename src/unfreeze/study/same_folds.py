"""Several recipes on the same photos and folds: what each predicts out of fold, from the same features where it can."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core import runs
from unfreeze.core.errors import RunError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import open_run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.learn.crossval import fit, look_for_faces, prepare
from unfreeze.learn.probe.probing import fit_probe


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def told(self) -> bool:
        """Of a difference: whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Compared:
    """What each recipe predicts of the same photos.

    labels, units, folds: int64 (n,), class, group and fold of every photo; -1 in folds for those that some recipe has
    not predicted. probabilities: float64 (n, C) by name, NaN outside the folds. seconds: that each took.
    """

    photos: Photos
    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    folds: NDArray[np.int64]
    probabilities: dict[str, NDArray[np.float64]]
    seconds: dict[str, float]

    @property
    def inside(self) -> NDArray[np.int64]:
        """Rows that all have predicted."""
        return np.flatnonzero(self.folds >= 0)


def fit_each(photos: Photos, recipes: Mapping[str, Recipe], reporter: Reporter, place: Path | None = None) -> Compared:
    """Fits recipes that differ in what is learnt, not in photos or folds.

    Under strategy probe the features are computed once, or come from the cache, and nothing is left behind. Other
    strategies leave a run for each recipe in the folder `place`; finished ones are taken as they are. Raises what
    `fit` raises.
    """
    if all(recipe.strategy == "probe" for recipe in recipes.values()):
        return _probes(photos, recipes, reporter)
    assert place is not None
    return _runs(photos, recipes, place, reporter)


def _probes(photos: Photos, recipes: Mapping[str, Recipe], reporter: Reporter) -> Compared:
    found, seconds, like = {}, {}, None
    with tempfile.TemporaryDirectory(prefix="unfreeze-compare-") as place:
        # The last of them asks for all that any asks for: what is wrong with it is told at once.
        work = prepare(photos, list(recipes.values())[-1], Path(place), reporter)
        look_for_faces(work)
        for name, recipe in recipes.items():
            started = time.perf_counter()
            part = replace(work, recipe=recipe, folder=Path(place) / name)
            reporter.say(f"Fitting: {name}")
            like = fit_probe(part, like)
            found[name], seconds[name] = like.out_of_fold(part), round(time.perf_counter() - started, 3)
            work.folds, work.photos = part.folds, part.photos  # what could not be read is out for all
    return Compared(work.photos, work.labels, work.units, work.folds, found, seconds)


def _runs(photos: Photos, recipes: Mapping[str, Recipe], place: Path, reporter: Reporter) -> Compared:
    found: dict[str, NDArray[np.float64]] = {}
    seconds: dict[str, float] = {}
    table: pd.DataFrame | None = None
    for name, one in recipes.items():
        started = time.perf_counter()
        reporter.say(f"Fitting: {name}")
        run = _finished(place / name, one) or fit(photos, one, place / name, reporter=reporter)
        oof = run.predictions().set_index("path")
        table = run.photos() if table is None else table
        proba = np.full((len(table), len(run.classes)), np.nan)
        there = table["path"].isin(oof.index)
        columns = probability_columns(run.classes)
        proba[np.flatnonzero(there)] = oof.loc[table.loc[there, "path"], columns].to_numpy()
        found[name], seconds[name] = proba, round(time.perf_counter() - started, 3)
    assert table is not None
    number = {label: i for i, label in enumerate(photos.classes)}
    labels = np.array([number[label] for label in table["label"]], np.int64)
    folds = table["fold"].to_numpy(np.int64).copy()
    folds[np.any([np.isnan(p).any(1) for p in found.values()], axis=0)] = -1
    return Compared(photos.with_table(table), labels, table["unit"].to_numpy(np.int64), folds, found, seconds)


def _finished(folder: Path, recipe: Recipe) -> runs.Run | None:
    """The finished run of that recipe in the folder, if there is one."""
    try:
        run = open_run(folder)
    except RunError:
        return None
    return run if run.recipe == recipe else None
