"""Scores of a cross-validated model: out-of-fold scores of the fold models, and scores of their ensemble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.messages import groups_given
from unfreeze.core.recipe import Recipe
from unfreeze.metrics.bootstrap import group_ids
from unfreeze.metrics.classification import Scores, Values, delivered_scores, relative_reduction, score_predictions
from unfreeze.training.context import FitContext, StrategyResult
from unfreeze.training.linear_probe.heads import predict_folds
from unfreeze.training.linear_probe.repeats import repeat, wanted
from unfreeze.training.linear_probe.strategy import Probe

HEADLINES = ("accuracy", "macro_f1", "log_loss")
_WIDTH = 3.92  # width of a 95% interval in standard errors


def evaluate(work: FitContext, outcome: StrategyResult, fitted: Probe | None) -> tuple[StrategyResult, Scores]:
    """Score all rows that are in a fold.

    Args:
        work: The images and their folds.
        outcome: Result of the strategy.
        fitted: The probe, if it is the only strategy. Cross-validation is then repeated if the recipe requests it or
            the dataset is small, and the heads to deliver are saved in the folders of the folds.

    Returns:
        The outcome, with test predictions of the delivered heads and the number of `repeats` in its info; and the
        scores: accuracy, macro_f1 and log_loss of the delivered model with confidence intervals, `averaging` (relative
        reduction of each error by averaging the fold models), `repeats` (scores for each fold assignment),
        `groups_given`, and `out_of_fold` (scores of the fold models).
    """
    inside = np.flatnonzero(work.folds >= 0)
    labels, units, proba = work.labels[inside], work.units[inside], outcome.proba[inside]
    with work.clock("judge"):
        found = score_predictions(labels, proba, units, work.photos.classes, seed=work.recipe.seed)
    outcome, values = _repeated(work, outcome, fitted, found)
    with work.clock("judge"):
        inner, folds = list(outcome.inner.values()), work.recipe.folds.n_splits
        reduction = relative_reduction(inner, folds) if len(inner) == folds else {}
        mean = {name: float(np.mean([one[name] for one in values])) for name in HEADLINES}
        scores: Scores = delivered_scores(labels, proba, units, mean, reduction)
    given = work.recipe.folds.use_groups and groups_given(work.photos.table)
    return outcome, {
        **scores,
        "averaging": reduction,
        "repeats": values,
        "groups_given": given,
        "out_of_fold": found,
    }


def fold_groups(photos: ImageDataset, units: Rows, recipe: Recipe) -> NDArray[Any]:
    """Return the group of each row that the fold assignment must not split."""
    return units if recipe.folds.group_duplicates else photos.table["group"].to_numpy()


def _repeated(
    work: FitContext, outcome: StrategyResult, fitted: Probe | None, found: Scores
) -> tuple[StrategyResult, list[Values]]:
    """Repeat cross-validation with further fold assignments if requested.

    Returns:
        The outcome, updated with the averaged heads, and the scores of each assignment.
    """
    own = [{name: found[name]["value"] for name in HEADLINES}]
    error = (found["macro_f1"]["high"] - found["macro_f1"]["low"]) / _WIDTH
    count = 1 if fitted is None else wanted(work, fitted, error)
    if fitted is None or count == 1:
        if work.recipe.folds.repeats > 1:
            work.reporter.say(
                f"folds.repeats = {work.recipe.folds.repeats}: not repeated; only a probe of one input and one joint "
                "label can average the heads of several assignments."
            )
        return outcome, own
    with work.clock("repeats"):
        work.reporter.say(f"Few images: cross-validation is repeated with {count - 1} further assignments to folds.")
        groups = np.arange(len(work.labels), dtype=np.int64)
        if work.recipe.folds.use_groups:
            groups = group_ids(fold_groups(work.photos, work.units, work.recipe))[0]
        repeats = repeat(work, fitted, groups, count, own[0])
        mark = stable_hash([work.identity(), work.recipe.model_dump(mode="json"), count])
        for k, head in enumerate(repeats.heads):
            head.save(work.folder / f"fold-{k}" / "delivered.safetensors", mark, work.photos.classes)
        test = predict_folds(fitted.features, repeats.heads, work.tested())
    return replace(outcome, test=test, info={**outcome.info, "repeats": count}), repeats.values
