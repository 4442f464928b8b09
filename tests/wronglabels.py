"""Small photos with a few wrong labels planted, and a run of them."""

from __future__ import annotations

import csv
from pathlib import Path

from photosets import class_folders
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run

WRONG = {"red/g003_1.jpg": "green", "green/g105_0.jpg": "blue", "blue/g207_1.jpg": "red"}
RECIPE = {
    "strategy": "probe",
    "source.group": "group",
    "image.size": 64,
    "engine": "openvino-f32",
    "folds.n_splits": 3,
    "probe.stages": "last:2",
    "probe.pool_size": 2,
    "probe.Cs": [1.0, 30.0],
}


def wrong_set(root: Path) -> tuple[Path, Path]:
    """72 photos of 36 groups of two in three colors, three of them labeled wrong: the table, and the true one."""
    class_folders(root)
    paths = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*.jpg"))
    for name, wrong in (("photos.csv", WRONG), ("truth.csv", dict[str, str]())):
        with (root / name).open("w", newline="") as file:
            rows = [[p, wrong.get(p, p.split("/")[0]), p.split("/")[1].split("_")[0]] for p in paths]
            csv.writer(file).writerows([["path", "label", "group"], *rows])
    return root / "photos.csv", root / "truth.csv"


def wrong_recipe(table: Path) -> Recipe:
    """A quick probe of them."""
    return Recipe().replace(**RECIPE, **{"source.path": str(table)})


def wrong_run(table: Path, run: Path) -> Run:
    """A finished run of them."""
    from unfreeze.data.readers import read
    from unfreeze.training.crossval import cross_validate

    recipe = wrong_recipe(table)
    return cross_validate(read(str(table), recipe.source), recipe, run)
