"""Small photo sets with exactly one fault planted in each, and quick probes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from photosets import CLASSES
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run

SETTINGS: dict[str, Any] = {
    "strategy": "probe",
    "image.size": 64,
    "engine": "openvino-f32",
    "folds.n_splits": 3,
    "probe.stages": "last",
    "probe.pool_size": 1,
    "probe.views": ["plain"],
    "probe.Cs": [0.1, 1.0, 10.0, 100.0],
}


def paint(file: Path, colour: int, group: int, photo: int, signal: int, spread: int = 60, noise: int = 100) -> None:
    """48 x 64 pixels: `signal` is how far the class's color stands out, `spread` how far groups differ in hue."""
    hue = np.random.default_rng([7, group]).integers(0, spread, 3)
    hue[colour] += signal
    grain = np.random.default_rng([8, group, photo]).integers(0, noise, (16, 12, 3))
    pixels = np.clip(hue + grain, 0, 255).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((48, 64), Image.Resampling.NEAREST).save(file, quality=95)


def painted(
    root: Path,
    colours: Sequence[int],
    *,
    each: int = 2,
    signal: int = 90,
    spread: int = 60,
    noise: int = 100,
    first: int = 0,
    named: Sequence[int] | None = None,
) -> Path:
    """A table of one group for each of `colours`, of `each` photos: path, label, group.

    named: the class that each group is labeled as, where that is not its color. first: number of the first group.
    """
    rows = []
    for i, colour in enumerate(colours):
        for photo in range(each):
            path = f"g{first + i:03d}_{photo}.jpg"
            paint(root / path, int(colour), first + i, photo, signal, spread, noise)
            rows.append((path, CLASSES[int(colours[i] if named is None else named[i])], f"g{first + i:03d}"))
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(root / "photos.csv", index=False)
    return root / "photos.csv"


def quick_run(table: Path, run: Path, **changes: Any) -> Run:
    """A finished probe of it. changes: recipe keys with __ for the dot."""
    from unfreeze.data.readers import read
    from unfreeze.training.crossval import cross_validate

    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    recipe = Recipe().replace(**{**SETTINGS, "source.path": str(table), "source.group": "group", **dotted})
    return cross_validate(read(str(table), recipe.source), recipe, run)
