"""Extra training samples requested by `balance.extra_views`: images paired with fixed views.

Extra samples follow the images in every table: with n images, row n + j is extra sample j. It has the class, the group
and the fold of its image, so it is used for training exactly where its image is. Rows that are evaluated or predicted
are always below n.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.errors import RecipeError, did_you_mean
from unfreeze.core.names import matching
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import ExtraViews

_MINORITY = "minority"


def _none() -> Rows:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class ExtraSamples:
    """Extra samples, as pairs of image and view.

    Attributes:
        photo: int64 (a,), row of the image.
        view: int64 (a,), index into `views`.
        views: Names of the views.
    """

    photo: Rows = field(default_factory=_none)
    view: Rows = field(default_factory=_none)
    views: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.photo)

    def extended(self, column: Rows) -> Rows:
        """Append the values of the extra samples to a per-image column (n,)."""
        return np.concatenate([column, column[self.photo]]) if len(self) else column

    def without(self, photos: Collection[int]) -> ExtraSamples:
        """Return the extra samples without those of the given images."""
        kept = ~np.isin(self.photo, list(photos))
        return ExtraSamples(self.photo[kept], self.view[kept], self.views)

    def of(self, view: int) -> Rows:
        """Return the image rows that have an extra sample in the given view."""
        return self.photo[self.view == view]


def select_extra_samples(
    recipe: Recipe,
    classes: tuple[str, ...],
    labels: Rows,
    units: Rows,
    folds: Rows,
    keys: NDArray[np.uint64],
) -> ExtraSamples:
    """Select the extra samples that `recipe.balance.extra_views` requests.

    With `per_group`, the images of a group are chosen by seed and content key, so the choice does not depend on file
    order or names.

    Args:
        recipe: The recipe.
        classes: Class names.
        labels: int (n,), class of each image.
        units: int (n,), group of each image.
        folds: int (n,), fold of each image; images with fold -1 are skipped.
        keys: uint64 (n, 2) content keys.

    Returns:
        The extra samples, sorted by image row and view.

    Raises:
        RecipeError: If an entry matches no class.
    """
    views = tuple(dict.fromkeys(view for entry in recipe.balance.extra_views for view in entry.views))
    chosen: set[tuple[int, int]] = set()
    inside = np.flatnonzero(folds >= 0)
    counts = np.bincount(labels[inside], minlength=len(classes))
    for entry in recipe.balance.extra_views:
        for number in _classes(entry, classes, counts):
            rows = inside[labels[inside] == number]
            if entry.per_group:
                rows = _some_of_each(rows, units, keys, entry.per_group, recipe.seed)
            chosen |= {(int(row), views.index(view)) for view in entry.views for row in rows}
    pairs = np.array(sorted(chosen), np.int64).reshape(-1, 2)
    return ExtraSamples(pairs[:, 0].copy(), pairs[:, 1].copy(), views)


def _classes(entry: ExtraViews, classes: tuple[str, ...], counts: NDArray[np.int64]) -> list[int]:
    """Return the class indices that an entry applies to."""
    if (meant := matching(entry.label, classes)) is not None:
        return [classes.index(meant)]
    if entry.label == _MINORITY:
        return minority(counts)
    found = [i for i, name in enumerate(classes) if fnmatchcase(name, entry.label)]
    if not found:
        raise RecipeError(
            f"balance.extra_views: no class is called '{entry.label}'; name one, a pattern with *, or '{_MINORITY}'."
            f"{did_you_mean(entry.label, classes)}"
        )
    return found


def minority(counts: NDArray[np.int64]) -> list[int]:
    """Return the indices of the non-empty classes with fewer images than the median class."""
    there = counts[counts > 0]
    return [i for i, count in enumerate(counts.tolist()) if 0 < count < np.median(there)]


def _some_of_each(rows: Rows, units: Rows, keys: NDArray[np.uint64], count: int, seed: int) -> Rows:
    """Return at most `count` rows per group."""
    rank = np.array([np.random.default_rng([seed, *keys[row].tolist()]).random() for row in rows])
    order = rows[np.lexsort((rank, units[rows]))]
    groups, starts = np.unique(units[order], return_index=True)
    place = np.arange(len(order)) - starts[np.searchsorted(groups, units[order])]
    return order[place < count]
