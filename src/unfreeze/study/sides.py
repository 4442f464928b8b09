"""Which photos a search may see: all of them for its answer, half of the folds for the figure that it is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfreeze.core.errors import FoldError
from unfreeze.data.folds import deal
from unfreeze.learn.fitting import Rows, Work


@dataclass(frozen=True)
class Side:
    """Photos that a search may see, dealt into group-safe parts, and the outer folds that it chooses for.

    parts: int64 (n,), -1 for photos that it must not see. chosen_for: folds of which no photo is among them; none for
    the search on all photos.
    """

    name: str
    parts: Rows
    chosen_for: tuple[int, ...] = ()

    @property
    def photos(self) -> int:
        """How many it sees."""
        return int((self.parts >= 0).sum())

    def judging(self, part: int, labels: Rows) -> Rows:
        """Folds of a try: 0 for the photos of that part, 1 and above for those that are learnt from, -1 else."""
        folds = np.where(self.parts == part, 0, np.where(self.parts < 0, -1, self.parts + 1))
        learnt = np.unique(labels[folds > 0])
        folds[(folds == 0) & ~np.isin(labels, learnt)] = -1  # nobody could know these
        return folds


def sides_of(work: Work, parts: int) -> tuple[Side, ...]:
    """All photos, and the photos of each half of the outer folds, which chooses for the other half.

    FoldError where a half has fewer groups than parts, or no two classes that can be learnt and judged.
    """
    seed, folds = work.recipe.seed, work.todo
    first, second = folds[: len(folds) // 2], folds[len(folds) // 2 :]
    return (
        _side(work, "all", np.flatnonzero(work.folds >= 0), (), parts, seed),
        _side(work, "first", np.flatnonzero(np.isin(work.folds, second)), first, parts, seed + 1),
        _side(work, "second", np.flatnonzero(np.isin(work.folds, first)), second, parts, seed + 2),
    )


def _side(work: Work, name: str, rows: Rows, chosen_for: tuple[int, ...], parts: int, seed: int) -> Side:
    labels, units = work.labels[rows], work.units[rows]
    groups, where = len(np.unique(units)), "half of the folds" if chosen_for else "all folds"
    if groups < parts:
        raise FoldError(f"{groups} groups in {where} are too few to judge a search on; {parts} are needed.")
    dealt = np.full(len(work.labels), -1, np.int64)
    dealt[rows] = deal(labels, units, parts, seed, work.classes)
    side = Side(name, dealt, chosen_for)
    told = [c for c in np.unique(labels) if len(np.unique(dealt[rows][labels == c])) > 1]
    if len(told) < 2 or not all((side.judging(part, work.labels) == 0).any() for part in range(parts)):
        raise FoldError(
            f"the classes have too few groups in {where} to search on: two classes need groups in two parts."
        )
    return side
