"""Strategies late, full and scratch: a network for each fold, trained from the probe or from nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Train
from unfreeze.core.runs import read_log
from unfreeze.data.folds import make_folds
from unfreeze.learn.added import AddedRows
from unfreeze.learn.added_views import compute_added
from unfreeze.learn.balance import check_balance
from unfreeze.learn.fitting import Outcome, Rows, Work, added_rows
from unfreeze.learn.probe.heads import LinearHead
from unfreeze.learn.probe.probing import Probe, fit_probe, heads_of
from unfreeze.learn.train.activations import affordable
from unfreeze.learn.train.finetune import train_folds
from unfreeze.learn.train.jobs import Job
from unfreeze.learn.train.strategy_photos import prepare_photos
from unfreeze.learn.train.tuning import Setting, seconds_of, settle

# Share of a budget that is left for judging, the report and what nobody foresaw.
_SPARE = 0.03


def check_training(recipe: Recipe) -> None:
    """Raises RecipeError or BackboneError for a training that cannot be, before any work is done for it."""
    if recipe.strategy == "probe":
        return
    if recipe.probe.race:
        raise RecipeError(f"probe.race: strategy {recipe.strategy} trains one network; leave --quality best out.")
    check_balance(recipe)
    seconds_of(recipe.train.budget)
    settings = settle(recipe, 1000)
    _check_labels(recipe, settings)
    Setting.of(recipe, settings).check(settings.progressive)


def _check_labels(recipe: Recipe, settings: Train) -> None:
    """Raises RecipeError for parts that a network cannot learn.

    It can where its head is the probe's and stays: the sum of the parts' cross entropies is that of the combination
    (but for the share of combinations that do not exist), and a head that stays needs no tie between its columns.
    """
    model = recipe.labels.model
    if model == "both":
        raise RecipeError(
            f"labels.model = 'both': would take two networks a fold; strategy {recipe.strategy} trains one, with "
            "labels.model=joint or parts."
        )
    if model == "parts" and not (settings.start == "probe" and settings.head_rate == 0):
        raise RecipeError(
            f"labels.model = 'parts': a network keeps the probe's heads as they are; with strategy {recipe.strategy} "
            "and these train.* keys its head would train; use labels.model=joint."
        )


@dataclass(frozen=True)
class Prepared:
    """All that is needed before the first step: every choice made, photos decoded or activations computed."""

    settings: Train
    setting: Setting
    probe: Probe | None
    jobs: list[Job]


def tune(work: Work, started: float) -> Outcome:
    """Trains each fold and predicts its photos and those of a test split. started: when the command began."""
    prepared = prepare(work)
    with work.clock("training"):
        budget = seconds_of(work.recipe.train.budget)
        left = max(1.0, budget * (1 - _SPARE) - (time.perf_counter() - started)) if budget else 0.0
        found = train_folds(prepared.jobs, work.folder, work.reporter, left)
    outcome = gather(work, prepared, found)
    if budget:
        done = ", ".join(str(row["epochs"]) for row in outcome.folds.values())
        work.reporter.say(
            f"Budget of {work.recipe.train.budget}: the folds took {done} of {prepared.settings.epochs} epochs."
        )
    return outcome


def prepare(work: Work) -> Prepared:
    """The jobs of the folds to learn."""
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
                work.involved,
                setting.frame,
                setting.engine,
                work.reporter,
            )
            settings = settings.model_copy(update={"views": views})
            setting = Setting.of(work.recipe, settings)
        work.leave_out(prepare_photos(setting, files, keys, work.involved, limit, work.reporter, work.squares))
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


def gather(work: Work, prepared: Prepared, found: dict[int, NDArray[np.float64]]) -> Outcome:
    """What the trained folds have found. found: probabilities (photos of the fold, then test photos; C) by fold."""
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
            test = (test + predict_folds(probe.features, list(probe.heads.values()), tested)) / 2
    return Outcome(proba, test, rows, info, beside)


def _told(work: Work, fold: int) -> dict[str, Any]:
    """What scores.json says of a fold beside its scores: epochs trained, and the one whose weights were taken."""
    rows = [row for row in read_log(work.folder) if row["fold"] == fold]
    return {"epochs": len(rows), "best_epoch": max((row["epoch"] for row in rows if row["best"]), default=0)}


def _job(work: Work, settings: Train, probe: Probe | None, fold: int, tested: Rows, added: AddedRows) -> Job:
    train = np.flatnonzero((work.folds >= 0) & (work.folds != fold))
    out = np.concatenate([np.flatnonzero(work.folds == fold), tested])
    valid = _held_inside(work, settings, train, fold) if settings.patience else np.zeros(0, np.int64)
    train = np.setdiff1d(train, valid)
    start = None
    if settings.start == "probe" and probe:
        head = _head_without(work, probe, fold, valid) if len(valid) else probe.heads[fold]
        start = head.weight, head.bias
    # An added row is learnt from where its photo is: not in the fold that is judged, nor held inside.
    behind = len(work.labels) + np.flatnonzero(np.isin(added.photo, train))
    labels, keys = added.extended(work.labels), work.looks.keys
    return Job(
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
    fitted = heads_of(work, probe, work.units, folds, fingerprint([probe.identity, fold, valid.tolist()]), [fold])
    return next(iter(fitted))[1]
