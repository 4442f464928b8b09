"""Finished runs side by side: which photos all of them have predicted, and what each says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import RunError, listed
from unfreeze.core.files import read_json
from unfreeze.core.runs import Run
from unfreeze.core.tables import Photos, probability_columns

Rows = NDArray[np.int64]
# Fewer photos or groups than this say nothing about any difference.
FEWEST_PHOTOS, FEWEST_GROUPS = 20, 5


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def told(self) -> bool:
        """Of a difference: whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Compared:
    """What each recipe predicts of the same photos.

    labels, units, folds: int64 (n,), class, group and fold of every photo; -1 in folds for those that some recipe has
    not predicted. probabilities: float64 (n, C) by name, NaN outside the folds. seconds: that each took. same_folds:
    whether all were fitted on the same folds. notes: what differs beside the recipes, in sentences.
    """

    photos: Photos
    labels: Rows
    units: Rows
    folds: Rows
    probabilities: dict[str, NDArray[np.float64]]
    seconds: dict[str, float]
    same_folds: bool = True
    notes: tuple[str, ...] = ()

    @property
    def inside(self) -> Rows:
        """Rows that all have predicted."""
        return np.flatnonzero(self.folds >= 0)


def aligned(runs: Mapping[str, Run], seconds: Mapping[str, float] | None = None) -> Compared:
    """The out-of-fold predictions of finished runs, each photo beside itself.

    runs: by the name that each is called; the first sets the order of photos and classes. A photo is the same where
    path and content are, or, under another path, where its content is in each run once. Groups are those that hold in
    all runs: photos that any run kept together are resampled together. Raises RunError where classes or the labels of
    shared photos differ, or a run's files are damaged; how few photos are shared is for `refuse_few` to judge.
    """
    tables = {name: _table(run) for name, run in runs.items()}
    (first, base), *others = runs.items()
    table, classes = tables[first], base.classes
    for _, run in others:
        if set(run.classes) != set(classes):
            apart = sorted(set(run.classes) ^ set(classes))
            raise RunError(
                f"{run.path}: has other classes than {base.path} ({listed(apart)} in one of them only); compare runs "
                "of one task."
            )
    columns = probability_columns(classes)
    probabilities, units, folds = {}, table["unit"].to_numpy(np.int64), table["fold"].to_numpy(np.int64).copy()
    same, notes = True, []
    for name, run in runs.items():
        own = tables[name]
        at = np.arange(len(table)) if name == first else _places(table, own)
        here = np.flatnonzero(at >= 0)
        _refuse_other_labels(table, own, at, base, run)
        found = np.full((len(table), len(classes)), np.nan)
        found[here] = own[columns].to_numpy(np.float64)[at[here]]
        probabilities[name] = found
        # What a run has not seen at all must not fall into one group.
        theirs = np.where(at >= 0, own["unit"].to_numpy(np.int64)[at], -1 - np.arange(len(table)))
        predicted = here[~np.isnan(found[here]).any(1) & (table["fold"].to_numpy()[here] >= 0)]
        if name != first and not _alike(table["fold"].to_numpy()[predicted], own["fold"].to_numpy()[at[predicted]]):
            same = False
            notes.append(f"'{name}' was fitted on other folds than '{first}'.")
        if name != first and not _alike(units[predicted], theirs[predicted]):
            notes.append(
                f"'{name}' has other groups than '{first}': photos that either kept together are resampled together."
            )
            units = _joined(units, theirs)
        if run.recipe.seed != base.recipe.seed:
            notes.append(f"'{name}' has seed {run.recipe.seed}, '{first}' seed {base.recipe.seed}.")
    folds[np.any([np.isnan(found).any(1) for found in probabilities.values()], axis=0)] = -1
    counts = {name: int((tables[name]["fold"] >= 0).sum()) for name in runs}
    inside = int((folds >= 0).sum())
    if any(count != inside for count in counts.values()):
        told = ", ".join(f"'{name}' {count:,}" for name, count in counts.items() if count != inside)
        notes.append(f"Compared over the {inside:,} photos that all have predicted; alone have predicted: {told}.")
    number = {label: i for i, label in enumerate(classes)}
    labels = np.array([number[label] for label in table["label"]], np.int64)
    kept = table.drop(columns=columns)
    info = base.info
    photos = Photos(
        kept, Path(info["root"]), classes, tuple(info["answers"]), tuple(info["attributes"]), "run", str(base.path)
    )
    took = dict(seconds) if seconds is not None else {name: seconds_of_run(run) for name, run in runs.items()}
    return Compared(photos, labels, units, folds, probabilities, took, same, tuple(notes))


