"""What photos of a group share in a run's training photos, and how they vote on it at prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.attributes import parts_of
from unfreeze.core.errors import SourceError
from unfreeze.core.runs import Run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.judge.labels import belongs_to_groups
from unfreeze.judge.voting import choose_sharpness, voted

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Shared:
    """names: label columns that are the same in nearly all photos of a group. of_class: int64 (C,), the number of
    each class's value of them."""

    names: tuple[str, ...]
    of_class: Rows

    @classmethod
    def of(cls, run: Run) -> Shared:
        """As the training photos' groups have it. SourceError where photos of a group share nothing."""
        table = run.photos()
        table = table[table["fold"] >= 0]
        groups = table["group"].to_numpy()
        attributes = tuple(str(a) for a in run.info["attributes"])
        parts = parts_of(Photos(table, Path(), run.classes, (), attributes, "", ""))
        labels = _numbers(table["label"], run)
        if belongs_to_groups(labels, groups):
            return cls(("label",), np.arange(len(run.classes)))
        same = [part for part in parts if belongs_to_groups(part.of(labels), groups)]
        if not same:
            raise SourceError(
                f"{run.path}: in training, photos of a group share no label, or hardly any group has two photos; "
                "there is nothing to vote on."
            )
        combined = list(zip(*(part.of_class for part in same), strict=True))
        known = {values: i for i, values in enumerate(dict.fromkeys(combined))}
        return cls(tuple(part.name for part in same), np.array([known[v] for v in combined], np.int64))


def _numbers(labels: pd.Series, run: Run) -> Rows:
    number = {name: i for i, name in enumerate(run.classes)}
    return np.array([number[label] for label in labels], np.int64)


@dataclass(frozen=True)
class Vote:
    """How photos of a group agree on what they share; the sharpness was chosen out of fold."""

    classes: tuple[str, ...]
    shared: Shared
    sharpness: float

    @classmethod
    def learnt(cls, run: Run, oof: pd.DataFrame) -> Vote:
        """From a run's groups and out-of-fold predictions, its own or a blend's; SourceError as `Shared.of`."""
        shared = Shared.of(run)
        group = run.photos().set_index("path")["group"]
        truth = _numbers(oof["label"], run)
        proba = oof[probability_columns(run.classes)].to_numpy(np.float64)
        groups = group.loc[oof["path"]].to_numpy()
        return cls(run.classes, shared, choose_sharpness(truth, proba, shared.of_class, groups))

    def told(self) -> str:
        """`Photos of a group agree on gender, age (sharpness 2).`"""
        return f"Photos of a group agree on {', '.join(self.shared.names)} (sharpness {self.sharpness:g})."

    def apply(self, table: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
        """Predictions as of `Classifier.predict` after the vote; groups: one a row. Rows with an error have no vote."""
        if len(groups) != len(table):
            raise SourceError(f"{len(groups):,} groups for {len(table):,} photos: name one for each.")
        columns = probability_columns(self.classes)
        good = (table["error"] == "").to_numpy()
        proba = np.array(table[columns], np.float64)
        names = np.array([str(g) for g in groups], object)
        if good.any():
            proba[good] = voted(proba[good], self.shared.of_class, names[good], self.sharpness)
        best = [
            self.classes[i] if ok else None for i, ok in zip(np.nan_to_num(proba, nan=-1).argmax(1), good, strict=True)
        ]
        out = table.copy()
        out[columns] = proba
        out["label"] = best
        return out
