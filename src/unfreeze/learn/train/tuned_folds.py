"""Strategies late, full and scratch: a network for each fold, trained from the probe or from nothing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import Recipe, Train
from unfreeze.core.runs import read_log
from unfreeze.data.folds import make_folds
from unfreeze.learn.fitting import Outcome, Rows, Work
from unfreeze.learn.probe.heads import LinearHead, fit_folds
from unfreeze.learn.probe.probing import Probe, fit_probe
from unfreeze.learn.train.activations import affordable
from unfreeze.learn.train.finetune import train_folds
from unfreeze.learn.train.jobs import Job
from unfreeze.learn.train.tuning import Setting, prepare_photos, seconds_of, settle

# Share of a budget that is left for judging, the report and what nobody foresaw.
_SPARE = 0.03


def check_training(recipe: Recipe) -> None:
    """Raises RecipeError or BackboneError for a training that cannot be, before any work is done for it."""
    if recipe.strategy == "probe":
        return
    if recipe.probe.race:
        raise RecipeError(f"probe.race: strategy {recipe.strategy} trains one network; leave --quality best out.")
    seconds_of(recipe.train.budget)
    settings = settle(recipe, 1000)
    Setting.of(recipe, settings).check(settings.progressive)


def tune(work: Work, started: float) -> Outcome:
    """Trains each fold and predicts its photos and those of a test split. started: when the command began."""
    settings = settle(work.recipe, int((work.folds >= 0).sum()))
    setting = Setting.of(work.recipe, settings)
    probe = fit_probe(work) if settings.start == "probe" or settings.ensemble else None
    with work.clock("pixels" if not setting.cut else "activations"):
        limit = int(work.recipe.image.max_megapixels * 1e6)
        files, keys = work.photos.files(), work.looks.keys
        if setting.cut:
            views = affordable(
                setting.front,
                setting.views,
                setting.drawn,
                keys,
                work.usable,
                setting.frame,
                setting.engine,
                work.reporter,
            )
            settings = settings.model_copy(update={"views": views})
            setting = Setting.of(work.recipe, settings)
        work.leave_out(prepare_photos(setting, files, keys, work.usable, limit, work.reporter))
    tested = work.tested()
    with work.clock("inner heads"):
        jobs = [_job(work, settings, probe, k, tested) for k in range(work.recipe.folds.count)]
    with work.clock("training"):
        budget = seconds_of(work.recipe.train.budget)
        left = max(1.0, budget * (1 - _SPARE) - (time.perf_counter() - started)) if budget else 0.0
        found = train_folds(jobs, work.folder, work.reporter, left)
    rows = [_told(work, k) for k in range(work.recipe.folds.count)]
    if budget:
        done = ", ".join(str(row["epochs"]) for row in rows)
        work.reporter.say(f"Budget of {work.recipe.train.budget}: the folds took {done} of {settings.epochs} epochs.")
    proba = np.full((len(work.labels), work.classes), np.nan)
    test = np.zeros((len(tested), work.classes))
    for k, probabilities in found.items():
        inside = np.flatnonzero(work.folds == k)
        proba[inside] = probabilities[: len(inside)]
        test += probabilities[len(inside) :] / len(found)
    info: dict[str, Any] = {
        "backbone_info": setting.backbone.describe(),
        "views": list(work.recipe.probe.views),
        "trained": {**setting.front_or_whole(), "settings": settings.model_dump(mode="json")},
        "engine": "torch",
        "identity": work.identity(),
    }
    beside: dict[str, NDArray[np.float64]] = {}
    if probe:
        info = {**probe.info(work), **info, "engine": probe.features.engine}
        beside = {"probe": probe.out_of_fold(work), "network alone": proba}
        if settings.ensemble:
            from unfreeze.learn.probe.heads import predict_folds

            proba = (proba + beside["probe"]) / 2
            test = (test + predict_folds(probe.features, probe.heads, tested)) / 2
    return Outcome(proba, test, rows, info, beside)


def _told(work: Work, fold: int) -> dict[str, Any]:
    """What scores.json says of a fold beside its scores: epochs trained, and the one whose weights were taken."""
    rows = [row for row in read_log(work.folder) if row["fold"] == fold]
    return {"epochs": len(rows), "best_epoch": max((row["epoch"] for row in rows if row["best"]), default=0)}


def _job(work: Work, settings: Train, probe: Probe | None, fold: int, tested: Rows) -> Job:
    train = np.flatnonzero((work.folds >= 0) & (work.folds != fold))
    out = np.concatenate([np.flatnonzero(work.folds == fold), tested])
    valid = _held_inside(work, settings, train, fold) if settings.patience else np.zeros(0, np.int64)
    train = np.setdiff1d(train, valid)
    start = None
    if settings.start == "probe" and probe:
        head = _head_without(work, probe, fold, valid) if len(valid) else probe.heads[fold]
        start = head.weight, head.bias
    return Job(
        work.recipe, settings, work.classes, fold, train, valid, out, work.labels, work.looks.keys, work.usable, start
    )


def _held_inside(work: Work, settings: Train, train: Rows, fold: int) -> Rows:
    """Rows of some groups of the training part, of all classes where that is possible: what training is stopped by."""
    labels, units = work.labels[train], work.units[train]
    groups = min(len(np.unique(units[labels == c])) for c in np.unique(labels))
    if groups < 2:
        raise RecipeError(
            "train.patience: a class has a single group in the training part of a fold, so that none can be held for "
            "stopping; leave it out."
        )
    parts = min(max(2, round(1 / settings.valid)), groups)
    seed = work.recipe.seed * 1000 + fold
    found, _ = make_folds(labels, units, parts, seed, work.photos.classes)
    return train[found == 0]


def _head_without(work: Work, probe: Probe, fold: int, valid: Rows) -> LinearHead:
    """The fold's head as it would be if the rows held inside were not there: it must not know them either."""
    folds = work.folds.copy()
    folds[valid] = fold
    recipe = work.recipe
    fitted = fit_folds(
        probe.features,
        work.labels,
        work.units,
        folds,
        work.classes,
        recipe.probe,
        recipe.seed,
        fingerprint([probe.identity, fold, valid.tolist()]),
        work.folder / "scratch",
        [fold],
    )
    return next(iter(fitted))[1]