def refuse_few(found: Compared) -> None:
    """RunError where too few photos, groups or classes are shared for a difference to mean anything."""
    rows = found.inside
    photos, groups = len(rows), len(np.unique(found.units[rows]))
    names = listed([f"'{name}'" for name in found.probabilities])
    if photos < FEWEST_PHOTOS or groups < FEWEST_GROUPS:
        raise RunError(
            f"{names}: share {photos:,} photo(s) in {groups:,} group(s) that all have predicted out of fold, and a "
            f"comparison needs {FEWEST_PHOTOS} in {FEWEST_GROUPS}; compare runs of the same photos."
        )
    if len(np.unique(found.labels[rows])) < 2:
        raise RunError(f"{names}: the photos that all have predicted are of one class; compare runs of more of them.")


def seconds_of_run(run: Run) -> float:
    """Seconds that the fit took, all stages together; NaN where the run does not say."""
    try:
        timings = read_json(run.path / "environment.json")["timings"]
        return round(float(sum(timings.values())), 3)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return float("nan")


def _table(run: Run) -> pd.DataFrame:
    """The run's photos, with its out-of-fold probabilities beside; NaN for those in no fold."""
    columns = probability_columns(run.classes)
    try:
        photos = run.photos()
        oof = run.predictions().set_index("path")[columns]
        needed = photos[["path", "label", "unit", "fold", "hash"]]
        if needed["path"].duplicated().any() or not oof.index.is_unique:
            raise RunError(f"{run.path}: names a photo twice; fit the run again with --force.")
        if set(photos["label"]) - set(run.classes):
            raise RunError(f"{run.path}: has labels that are no class of it; fit the run again with --force.")
        return photos.join(oof, on="path").reset_index(drop=True)
    except KeyError as error:
        raise RunError(f"{run.path}: its tables lack columns ({error}); fit the run again with --force.") from None


def _places(table: pd.DataFrame, other: pd.DataFrame) -> Rows:
    """Where each photo of `table` stands in `other`, int64 (n,), -1 where it is not there."""
    by_path = pd.Series(np.arange(len(other)), index=other["path"])
    at = by_path.reindex(table["path"]).fillna(-1).to_numpy(np.int64, copy=True)
    content, theirs = table["hash"].to_numpy(str), other["hash"].to_numpy(str)
    at[(at >= 0) & (content != theirs[np.maximum(at, 0)])] = -1
    # The rest by content alone, where that is unmistakable: two files of one content may have two labels.
    free = np.setdiff1d(np.arange(len(other)), at)
    alone = pd.Series(free, index=theirs[free])
    alone = alone[~alone.index.duplicated(keep=False) & (alone.index != "")]
    rest = np.flatnonzero(at < 0)
    once = ~pd.Series(content[rest]).duplicated(keep=False).to_numpy()
    at[rest[once]] = alone.reindex(content[rest[once]]).fillna(-1).to_numpy(np.int64)
    return at


def _refuse_other_labels(table: pd.DataFrame, own: pd.DataFrame, at: Rows, base: Run, run: Run) -> None:
    here = np.flatnonzero(at >= 0)
    mine, theirs = table["label"].to_numpy(str)[here], own["label"].to_numpy(str)[at[here]]
    apart = np.flatnonzero(mine != theirs)
    if len(apart):
        one = apart[0]
        raise RunError(
            f"{run.path}: {len(apart):,} of {len(here):,} shared photos have another label than in {base.path} "
            f"('{table['path'].iloc[here[one]]}': '{theirs[one]}', not '{mine[one]}'); compare runs of the same labels."
        )


def _alike(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether both cut the rows into the same parts, whatever these are called."""
    pairs = len(np.unique(np.stack([one, other], 1), axis=0)) if len(one) else 0
    return pairs == len(np.unique(one)) == len(np.unique(other))


def _joined(one: Rows, other: Rows) -> Rows:
    """Parts so large that no part of either is cut: the smallest number of each is passed on until none changes."""
    _, mine = np.unique(one, return_inverse=True)
    _, theirs = np.unique(other, return_inverse=True)
    number = mine.astype(np.int64)
    while True:
        before = number
        for parts in (theirs, mine):
            least = np.full(int(parts.max()) + 1, len(one), np.int64)
            np.minimum.at(least, parts, number)
            number = least[parts]
        if np.array_equal(before, number):
            return number
