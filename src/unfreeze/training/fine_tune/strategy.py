"""Strategies 'partial', 'full' and 'scratch': a network per fold, trained from a probe or from random weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import RecipeError
from unfreeze.core.messages import wording
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Train
from unfreeze.core.runs import read_log
from unfreeze.data.splits import stratified_group_kfold
from unfreeze.features.activations import check_disk
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.features.extra_views import compute_added
from unfreeze.training.class_balance import check_balance
from unfreeze.training.context import FitContext, StrategyResult, added_rows
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.fold_job import PLAN, FoldJob
from unfreeze.training.fine_tune.inputs import cache_inputs
from unfreeze.training.fine_tune.launcher import train_folds
from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings, seconds_of
from unfreeze.training.linear_probe.heads import LinearHead
from unfreeze.training.linear_probe.strategy import Probe, fit_heads, fit_probe

# Fraction of the time budget that is reserved for scoring, the report and unforeseen work.
_SPARE = 0.03


def check_training(recipe: Recipe) -> None:
    """Check the training options of a recipe before any work is done.

    Raises:
        RecipeError: If options contradict each other.
        BackboneError: If the backbone does not support the strategy.
    """
    if recipe.strategy == "probe":
        return
    if recipe.probe.input_candidates:
        raise RecipeError(
            f"probe.input_candidates: strategy {recipe.strategy} trains one network; "
            f"{wording('leave --quality best out', 'leave it empty')}."
        )
    check_balance(recipe)
    seconds_of(recipe.train.time_budget)
    settings = resolve_settings(recipe, 1000)
    _check_labels(recipe, settings)
    setting = TrainSetup.of(recipe, settings)
    setting.check(settings.progressive_resizing)
    setting.check_batch(settings)


def _check_labels(recipe: Recipe, settings: Train) -> None:
    """Raise RecipeError for a label model that a network cannot train.

    A network supports heads per attribute if its head is that of the probe and stays frozen: the sum of the attributes'
    cross-entropies equals that of the combination (up to the probability of nonexistent combinations), and a frozen
    head needs no constraint between its columns.
    """
    model = recipe.labels.model
    if model == "both":
        raise RecipeError(
            f"labels.model = 'both': would take two networks a fold; strategy {recipe.strategy} trains one, with "
            "labels.model=joint or parts."
        )
    if model == "parts" and not (settings.head_init == "probe" and settings.head_lr_mult == 0):
        raise RecipeError(
            f"labels.model = 'parts': a network keeps the probe's heads as they are; with strategy {recipe.strategy} "
            "and these train.* keys its head would train; use labels.model=joint."
        )


@dataclass(frozen=True)
class Prepared:
    """Everything that is needed before the first training step, with all inputs cached.

    Attributes:
        settings: Resolved `recipe.train`.
        setting: The training setup.
        probe: The probe, if training starts from it or it is part of the ensemble.
        jobs: One job per fold.
    """

    settings: Train
    setting: TrainSetup
    probe: Probe | None
    jobs: list[FoldJob]


def fine_tune(work: FitContext, started: float) -> StrategyResult:
    """Train each fold and predict its images and those of a test split.

    Args:
        work: The images and their folds.
        started: Time at which the command started, from `time.perf_counter`.

    Returns:
        The result of the strategy.
    """
    prepared = prepare(work)
    with work.clock("training"):
        budget = seconds_of(work.recipe.train.time_budget)
        left = max(1.0, budget * (1 - _SPARE) - (time.perf_counter() - started)) if budget else 0.0
        found = train_folds(prepared.jobs, work.folder, work.reporter, left)
    outcome = collect(work, prepared, found)
    if budget:
        done = ", ".join(str(row["epochs"]) for row in outcome.folds.values())
        work.reporter.say(
            f"Budget of {work.recipe.train.time_budget}: the folds took {done} of {prepared.settings.epochs} epochs."
        )
    return outcome


def prepare(work: FitContext) -> Prepared:
    """Fit the probe if needed, cache the inputs, and return the jobs of the folds to train."""
    settings = resolve_settings(work.recipe, int((work.folds >= 0).sum()))
    setting = TrainSetup.of(work.recipe, settings)
    settings = setting.settled(settings)
    if work.recipe.strategy == "partial" and not setting.cut:
        name = setting.backbone.stages[setting.first].name
        work.reporter.say(
            f"Strategy partial: {setting.backbone.name} cannot be cut before stage {name}; its frozen stages "
            "run in every "
            "step."
        )
    if notice := setting.notice(settings):
        work.reporter.say(notice)
    probe = fit_probe(work) if settings.head_init == "probe" or settings.average_with_probe else None
    with work.clock("pixels" if not setting.cut else "activations"):
        limit = int(work.recipe.image.max_megapixels * 1e6)
        files, keys = work.photos.files(), work.looks.keys
        if setting.cut:
            check_disk(setting.front, setting.views, keys, work.involved, setting.frame, setting.engine)
        work.leave_out(cache_inputs(setting, files, keys, work.involved, limit, work.reporter, work.squares))
        added = added_rows(work)
        if setting.cut and len(added):
            s, wish, say = setting, setting.engine, work.reporter
            failed = compute_added(added, files, keys, s.front, s.added_views, s.frame, wish, limit, say, work.squares)
            work.leave_out(failed)
            added = added.without(failed)
    tested = work.tested()
    with work.clock("inner heads"):
        jobs = [_job(work, settings, probe, k, tested, added) for k in work.todo]
    return Prepared(settings, setting, probe, jobs)


def collect(work: FitContext, prepared: Prepared, found: dict[int, NDArray[np.float64]]) -> StrategyResult:
    """Collect the results of the trained folds.

    Args:
        work: The images and their folds.
        prepared: Result of `prepare`.
        found: Fold -> probabilities (images of the fold followed by test images, C).

    Returns:
        The result of the strategy.
    """
    settings, setting, probe, tested = prepared.settings, prepared.setting, prepared.probe, work.tested()
    rows = {k: _told(work, k) for k in work.todo}
    proba = np.full((len(work.labels), work.classes), np.nan)
    test = np.zeros((len(tested), work.classes))
    for k, probabilities in found.items():
        inside = np.flatnonzero(work.folds == k)
        proba[inside] = probabilities[: len(inside)]
        test += probabilities[len(inside) :] / len(found)
    info: dict[str, Any] = {
        "backbone_info": setting.backbone.describe(),
        "views": list(work.recipe.probe.views),
        "trained": {
            **setting.front_or_whole(),
            "settings": settings.model_dump(mode="json"),
            "plans": {str(k): plan for k in work.todo if (plan := _plan(work, k))},
        },
        "engine": "torch",
        "identity": work.identity(),
    }
    components: dict[str, NDArray[np.float64]] = {}
    if probe:
        info = {**probe.info(work), **info, "engine": probe.features.engine}
        components = {"probe": probe.out_of_fold(work), "network alone": proba}
        if settings.average_with_probe:
            from unfreeze.training.linear_probe.heads import predict_folds

            proba = (proba + components["probe"]) / 2
            test = (test + predict_folds(probe.features, list(probe.heads.values()), tested)) / 2
    return StrategyResult(proba, test, rows, info, components, probe.inner if probe else {})


def _told(work: FitContext, fold: int) -> dict[str, Any]:
    """Return what scores.json contains about the training of a fold: number of epochs, and best epoch."""
    rows = [row for row in read_log(work.folder) if row["fold"] == fold]
    return {"epochs": len(rows), "best_epoch": max((row["epoch"] for row in rows if row["best"]), default=0)}


def _plan(work: FitContext, fold: int) -> dict[str, Any]:
    """Return what run.json contains about the execution plan of a fold; empty if unknown."""
    plan = Plan.read(work.folder / "scratch" / f"fold-{fold}" / PLAN)
    if plan is None:
        return {}
    least = min((row["micro_batch"] for row in read_log(work.folder) if row["fold"] == fold), default=plan.micro_batch)
    return {
        "precision": plan.precision,
        "memory_format": plan.memory_format,
        "compile": plan.compile,
        "micro_batch": min(plan.micro_batch, least),
    }


def _job(
    work: FitContext, settings: Train, probe: Probe | None, fold: int, tested: Rows, added: ExtraSamples
) -> FoldJob:
    train = np.flatnonzero((work.folds >= 0) & (work.folds != fold))
    out = np.concatenate([np.flatnonzero(work.folds == fold), tested])
    valid = _held_inside(work, settings, train, fold) if settings.patience else np.zeros(0, np.int64)
    train = np.setdiff1d(train, valid)
    start = None
    if settings.head_init == "probe" and probe:
        head = _head_without(work, probe, fold, valid) if len(valid) else probe.heads[fold]
        start = head.weight, head.bias
    # Extra samples are used where their image is used: not in the held-out fold, nor in the validation rows.
    behind = len(work.labels) + np.flatnonzero(np.isin(added.photo, train))
    labels, keys = added.extended(work.labels), work.looks.keys
    return FoldJob(
        recipe=work.recipe,
        settings=settings,
        classes=work.classes,
        fold=fold,
        train=np.concatenate([train, behind]),
        valid=valid,
        out=out,
        labels=labels,
        keys=keys,
        readable=work.involved,
        start=start,
        added=added,
    )


def _held_inside(work: FitContext, settings: Train, train: Rows, fold: int) -> Rows:
    """Return validation rows for early stopping: whole groups of the training part, with all classes if possible."""
    labels, units = work.labels[train], work.units[train]
    groups = min(len(np.unique(units[labels == c])) for c in np.unique(labels))
    if groups < 2:
        raise RecipeError(
            "train.patience: a class has only one group in the training part of a fold, so none can be held out for "
            "early stopping; leave it out."
        )
    parts = min(max(2, round(1 / settings.val_fraction)), groups)
    seed = work.recipe.seed * 1000 + fold
    found, _ = stratified_group_kfold(labels, units, parts, seed, work.photos.classes)
    return train[found == 0]


def _head_without(work: FitContext, probe: Probe, fold: int, valid: Rows) -> LinearHead:
    """Fit the fold's head without the validation rows, which the starting point of training must not have seen."""
    folds = work.folds.copy()
    folds[valid] = fold
    fitted = fit_heads(work, probe, work.units, folds, stable_hash([probe.identity, fold, valid.tolist()]), [fold])
    return next(iter(fitted))[1]
