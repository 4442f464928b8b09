"""Similarity of images to the pretraining data of a backbone.

The position on a scale from unlike (0) to like (1) is derived from the distance to the BatchNorm statistics of the
backbone. Without BatchNorm, it is derived from the share of the class separability that only pretrained features
provide, compared with an untrained copy of the backbone and with handcrafted color and texture features.
LogME and H-score are reported as well.
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
from unfreeze.features.derived_matrix import SampledFeatureMatrix, sample_groups
from unfreeze.features.inputs import extract_inputs
from unfreeze.features.matrix import AnyFeatureMatrix
from unfreeze.metrics.transferability import beyond_chance, h_scores, logme
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

# Side of the central square in pixels, grid cells per side, edge orientations, and quantization levels per channel.
_SIDE, _CELLS, _DIRECTIONS, _SHADES = 48, 3, 8, 4


def handcrafted_features(
    files: list[Path], rows: NDArray[np.int64], max_pixels: int, gray: bool = False
) -> tuple[SampledFeatureMatrix, list[int]]:
    """Compute color and texture features without a network.

    Args:
        files: All n image files.
        rows: int64 (m,), rows to compute; all other rows are 0.
        max_pixels: Size limit for decoding.
        gray: Decode as grayscale, as for `load_crop`.

    Returns:
        The features (n, D) as signed square roots, and the rows that could not be read.
    """

    def load(i: int) -> Pixels | None:
        try:
            return load_crop(read_bytes(files[i]), _SIDE, 1.0, max_pixels, files[i], gray=gray)
        except PhotoError:
            return None

    loaded = dict(zip(rows.tolist(), map_threads(load, rows.tolist()), strict=True))
    there = [i for i, pixels in loaded.items() if pixels is not None]
    pixels = (
        np.stack([p for p in loaded.values() if p is not None]) if there else np.zeros((0, _SIDE, _SIDE, 3), np.uint8)
    )
    parts = plain_statistics(pixels)
    found = np.concatenate(list(parts.values()), 1)
    kept = np.zeros((len(files), found.shape[1]), np.float32)
    kept[there] = np.copysign(np.sqrt(np.abs(found)), found)
    blocks = tuple((name, part.shape[1]) for name, part in parts.items())
    name = "plain statistics 1" + " gray" * gray
    return SampledFeatureMatrix(kept, blocks, [name]), [i for i, p in loaded.items() if p is None]


def plain_statistics(pixels: Pixels) -> dict[str, NDArray[np.float32]]:
    """Color histogram, edge orientation histogram and channel moments of small images.

    Args:
        pixels: uint8 (n, S, S, 3), S a multiple of 3.

    Returns:
        float32 (n, width) for each block. `colours`: histogram over 4 x 4 x 4 = 64 colors. `edges`: mean edge strength
        in 8 orientations, for each of 3 x 3 cells. `moments`: mean and standard deviation of each channel; mean,
        standard deviation and skewness (divided by 10) of lightness and of edge strength.

    References:
        Dalal & Triggs 2005, "Histograms of Oriented Gradients for Human Detection", CVPR.
    """
    n, side = pixels.shape[:2]
    shade = pixels.astype(np.int64) * _SHADES // 256
    codes = (shade[..., 0] * _SHADES + shade[..., 1]) * _SHADES + shade[..., 2]
    codes = codes.reshape(n, -1) + np.arange(n)[:, None] * _SHADES**3
    colours = np.bincount(codes.ravel(), minlength=n * _SHADES**3).reshape(n, -1) / side**2

    x = pixels.astype(np.float32) / 255
    light = x @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    down, right = np.zeros_like(light), np.zeros_like(light)
    down[:, 1:-1] = light[:, 2:] - light[:, :-2]
    right[:, :, 1:-1] = light[:, :, 2:] - light[:, :, :-2]
    strength = np.hypot(down, right)
    turn = np.minimum((np.arctan2(down, right) % np.pi / np.pi * _DIRECTIONS).astype(np.int64), _DIRECTIONS - 1)
    cell = side // _CELLS
    edges = []
    for direction in range(_DIRECTIONS):
        own = np.where(turn == direction, strength, 0).reshape(n, _CELLS, cell, _CELLS, cell)
        edges.append(own.mean((2, 4)).reshape(n, -1))
    moments = [x.mean((1, 2)), x.std((1, 2))]
    for values in (light, strength):
        middle, spread = values.mean((1, 2)), values.std((1, 2))
        skew = ((values - middle[:, None, None]) ** 3).mean((1, 2)) / np.maximum(spread, 1e-3) ** 3
        moments.append(np.stack([middle, spread, skew / 10], 1))
    return {
        "colours": colours.astype(np.float32),
        "edges": np.concatenate(edges, 1).astype(np.float32),
        "moments": np.concatenate(moments, 1).astype(np.float32),
    }


# Limits: rows for the probes, images for the BatchNorm statistics (fewer for networks above _LARGE_GMACS), and features
# for LogME and the H-score.
_MOST_ROWS, _SEEN, _SEEN_LARGE, _LARGE_GMACS, _READ = 1_200, 96, 48, 5.0, 1_000
_RESAMPLES, _DEALT = 300, 10
# Calibrated on the eight data sets of benchmarks/similarity.py: position 1 at NEAR nats or less, 0 at the distance of
# noise images, log-linear in between. The interval is at least +- SPREAD.
NEAR, SPREAD = 0.045, 0.1
# Networks without BatchNorm: share owed to pretraining that maps to position 1, and half width of the interval.
_OWED, _ROUGH = 0.6, 0.35


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

    The same probe is evaluated out of fold on the pretrained features, on the features of an untrained copy of the
    backbone and on handcrafted color and texture features.

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
    gray, limit = recipe.image.color == "gray", int(recipe.image.max_megapixels * 1e6)
    plain, unread = handcrafted_features(files, rows, limit, gray)
    rows = np.setdiff1d(rows, [*pretrained.failed, *random.failed, *unread])
    table = _Table(
        labels, units, np.where(np.isin(np.arange(len(folds)), rows), folds, -1), rows, len(photos.classes), recipe
    )
    notes = []
    if len(rows) < (folds >= 0).sum():
        notes.append(f"Measured on {len(rows):,} of {int((folds >= 0).sum()):,} photos, drawn by groups.")
    named: dict[str, AnyFeatureMatrix] = {"pretrained": pretrained.held(), "untrained": random.held(), "plain": plain}
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
            Measure("noise_distance", distance.noise, None, None, None, "the same distance for noise images")
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
    low, high = np.percentile(distance.draws, [2.5, 97.5])
    vote = _vote(distance.value, distance.noise)
    return Measure("pretraining_distance", distance.value, float(low), float(high), vote, says)


def _vote(value: float, noise: float) -> float:
    return float(np.clip(np.log(noise / max(value, 1e-9)) / np.log(max(noise / NEAR, 2.0)), 0, 1))


def _separability(name: str, draws: F64) -> Measure:
    says = {
        "pretrained": "macro F1 beyond chance on the pretrained features",
        "untrained": "the same on an untrained copy of the backbone",
        "plain": "the same on plain statistics of color and texture",
    }[name]
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Measure(f"separability_{name}", float(draws[0]), float(low), float(high), None, says)


def _owed(beyond: dict[str, F64], vote: bool) -> Measure:
    """Share of the separability that neither an untrained network nor handcrafted features provide."""
    says = "share of the separability that is due to pretraining"
    if np.percentile(beyond["pretrained"][1:], 2.5) <= 0:
        return Measure(
            "owed_to_pretraining", None, None, None, None, says, "the pretrained features are no better than chance"
        )
    rest = np.maximum(np.maximum(beyond["untrained"], beyond["plain"]), 0)
    share = np.clip(1 - rest / np.maximum(beyond["pretrained"], 1e-6), -1, 1)
    low, high = np.percentile(share[1:], [2.5, 97.5])
    own = float(np.clip(share[0] / _OWED, 0, 1)) if vote else None
    return Measure("owed_to_pretraining", float(share[0]), float(low), float(high), own, says)


def _fits(pretrained: AnyFeatureMatrix, untrained: AnyFeatureMatrix, table: _Table) -> list[Measure]:
    """LogME and H-score on standardized features, sampled from the last block with the seed."""
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
            "H-score with shrinkage, minus that of permuted labels",
        ),
        Measure("h_score_untrained", scored["untrained"][1], None, None, None, "the same of the untrained copy"),
    ]


def _place(domain: Measure, owed: Measure, distance: Distance | None) -> tuple[float, float, float]:
    """Position and its interval: from the BatchNorm distance if available, else from the pretraining share."""
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
    place = f"{position:.2f} ({low:.2f} to {high:.2f}) on a scale from 0 (unlike) to 1 (alike)"
    words = "much like" if position >= 2 / 3 else "unlike" if position < 1 / 3 else "somewhat like"
    known = "" if distance else ", a rough guess without BatchNorm"
    figures = {name: max(float(draws[0]), 0.0) for name, draws in beyond.items()}
    numbers_text = (
        f"of the macro F1 range above chance, a probe reaches {figures['pretrained']:.0%} on its features, "
        f"{figures['untrained']:.0%} on an untrained copy, {figures['plain']:.0%} on color and texture statistics"
    )
    return f"The photos are {words} those that {title} was pretrained on: {place}{known}; {numbers_text}."
