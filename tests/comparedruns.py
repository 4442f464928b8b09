"""Finished runs made of arrays: what a comparison reads of a run, without the hours that fitting them would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core import runs
from unfreeze.core.dataset import ImageDataset, probability_columns
from unfreeze.core.files import write_json
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run

CLASSES = ("blue", "green", "red")


def table_of(photos: int = 120, per_group: int = 2, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """path, label, group, split, unit, fold and hash of so many photos of CLASSES."""
    draw = np.random.default_rng(seed)
    unit = np.arange(photos) // per_group
    return pd.DataFrame(
        {
            "path": [f"{i:04d}.jpg" for i in range(photos)],
            "label": [CLASSES[i] for i in draw.integers(0, len(CLASSES), photos)],
            "group": [f"g{u}" for u in unit],
            "split": "train",
            "unit": unit,
            "fold": unit % folds,
            "hash": [f"{i:032x}" for i in range(photos)],
        }
    )


def told(table: pd.DataFrame, right: float, seed: int, classes: Sequence[str] = CLASSES) -> NDArray[np.float64]:
    """Probabilities (n, C) whose most probable class is the label in about the share `right` of photos, else any."""
    draw = np.random.default_rng([seed, 7])
    truth = np.array([list(classes).index(label) for label in table["label"]])
    answer = np.where(draw.random(len(table)) < right, truth, draw.integers(0, len(classes), len(table)))
    found = np.full((len(table), len(classes)), 0.1)
    found[np.arange(len(table)), answer] = 0.8
    return found / found.sum(1, keepdims=True)


def write_run(
    path: Path,
    table: pd.DataFrame,
    probabilities: NDArray[np.float64],
    classes: Sequence[str] = CLASSES,
    **changes: object,
) -> Run:
    """A finished probe run of these photos and out-of-fold probabilities; changes: dotted recipe keys with __."""
    recipe = Recipe().replace(**{"strategy": "probe", **{k.replace("__", "."): v for k, v in changes.items()}})
    photos = ImageDataset(table, Path("nowhere"), tuple(classes), tuple(classes), ("label",), "made", "made")
    inside = np.flatnonzero(table["fold"] >= 0)
    with runs.create_run(path, recipe, photos, "none", False):
        runs.save_table(path / "photos.parquet", table)
        oof = table.loc[inside, ["path", "fold", "label"]].reset_index(drop=True)
        columns = pd.DataFrame(probabilities[inside], columns=probability_columns(list(classes)))
        runs.save_table(path / "oof.parquet", pd.concat([oof, columns], axis=1))
        write_json(path / "environment.json", {"timings": {"features": 1.5, "heads": 0.5}})
        return runs.finalize_run(path)
