"""The learning curve's prediction for twice the groups, compared with fits on twice the groups of real sets.

From each set N groups are drawn as "the data set" and the curve is measured on them. Its prediction for twice as many
is compared with the truth: macro F1, of the same classes, of heads that learned from 2N groups (the N and N others), on
the groups that are in neither. The truth is the mean over all draws of the set, so that it is known to about 0.003;
`own` is the same of the draw's own doubled set. Features of the last layer, computed once; the heads try two penalties.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sets

import unfreeze as uf
from unfreeze.analysis.learning_curve import LEAST_GROUPS, Curve, learning_curve
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import PRESETS, Recipe
from unfreeze.data.scan import scan_images
from unfreeze.data.splits import assign_folds
from unfreeze.features.derived_matrix import SampledFeatureMatrix
from unfreeze.features.inputs import extract_inputs
from unfreeze.metrics.classification import precision_recall_f1
from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

# Groups of a draw; less than a third of the set's, so that enough are left to be judged.
GROUPS = {"grocery": 150, "trash": 200, "masks": 150, "clothing": 60}
DRAWS, FOLDS = 26, 5
RECIPE = Recipe().replace(**PRESETS["fast"], **{"probe.Cs": [10.0, 100.0]})
HEADLINE = ("set", "draw", "groups", "measured", "level", "low", "high", "truth", "covered", "growth_covered")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a draw, and for each set a row `all` with the shares of draws whose interval holds the truth."""
    if data is None:
        print("curve_statistics: skipped, the real photos are absent (--data DIR).")
        return
    for name, count in GROUPS.items():
        yield from of_set(name, count, data, scratch)


def of_set(name: str, count: int, data: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    x, labels, units, classes = material(name, data)
    found = [drawn(x, labels, units, classes, count, draw, scratch / name) for draw in range(DRAWS)]
    expected = {size: np.mean([one["f1"][size] for one in found], 0) for size in (1, 2)}
    out = []
    for draw, one in enumerate(found):
        curve: Curve = one["curve"]
        judged = np.array([c.groups >= LEAST_GROUPS for c in curve.classes])
        truth = {size: float(expected[size][judged].mean()) for size in (1, 2)}
        row: dict[str, Any] = {"set": name, "draw": draw, "groups": count, "photos": one["photos"]}
        row |= {"sizes": len(curve.points), "seconds": round(one["seconds"], 1)}
        row |= {"measured": curve.points[-1].macro_f1.value, "truth": truth[2], "own": one["f1"][2][judged].mean()}
        row |= {"truth_growth": truth[2] - truth[1]}
        if curve.doubled:
            for what, figure in (("", curve.doubled.macro_f1), ("growth_", curve.doubled.growth)):
                ends = {"low": figure.low, "high": figure.high}
                row |= {f"{what}{end}": value for end, value in {"value": figure.value, **ends}.items()}
            row["level"] = row.pop("value")
        if row.get("low") is not None:
            row["covered"] = int(row["low"] <= row["truth"] <= row["high"])
            row["own_covered"] = int(row["low"] <= row["own"] <= row["high"])
            row["growth_covered"] = int(row["growth_low"] <= row["truth_growth"] <= row["growth_high"])
        out.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    yield from out
    with_interval = [row for row in out if "covered" in row]
    whole: dict[str, Any] = {"set": name, "draw": "all", "groups": count, "with_interval": len(with_interval)}
    for key in ("measured", "level", "low", "high", "truth", "own", "covered", "own_covered", "growth_covered"):
        values = [row[key] for row in with_interval]
        whole[key] = round(float(np.mean(values)), 3) if values else ""
    yield whole


def material(name: str, data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Features, labels and groups of a set, float32 (n, D), int64 (n,) each, and its classes."""
    source, options = sets.SETS[name]
    named = dict(zip([word.removeprefix("--") for word in options[::2]], options[1::2], strict=True))
    photos = uf.read(data / source, **named)
    looks = scan_images(photos, int(RECIPE.image.max_megapixels * 1e6), Reporter())
    features, _ = extract_inputs(photos.files(), looks.keys, looks.readable, RECIPE, Reporter())
    usable = looks.readable.copy()
    usable[list(features.failed)] = False
    usable &= (photos.table["split"] == "train").to_numpy()
    rows = np.flatnonzero(usable)
    number = {label: i for i, label in enumerate(photos.classes)}
    labels = np.array([number[label] for label in photos.table["label"].iloc[rows]], np.int64)
    units = np.unique(photos.table["group"].iloc[rows].to_numpy(str), return_inverse=True)[1].astype(np.int64)
    return features.read(rows), labels, units, photos.classes


def drawn(
    x: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    classes: tuple[str, ...],
    count: int,
    draw: int,
    scratch: Path,
) -> dict[str, Any]:
    """The curve of `count` groups, and F1 of every class on the rest after learning from 1 and 2 x count groups."""
    order = np.random.default_rng([draw, count]).permutation(units.max() + 1)
    features = SampledFeatureMatrix(x, (("all", x.shape[1]),), [f"{scratch.name}-{draw}"])
    folds = {}
    for size in (1, 2):
        inside = np.isin(units, order[: size * count])
        folds[size] = np.full(len(labels), -1)
        folds[size][inside] = assign_folds(labels[inside], units[inside], FOLDS, draw, len(classes))
    rest = np.flatnonzero(folds[2] < 0)
    started = time.process_time()
    curve = learning_curve(features, labels, units, folds[1], classes, RECIPE, scratch / "curve")
    seconds = time.process_time() - started
    f1 = {}
    for size in (1, 2):
        heads = fit_folds(
            features, labels, units, folds[size], len(classes), RECIPE.probe, 0, f"{draw}-{size}", scratch / "heads"
        )
        tables = [_confusion(labels[rest], predict_folds(features, [head], rest), len(classes)) for _, head in heads]
        f1[size] = precision_recall_f1(np.stack(tables))["f1"].mean(0)
    return {"curve": curve, "f1": f1, "photos": int((folds[1] >= 0).sum()), "seconds": seconds}


def _confusion(truth: np.ndarray, proba: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(truth * classes + proba.argmax(1), minlength=classes**2).reshape(classes, classes)
