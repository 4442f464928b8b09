"""Both axes of `unfreeze recommend` on sets of known kind: how like the pretraining they are found, and how
complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import far_sets
import numpy as np
import sets

import unfreeze as uf
from unfreeze.analysis.learning_curve import learning_curve
from unfreeze.analysis.pretraining_similarity import Similarity, similarity
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.demo.dataset import make_demo
from unfreeze.features.inputs import extract_inputs
from unfreeze.training.crossval import prepare

# What a person would call them, nearest to ImageNet first.
KINDS = {
    "trash": "things",
    "grocery": "things",
    "clothing": "things",
    "masks": "faces",
    "people": "drawn people",
    "tiny": "things at 32 px",
    "characters": "drawn letters",
    "spectra": "spectra",
}
BACKBONES = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
_PHOTOS, _FOLDS = 420, 3
HEADLINE = (
    "set",
    "kind",
    "backbone",
    "position",
    "low",
    "high",
    "distance",
    "pretrained",
    "untrained",
    "owed",
)


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a network and set; the curve with the first network only. A cache of its own, empty at first."""
    before = os.environ.get("UNFREEZE_CACHE")
    os.environ["UNFREEZE_CACHE"] = str(scratch / "cache")
    try:
        for backbone in BACKBONES:
            for name in KINDS:
                source = _source(name, data, scratch)
                if source is not None:
                    yield measured(name, source, backbone, scratch)
                elif backbone == BACKBONES[0]:
                    print(f"similarity: {name} is skipped, the real photos are absent (--data DIR).")
    finally:
        os.environ.pop("UNFREEZE_CACHE")
        if before is not None:
            os.environ["UNFREEZE_CACHE"] = before


def _source(name: str, data: Path | None, scratch: Path) -> Source | None:
    """Where the set lies; made now where it is a drawn one."""
    place = scratch / name
    if name == "people":
        make_demo(place)
        return Source(path=str(place))
    if name in far_sets.FAR:
        return Source(path=str(far_sets.FAR[name](place)), group_regex=far_sets.GROUP)
    if data is None:
        return None
    if name == "tiny":
        return Source(path=str(far_sets.tiny(place, data / "trash")), group_regex=far_sets.GROUP)
    file, options = sets.SETS[name]
    named = dict(zip([word.removeprefix("--") for word in options[::2]], options[1::2], strict=True))
    label = (named.pop("label"),) if "label" in named else ()
    return Source(path=str(data / file), label=label, **named)


def measured(name: str, source: Source, backbone: str, scratch: Path) -> dict[str, Any]:
    """Both axes as `unfreeze recommend` measures them, on about 420 photos."""
    recipe = Recipe().replace(**{"source": source.model_dump(), "backbone": backbone, "folds.n_splits": _FOLDS})
    photos = uf.read(source.path, recipe.source)
    started = time.perf_counter()
    work = prepare(photos, recipe, scratch / "work", Reporter(), {})
    work.folds = _some(work.units, work.folds)
    found = similarity(work.photos, work.looks, work.labels, work.units, work.folds, recipe, scratch / "work")
    row: dict[str, Any] = {"set": name, "kind": KINDS[name], "backbone": backbone, **_place(found)}
    row |= {"seconds": round(time.perf_counter() - started, 1)}
    if backbone == BACKBONES[0]:
        row |= _curve(work, recipe, scratch)
    return {**row, "load": round(os.getloadavg()[0], 2)}


def _some(units: Any, folds: Any) -> Any:
    """The folds with about _PHOTOS photos left in them, whole groups drawn by a seed."""
    inside = folds >= 0
    groups = np.random.default_rng(0).permutation(np.unique(units[inside]))
    sizes = np.array([(units[inside] == group).sum() for group in groups])
    taken = groups[: int(np.searchsorted(np.cumsum(sizes), _PHOTOS)) + 1]
    return np.where(inside & np.isin(units, taken), folds, -1)


def _place(found: Similarity) -> dict[str, Any]:
    def value(name: str) -> Any:
        figure = found.measure(name).value
        return "" if figure is None else round(figure, 4)

    return {
        "photos": found.photos,
        "position": round(found.position, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
        "distance": value("pretraining_distance"),
        "noise_distance": value("noise_distance"),
        "pretrained": value("separability_pretrained"),
        "untrained": value("separability_untrained"),
        "owed": value("owed_to_pretraining"),
        "channel_shift": value("channel_shift"),
    }


def _curve(work: Any, recipe: Recipe, scratch: Path) -> dict[str, Any]:
    photos: ImageDataset = work.photos
    features, _ = extract_inputs(
        photos.files(), work.looks.keys, work.looks.readable & (work.folds >= 0), recipe, Reporter(), None
    )
    curve = learning_curve(
        features.held(), work.labels, work.units, work.folds, photos.classes, recipe, scratch / "work"
    )
    row: dict[str, Any] = {
        "curve_photos": int((work.folds >= 0).sum()),
        "enough": round(curve.position.value, 3),
        "enough_low": round(curve.position.low, 3),
        "enough_high": round(curve.position.high, 3),
        "curve": " ".join(f"{point.photos}:{point.macro_f1.value:.3f}" for point in curve.points),
        "short": curve.short,
        "curve_s": curve.seconds,
    }
    if curve.doubled:
        for name, figure in (("level", curve.doubled.macro_f1), ("growth", curve.doubled.growth)):
            ends = {"": figure.value, "_low": figure.low, "_high": figure.high}
            row |= {f"{name}{end}": "" if value is None else round(value, 4) for end, value in ends.items()}
    return row
