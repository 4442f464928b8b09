"""Backbones compared at equal cost: the probe on each, on the same split; the most transferable first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfreeze.core.errors import RecipeError, listed
from unfreeze.core.progress import Reporter
from unfreeze.judge.metrics import out_of_fold_scores
from unfreeze.judge.transfer import logme
from unfreeze.learn.fitting import Work
from unfreeze.learn.probe.inputs import compute_inputs
from unfreeze.learn.tryout import Trial, try_out
from unfreeze.model.backbones import find_backbone
from unfreeze.model.catalogue import MEET_FIRST
from unfreeze.model.weights import LibraryWeights
from unfreeze.study.advice import Ranked
from unfreeze.study.race import Block

AVAILABLE = "available"
# More than these are ranked by LogME alone, which needs no fit; only the first of them are probed.
_PROBED = 4


def rank_backbones(work: Work, block: Block, names: Sequence[str], reporter: Reporter) -> tuple[Ranked, ...]:
    """The best first, by macro F1 of the probe on the block's judged photos; those that were only ranked follow.

    Equal cost: each sees every photo of the block once a view, at its own pretraining size, and gets the same head.
    """
    backbones = [find_backbone(name) for name in _named(names)]
    files, keys, found = work.photos.files(), work.looks.keys, []
    inside = np.flatnonzero(block.folds > 0)
    for backbone in backbones:
        taps = min(5, len(backbone.stages))
        recipe = work.recipe.replace(
            **{"backbone": backbone.name, "weights": "", "image.size": 0, "probe.stages": f"last:{taps}"}
        )
        features, graphs = compute_inputs(files, keys, work.usable, recipe, reporter, work.squares)
        rows = inside[~np.isin(inside, list(features.failed))]
        last = features.rooted(rows)[:, -graphs[0].blocks()[-1][1] :]
        found.append((logme(last, work.labels[rows], work.classes), recipe, graphs[0].gmacs(), features))
    found.sort(key=lambda item: -item[0])
    ranked = []
    for evidence, recipe, gmacs, features in found[:_PROBED]:
        tried = try_out(work, [Trial(recipe, block.folds)], reporter)[0]
        rows = block.judged[np.isfinite(tried.proba[block.judged, 0])]
        scores = out_of_fold_scores(
            work.labels[rows], tried.proba[rows], work.units[rows], work.photos.classes, seed=work.recipe.seed
        )
        seconds = tried.seconds + sum(part.seconds for part in features.parts)
        ranked.append(Ranked(recipe.backbone, scores["macro_f1"], evidence, round(gmacs, 3), round(seconds, 1)))
    ranked.sort(key=lambda row: -row.macro_f1["value"])
    for evidence, recipe, gmacs, features in found[_PROBED:]:
        seconds = sum(part.seconds for part in features.parts)
        ranked.append(Ranked(recipe.backbone, {}, evidence, round(gmacs, 3), round(seconds, 1)))
    return tuple(ranked)


def _named(names: Sequence[str]) -> list[str]:
    here = [name for name in MEET_FIRST if LibraryWeights(name).here()] if AVAILABLE in names else []
    found = list(dict.fromkeys([find_backbone(n).name for n in names if n != AVAILABLE] + here))
    if AVAILABLE in names:
        found = list(dict.fromkeys([find_backbone("tf_efficientnet_lite0").name, *found]))
    absent = [name for name in found if not find_backbone(name).weights.here()]
    if absent:
        remedy = find_backbone(absent[0]).weights.remedy
        raise RecipeError(f"--backbones: the weights of {listed(absent)} are not on this machine: {remedy}.")
    return found
