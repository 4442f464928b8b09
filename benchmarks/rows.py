"""The probe's heads on up to 100,000 rows: time, and whether memory stays bounded.

python rows.py make PLACE FOLDER COUNT     a feature store of COUNT rows, from the photos in FOLDER/CLASS
python rows.py fit PLACE COUNT             heads of FOLDS folds on its first COUNT rows
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child
import image_sets
import numpy as np

COUNTS, FOLDS, PIECE = (10_000, 30_000, 100_000), 2, 2_000
NOISE = 0.3  # of a column's deviation: enough that rows span all coordinates, as those of other photos do
HEADLINE = ("rows", "width", "seconds", "cpu_s", "anon_mb", "peak_mb", "grown_anon_mb", "accuracy", "load")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a count: real features of five blocks, each row a mixture of two photos of a class, with noise."""
    if data is None:
        print("rows: skipped, the real photos are absent (--data DIR).")
        return
    environment = {"UNFREEZE_CACHE": str(scratch / "cache")}
    command = [sys.executable, __file__]
    child.run([*command, "make", scratch, data / "trash", str(max(COUNTS))], environment)
    least = 0.0
    for count in COUNTS:
        taken = child.run([*command, "fit", scratch, str(count)], environment)
        least = least or taken.anon_mb
        yield {
            "rows": count,
            **taken.json(),
            "cpu_s": taken.cpu_seconds,
            "anon_mb": taken.anon_mb,
            "peak_mb": taken.peak_mb,
            "grown_anon_mb": round(taken.anon_mb - least, 1),
            "repeats": 1,
            "load": taken.load,
        }


def _make(place: Path, folder: Path, count: int) -> None:
    from unfreeze.core.cache import ArrayStore, content_hash
    from unfreeze.core.progress import Reporter
    from unfreeze.core.recipe import Recipe
    from unfreeze.features.inputs import extract_inputs

    files = image_sets.real_photos(folder)
    keys = np.array([content_hash(file.read_bytes()) for file in files], np.uint64)
    features, _ = extract_inputs(files, keys, np.ones(len(files), bool), Recipe(strategy="probe"), Reporter())
    names = sorted({file.parent.name for file in files})
    classes = np.array([names.index(file.parent.name) for file in files])
    real = features.read(np.arange(len(files)))
    deviation, members = NOISE * real.std(0), [np.flatnonzero(classes == c) for c in range(len(names))]
    store = ArrayStore(place / "rows", np.float16, (features.width,))
    draws, labels = np.random.default_rng(0), np.empty(count, np.int64)
    for start in range(0, count, PIECE):
        some = np.arange(start, min(start + PIECE, count))
        labels[some] = classes[draws.integers(0, len(files), len(some))]
        one, two = (np.array([draws.choice(members[c]) for c in labels[some]]) for _ in range(2))
        share = draws.uniform(0.5, 1, (len(some), 1)).astype(np.float32)
        mixed = share * real[one] + (1 - share) * real[two]
        mixed += draws.standard_normal(mixed.shape, np.float32) * deviation
        store.append(np.stack([some, some], 1).astype(np.uint64), mixed.astype(np.float16))
    np.save(place / "labels.npy", labels)
    (place / "blocks.json").write_text(json.dumps(features.blocks), "utf-8")


def _fit(place: Path, count: int) -> dict[str, Any]:
    from unfreeze.core.cache import ArrayStore
    from unfreeze.core.recipe import Recipe
    from unfreeze.features.matrix import FeatureMatrix, JoinedFeatureMatrix
    from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

    blocks = tuple((name, int(width)) for name, width in json.loads((place / "blocks.json").read_text("utf-8")))
    width = sum(size for _, size in blocks)
    store, each = ArrayStore(place / "rows", np.float16, (width,)), np.arange(count, dtype=np.int64)
    places = store.find(np.stack([each, each], 1).astype(np.uint64))
    features = JoinedFeatureMatrix((FeatureMatrix((store,), (places,), blocks, {}, "cache"),)).held()
    labels, folds = np.load(place / "labels.npy")[:count], each % FOLDS
    recipe = Recipe(strategy="probe")
    started, classes, scratch = time.perf_counter(), int(labels.max()) + 1, place / "scratch"
    fitted = fit_folds(features, labels, each, folds, classes, recipe.probe, recipe.seed, f"rows-{count}", scratch)
    heads = dict(fitted)
    seconds, right = time.perf_counter() - started, 0
    for fold, head in heads.items():
        own = np.flatnonzero(folds == fold)
        right += int((predict_folds(features, [head], own).argmax(1) == labels[own]).sum())
    return {
        "width": width,
        "classes": classes,
        "folds": FOLDS,
        "seconds": round(seconds, 1),
        "prediction_s": round(time.perf_counter() - started - seconds, 1),
        "accuracy": round(right / count, 4),
        "features_gb": round(2 * width * count / 1e9, 2),
    }


if __name__ == "__main__":
    if sys.argv[1] == "make":
        _make(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(_fit(Path(sys.argv[2]), int(sys.argv[3]))))
