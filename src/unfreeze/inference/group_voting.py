"""Group voting: images of a group agree on the label columns that are constant within groups in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from unfreeze.core.arrays import Rows
from unfreeze.core.dataset import ImageDataset, label_columns, probability_columns
from unfreeze.core.errors import SourceError
from unfreeze.core.names import nfc
from unfreeze.core.runs import Run
from unfreeze.metrics.ensembling import apply_group_vote, choose_exponent
from unfreeze.metrics.label_issues import is_constant_within_groups


@dataclass(frozen=True)
class GroupConstantLabels:
    """Label columns that are constant within groups.

    Attributes:
        names: Names of the columns.
        of_class: int64 (C,), for each class the index of its combination of values of these columns.
    """

    names: tuple[str, ...]
    of_class: Rows

    @classmethod
    def of(cls, run: Run) -> GroupConstantLabels:
        """Detect the columns on the training images of a run.

        Raises:
            SourceError: If no column is constant within groups, or hardly any group has several images.
        """
        table = run.photos()
        table = table[table["fold"] >= 0]
        groups = table["group"].to_numpy()
        attributes = tuple(str(a) for a in run.info["attributes"])
        parts = label_columns(ImageDataset(table, Path(), run.classes, (), attributes, "", ""))
        labels = _numbers(table["label"], run)
        if is_constant_within_groups(labels, groups):
            return cls(("label",), np.arange(len(run.classes)))
        same = [part for part in parts if is_constant_within_groups(part.of(labels), groups)]
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
    """Vote of the images of a group, with a sharpness selected out of fold."""

    classes: tuple[str, ...]
    shared: GroupConstantLabels
    sharpness: float

    @classmethod
    def learnt(cls, run: Run, oof: pd.DataFrame) -> Vote:
        """Select the sharpness on out-of-fold predictions of a run or of an ensemble.

        Raises:
            SourceError: As raised by `GroupConstantLabels.of`.
        """
        shared = GroupConstantLabels.of(run)
        group = run.photos().set_index("path")["group"]
        truth = _numbers(oof["label"], run)
        proba = oof[probability_columns(run.classes)].to_numpy(np.float64)
        groups = group.loc[oof["path"]].to_numpy()
        return cls(run.classes, shared, choose_exponent(truth, proba, shared.of_class, groups))

    def describe(self) -> str:
        """Description, for example `Photos of a group agree on gender, age (sharpness 2).`"""
        return f"Photos of a group agree on {', '.join(self.shared.names)} (sharpness {self.sharpness:g})."

    def apply(self, table: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
        """Apply the vote to a table of predictions.

        Args:
            table: Predictions as returned by `Classifier.predict`. Rows with an error do not vote.
            groups: Group of each row.

        Returns:
            Copy of the table with updated labels and probabilities.

        Raises:
            SourceError: If the number of groups differs from the number of rows.
        """
        if len(groups) != len(table):
            raise SourceError(f"{len(groups):,} groups for {len(table):,} photos: name one for each.")
        columns = probability_columns(self.classes)
        good = (table["error"] == "").to_numpy()
        proba = np.array(table[columns], np.float64)
        names = np.array([nfc(str(g)) for g in groups], object)
        if good.any():
            proba[good] = apply_group_vote(proba[good], self.shared.of_class, names[good], self.sharpness)
        best = [
            self.classes[i] if ok else None for i, ok in zip(np.nan_to_num(proba, nan=-1).argmax(1), good, strict=True)
        ]
        out = table.copy()
        out[columns] = proba
        out["label"] = pd.Series(best, out.index, dtype=object)
        return out
