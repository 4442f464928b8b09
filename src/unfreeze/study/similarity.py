"""Similar to the pretraining? How far the photos lie from it, and what pretrained features tell that others do not."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import BackboneError, PhotoError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.tables import Photos
from unfreeze.core.work import in_threads
from unfreeze.data.face_boxes import box_of
from unfreeze.data.images import Pixels, load_square, read_bytes
from unfreeze.data.looks import Looks
from unfreeze.judge.transfer import beyond_chance, h_scores, logme
from unfreeze.learn.probe.heads import fit_folds, predict_folds
from unfreeze.learn.probe.inputs import AnyFeatures, compute_inputs
from unfreeze.learn.probe.thinned import sampled_rows
from unfreeze.learn.sight import squares_of
from unfreeze.model.graphs import Graph
from unfreeze.study.domain import Distance, pretraining_distance
from unfreeze.study.plain import plain_features

Rows = NDArray[np.int64]
F64 = NDArray[np.float64]

# Photos that probes are fitted on, that the network's statistics are taken over (fewer of a large network), features
# that LogME and the H-score read.
_MOST_ROWS, _SEEN, _SEEN_LARGE, _LARGE_GMACS, _READ = 1_200, 96, 48, 5.0, 1_000
_RESAMPLES, _DEALT = 300, 10
# The scale of the place, chosen on the eight sets of benchmarks/similarity.py: 1 at NEAR nats from the pretraining or
# fewer, 0 as far as pictures with nothing in them, by the logarithm between. No place is known better than to SPREAD.
NEAR, SPREAD = 0.045, 0.1
# For a network without BatchNorm: 1 where so much of what is told is owed to pretraining; a rough guide.
_OWED, _ROUGH = 0.6, 0.35


@dataclass(frozen=True)
class Measure:
    """One measure: its figure and 95 % interval (None: not to be had, and `why`), and its vote 0..1 (None: no vote).

    says: what the figure is, in a few words.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    vote: float | None
    says: str
    why: str = ""


@dataclass(frozen=True)
class Similarity:
    """Where the photos stand between unlike (0) and like (1) what the backbone was pretrained on.

    position, low, high: the place and its interval. measures: all that was measured; those with a vote make the place.
    photos, groups: how many were measured (a seeded sample of large sets). sentence: the finding in plain words. notes:
    what was left out, and why.
    """

    position: float
    low: float
    high: float
    measures: tuple[Measure, ...]
    photos: int
    groups: int
    sentence: str
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)

    def measure(self, name: str) -> Measure:
        """The measure of that name; KeyError if there is none."""
        return {measure.name: measure for measure in self.measures}[name]


def similarity(
    photos: Photos,
    looks: Looks,
    labels: Rows,
    units: Rows,
    folds: Rows,
    recipe: Recipe,
    scratch: Path,
    reporter: Reporter | None = None,
) -> Similarity:
    """Measures the place of the photos on the axis from unlike to like the recipe's backbone's pretraining.

    labels, units, folds: int64 (n,), class, group and fold of every photo; -1 in folds for those that take no part.
    The same probe is fitted on the recipe's features (from the cache where they are there), on those of an untrained
    copy of its backbone, and on plain statistics of colour and texture, all out of fold. scratch: for large files.
    Raises as `compute_inputs`.
    """
    started = time.perf_counter()
    reporter = reporter or Reporter()
    # One network, one view: what is compared is the same for all.
    recipe = recipe.replace(**{"probe.race": (), "probe.views": ("plain",)})
    rows = sampled_rows(units, np.flatnonzero((folds >= 0) & looks.readable), _MOST_ROWS, recipe.seed)
    files, inside = photos.files(), np.isin(np.arange(len(folds)), rows)
    squares = squares_of(recipe, files, looks.keys, inside, reporter)
    cut = squares.cut if squares else None
    untrained = recipe.replace(weights="none")
    pretrained, graphs = compute_inputs(files, looks.keys, inside, recipe, reporter, cut)
    random, _ = compute_inputs(files, looks.keys, inside, untrained, reporter, cut)
    gray, limit = recipe.image.color == "gray", int(recipe.image.max_megapixels * 1e6)
    plain, unread = plain_features(files, rows, limit, gray)
    rows = np.setdiff1d(rows, [*pretrained.failed, *random.failed, *unread])
    table = _Table(
        labels, units, np.where(np.isin(np.arange(len(folds)), rows), folds, -1), rows, len(photos.classes), recipe
    )
    notes = []
    if len(rows) < (folds >= 0).sum():
        notes.append(f"Measured on {len(rows):,} of {int((folds >= 0).sum()):,} photos, drawn by groups.")
    named: dict[str, AnyFeatures] = {"pretrained": pretrained.held(), "untrained": random.held(), "plain": plain}
    beyond = {name: table.beyond(features, scratch, looks.keys) for name, features in named.items()}
    distance, why = _distance(graphs[0], files, rows, recipe, cut)
    measures = [
        _domain(distance, why),
        *(_separability(name, draws) for name, draws in beyond.items()),
        _owed(beyond, vote=distance is None),
        *_fits(named["pretrained"], named["untrained"], table),
    ]
    if distance:
        measures.append(
            Measure(
                "noise_distance", distance.noise, None, None, None, "the same distance of pictures with nothing in them"
            )
        )
        measures.append(
            Measure("channel_shift", distance.shift, None, None, None, "mean shift of channels, in deviations")
        )
    position, low, high = _place(measures[0], measures[4], distance)
    return Similarity(
        position,
        low,
        high,
        tuple(measures),
        len(rows),
        len(np.unique(units[rows])),
        _sentence(position, low, high, graphs[0].backbone.title, beyond, distance),
        tuple(notes),
        round(time.perf_counter() - started, 2),
    )


