"""A run's folds and what learns each: one strategy for all, or what strategy auto chose for each without seeing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import RecipeError
from unfreeze.core.files import read_json, write_json
from unfreeze.core.recipe import Recipe
from unfreeze.learn.fitting import Outcome, Work
from unfreeze.learn.probe.probing import Probe, probe

Changes = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What is to be done in each fold: changes to the recipe, dotted keys, with `strategy` among them.

    changes: one a fold, in fold order. told: the evidence, as JSON.
    """

    changes: tuple[Changes, ...]
    told: dict[str, Any]


Choose = Callable[[Work], Choice]


def check_strategy(recipe: Recipe, choose: Choose | None) -> None:
    """Raises RecipeError or BackboneError for a strategy that cannot be, before any work is done for it."""
    if recipe.strategy == "auto":
        if choose is None:
            raise RecipeError("strategy = 'auto': a race chooses it; call unfreeze.fit, or name a strategy.")
        return
    if recipe.strategy != "probe":
        from unfreeze.learn.train.tuned_folds import check_training

        check_training(recipe)


def learn(work: Work, started: float, choose: Choose | None) -> tuple[Outcome, Probe | None]:
    """Out-of-fold probabilities of every fold, and the probe if it is the only strategy.

    started: when the command began. Under strategy auto the choice is made first, kept as advice.json, and taken from
    there by a run that is taken up again.
    """
    if work.recipe.strategy != "auto":
        return learn_one(work, started)
    assert choose is not None
    chosen = _chosen(work, choose)
    ways: list[tuple[Changes, tuple[int, ...]]] = []
    for fold, changes in enumerate(chosen):
        place = next((i for i, (known, _) in enumerate(ways) if known == changes), None)
        if place is None:
            ways.append((changes, (fold,)))
        else:
            ways[place] = (changes, (*ways[place][1], fold))
    parts, fitted = [], None
    for changes, folds in ways:
        part = replace(work, recipe=work.recipe.replace(**changes), which=folds)
        outcome, fitted = learn_one(part, started)
        parts.append((changes, folds, outcome))
        work.photos, work.folds = part.photos, part.folds  # what could not be read is out for all
    return _together(work, parts), fitted if len(ways) == 1 else None


def learn_one(work: Work, started: float) -> tuple[Outcome, Probe | None]:
    """The same under one strategy, which is not auto; only the folds of `work.which`, if it names some."""
    if work.recipe.strategy == "probe":
        return probe(work)
    from unfreeze.learn.train.tuned_folds import tune

    return tune(work, started), None


def _chosen(work: Work, choose: Choose) -> tuple[Changes, ...]:
    """Each fold's changes: those of advice.json, if it is of this very work, else chosen now."""
    path = work.folder / "advice.json"
    about = [work.photos.classes, work.labels.tolist(), work.units.tolist()]
    mark = fingerprint([work.identity(), *about, work.recipe.model_dump(mode="json")])
    try:
        found = read_json(path)
        if found["identity"] == mark and len(found["chosen"]) == work.recipe.folds.count:
            return tuple(dict(changes) for changes in found["chosen"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    choice = choose(work)
    write_json(path, {"identity": mark, "chosen": list(choice.changes), **choice.told})
    return choice.changes


def _together(work: Work, parts: list[tuple[Changes, tuple[int, ...], Outcome]]) -> Outcome:
    """One outcome of all: each fold's own, and the test split's mean over all folds."""
    proba = np.full((len(work.labels), work.classes), np.nan)
    count = work.recipe.folds.count
    test: Any = 0.0
    rows: dict[int, dict[str, Any]] = {}
    info: dict[str, Any] = {"members": []}
    for changes, folds, outcome in parts:
        inside = np.isin(work.folds, folds)
        proba[inside] = outcome.proba[inside]
        test = test + outcome.test * len(folds) / count
        rows |= {k: {**outcome.folds[k], "strategy": changes["strategy"]} for k in folds}
        info["members"].append({"folds": list(folds), "changes": changes, "info": outcome.info})
        info = {**outcome.info, **info}
    info["strategy"] = " and ".join(dict.fromkeys(changes["strategy"] for changes, _, _ in parts))
    beside = {}
    if any("probe" in outcome.beside for _, _, outcome in parts):
        before = proba.copy()
        for _, folds, outcome in parts:
            inside = np.isin(work.folds, folds)
            before[inside] = outcome.beside.get("probe", outcome.proba)[inside]
        beside["probe"] = before
    return Outcome(proba, test, rows, info, beside)
