"""Alignment of the out-of-fold predictions of several finished runs.

`align_runs` matches the images of the runs, checks that classes and labels agree, and returns the predictions in one
common row order, so that paired statistics can be computed on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.dataset import ImageDataset, probability_columns
from unfreeze.core.errors import RunError, join_names
from unfreeze.core.files import read_record
from unfreeze.core.format import pluralize
from unfreeze.core.messages import option
from unfreeze.core.names import positions
from unfreeze.core.runs import Run

# Below these counts, no difference between runs can be estimated.
FEWEST_PHOTOS, FEWEST_GROUPS = 20, 5


def counted_groups(groups: int, effective: float) -> str:
    """Format a number of groups with its effective number, for example `190 groups (effective number 54)`.

    The effective number is omitted if it exceeds 95% of the count, that is, if the groups are of nearly equal size.
    """
    said = pluralize(groups, "group")
    return said if effective > 0.95 * groups else f"{said} (effective number {effective:.0f})"


@dataclass(frozen=True)
class AlignedRuns:
    """Predictions of several recipes for the same images.

    Attributes:
        photos: Images in row order, n in total.
        labels: int64 (n,), class index of each image.
        units: int64 (n,), resampling group of each image.
        folds: int64 (n,), fold of each image; -1 for images that at least one recipe has not predicted.
        probabilities: Name of the recipe -> float64 (n, C), NaN outside the folds.
        seconds: Name of the recipe -> duration of its fit in seconds.
        same_folds: Whether all recipes were fitted on the same folds.
        notes: Differences between the runs other than the recipe, as sentences.
    """

    photos: ImageDataset
    labels: Rows
    units: Rows
    folds: Rows
    probabilities: dict[str, NDArray[np.float64]]
    seconds: dict[str, float]
    same_folds: bool = True
    notes: tuple[str, ...] = ()

    @property
    def inside(self) -> Rows:
        """Indices of the rows that all recipes have predicted."""
        return np.flatnonzero(self.folds >= 0)


def align_runs(runs: Mapping[str, Run], seconds: Mapping[str, float] | None = None) -> AlignedRuns:
    """Align the out-of-fold predictions of finished runs image by image.

    Two rows refer to the same image if path and content hash are equal. Images whose path
    differs are matched by content hash if it is unique among the unmatched images of both runs. The returned groups are
    the connected components of the groups of all runs: images that any run kept together are resampled together.

    Args:
        runs: Display name -> run. The first run defines the order of images and classes.
        seconds: Display name -> duration of the fit; by default it is read from the run folder.

    Returns:
        The aligned runs. The number of shared images is not checked; see `require_enough`.

    Raises:
        RunError: If classes or the labels of shared images differ, or if the files of a run are damaged.
    """
    tables = {name: _table(run) for name, run in runs.items()}
    (first, base), *others = runs.items()
    table, classes = tables[first], base.classes
    for _, run in others:
        if set(run.classes) != set(classes):
            apart = sorted(set(run.classes) ^ set(classes))
            raise RunError(
                f"{run.path}: has other classes than {base.path} ({join_names(apart)} in one of them only); "
                "compare runs "
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
        # Images absent from this run get unique negative groups, so that they do not form one group.
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
        counted = ", ".join(f"'{name}' {count:,}" for name, count in counts.items() if count != inside)
        notes.append(f"Compared over the {inside:,} photos that all have predicted; alone have predicted: {counted}.")
    number = {label: i for i, label in enumerate(classes)}
    labels = np.array([number[label] for label in table["label"]], np.int64)
    kept = table.drop(columns=columns)
    info = base.info
    photos = ImageDataset(
        kept, Path(info["root"]), classes, tuple(info["answers"]), tuple(info["attributes"]), "run", str(base.path)
    )
    took = dict(seconds) if seconds is not None else {name: seconds_of_run(run) for name, run in runs.items()}
    return AlignedRuns(photos, labels, units, folds, probabilities, took, same, tuple(notes))


def require_enough(found: AlignedRuns) -> None:
    """Check that enough images, groups and classes are shared for a comparison.

    Raises:
        RunError: If fewer than `FEWEST_PHOTOS` images, `FEWEST_GROUPS` groups or two classes are shared.
    """
    rows = found.inside
    photos, groups = len(rows), len(np.unique(found.units[rows]))
    names = join_names([f"'{name}'" for name in found.probabilities])
    if photos < FEWEST_PHOTOS or groups < FEWEST_GROUPS:
        raise RunError(
            f"{names}: share {photos:,} photo(s) in {groups:,} group(s) that all have predicted out of fold, and a "
            f"comparison needs {FEWEST_PHOTOS} in {FEWEST_GROUPS}; compare runs of the same photos."
        )
    if len(np.unique(found.labels[rows])) < 2:
        raise RunError(f"{names}: the photos that all have predicted are of one class; compare runs of more of them.")


def seconds_of_run(run: Run) -> float:
    """Duration of the fit in seconds, summed over all stages; NaN if the run does not record it."""
    file = run.path / "environment.json"
    seconds = read_record(file, lambda found: round(float(sum(found["timings"].values())), 3))
    return float("nan") if seconds is None else seconds


def _table(run: Run) -> pd.DataFrame:
    """Image table of the run joined with its out-of-fold probabilities; NaN for images in no fold."""
    columns = probability_columns(run.classes)
    try:
        photos = run.photos()
        oof = run.predictions().set_index("path")[columns]
        needed = photos[["path", "label", "unit", "fold", "hash"]]
        if needed["path"].duplicated().any() or not oof.index.is_unique:
            raise RunError(f"{run.path}: names a photo twice; fit the run again with {option('force', True)}.")
        if set(photos["label"]) - set(run.classes):
            raise RunError(
                f"{run.path}: has labels that are no class of it; fit the run again with {option('force', True)}."
            )
        return photos.join(oof, on="path").reset_index(drop=True)
    except KeyError as error:
        raise RunError(
            f"{run.path}: its tables lack columns ({error}); fit the run again with {option('force', True)}."
        ) from None


def _places(table: pd.DataFrame, other: pd.DataFrame) -> Rows:
    """Row in `other` of each image of `table`, int64 (n,); -1 if absent."""
    at = np.array(positions(table["path"], other["path"].tolist(), one_to_one=True), np.int64)
    content, theirs = table["hash"].to_numpy(str), other["hash"].to_numpy(str)
    at[(at >= 0) & (content != theirs[np.maximum(at, 0)])] = -1
    # Match the remaining images by content hash, only if it is unique: two files of equal content may differ in label.
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
    """Whether both arrays define the same partition of the rows, up to renaming of its parts."""
    pairs = len(np.unique(np.stack([one, other], 1), axis=0)) if len(one) else 0
    return pairs == len(np.unique(one)) == len(np.unique(other))


def _joined(one: Rows, other: Rows) -> Rows:
    """Finest partition of which both partitions are refinements (connected components).

    The smallest member number of each part is propagated until it no longer changes.
    """
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
