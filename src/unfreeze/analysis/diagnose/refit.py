"""Refit of a run's probe under other folds or penalties, from cached features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfreeze.analysis.diagnose.context import DiagnosisContext
from unfreeze.core.arrays import F64, Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import FoldError, UnfreezeError
from unfreeze.core.recipe import Recipe
from unfreeze.data.splits import assign_folds, stratified_group_kfold
from unfreeze.features.crops import face_crops
from unfreeze.features.inputs import extract_inputs
from unfreeze.training.context import FitContext
from unfreeze.training.linear_probe.heads import predict_folds
from unfreeze.training.linear_probe.strategy import Probe, fit_heads

DEALS = 3


@dataclass
class Refit:
    """A probe on the images of a run.

    Attributes:
        case: Context of the diagnosis.
        work: Prepared context for fitting.
        probe: Features and graphs of the probe.
        own: Whether it is the run's own probe, and not a surrogate.
        proba: float64 (n, C), out-of-fold probabilities under the folds of the run.
        rows: Rows that can be evaluated.
        strengths: Inverse regularization strengths selected in the folds of the last fit.
    """

    case: DiagnosisContext
    work: FitContext
    probe: Probe
    own: bool
    proba: F64
    rows: Rows
    strengths: tuple[float, ...] = ()

    @property
    def said(self) -> str:
        """Remark to append to figures of a surrogate."""
        return "" if self.own else " (measured with a probe on the same photos)"

    def dealt(self, units: Rows) -> list[F64]:
        """Out-of-fold probabilities with intact groups, for `DEALS` random fold assignments.

        A single fold assignment changes the score by as much as a small leak, which an interval over groups does not
        cover.

        Returns:
            One float64 (n, C) per fold assignment.
        """
        seeds = [self.case.run.recipe.seed + i for i in range(DEALS)]
        return [self.under(units, self.folds_for(units, seed)) for seed in seeds]

    def folds_for(self, units: Rows, seed: int) -> Rows:
        """Folds that the recipe of the run yields for these groups, int64 (n,); -1 for rows to ignore."""
        case, recipe = self.case, self.case.run.recipe
        labels, groups = case.labels[self.rows], units[self.rows]
        out = np.full(len(case.labels), -1, np.int64)
        try:
            found, _ = stratified_group_kfold(labels, groups, recipe.folds.n_splits, seed, case.run.classes)
        except FoldError:  # a class with one group, or with fewer groups than folds
            found = assign_folds(labels, groups, min(recipe.folds.n_splits, len(np.unique(groups))), seed, case.classes)
        out[self.rows] = found
        return out

    def under(self, units: Rows, folds: Rows, **changes: object) -> F64:
        """Out-of-fold probabilities under other groups and folds.

        Args:
            units: int64 (n,), groups.
            folds: int64 (n,), folds; -1 for rows to ignore.
            **changes: Changes to recipe.probe.

        Returns:
            float64 (n, C).
        """
        recipe = self.work.recipe.replace(**{f"probe.{key}": value for key, value in changes.items()})
        work = replace(self.work, recipe=recipe, folds=folds, units=units)
        identity = stable_hash([self.work.identity(), folds.tolist(), units.tolist()])
        out, strengths = np.full((len(folds), self.case.classes), np.nan), []
        for fold, head in fit_heads(work, self.probe, units, folds, identity, reporter=self.case.reporter):
            rows = np.flatnonzero(folds == fold)
            out[rows] = predict_folds(self.probe.features, [head], rows)
            strengths.append(head.strength)
        self.strengths = tuple(strengths)
        return out


def open_refit(case: DiagnosisContext) -> Refit | str:
    """Open the probe of a run. Other strategies, races and multiple heads are represented by a surrogate probe.

    Returns:
        The probe, or the reason why there is none.
    """
    recipe = case.run.recipe
    plain = surrogate_recipe(recipe)
    own = recipe.strategy == "probe" and plain == recipe
    if case.gone:
        return case.gone
    usable = case.same & (case.folds >= 0) & np.isfinite(case.proba).all(1)
    folds = np.where(usable, case.folds, -1)
    work = FitContext(
        case.photos, case.looks, case.labels, case.units, folds, plain, case.scratch, case.reporter, trial=True
    )
    try:
        found = face_crops(plain, case.photos.files(), case.looks.keys, usable, case.reporter)
        work.squares = None if found is None else found.cut
        files, keys = case.photos.files(), case.looks.keys
        features, graphs = extract_inputs(files, keys, usable, plain, case.reporter, work.squares)
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


def surrogate_recipe(recipe: Recipe) -> Recipe:
    """Recipe of a plain probe on the same images: one input, one head per fold, no added rows."""
    changes: dict[str, object] = {}
    if recipe.strategy != "probe":
        changes |= {"strategy": "probe"}
        if recipe.strategy == "scratch":
            changes |= {"weights": ""}
        if recipe.balance.loss == "soft-f1":
            changes |= {"balance.loss": ""}
    if recipe.probe.input_candidates:
        changes |= {"probe.input_candidates": ()}
    if recipe.balance.extra_views:
        changes |= {"balance.extra_views": ()}
    if recipe.labels.model != "joint":
        changes |= {"labels.model": "joint"}
    return recipe.replace(**changes) if changes else recipe
