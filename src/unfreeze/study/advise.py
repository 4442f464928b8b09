"""advise: which strategy, measured on the user's photos; and the choice that `fit --strategy auto` follows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.core.errors import FoldError, RecipeError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.tables import Photos
from unfreeze.core.work import cores
from unfreeze.learn.balance import check_balance
from unfreeze.learn.crossval import look_for_faces, prepare
from unfreeze.learn.fitting import Work
from unfreeze.learn.members import Choice
from unfreeze.learn.probe.inputs import compute_inputs, graphs_of
from unfreeze.study.advice import Advice, Block, Ranked, Row, reason, would_change
from unfreeze.study.candidates import Candidate, candidates_of
from unfreeze.study.curve import Curve, learning_curve
from unfreeze.study.race import SHOWN, Raced, Standing, budget_of, halves, one_block, pooled, race
from unfreeze.study.ranking import rank_backbones
from unfreeze.study.similarity import Similarity, similarity

# GMACs of EfficientNet-Lite0 at 224 px: budgets are told in its steps.
_LITE0 = 0.385
# Steps a second that two ordinary cores train it at: what a budget in time is turned into steps by.
_PACE = 30.0


def advise(
    photos: Photos,
    recipe: Recipe | None = None,
    *,
    backbones: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Advice:
    """Which strategy suits these photos: two measured axes, and a race on a group-safe split of them.

    backbones: names to compare first, at equal cost, by the probe; 'available': those of the short list that are here.
        The best of them then races. Without, the recipe's own.
    Raises RecipeError, FoldError, BackboneError and what reading and fitting raise.
    """
    recipe, reporter = recipe or Recipe(), reporter or Reporter()
    started = time.perf_counter()
    graphs_of(recipe)
    check_advice(recipe.replace(strategy="auto"))
    with tempfile.TemporaryDirectory(prefix="unfreeze-") as folder:
        work = prepare(photos, recipe.replace(strategy="probe"), Path(folder), reporter, {})
        look_for_faces(work)
        rows = np.flatnonzero(work.folds >= 0)
        block = one_block(work, rows, recipe.seed)
        ranked: tuple[Ranked, ...] = ()
        if backbones:
            ranked = rank_backbones(work, block, backbones, reporter)
            work.recipe = work.recipe.replace(backbone=ranked[0].name, weights="")
        similar, enough = axes(work, reporter)
        candidates, left_out = _candidates(work, block.photos)
        raced = race(work, [block], candidates, _budget(work, candidates), reporter)
        own = {"backbone": work.recipe.backbone} if work.recipe.backbone != recipe.backbone else {}
        return _advice(work, raced, [()], own, ranked, similar, enough, left_out, time.perf_counter() - started)


def choose(work: Work) -> Choice:
    """The strategy of each outer fold, by a race that touches no photo of that fold.

    The folds are halved; a race inside each half chooses for the other. The axes are measured on all photos: they
    explain the choice and have no part in it.
    """
    reporter, started = work.reporter, time.perf_counter()
    base = replace(work, recipe=work.recipe.replace(strategy="probe"), spent={})
    try:
        sides = halves(base)
    except FoldError as error:  # with a handful of groups there is nothing to race on, and the probe is the safe choice
        reporter.say(f"No race: {error} Strategy probe is taken.")
        return Choice(tuple({"strategy": "probe"} for _ in work.todo), {"advice": None, "left_out": [str(error)]})
    least = min(block.photos for _, block in sides)
    candidates, left_out = _candidates(base, least)
    if len(candidates) == 1:
        changes = tuple(dict(candidates[0].changes) for _ in work.todo)
        return Choice(changes, {"advice": None, "left_out": left_out})
    tried = listed([candidate.name for candidate in candidates])
    reporter.say(f"Strategy auto: {tried} race inside the training folds; --strategy probe alone takes seconds.")
    raced = race(base, [block for _, block in sides], candidates, _budget(base, candidates), reporter)
    chosen = {k: one.best.candidate for (folds, _), one in zip(sides, raced, strict=True) for k in folds}
    similar, enough = axes(base, reporter)
    found = _advice(
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
    what = names[0] if len(names) == 1 else " and ".join(names) + ", by halves of the folds that were asked apart"
    reporter.say(f"Advice: {what}. {found.reason}")
    return Choice(tuple(dict(chosen[k].changes) for k in work.todo), {"advice": found.to_json()})


def axes(work: Work, reporter: Reporter) -> tuple[Similarity | None, Curve | None]:
    """How similar the photos are to the pretraining, and whether they are enough."""
    photos, looks, recipe = work.photos, work.looks, work.recipe
    own = recipe.replace(**{"probe.race": ()})
    scratch = work.folder / "scratch"
    similar = similarity(photos, looks, work.labels, work.units, work.folds, own, scratch, reporter)
    files, readable = photos.files(), work.usable
    features, _ = compute_inputs(files, looks.keys, readable, own, reporter, work.squares)
    folds = work.folds.copy()
    folds[list(features.failed)] = -1
    enough = learning_curve(features.held(), work.labels, work.units, folds, photos.classes, own, scratch, reporter)
    return similar, enough


def _candidates(work: Work, photos: int) -> tuple[list[Candidate], list[str]]:
    found, left_out = candidates_of(work.recipe, photos)
    for line in left_out:
        work.reporter.say(f"Not tried: {line}")
    return found, left_out


def _budget(work: Work, candidates: Sequence[Candidate]) -> float:
    from unfreeze.learn.train.tuning import seconds_of

    scale = graphs_of(work.recipe)[0].gmacs() / _LITE0
    seconds = seconds_of(work.recipe.advise.budget, "advise.budget")
    return seconds * _PACE * cores() / 2 / scale if seconds else budget_of(work, candidates, scale)


def _advice(
    work: Work,
    raced: Sequence[Raced],
    chosen_for: Sequence[tuple[int, ...]],
    own: dict[str, Any],
    ranked: tuple[Ranked, ...],
    similar: Similarity | None,
    enough: Curve | None,
    left_out: list[str],
    seconds: float,
) -> Advice:
    cheapest_first = sorted(raced[0].standings, key=lambda s: s.candidate.step)
    table = sorted((_row(work, raced, s, own) for s in cheapest_first), key=lambda row: -round(row.expected, SHOWN))
    names = {one.best.candidate.name for one in raced}
    if len(names) == 1:  # what the halves agree on comes first, whatever their mean says
        table.sort(key=lambda row: row.name not in names)
    best, others = table[0], table[1:]
    judged = sum(len(one.block.judged) for one in raced)
    rows = work.folds >= 0
    return Advice(
        recommended=best.name,
        changes=best.changes,
        reason=reason(best, others, judged),
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


def _row(work: Work, raced: Sequence[Raced], standing: Standing, own: dict[str, Any]) -> Row:
    """A candidate's row: all blocks' judged photos together, differences the blocks' mean by judged photos."""
    candidate = standing.candidate
    all_of_it = [one.of(candidate.name) for one in raced]
    shares = np.array([len(one.block.judged) for one in raced]) / sum(len(one.block.judged) for one in raced)
    value = float(shares @ [s.difference["value"] for s in all_of_it])
    # The halves are independent: their mean is surer than either.
    below = np.linalg.norm(shares * [s.difference["value"] - s.difference["low"] for s in all_of_it])
    above = np.linalg.norm(shares * [s.difference["high"] - s.difference["value"] for s in all_of_it])
    seconds = sum(tried.seconds for s in all_of_it for tried in s.tries.values())
    return Row(
        name=candidate.name,
        changes={**own, **candidate.changes},
        macro_f1=pooled(work, raced, candidate.name)["macro_f1"],
        difference={"value": value, "low": value - float(below), "high": value + float(above)},
        expected=float(shares @ [s.expected for s in all_of_it]),
        doubt=float(np.linalg.norm(shares * [s.doubt for s in all_of_it])),
        photos=sum(s.photos for s in all_of_it),
        of=sum(one.block.photos for one in raced),
        seconds=round(seconds, 1),
        full_seconds=round(_full_seconds(work, standing), 1),
        out=next((s.out for s in all_of_it if s.out), ""),
    )


def _full_seconds(work: Work, standing: Standing) -> float:
    """What the full run would take from here, by the pace of the largest try; folds train side by side, a core each."""
    candidate, tried = standing.candidate, standing.tries[standing.photos]
    count, n = work.recipe.folds.count, int((work.folds >= 0).sum())
    if not candidate.epochs:  # heads: their number, and photos
        return tried.seconds * count * (n * (count - 1) / count) / max(1, tried.photos)
    a_step = tried.seconds / (tried.photos * candidate.tried_epochs) * candidate.step / candidate.tried_step
    return a_step * candidate.full_cost(count, n) / candidate.step / min(cores(), count)


def check_advice(recipe: Recipe) -> None:
    """Raises RecipeError where the race cannot be as it was asked for."""
    from unfreeze.learn.train.tuning import seconds_of

    if recipe.strategy != "auto":
        raise RecipeError(f"strategy = '{recipe.strategy}': advice is for strategy auto.")
    seconds_of(recipe.advise.budget, "advise.budget")
    check_balance(recipe.replace(strategy="probe"))
