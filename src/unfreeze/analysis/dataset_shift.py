"""Classifier two-sample test between training and test images.

A classifier on frozen features tries to distinguish the two sets. Its AUC, per-image probabilities and the duplicates
across the sets are reported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import SourceError, join_names, wrong_type
from unfreeze.core.messages import Brief
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import PRESETS, Recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.data.duplicates import connected_groups
from unfreeze.data.list_images import list_images
from unfreeze.data.read_tables import paths_of
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.data.scan import scan_images
from unfreeze.features.inputs import extract_inputs
from unfreeze.metrics.two_sample_test import FOLDS, TwoSampleResult, classifier_two_sample_test

# Images sampled per set. More images barely narrow the interval, and each costs a forward pass.
MOST = 5000
# AUC below which a significant difference is too small to act on, and AUC from which it is pronounced.
SLIGHT, PLAIN = 0.6, 0.8
# Number of random splits of the training images whose AUC must all be exceeded: significance level 1 / 40.
HALVES = 39
_FIX = {
    "info": "none needed",
    "warning": "look at the photos least like the other set: another camera, light, crop or kind of photo; "
    "gather training photos like the test photos, or augment towards them",
}


@dataclass(frozen=True, repr=False)
class DatasetComparison(Brief):
    """Result of `compare_datasets`.

    Attributes:
        result: AUC, its interval and all probabilities.
        training: Training images: path and out-of-fold `probability` of belonging to the test set, the images least
            like the test set first.
        test: The same for the test images, those least like the training set first.
        copies: Duplicates across the sets: `training`, `test` and `kind` ("exact" or "near").
        root: Folder that training paths are relative to.
        test_root: Folder that test paths are relative to.
        halves: AUC of random splits of the training images in which the groups of one side are hidden: the AUC that
            recognition of groups yields without any shift. Empty unless the training images are grouped and the test
            images are not.
        grouped: Whether either set has groups of several images, given or formed from near duplicates.
    """

    result: TwoSampleResult
    training: pd.DataFrame
    test: pd.DataFrame
    copies: pd.DataFrame
    root: Path
    test_root: Path
    halves: tuple[float, ...] = ()
    grouped: bool = True

    @property
    def apart(self) -> bool:
        """Whether the permutation test is significant and the AUC exceeds all of `halves`."""
        return self.result.apart and all(self.result.auc > half for half in self.halves)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        r = self.result
        auc_text = f"AUC {r.auc:.2f} [{r.low:.2f}, {r.high:.2f}] (permutation test p = {r.p_value:.3f})"
        if self.halves:
            auc_text += (
                f"; random splits of the training images by group give {np.mean(self.halves):.2f} "
                f"({min(self.halves):.2f} to {max(self.halves):.2f})"
            )
        if not self.apart:
            return (
                f"A classifier cannot tell the test photos from the training photos: {auc_text}, where 0.5 is chance."
            )
        how = "clearly" if r.auc >= PLAIN else "partly" if r.auc >= SLIGHT else "barely"
        text = f"A classifier can {how} tell the test photos from the training photos: {auc_text}, where 0.5 is chance."
        if not self.grouped:
            text += " No groups were given: it may recognize other photos of the same object, session or burst."
        return text

    def findings(self) -> list[Finding]:
        """A finding `shift`, and a finding `test-duplicates` if test images are also training images."""
        severity = "warning" if self.apart and self.result.auc >= SLIGHT else "info"
        found = [Finding("shift", severity, self.sentence.rstrip("."), _FIX[severity])]  # type: ignore[arg-type]
        if len(self.copies):
            named = [f"{c.training} = {c.test}" for c in self.copies.itertuples()]
            found.append(
                Finding(
                    "test-duplicates",
                    "warning",
                    f"{len(named)} test photo(s) are also training photos, exactly or nearly: {join_names(named, 3)}",
                    "remove them from one of the two sets: the test score is optimistic",
                )
            )
        return found

    def json(self, most: int = 20) -> dict[str, Any]:
        """Convert to JSON-compatible values.

        Args:
            most: Number of images per set, starting with those least similar to the other set.
        """
        return {
            "auc": {"value": self.result.auc, "low": self.result.low, "high": self.result.high},
            "p_value": self.result.p_value,
            "halves": list(self.halves),
            "apart": self.apart,
            "training": self.training.head(most).to_dict("records"),
            "test": self.test.head(most).to_dict("records"),
            "copies": self.copies.to_dict("records"),
        }


def compare_datasets(
    photos: ImageDataset | str | Path | pd.DataFrame,
    test: ImageDataset | str | Path | pd.DataFrame,
    recipe: Recipe | None = None,
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> DatasetComparison:
    """Test whether a classifier on the features of a frozen backbone can distinguish test from training images.

    At most `MOST` images per set are used, sampled with the seed of the recipe. Near duplicates are joined into one
    group, and groups are kept within one fold of the classifier.

    Args:
        photos: Training images: an ImageDataset, or any source that `uf.read` accepts.
        test: Folder of images, table or DataFrame that lists them, or an ImageDataset (all its rows).
        recipe: Its backbone and seed are used; the features are those of quality fast, cached.
        reporter: Receives progress messages.
        **given: Keywords of `uf.read`.

    Returns:
        The comparison.

    Raises:
        SourceError: If a set has too few readable images or groups.
    """
    if not isinstance(test, ImageDataset | str | os.PathLike | pd.DataFrame):
        raise wrong_type("test", test, "an ImageDataset of uf.read, a folder or table as a path, or a DataFrame")
    photos, recipe = photos_of("compare_datasets", photos, recipe, given)
    recipe, reporter = recipe.replace(**PRESETS["fast"]), reporter or Reporter()
    limit = int(recipe.image.max_megapixels * 1e6)
    train = photos.with_table(photos.table[photos.table["split"] == "train"].reset_index(drop=True))
    other = test if isinstance(test, ImageDataset) else _listed(test)
    looks = scan_images(train, limit, reporter), scan_images(other, limit, reporter)
    draws = np.random.default_rng(recipe.seed)
    features, rows, names, places = [], [], [], []
    pairs = looks[0].concat(looks[1]).duplicates
    for side, (part, seen, start) in enumerate(zip((train, other), looks, (0, len(train)), strict=True)):
        usable = _drawn(np.flatnonzero(seen.readable), draws)
        readable = np.zeros(len(part), bool)
        readable[usable] = True
        columns, _ = extract_inputs(part.files(), seen.keys, readable, recipe, reporter)
        kept = usable[~np.isin(usable, list(columns.failed))]
        table = part.table.iloc[kept]
        features.append(columns.read(kept))
        rows.append(table["path"].to_numpy())
        # Group names are only meaningful within one source.
        names.append(np.array([f"{side}:{name}" for name in table["group"]]))
        places.append(kept + start)
    # Near duplicates are not independent, whether or not groups are given. Those across the sets must share a fold, or
    # the classifier would learn the image as one of the other set.
    joined = connected_groups(np.concatenate(names), *_within(pairs, np.concatenate(places)))
    groups = [joined[: len(names[0])], joined[len(names[0]) :]]
    for name, of, seen in zip(("training", "test"), groups, looks, strict=True):
        if len(set(of.tolist())) < 2 * FOLDS:
            raise SourceError(
                f"the {name} photos have {len(set(of.tolist()))} groups that can be read ({int(seen.readable.sum())} "
                f"photos); telling two sets apart needs {2 * FOLDS} of each."
            )
    copies = _copies(train, other, pairs)
    # The systems are small, so that additional threads only add overhead.
    with threadpool_limits(1):
        result = classifier_two_sample_test(features[0], features[1], groups[0], groups[1], recipe.seed)
        hidden = _hidden(groups[0], groups[1])
        halves = _halves(features[0], groups[0], len(features[1]), draws) if hidden else ()
    return DatasetComparison(
        result,
        _ranked(rows[0], result.first, ascending=True),
        _ranked(rows[1], result.second, ascending=False),
        copies,
        train.root,
        other.root,
        halves,
        any(len(set(of.tolist())) < len(of) for of in groups),
    )


def _within(pairs: tuple[np.ndarray, ...], rows: np.ndarray) -> list[np.ndarray]:
    """Restrict pairs of row numbers to those with both members in `rows`, as positions in `rows`."""
    found = []
    for some in pairs:
        inside = some[np.isin(some, rows).all(1)]
        found.append(np.searchsorted(rows, inside))
    return found


def _hidden(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the training images are grouped, while (almost) every test image is its own group."""
    return len(set(mine.tolist())) < 0.9 * len(mine) and len(set(theirs.tolist())) >= 0.9 * len(theirs)


