"""Strategy dispatch: train one strategy in all folds, or the strategy that 'auto' chose for each fold.

With 'auto', the choice for a fold is made without looking at that fold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import RecipeError
from unfreeze.core.files import json_memo
from unfreeze.core.recipe import Recipe
from unfreeze.training.context import FitContext, StrategyResult
from unfreeze.training.linear_probe.strategy import Probe, probe

Changes = dict[str, Any]


@dataclass(frozen=True)
class StrategyChoice:
    """Recipe changes chosen for each fold.

    Attributes:
        changes: One dictionary per fold, in fold order: dotted keys -> values, including `strategy`.
        evidence: Evidence for the choice, as JSON.
    """

    changes: tuple[Changes, ...]
    evidence: dict[str, Any]


StrategyChooser = Callable[[FitContext], StrategyChoice]


def check_strategy(recipe: Recipe, choose: StrategyChooser | None) -> None:
    """Check that the strategy of a recipe can be trained, before any work is done.

    Raises:
        RecipeError: If the strategy or its options are invalid.
        BackboneError: If the backbone does not support it.
    """
    if recipe.strategy == "auto":
        if choose is None:
            raise RecipeError("strategy = 'auto': a race chooses it; call unfreeze.fit, or name a strategy.")
        return
    if recipe.strategy != "probe":
        from unfreeze.training.fine_tune.strategy import check_training

        check_training(recipe)


def run_strategies(
    work: FitContext, started: float, choose: StrategyChooser | None
) -> tuple[StrategyResult, Probe | None]:
    """Train every fold with the strategy of the recipe.

    With strategy 'auto', the choice is made first and saved in recommendation.json, from which a resumed run reads it.

    Args:
        work: The images and their folds.
        started: Time at which the command started, from `time.perf_counter`.
        choose: Function that makes the choice for strategy 'auto'.

    Returns:
        The result for all folds, and the probe if it is the only strategy.
    """
    if work.recipe.strategy != "auto":
        return run_strategy(work, started)
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
        outcome, fitted = run_strategy(part, started)
        parts.append((changes, folds, outcome))
        work.photos, work.folds = part.photos, part.folds  # unreadable images are excluded for all
    return _together(work, parts), fitted if len(ways) == 1 else None


def run_strategy(work: FitContext, started: float) -> tuple[StrategyResult, Probe | None]:
    """Train the folds of `work.todo` with a strategy other than 'auto'.

    Returns:
        The result, and the probe if the strategy is 'probe'.
    """
    if work.recipe.strategy == "probe":
        return probe(work)
    from unfreeze.training.fine_tune.strategy import fine_tune

    return fine_tune(work, started), None


def _chosen(work: FitContext, choose: StrategyChooser) -> tuple[Changes, ...]:
    """Return the recipe changes of each fold: from recommendation.json if it belongs to the same inputs, else newly
    chosen.
    """
    path = work.folder / "recommendation.json"
    about = [work.photos.classes, work.labels.tolist(), work.units.tolist()]
    mark = stable_hash([work.identity(), *about, work.recipe.model_dump(mode="json")])

    def compute() -> dict[str, Any]:
        choice = choose(work)
        return {"identity": mark, "chosen": list(choice.changes), **choice.evidence}

    def parse(found: dict[str, Any]) -> tuple[Changes, ...] | None:
        same = found["identity"] == mark and len(found["chosen"]) == work.recipe.folds.n_splits
        return tuple(dict(changes) for changes in found["chosen"]) if same else None

    return json_memo(path, compute, parse)


def _together(work: FitContext, parts: list[tuple[Changes, tuple[int, ...], StrategyResult]]) -> StrategyResult:
    """Merge the results of several strategies: each fold's own probabilities, and the test mean over all folds."""
    proba = np.full((len(work.labels), work.classes), np.nan)
    count = work.recipe.folds.n_splits
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
    components = {}
    if any("probe" in outcome.components for _, _, outcome in parts):
        before = proba.copy()
        for _, folds, outcome in parts:
            inside = np.isin(work.folds, folds)
            before[inside] = outcome.components.get("probe", outcome.proba)[inside]
        components["probe"] = before
    inner = {k: outcome.inner[k] for _, folds, outcome in parts for k in folds if k in outcome.inner}
    return StrategyResult(proba, test, rows, info, components, inner)