@dataclass(frozen=True)
class _Table:
    """What the probes are fitted on; rows: those that take part."""

    labels: Rows
    units: Rows
    folds: Rows
    rows: Rows
    classes: int
    recipe: Recipe

    def beyond(self, features: AnyFeatures, scratch: Path, keys: NDArray[np.uint64]) -> F64:
        """Macro F1 beyond chance out of fold, as it is and then with groups resampled: (1 + resamples,)."""
        contents = [keys[self.rows].tolist(), self.folds[self.rows].tolist(), self.rows.tolist()]
        identity = fingerprint([features.identity, contents])
        predicted = np.full(len(self.labels), -1)
        heads = fit_folds(
            features,
            self.labels,
            self.units,
            self.folds,
            self.classes,
            self.recipe.probe,
            self.recipe.seed,
            identity,
            scratch,
            np.unique(self.folds[self.rows]).tolist(),
        )
        for k, head in heads:
            own = np.flatnonzero(self.folds == k)
            predicted[own] = predict_folds(features, [head], own).argmax(1)
        rows = self.rows
        return beyond_chance(
            self.labels[rows],
            predicted[rows],
            self.units[rows],
            self.classes,
            resamples=_RESAMPLES,
            seed=self.recipe.seed,
        )[0]


def _distance(
    graph: Graph, files: list[Path], rows: Rows, recipe: Recipe, squares: F64 | None
) -> tuple[Distance | None, str]:
    """The distance from pretraining over a sample of the photos; else None and why there is none."""
    if recipe.weights == "none":
        return None, "the network is untrained"
    most = _SEEN if graph.gmacs() <= _LARGE_GMACS else _SEEN_LARGE
    some = np.sort(np.random.default_rng(recipe.seed).permutation(rows)[:most])
    p, limit = graph.preprocessing, int(recipe.image.max_megapixels * 1e6)

    def load(i: int) -> Pixels | None:
        try:
            data = read_bytes(files[i])
            box = box_of(squares, i)
            return load_square(data, p.size, p.crop, limit, files[i], p.resample, p.squash, box, p.gray)
        except PhotoError:
            return None

    pixels = [found for found in in_threads(load, some.tolist()) if found is not None]
    if len(pixels) < 2:
        return None, "fewer than two photos can be read"
    try:
        network = graph.backbone.build(size=p.size)
    except BackboneError as error:
        return None, str(error)
    found = pretraining_distance(network, np.stack(pixels), p, recipe.seed)
    return (
        found,
        "" if found else f"{graph.backbone.title} has no BatchNorm: it keeps no record of its pretraining photos",
    )


def _domain(distance: Distance | None, why: str) -> Measure:
    says = "distance from the pretraining's BatchNorm statistics, nats; vote by that of pictures with nothing in them"
    if distance is None:
        return Measure("pretraining_distance", None, None, None, None, says, why)
    low, high = np.percentile(distance.draws, [2.5, 97.5])
    vote = _vote(distance.value, distance.noise)
    return Measure("pretraining_distance", distance.value, float(low), float(high), vote, says)


