"""Feature extractors of a recipe, and the features of several inputs (backbone, size, crop) joined side by side.

Several inputs are the candidates of a race (`probe.input_candidates`), used by `--quality best`.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root
from unfreeze.core.errors import RecipeError, StorageError
from unfreeze.core.messages import setting
from unfreeze.core.parallel import cores
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import ProbeInput
from unfreeze.features.crops import preprocessing_of
from unfreeze.features.extract import compute_features
from unfreeze.features.matrix import FeatureMatrix, JoinedFeatureMatrix, cached_features
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import MEET_FIRST, find_backbone
from unfreeze.models.weights import LibraryWeights

# Nominal throughput in GMACs per second and core, used for the time budget of a race: roughly that of OpenVINO with
# bfloat16 on a depthwise-separable network.
_PACE = 50.0
# In a race: every backbone of the shortlist whose weights are on this machine.
HERE = "here"


def feature_extractors(recipe: Recipe) -> list[FeatureExtractor]:
    """Return the feature extractors that a recipe requires: one, or one per input of its race.

    Raises:
        BackboneError: If a backbone is unknown.
        RecipeError: If a backbone does not have the requested stages, or if a race has no input.
    """
    graphs: list[FeatureExtractor] = []
    for entry in recipe.probe.input_candidates or (None,):
        if entry and entry.backbone == HERE:
            graphs += _here(recipe, {graph.backbone.name for graph in graphs})
            continue
        own = entry.backbone if entry else ""  # other backbones of a race always use their pretrained weights
        backbone = find_backbone(own) if own else find_backbone(recipe.backbone, recipe.weights, recipe.seed)
        names = [stage.name for stage in backbone.stages]
        taps = FeatureSpec.of(recipe.probe.stages, recipe.probe.pool_size, backbone.name, names)
        preprocessing = preprocessing_of(backbone, recipe, entry)
        backbone.check_size(preprocessing.size)
        graphs.append(FeatureExtractor(backbone, preprocessing, taps))
    if not graphs:
        raise RecipeError(
            f"probe.input_candidates: no backbone other than the named ones is available for '{HERE}'; name one."
        )
    return graphs


def _here(recipe: Recipe, named: set[str]) -> list[FeatureExtractor]:
    """Return shortlisted backbones whose pretrained weights are on this machine, cheapest first."""
    there = [name for name in MEET_FIRST if name not in named and LibraryWeights(name).here()]
    found = sorted((find_backbone(name) for name in there), key=lambda b: b.card.gmacs)
    own, taps = ProbeInput(), FeatureSpec.parse(recipe.probe.stages, recipe.probe.pool_size)
    return [
        FeatureExtractor(b, preprocessing_of(b, recipe, own), FeatureSpec(min(taps.last, len(b.stages)), taps.grid))
        for b in found
    ]


def extract_inputs(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    recipe: Recipe,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> tuple[JoinedFeatureMatrix, list[FeatureExtractor]]:
    """Compute the features of each input of the recipe.

    In a race, an input other than the first is skipped, with a message, if its weights are not on this machine or if
    the race would exceed `probe.candidate_minutes` with it. Time is estimated at a nominal throughput from the
    compute of
    the networks, the number of images and the number of cores, so neither machine load nor cache contents decide which
    inputs take part.

    Args:
        files: n image files.
        keys: uint64 (n, 2) content keys.
        readable: bool (n,), images to process.
        recipe: The recipe.
        reporter: Progress reporter.
        squares: Crop boxes, as in `compute_features`.

    Returns:
        The joined features, and the feature extractors that they come from.

    Raises:
        StorageError: If the features do not fit on the disk.
    """
    graphs = feature_extractors(recipe)
    limit = int(recipe.image.max_megapixels * 1e6)
    parts, used = list[FeatureMatrix](), list[FeatureExtractor]()
    pixels = int(readable.sum()) * len(recipe.probe.views)
    spent = 0.0  # nominal seconds
    for number, graph in enumerate(graphs):
        if number and not graph.backbone.weights.here():
            reporter.say(f"Left out: {graph.title()}; weights not found: {graph.backbone.weights.remedy}.")
            continue
        expected = pixels * graph.gmacs() / (_PACE * cores())
        if number and spent + expected > 60 * recipe.probe.candidate_minutes:
            reporter.say(
                f"Left out: {graph.title()}; the race would take {(spent + expected) / 60:.1f} nominal minutes with "
                f"it, more than probe.candidate_minutes = {recipe.probe.candidate_minutes:g}."
            )
            continue
        spent += expected
        graph = _within_disk(graph, int(readable.sum()), recipe, reporter)
        known = cached_features(keys, readable, graph, recipe.probe.views, recipe.engine, reporter)
        if known is None:
            _check_disk(graph, int(readable.sum()), recipe)
        if len(graphs) > 1:
            reporter.say(f"Input {len(used) + 1}: {graph.title()}")
        part = known or compute_features(
            files, keys, readable, graph, recipe.probe.views, recipe.engine, limit, reporter, squares
        )
        parts.append(part)
        used.append(graph)
    return JoinedFeatureMatrix(tuple(parts)), used


def _within_disk(graph: FeatureExtractor, count: int, recipe: Recipe, reporter: Reporter) -> FeatureExtractor:
    """Reduce the grid and then the number of stages until the features of `count` images fit the disk budget.

    The budget is that of the recipe, not the free disk space, because the features must not depend on the latter.
    """
    asked, views = graph, recipe.probe.views
    allowed = recipe.probe.max_cache_gb * 1e9 or math.inf
    while 2 * len(views) * count * graph.width() > allowed and (graph.taps.grid > 1 or graph.taps.last > 1):
        last, grid = graph.taps.last, graph.taps.grid
        graph = replace(graph, taps=FeatureSpec(last, grid - 1) if grid > 1 else FeatureSpec(last - 1, 1))
    if graph is not asked:
        reporter.say(
            f"Disk: features of {count:,} images would take {2 * len(views) * count * asked.width() / 1e9:.1f} GB, "
            f"more than the {allowed / 1e9:.1f} GB of probe.max_cache_gb; using the last {graph.taps.last} stage(s) on "
            f"a {graph.taps.grid} x {graph.taps.grid} grid."
        )
    return graph


def _check_disk(graph: FeatureExtractor, count: int, recipe: Recipe) -> None:
    """Raise StorageError if the features of `count` images do not fit on the disk."""
    needed, free = 2 * len(recipe.probe.views) * count * graph.width(), _free_bytes(cache_root())
    if needed > free:
        fewer = setting("probe.max_cache_gb", float(f"{0.9 * free / 1e9:.2g}"))
        raise StorageError(
            f"{cache_root()}: the disk is full; free some space and run the same command again, point UNFREEZE_CACHE "
            f"to a larger disk, or read fewer features with {fewer} (features of "
            f"{count:,} photos take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free)."
        )


def _free_bytes(folder: Path) -> int:
    """Return the free space where the folder is or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