def _halves(features: np.ndarray, groups: np.ndarray, size: int, draws: np.random.Generator) -> tuple[float, ...]:
    """AUC between random splits of the training groups, with the groups of the second side hidden.

    Each image of the second side is treated as its own group. Empty if a side has too few groups.
    """
    names = np.unique(groups)
    wanted = min(size, len(groups) // 2)
    found = []
    for _ in range(HALVES):
        order = draws.permutation(names)
        sizes = np.cumsum([(groups == name).sum() for name in order])
        second = np.isin(groups, order[: max(1, int(np.searchsorted(sizes, wanted)))])
        if len(np.unique(groups[~second])) < 2 * FOLDS or second.sum() < 2 * FOLDS:
            return ()
        one, two = np.flatnonzero(~second), np.flatnonzero(second)
        hidden = np.array([f"hidden:{i}" for i in two])
        named = np.array([f"known:{name}" for name in groups[one]])
        found.append(
            classifier_two_sample_test(features[one], features[two], named, hidden, resamples=0, permutations=0).auc
        )
    return tuple(found)


def _listed(test: str | Path | pd.DataFrame) -> ImageDataset:
    is_frame = isinstance(test, pd.DataFrame)
    root, names = paths_of(test, Source()) if isinstance(test, pd.DataFrame) else list_images(test)
    path = "the DataFrame" if is_frame else str(test)
    table = pd.DataFrame({"path": names, "label": "", "group": names, "split": "test"}).drop_duplicates("path")
    return ImageDataset(
        table.reset_index(drop=True), root, ("",), ("",), (), "list", f"{len(table):,} photos of {path}"
    )


def _drawn(rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= MOST else np.sort(draws.choice(rows, MOST, replace=False))


def _ranked(paths: np.ndarray, probability: np.ndarray, ascending: bool) -> pd.DataFrame:
    table = pd.DataFrame({"path": paths, "probability": probability})
    return table.sort_values("probability", ascending=ascending, kind="stable", ignore_index=True)


def _copies(train: ImageDataset, test: ImageDataset, pairs: tuple[np.ndarray, ...]) -> pd.DataFrame:
    """Duplicates across the sets.

    Args:
        train: Training images.
        test: Test images.
        pairs: Exact and near duplicates, (m, 2) row numbers each, in the concatenation of training and test images.
    """
    n, found = len(train), []
    for kind, some in zip(("exact", "near"), pairs, strict=True):
        across = some[(some[:, 0] < n) & (some[:, 1] >= n)]
        found.append(
            pd.DataFrame(
                {
                    "training": train.table["path"].to_numpy()[across[:, 0]],
                    "test": test.table["path"].to_numpy()[across[:, 1] - n],
                    "kind": kind,
                }
            )
        )
    return pd.concat(found, ignore_index=True)
