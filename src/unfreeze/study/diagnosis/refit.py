"""The run's probe fitted again under other folds or penalties, from the features that are in the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import FoldError, UnfreezeError
from unfreeze.core.recipe import Recipe
from unfreeze.data.folds import deal, make_folds
from unfreeze.learn.fitting import Work
from unfreeze.learn.probe.heads import predict_folds
from unfreeze.learn.probe.inputs import compute_inputs
from unfreeze.learn.probe.probing import Probe, heads_of
from unfreeze.learn.sight import squares_of
from unfreeze.study.diagnosis.case import Case

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]

DEALS = 3


@dataclass
class Refit:
    """A probe of the case's photos. own: whether it is the run itself that is fitted again, and not a stand-in.

    proba: float64 (n, C), out of fold under the run's folds. rows: that can be measured. strengths: the inverse
    penalties that the folds of the last fit chose.
    """

    case: Case
    work: Work
    probe: Probe
    own: bool
    proba: F64
    rows: Rows
    strengths: tuple[float, ...] = ()

    @property
    def said(self) -> str:
        """What a figure of a stand-in is introduced by."""
        return "" if self.own else " (measured with a probe on the same photos)"

    def dealt(self, units: Rows) -> list[F64]:
        """Out-of-fold probabilities float64 (n, C) with these groups whole, under each of DEALS deals of the folds.

        One deal moves a score by as much as a small leak, and no interval over groups tells of it.
        """
        seeds = [self.case.run.recipe.seed + i for i in range(DEALS)]
        return [self.under(units, self.folds_for(units, seed)) for seed in seeds]

    def folds_for(self, units: Rows, seed: int) -> Rows:
        """Folds as the run's recipe would deal these groups, int64 (n,); -1 for rows that take no part."""
        case, recipe = self.case, self.case.run.recipe
        labels, groups = case.labels[self.rows], units[self.rows]
        out = np.full(len(case.labels), -1, np.int64)
        try:
            found, _ = make_folds(labels, groups, recipe.folds.count, seed, case.run.classes)
        except FoldError:  # a class of one group, or of fewer than folds
            found = deal(labels, groups, min(recipe.folds.count, len(np.unique(groups))), seed, case.classes)
        out[self.rows] = found
        return out

    def under(self, units: Rows, folds: Rows, **changes: object) -> F64:
        """Out-of-fold probabilities float64 (n, C) under these groups and folds. changes: of recipe.probe."""
        recipe = self.work.recipe.replace(**{f"probe.{key}": value for key, value in changes.items()})
        work = replace(self.work, recipe=recipe, folds=folds, units=units)
        identity = fingerprint([self.work.identity(), folds.tolist(), units.tolist()])
        out, strengths = np.full((len(folds), self.case.classes), np.nan), []
        for fold, head in heads_of(work, self.probe, units, folds, identity, reporter=self.case.reporter):
            rows = np.flatnonzero(folds == fold)
            out[rows] = predict_folds(self.probe.features, [head], rows)
            strengths.append(head.strength)
        self.strengths = tuple(strengths)
        return out


def open_refit(case: Case) -> Refit | str:
    """The probe, or why there is none. A run of networks, of a race or of several heads is stood in for by a probe."""
    recipe = case.run.recipe
    plain = stand_in(recipe)
    own = recipe.strategy == "probe" and plain == recipe
    if case.gone:
        return case.gone
    usable = case.same & (case.folds >= 0) & np.isfinite(case.proba).all(1)
    folds = np.where(usable, case.folds, -1)
    work = Work(case.photos, case.looks, case.labels, case.units, folds, plain, case.scratch, case.reporter, trial=True)
    try:
        found = squares_of(plain, case.photos.files(), case.looks.keys, usable, case.reporter)
        work.squares = None if found is None else found.cut
        files, keys = case.photos.files(), case.looks.keys
        features, graphs = compute_inputs(files, keys, usable, plain, case.reporter, work.squares)
    except UnfreezeError as error:
        return f"its features cannot be computed here: {error}"
    work.leave_out(features.failed)
    rows = np.flatnonzero(work.folds >= 0)
    if len(np.unique(work.labels[rows])) < 2:
        return "the photos that are left have one class"
    refit = Refit(case, work, Probe(features.held(), graphs, {}, work.identity()), own, case.proba, rows)
    if not own:
        refit.proba = refit.under(case.units, work.folds)
    return refit


def stand_in(recipe: Recipe) -> Recipe:
    """The recipe of a plain probe on the same photos: one input, one head a fold, no added rows."""
    changes: dict[str, object] = {}
    if recipe.strategy != "probe":
        changes |= {"strategy": "probe"}
        if recipe.strategy == "scratch":
            changes |= {"weights": ""}
        if recipe.balance.loss == "soft-f1":
            changes |= {"balance.loss": ""}
    if recipe.probe.race:
        changes |= {"probe.race": ()}
    if recipe.balance.add:
        changes |= {"balance.add": ()}
    if recipe.labels.model != "joint":
        changes |= {"labels.model": "joint"}
    return recipe.replace(**changes) if changes else recipe
