"""Rows that `balance.add` adds: which photos, in which views. They stand behind the photos in every table.

With n photos, row n + j is added row j. It has the class, the group and the fold of its photo, so that it is learnt
from exactly where its photo is; rows that are judged or predicted are below n.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import RecipeError, nearest
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import Added

Rows = NDArray[np.int64]
_MINORITY = "minority"


def _none() -> Rows:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class AddedRows:
    """photo: int64 (a,), row of the photo. view: int64 (a,), number in `views`, the names."""

    photo: Rows = field(default_factory=_none)
    view: Rows = field(default_factory=_none)
    views: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.photo)

    def extended(self, column: Rows) -> Rows:
        """A column of the photos (n,), with the added rows' values behind: those of their photos."""
        return np.concatenate([column, column[self.photo]]) if len(self) else column

    def without(self, photos: Collection[int]) -> AddedRows:
        """Those of other photos."""
        kept = ~np.isin(self.photo, list(photos))
        return AddedRows(self.photo[kept], self.view[kept], self.views)

    def of(self, view: int) -> Rows:
        """The photos that are seen in the view of that number."""
        return self.photo[self.view == view]


def choose_rows(
    recipe: Recipe,
    classes: tuple[str, ...],
    labels: Rows,
    units: Rows,
    folds: Rows,
    keys: NDArray[np.uint64],
) -> AddedRows:
    """The rows that `recipe.balance.add` asks for.

    labels, units, folds: int (n,), class, group and fold of each photo; photos in fold -1 are left alone. keys: uint64
    (n, 2), content keys. Photos of a group are chosen by seed and content, so that neither their order nor their names
    have a part in it. RecipeError where an entry fits no class.
    """
    views = tuple(dict.fromkeys(view for entry in recipe.balance.add for view in entry.views))
    chosen: set[tuple[int, int]] = set()
    inside = np.flatnonzero(folds >= 0)
    counts = np.bincount(labels[inside], minlength=len(classes))
    for entry in recipe.balance.add:
        for number in _classes(entry, classes, counts):
            rows = inside[labels[inside] == number]
            if entry.per_group:
                rows = _some_of_each(rows, units, keys, entry.per_group, recipe.seed)
            chosen |= {(int(row), views.index(view)) for view in entry.views for row in rows}
    pairs = np.array(sorted(chosen), np.int64).reshape(-1, 2)
    return AddedRows(pairs[:, 0].copy(), pairs[:, 1].copy(), views)


def _classes(entry: Added, classes: tuple[str, ...], counts: NDArray[np.int64]) -> list[int]:
    """Numbers of the classes that an entry is for."""
    if entry.label in classes:
        return [classes.index(entry.label)]
    if entry.label == _MINORITY:
        return minority(counts)
    found = [i for i, name in enumerate(classes) if fnmatchcase(name, entry.label)]
    if not found:
        raise RecipeError(
            f"balance.add: no class is called '{entry.label}'; name one, a pattern with *, or '{_MINORITY}'."
            f"{nearest(entry.label, classes)}"
        )
    return found


def minority(counts: NDArray[np.int64]) -> list[int]:
    """Numbers of the classes that have photos, but fewer than the median class."""
    there = counts[counts > 0]
    return [i for i, count in enumerate(counts.tolist()) if 0 < count < np.median(there)]


def _some_of_each(rows: Rows, units: Rows, keys: NDArray[np.uint64], count: int, seed: int) -> Rows:
    """At most `count` of the rows of each group."""
    rank = np.array([np.random.default_rng([seed, *keys[row].tolist()]).random() for row in rows])
    order = rows[np.lexsort((rank, units[rows]))]
    groups, starts = np.unique(units[order], return_index=True)
    place = np.arange(len(order)) - starts[np.searchsorted(groups, units[order])]
    return order[place < count]
