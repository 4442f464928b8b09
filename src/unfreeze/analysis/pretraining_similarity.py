"""Similarity of images to the pretraining data of a backbone.

The position on a scale from unlike (0) to like (1) is derived from the distance to the BatchNorm statistics of the
backbone. Without BatchNorm, it is derived from the share of the class separability that only pretrained features
provide, compared with an untrained copy of the backbone.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.analysis.batchnorm_distance import Distance, pretraining_distance
from unfreeze.core.arrays import F64, Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import BackboneError, PhotoError
from unfreeze.core.parallel import map_threads
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.data.decode import Pixels, load_crop, read_bytes
from unfreeze.data.face_boxes import crop_of
from unfreeze.data.scan import ImageScan
from unfreeze.features.crops import face_crops
from unfreeze.features.derived_matrix import sample_groups
from unfreeze.features.inputs import extract_inputs
from unfreeze.features.matrix import AnyFeatureMatrix
from unfreeze.metrics.bootstrap import interval
from unfreeze.metrics.chance_corrected import beyond_chance
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

# Limits: rows for the probes, and images for the BatchNorm statistics (fewer for networks above _LARGE_GMACS).
_MOST_ROWS, _SEEN, _SEEN_LARGE, _LARGE_GMACS = 1_200, 96, 48, 5.0
_RESAMPLES = 300
# Calibrated on the eight data sets of benchmarks/similarity.py: position 1 at NEAR nats or less, 0 at the distance of
# noise images, log-linear in between. The interval is at least +- SPREAD.
NEAR, SPREAD = 0.045, 0.1
# Networks without BatchNorm: share owed to pretraining that maps to position 1, and half width of the interval.
_OWED, _ROUGH = 0.75, 0.35


@dataclass(frozen=True)
class Measure:
    """One measured quantity.

    Attributes:
        name: Name of the measure.
        value: Point estimate; None if it is not available.
        low: Lower end of the 95% interval, or None.
        high: Upper end of the 95% interval, or None.
        vote: Position 0..1 that the value implies; None if it does not contribute.
        says: Short description.
        why: Reason why the value is not available.
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
    """Result of `similarity`.

    Attributes:
        position: 0 (unlike the pretraining data) to 1 (like it).
        low: Lower end of its interval.
        high: Upper end of its interval.
        measures: All measured quantities; those with a vote determine the position.
        photos: Number of images (a seeded sample of large sets).
        groups: Number of their groups.
        sentence: The result in words.
        notes: What was left out, and why.
        seconds: Duration.
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
        """Convert to JSON-compatible values."""
        return asdict(self)

    def measure(self, name: str) -> Measure:
        """Return the measure with this name.

        Raises:
            KeyError: If there is no such measure.
        """
        return {measure.name: measure for measure in self.measures}[name]


def similarity(
    photos: ImageDataset,
    looks: ImageScan,
    labels: Rows,
    units: Rows,
    folds: Rows,
    recipe: Recipe,
    scratch: Path,
    reporter: Reporter | None = None,
) -> Similarity:
    """Measure how similar images are to the pretraining data of the recipe's backbone.

    The same probe is evaluated out of fold on the pretrained features and on the features of an untrained copy of the
    backbone.

    Args:
        photos: Images.
        looks: Scan of the images.
        labels: int64 (n,), class index of each image.
        units: int64 (n,), group of each image.
        folds: int64 (n,), fold of each image; -1 for images to ignore.
        recipe: Recipe of the probe.
        scratch: Folder for large temporary files.
        reporter: Receives progress messages.

    Returns:
        The similarity.

    Raises:
        UnfreezeError: Any error of `extract_inputs`.
    """
    started = time.perf_counter()
    reporter = reporter or Reporter()
    # A single network and view, so that all feature sets are compared on equal terms.
    recipe = recipe.replace(**{"probe.input_candidates": (), "probe.views": ("plain",)})
    rows = sample_groups(units, np.flatnonzero((folds >= 0) & looks.readable), _MOST_ROWS, recipe.seed)
    files, inside = photos.files(), np.isin(np.arange(len(folds)), rows)
    squares = face_crops(recipe, files, looks.keys, inside, reporter)
    cut = squares.cut if squares else None
    untrained = recipe.replace(weights="none")
    pretrained, graphs = extract_inputs(files, looks.keys, inside, recipe, reporter, cut)
    random, _ = extract_inputs(files, looks.keys, inside, untrained, reporter, cut)
    rows = np.setdiff1d(rows, [*pretrained.failed, *random.failed])
    table = _Table(
        labels, units, np.where(np.isin(np.arange(len(folds)), rows), folds, -1), rows, len(photos.classes), recipe
    )
    notes = []
    if len(rows) < (folds >= 0).sum():
        notes.append(f"Measured on {len(rows):,} of {int((folds >= 0).sum()):,} photos, drawn by groups.")
    named: dict[str, AnyFeatureMatrix] = {"pretrained": pretrained.held(), "untrained": random.held()}
    beyond = {name: table.beyond(features, scratch, looks.keys) for name, features in named.items()}
    distance, why = _distance(graphs[0], files, rows, recipe, cut)
    measures = [
        _domain(distance, why),
        *(_separability(name, draws) for name, draws in beyond.items()),
        _owed(beyond, vote=distance is None),
    ]
    if distance:
        measures.append(
            Measure("noise_distance", distance.noise, None, None, None, "the same distance for noise images")
        )
        measures.append(
            Measure("channel_shift", distance.shift, None, None, None, "mean shift of channels, in deviations")
        )
    position, low, high = _place(measures[0], measures[3], distance)
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
    """Labels, groups, folds and rows that the probes are fitted on."""

    labels: Rows
    units: Rows
    folds: Rows
    rows: Rows
    classes: int
    recipe: Recipe

    def beyond(self, features: AnyFeatureMatrix, scratch: Path, keys: NDArray[np.uint64]) -> F64:
        """Out-of-fold macro F1 beyond chance, then its bootstrap samples over groups: float64 (1 + resamples,)."""
        contents = [keys[self.rows].tolist(), self.folds[self.rows].tolist(), self.rows.tolist()]
        identity = stable_hash([features.identity, contents])
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
    graph: FeatureExtractor, files: list[Path], rows: Rows, recipe: Recipe, squares: F64 | None
) -> tuple[Distance | None, str]:
    """Distance to the pretraining data over a sample of the images, or None and the reason."""
    if recipe.weights == "none":
        return None, "the network is untrained"
    most = _SEEN if graph.gmacs() <= _LARGE_GMACS else _SEEN_LARGE
    some = np.sort(np.random.default_rng(recipe.seed).permutation(rows)[:most])
    p, limit = graph.preprocessing, int(recipe.image.max_megapixels * 1e6)

    def load(i: int) -> Pixels | None:
        try:
            data = read_bytes(files[i])
            box = crop_of(squares, i)
            return load_crop(data, p.size, p.crop, limit, files[i], p.resample, p.squash, box, p.gray)
        except PhotoError:
            return None

    pixels = [found for found in map_threads(load, some.tolist()) if found is not None]
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
    says = "distance from the pretraining's BatchNorm statistics, nats; vote relative to that of noise images"
    if distance is None:
        return Measure("pretraining_distance", None, None, None, None, says, why)
    vote = _vote(distance.value, distance.noise)
    return _measure("pretraining_distance", distance.value, distance.draws, vote, says)


def _measure(name: str, value: float, draws: F64, vote: float | None, says: str) -> Measure:
    found = interval(value, draws)
    return Measure(name, found["value"], found["low"], found["high"], vote, says)


def _vote(value: float, noise: float) -> float:
    return float(np.clip(np.log(noise / max(value, 1e-9)) / np.log(max(noise / NEAR, 2.0)), 0, 1))


def _separability(name: str, draws: F64) -> Measure:
    says = {
        "pretrained": "macro F1 beyond chance on the pretrained features",
        "untrained": "the same on an untrained copy of the backbone",
    }[name]
    return _measure(f"separability_{name}", draws[0], draws[1:], None, says)


def _owed(beyond: dict[str, F64], vote: bool) -> Measure:
    """Share of the separability that an untrained network does not provide."""
    says = "share of the separability that is due to pretraining"
    if interval(0, beyond["pretrained"][1:])["low"] <= 0:
        return Measure(
            "owed_to_pretraining", None, None, None, None, says, "the pretrained features are no better than chance"
        )
    rest = np.maximum(beyond["untrained"], 0)
    share = np.clip(1 - rest / np.maximum(beyond["pretrained"], 1e-6), -1, 1)
    own = float(np.clip(share[0] / _OWED, 0, 1)) if vote else None
    return _measure("owed_to_pretraining", share[0], share[1:], own, says)


def _place(domain: Measure, owed: Measure, distance: Distance | None) -> tuple[float, float, float]:
    """Position and its interval: from the BatchNorm distance if available, else from the pretraining share."""
    if domain.vote is not None and distance is not None:
        assert domain.low is not None and domain.high is not None
        low, high = _vote(domain.high, distance.noise), _vote(domain.low, distance.noise)
        return domain.vote, max(0.0, min(low, domain.vote - SPREAD)), min(1.0, max(high, domain.vote + SPREAD))
    if owed.vote is not None:
        return owed.vote, max(0.0, owed.vote - _ROUGH), min(1.0, owed.vote + _ROUGH)
    return 0.5, 0.0, 1.0


def _sentence(
    position: float, low: float, high: float, title: str, beyond: dict[str, F64], distance: Distance | None
) -> str:
    place = f"{position:.2f} [{low:.2f}, {high:.2f}] on a scale from 0 (unlike) to 1 (alike)"
    words = "much like" if position >= 2 / 3 else "unlike" if position < 1 / 3 else "somewhat like"
    known = "" if distance else ", a rough guess without BatchNorm"
    figures = {name: max(float(draws[0]), 0.0) for name, draws in beyond.items()}
    numbers_text = (
        f"of the macro F1 range above chance, a probe reaches {figures['pretrained']:.0%} on its features, "
        f"{figures['untrained']:.0%} on those of an untrained copy"
    )
    return f"The photos are {words} those that {title} was pretrained on: {place}{known}; {numbers_text}."