def _vote(value: float, noise: float) -> float:
    return float(np.clip(np.log(noise / max(value, 1e-9)) / np.log(max(noise / NEAR, 2.0)), 0, 1))


def _separability(name: str, draws: F64) -> Measure:
    says = {
        "pretrained": "macro F1 beyond chance on the pretrained features",
        "untrained": "the same on an untrained copy of the backbone",
        "plain": "the same on plain statistics of colour and texture",
    }[name]
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Measure(f"separability_{name}", float(draws[0]), float(low), float(high), None, says)


def _owed(beyond: dict[str, F64], vote: bool) -> Measure:
    """The share of what pretrained features tell that neither an untrained network nor plain statistics do."""
    says = "share of the separability that is owed to pretraining"
    if np.percentile(beyond["pretrained"][1:], 2.5) <= 0:
        return Measure(
            "owed_to_pretraining", None, None, None, None, says, "the pretrained features are no better than chance"
        )
    rest = np.maximum(np.maximum(beyond["untrained"], beyond["plain"]), 0)
    share = np.clip(1 - rest / np.maximum(beyond["pretrained"], 1e-6), -1, 1)
    low, high = np.percentile(share[1:], [2.5, 97.5])
    own = float(np.clip(share[0] / _OWED, 0, 1)) if vote else None
    return Measure("owed_to_pretraining", float(share[0]), float(low), float(high), own, says)


def _fits(pretrained: AnyFeatures, untrained: AnyFeatures, table: _Table) -> list[Measure]:
    """LogME's gain and the H-score, on standardised features drawn from the last block by the seed."""
    scored: dict[str, tuple[float, float]] = {}
    for name, features in (("pretrained", pretrained), ("untrained", untrained)):
        width = features.blocks[-1][1]
        draws = np.random.default_rng(table.recipe.seed)
        columns = features.width - width + np.sort(draws.choice(width, min(width, _READ), replace=False))
        x = features.rooted(table.rows)[:, columns].astype(np.float64)
        x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
        own = table.labels[table.rows]
        found = h_scores(x, [own, *(draws.permutation(own) for _ in range(_DEALT))]) / max(len(np.unique(own)) - 1, 1)
        chance = float(found[1:].mean())
        scored[name] = logme(x, own, table.classes), float(found[0] - chance) / max(1 - chance, 1e-9)
    gain = scored["pretrained"][0] - scored["untrained"][0]
    return [
        Measure(
            "logme", scored["pretrained"][0], None, None, None, "log evidence of the labels, nats a photo and class"
        ),
        Measure("logme_gain", gain, None, None, None, "the same, less that of the untrained copy"),
        Measure(
            "h_score",
            scored["pretrained"][1],
            None,
            None,
            None,
            "H-score, shrunk, beyond that of labels dealt anew",
        ),
        Measure("h_score_untrained", scored["untrained"][1], None, None, None, "the same of the untrained copy"),
    ]


def _place(domain: Measure, owed: Measure, distance: Distance | None) -> tuple[float, float, float]:
    """The place and its interval: by the distance where it is known, else, roughly, by what is owed to pretraining."""
    if domain.vote is not None and distance is not None:
        ends = [_vote(float(value), distance.noise) for value in np.percentile(distance.draws, [97.5, 2.5])]
        return (
            domain.vote,
            max(0.0, min(ends[0], domain.vote - SPREAD)),
            min(1.0, max(ends[1], domain.vote + SPREAD)),
        )
    if owed.vote is not None:
        return owed.vote, max(0.0, owed.vote - _ROUGH), min(1.0, owed.vote + _ROUGH)
    return 0.5, 0.0, 1.0


def _sentence(
    position: float, low: float, high: float, title: str, beyond: dict[str, F64], distance: Distance | None
) -> str:
    place = f"{position:.2f} ({low:.2f} to {high:.2f}) on a scale from 0, unlike, to 1, like"
    words = "much like" if position >= 2 / 3 else "unlike" if position < 1 / 3 else "somewhat like"
    known = "" if distance else ", a rough guess without BatchNorm"
    figures = {name: max(float(draws[0]), 0.0) for name, draws in beyond.items()}
    told = (
        f"of what could be told beyond chance its features tell {figures['pretrained']:.0%}, an untrained copy "
        f"{figures['untrained']:.0%}, plain colour and texture {figures['plain']:.0%}"
    )
    return f"The photos are {words} those that {title} was pretrained on: {place}{known}; {told}."
