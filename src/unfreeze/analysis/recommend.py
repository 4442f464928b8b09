"""Recommendation of a training strategy, measured on the user's images.

`recommend` races the candidate strategies on a group-safe split (`analysis.strategy_race`), optionally compares
backbones with a probe at equal cost, and measures two axes: similarity to the pretraining data and whether more images
would help. `choose_strategies` makes the choice of `fit` with strategy auto, for each outer fold without its images.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from unfreeze.analysis.learning_curve import Curve, learning_curve
from unfreeze.analysis.pretraining_similarity import Similarity, similarity
from unfreeze.analysis.recommendation import (
    BackboneRow,
    Block,
    StrategyRecommendation,
    StrategyRow,
    reason,
    would_change,
)
from unfreeze.analysis.strategy_race import (
    SHOWN,
    CandidateState,
    InnerSplit,
    RaceResult,
    StrategyCandidate,
    budget_of,
    cross_fit_halves,
    one_block,
    pooled_scores,
    race,
    strategy_candidates,
    together,
)
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import FoldError, RecipeError, join_names
from unfreeze.core.messages import option, setting
from unfreeze.core.parallel import cores
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.features.inputs import extract_inputs, feature_extractors
from unfreeze.metrics.classification import score_predictions
from unfreeze.models.pooling import AUTO
from unfreeze.models.registry import MEET_FIRST, find_backbone
from unfreeze.models.weights import LibraryWeights
from unfreeze.training.class_balance import check_balance
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import detect_faces, prepare
from unfreeze.training.fold_strategies import StrategyChoice
from unfreeze.training.inner_eval import Candidate, evaluate_candidates

if TYPE_CHECKING:
    from unfreeze.analysis.learning_curve import Curve
    from unfreeze.analysis.pretraining_similarity import Similarity


AVAILABLE = "available"


def rank_backbones(
    work: FitContext, block: InnerSplit, names: Sequence[str], reporter: Reporter
) -> tuple[BackboneRow, ...]:
    """Compare backbones by the macro F1 of a probe on the evaluated images of a block, at equal cost.

    Each backbone processes every image of the block once per view at its own pretraining resolution, and gets the same
    head.

    Args:
        work: Prepared context.
        block: Split for the comparison.
        names: Backbone names; `AVAILABLE` stands for those of the short list whose weights are installed.
        reporter: Receives progress messages.

    Returns:
        The backbones, best first.

    Raises:
        RecipeError: If the weights of a named backbone are not installed.
    """
    backbones = [find_backbone(name) for name in _named(names)]
    files, keys, ranked = work.photos.files(), work.looks.keys, []
    for backbone in backbones:
        recipe = work.recipe.replace(
            **{"backbone": backbone.name, "weights": "", "image.size": 0, "probe.stages": AUTO}
        )
        features, graphs = extract_inputs(files, keys, work.usable, recipe, reporter, work.squares)
        tried = evaluate_candidates(work, [Candidate(recipe, block.folds)], reporter)[0]
        rows = block.judged[np.isfinite(tried.proba[block.judged, 0])]
        scores = score_predictions(
            work.labels[rows], tried.proba[rows], work.units[rows], work.photos.classes, seed=work.recipe.seed
        )
        seconds = tried.seconds + sum(part.seconds for part in features.parts)
        gmacs = round(graphs[0].gmacs(), 3)
        ranked.append(BackboneRow(recipe.backbone, scores["macro_f1"], gmacs, round(seconds, 1)))
    return tuple(sorted(ranked, key=lambda row: -row.macro_f1["value"]))


def _named(names: Sequence[str]) -> list[str]:
    here = [name for name in MEET_FIRST if LibraryWeights(name).here()] if AVAILABLE in names else []
    found = list(dict.fromkeys([find_backbone(n).name for n in names if n != AVAILABLE] + here))
    if AVAILABLE in names:
        found = list(dict.fromkeys([find_backbone("tf_efficientnet_lite0").name, *found]))
    absent = [name for name in found if not find_backbone(name).weights.here()]
    if absent:
        remedy = find_backbone(absent[0]).weights.remedy
        raise RecipeError(
            f"{option('backbones')}: the weights of {join_names(absent)} are not on this machine: {remedy}."
        )
    return found


# GMACs of EfficientNet-Lite0 at 224 px, the unit of training steps in budgets.
_LITE0 = 0.385
# Training steps per second of EfficientNet-Lite0 on two ordinary cores, to convert a time budget into steps.
_PACE = 30.0


def recommend(
    photos: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None = None,
    *,
    backbones: Sequence[str] = (),
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> StrategyRecommendation:
    """Recommend a strategy for images, from a race on a group-safe split and two measured axes.

    Args:
        photos: An ImageDataset, or any source that `uf.read` accepts.
        recipe: Base recipe; the default recipe if None.
        backbones: Backbones to compare first with a probe at equal cost; the best of them is used in the race.
            "available" stands for those of the short list whose weights are installed. By default the backbone of the
            recipe is used.
        reporter: Receives progress messages.
        **given: Keywords of `uf.read`.

    Returns:
        The recommendation.

    Raises:
        RecipeError: If the race is not possible as configured.
        FoldError: If there are too few groups.
        BackboneError: If a backbone cannot be used.
        UnfreezeError: Any other error of reading and fitting.
    """
    photos, recipe = photos_of("recommend", photos, recipe, given)
    reporter = reporter or Reporter()
    started = time.perf_counter()
    feature_extractors(recipe)
    check_recommendation(recipe.replace(strategy="auto"))
    with tempfile.TemporaryDirectory(prefix="unfreeze-") as folder:
        work = prepare(photos, recipe.replace(strategy="probe"), Path(folder), reporter, {})
        detect_faces(work)
        rows = np.flatnonzero(work.folds >= 0)
        block = one_block(work, rows, recipe.seed)
        ranked: tuple[BackboneRow, ...] = ()
        if backbones:
            ranked = rank_backbones(work, block, backbones, reporter)
            work.recipe = work.recipe.replace(backbone=ranked[0].name, weights="")
        similar, enough = measure_axes(work, reporter)
        candidates, left_out = _candidates(work, block.photos)
        raced = race(work, [block], candidates, _budget(work, candidates), reporter)
        own = {"backbone": work.recipe.backbone} if work.recipe.backbone != recipe.backbone else {}
        return _recommendation(work, raced, [()], own, ranked, similar, enough, left_out, time.perf_counter() - started)


def choose_strategies(work: FitContext) -> StrategyChoice:
    """Select a strategy for each outer fold by a race that uses no image of that fold.

    The outer folds are split into two halves, and a race within each half selects for the other half. The two axes are
    measured on all images; they explain the choice and do not influence it. If there are too few groups for a race, the
    probe is selected.
    """
    reporter, started = work.reporter, time.perf_counter()
    base = replace(work, recipe=work.recipe.replace(strategy="probe"), spent={})
    try:
        sides = cross_fit_halves(base)
    except FoldError as error:  # a handful of groups cannot be raced on, and the probe is the safe choice
        reporter.say(f"No race: {error} Strategy probe is taken.")
        return StrategyChoice(
            tuple({"strategy": "probe"} for _ in work.todo), {"recommendation": None, "left_out": [str(error)]}
        )
    least = min(block.photos for _, block in sides)
    candidates, left_out = _candidates(base, least)
    if len(candidates) == 1:
        changes = tuple(dict(candidates[0].changes) for _ in work.todo)
        return StrategyChoice(changes, {"recommendation": None, "left_out": left_out})
    tried = join_names([candidate.name for candidate in candidates])
    reporter.say(
        f"Strategy auto: {tried} race inside the training folds; {setting('strategy', 'probe', 'strategy')} alone "
        "takes seconds."
    )
    raced = race(base, [block for _, block in sides], candidates, _budget(base, candidates), reporter)
    chosen = {k: one.best.candidate for (folds, _), one in zip(sides, raced, strict=True) for k in folds}
    similar, enough = measure_axes(base, reporter)
    found = _recommendation(
        base,
        raced,
        [folds for folds, _ in sides],
        {},
        (),
        similar,
        enough,
        left_out,
        time.perf_counter() - started,
    )
    names = list(dict.fromkeys(candidate.name for candidate in chosen.values()))
    what = names[0] if len(names) == 1 else " and ".join(names) + ", one for each half of the folds"
    reporter.say(f"Recommendation: {what}. {found.reason}")
    return StrategyChoice(tuple(dict(chosen[k].changes) for k in work.todo), {"recommendation": found.to_json()})


def measure_axes(work: FitContext, reporter: Reporter) -> tuple[Similarity | None, Curve | None]:
    """Measure the similarity to the pretraining data and the learning curve."""
    photos, looks, recipe = work.photos, work.looks, work.recipe
    own = recipe.replace(**{"probe.input_candidates": ()})
    scratch = work.folder / "scratch"
    similar = similarity(photos, looks, work.labels, work.units, work.folds, own, scratch, reporter)
    files, readable = photos.files(), work.usable
    features, _ = extract_inputs(files, looks.keys, readable, own, reporter, work.squares)
    folds = work.folds.copy()
    folds[list(features.failed)] = -1
    enough = learning_curve(features.held(), work.labels, work.units, folds, photos.classes, own, scratch, reporter)
    return similar, enough


def _candidates(work: FitContext, photos: int) -> tuple[list[StrategyCandidate], list[str]]:
    found, left_out = strategy_candidates(work.recipe, photos)
    for line in left_out:
        work.reporter.say(f"Not tried: {line}")
    return found, left_out


def _budget(work: FitContext, candidates: Sequence[StrategyCandidate]) -> float:
    from unfreeze.training.fine_tune.settings import seconds_of

    scale = feature_extractors(work.recipe)[0].gmacs() / _LITE0
    seconds = seconds_of(work.recipe.recommend.budget, "recommend.budget")
    return seconds * _PACE * cores() / 2 / scale if seconds else budget_of(work, candidates, scale)


def _recommendation(
    work: FitContext,
    raced: Sequence[RaceResult],
    chosen_for: Sequence[tuple[int, ...]],
    own: dict[str, Any],
    ranked: tuple[BackboneRow, ...],
    similar: Similarity | None,
    enough: Curve | None,
    left_out: list[str],
    seconds: float,
) -> StrategyRecommendation:
    cheapest_first = sorted(raced[0].standings, key=lambda s: s.candidate.step)
    table = sorted((_row(work, raced, s, own) for s in cheapest_first), key=lambda row: -round(row.expected, SHOWN))
    names = {one.best.candidate.name for one in raced}
    if len(names) == 1:  # a unanimous choice of both halves comes first, whatever the pooled mean
        table.sort(key=lambda row: row.name not in names)
    best, others = table[0], table[1:]
    judged = sum(len(one.block.judged) for one in raced)
    rows = work.folds >= 0
    return StrategyRecommendation(
        recommended=best.name,
        changes=best.changes,
        reason=reason(best, others, judged, len(ranked)),
        runner_up=others[0].name if others else "",
        would_change=would_change(best, others),
        table=tuple(table),
        blocks=tuple(
            Block(tuple(folds), one.block.photos, len(one.block.judged), one.best.candidate.name)
            for folds, one in zip(chosen_for, raced, strict=True)
        ),
        backbones=ranked,
        similar=similar,
        enough=enough,
        left_out=tuple(left_out),
        photos=int(rows.sum()),
        groups=len(np.unique(work.units[rows])),
        seconds=round(seconds, 1),
    )


def _row(work: FitContext, raced: Sequence[RaceResult], standing: CandidateState, own: dict[str, Any]) -> StrategyRow:
    """Row of a candidate, pooled over the evaluated images of all blocks."""
    candidate = standing.candidate
    all_of_it = [one.of(candidate.name) for one in raced]
    difference, expected, doubt = together(all_of_it, [len(one.block.judged) for one in raced])
    seconds = sum(tried.seconds for s in all_of_it for tried in s.tries.values())
    return StrategyRow(
        name=candidate.name,
        changes={**own, **candidate.changes},
        macro_f1=pooled_scores(work, raced, candidate.name)["macro_f1"],
        difference=difference,
        expected=expected,
        doubt=doubt,
        photos=sum(s.photos for s in all_of_it),
        of=sum(one.block.photos for one in raced),
        seconds=round(seconds, 1),
        full_seconds=round(_full_seconds(work, standing), 1),
        out=next((s.out for s in all_of_it if s.out), ""),
    )


def _full_seconds(work: FitContext, standing: CandidateState) -> float:
    """Predicted duration of the full run, from the speed of the largest trial, with one core per fold."""
    candidate, tried = standing.candidate, standing.tries[standing.photos]
    count, n = work.recipe.folds.n_splits, int((work.folds >= 0).sum())
    if not candidate.epochs:  # probes: proportional to the number of heads and of images
        return tried.seconds * count * (n * (count - 1) / count) / max(1, tried.photos)
    a_step = tried.seconds / (tried.photos * candidate.tried_epochs) * candidate.step / candidate.tried_step
    return a_step * candidate.full_cost(count, n) / candidate.step / min(cores(), count)


def check_recommendation(recipe: Recipe) -> None:
    """Check that the race is possible as configured.

    Raises:
        RecipeError: For a strategy other than auto, or an invalid budget or balance section.
    """
    from unfreeze.training.fine_tune.settings import seconds_of

    if recipe.strategy != "auto":
        raise RecipeError(f"strategy = '{recipe.strategy}': recommendation is for strategy auto.")
    seconds_of(recipe.recommend.budget, "recommend.budget")
    check_balance(recipe.replace(strategy="probe"))
