"""Several inputs of one photo (backbone, size, crop) side by side: the candidates of `--quality best`."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root
from unfreeze.core.errors import RecipeError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Input
from unfreeze.learn.probe.feature_table import Features, cached_features
from unfreeze.learn.probe.features import compute_features
from unfreeze.learn.sight import preprocessing_of
from unfreeze.model.backbones import find_backbone
from unfreeze.model.catalogue import MEET_FIRST
from unfreeze.model.graphs import Graph
from unfreeze.model.taps import Taps
from unfreeze.model.weights import LibraryWeights

# In a race: every network of the short list whose weights are on this machine.
HERE = "here"
# Small sets are read a dozen times and held; the features of larger ones stay on disk, whatever there are.
HELD_ROWS, HELD_BYTES = 4096, 192 << 20


@dataclass(frozen=True)
class JoinedFeatures:
    """The features of several inputs, read side by side; one photo, one row.

    Has what `Features` has; `select` gives those of some inputs.
    """

    parts: tuple[Features, ...]

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return len(self.parts)

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]:
        """Name (with the input's number) and width of every block, in column order."""
        if len(self.parts) == 1:
            return self.parts[0].blocks
        return tuple((f"{i}.{name}", width) for i, part in enumerate(self.parts) for name, width in part.blocks)

    @property
    def width(self) -> int:
        """Number of features of a photo, all inputs together."""
        return sum(part.width for part in self.parts)

    @property
    def failed(self) -> dict[int, str]:
        """Photos that lack the features of any input, and why."""
        return {i: why for part in self.parts for i, why in part.failed.items()}

    @property
    def identity(self) -> list[str]:
        """Names what the columns are; of one input, the same as that input's own."""
        return [name for part in self.parts for name in part.identity]

    @property
    def engine(self) -> str:
        """Names of the engines that served the inputs."""
        return ", ".join(dict.fromkeys(part.engine for part in self.parts))

    def select(self, inputs: tuple[int, ...]) -> JoinedFeatures:
        """The features of these inputs only, in this order."""
        return JoinedFeatures(tuple(self.parts[i] for i in inputs))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of the photos `rows`, float32 (len(rows), width)."""
        return np.concatenate([part.read(rows) for part in self.parts], 1)

    def rooted(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Signed roots of the features of the photos `rows`, float32 (len(rows), width)."""
        return np.concatenate([part.rooted(rows) for part in self.parts], 1)

    def held(self) -> JoinedFeatures:
        """The same in memory if there are at most HELD_ROWS photos and HELD_BYTES, else itself."""
        rows = len(self.parts[0].places[0])
        large = rows > HELD_ROWS or 4 * rows * self.width > HELD_BYTES
        return self if large else JoinedFeatures(tuple(p.held() for p in self.parts))

    def forget_pages(self) -> None:
        """Gives back the memory of pages read so far."""
        for part in self.parts:
            part.forget_pages()


class AnyFeatures(Protocol):
    """What heads are fitted on: a row a photo, `width` columns in `blocks`, of one or several inputs."""

    @property
    def inputs(self) -> int: ...
    @property
    def blocks(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def identity(self) -> list[str]: ...
    def select(self, inputs: tuple[int, ...]) -> AnyFeatures: ...
    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def rooted(self, rows: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def forget_pages(self) -> None: ...


def graphs_of(recipe: Recipe) -> list[Graph]:
    """The frozen networks that a recipe asks for: one, or the inputs of its race.

    Raises BackboneError for an unknown backbone and RecipeError for stages that it does not have.
    """
    taps = Taps.parse(recipe.probe.stages, recipe.probe.grid)
    graphs: list[Graph] = []
    for entry in recipe.probe.race or (None,):
        if entry and entry.backbone == HERE:
            graphs += _here(recipe, taps, {graph.backbone.name for graph in graphs})
            continue
        own = entry.backbone if entry else ""  # a race's other backbones come with their pretrained weights
        backbone = find_backbone(own) if own else find_backbone(recipe.backbone, recipe.weights, recipe.seed)
        if taps.last > len(backbone.stages):
            raise RecipeError(
                f"probe.stages = '{recipe.probe.stages}': {backbone.name} has {len(backbone.stages)} stages, "
                f"{listed([stage.name for stage in backbone.stages], 12)}."
            )
        graphs.append(Graph(backbone, preprocessing_of(backbone, recipe, entry), taps))
    if not graphs:
        raise RecipeError(f"probe.race: no backbone besides the named ones is here for '{HERE}'; name one.")
    return graphs


def _here(recipe: Recipe, taps: Taps, named: set[str]) -> list[Graph]:
    """Networks worth meeting whose weights lie on this machine, the cheapest first, as they were pretrained."""
    there = [name for name in MEET_FIRST if name not in named and LibraryWeights(name).here()]
    found = sorted((find_backbone(name) for name in there), key=lambda b: b.card.gmacs)
    own = Input()
    return [Graph(b, preprocessing_of(b, recipe, own), Taps(min(taps.last, len(b.stages)), taps.grid)) for b in found]


def compute_inputs(
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    recipe: Recipe,
    reporter: Reporter,
    squares: NDArray[np.float64] | None = None,
) -> tuple[JoinedFeatures, list[Graph]]:
    """Features of each input of the recipe, and the graphs they are of.

    In a race, an input whose weights are not here is left out, and so is one that would outlast
    `probe.race_minutes`, judged by the pace of those before it and its compute; either is said. What
    the cache holds costs nothing and always runs. squares: as of `compute_features`.
    """
    graphs = graphs_of(recipe)
    limit = int(recipe.image.max_megapixels * 1e6)
    started, parts, used = time.perf_counter(), list[Features](), list[Graph]()
    pace = 0.0  # seconds a photo set and GMAC, by the last input that was computed
    for number, graph in enumerate(graphs):
        if number and not graph.backbone.weights.here():
            reporter.say(f"Left out: {graph.title()}; its weights are not here: {graph.backbone.weights.remedy}.")
            continue
        known = cached_features(keys, readable, graph, recipe.probe.views, recipe.engine, reporter)
        if number and known is None:
            expected = pace * graph.gmacs()
            spent = time.perf_counter() - started
            if spent + expected > 60 * recipe.probe.race_minutes:
                reporter.say(
                    f"Left out: {graph.title()} would take {expected:.0f} s more than the budget of "
                    f"{recipe.probe.race_minutes:g} minutes holds (probe.race_minutes)."
                )
                continue
        if known is None:
            graph = _within_disk(graph, int(readable.sum()), recipe, reporter)
        if len(graphs) > 1:
            reporter.say(f"Input {len(used) + 1}: {graph.title()}")
        part = known or compute_features(
            files, keys, readable, graph, recipe.probe.views, recipe.engine, limit, reporter, squares
        )
        pace = part.seconds / graph.gmacs() or pace
        parts.append(part)
        used.append(graph)
    return JoinedFeatures(tuple(parts)), used


def _within_disk(graph: Graph, count: int, recipe: Recipe, reporter: Reporter) -> Graph:
    """The graph, with a coarser grid and then fewer stages where `count` photos' features break the disk budget."""
    asked, views = graph, recipe.probe.views
    allowed = recipe.probe.max_gigabytes * 1e9 or _free_bytes(cache_root()) / 2
    while 2 * len(views) * count * graph.width() > allowed and (graph.taps.grid > 1 or graph.taps.last > 1):
        last, grid = graph.taps.last, graph.taps.grid
        graph = replace(graph, taps=Taps(last, grid - 1) if grid > 1 else Taps(last - 1, 1))
    if graph is not asked:
        reporter.say(
            f"Disk: features of {count:,} photos would take {2 * len(views) * count * asked.width() / 1e9:.1f} GB, and "
            f"{allowed / 1e9:.1f} are allowed (probe.max_gigabytes); read are the last {graph.taps.last} stage(s) on a "
            f"{graph.taps.grid} x {graph.taps.grid} grid."
        )
    return graph


def _free_bytes(folder: Path) -> int:
    """Free space where the folder is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
