"""Features of photos with those of added rows behind them: what a head is fitted on where `balance.add` names rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfreeze.learn.added import AddedRows
from unfreeze.learn.probe.feature_table import signed_root
from unfreeze.learn.probe.inputs import AnyFeatures

F32 = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ExtendedFeatures:
    """Features of `count` photos and, behind them, of the added rows.

    seen: of each view of `added`, the photos' features in it (only those of chosen photos are there). kept: signed
    roots of the added rows, where `held` keeps them.
    """

    photos: AnyFeatures
    count: int
    added: AddedRows
    seen: tuple[AnyFeatures, ...]
    kept: F32 | None = None

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return self.photos.inputs

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]:
        """Name and width of every block, in column order."""
        return self.photos.blocks

    @property
    def width(self) -> int:
        """Number of features of a row."""
        return self.photos.width

    @property
    def identity(self) -> list[str]:
        """Names what the columns are, and those of the added rows."""
        return [*self.photos.identity, *(name for view in self.seen for name in view.identity)]

    def select(self, inputs: tuple[int, ...]) -> ExtendedFeatures:
        """Those of some inputs."""
        return replace(
            self, photos=self.photos.select(inputs), seen=tuple(v.select(inputs) for v in self.seen), kept=None
        )

    def read(self, rows: Rows) -> F32:
        """Features of rows, float32 (len(rows), width)."""
        out = np.empty((len(rows), self.width), np.float32)
        own = rows < self.count
        out[own] = self.photos.read(rows[own])
        for view, features in enumerate(self.seen):
            here = np.flatnonzero(~own)
            here = here[self.added.view[rows[here] - self.count] == view]
            out[here] = features.read(self.added.photo[rows[here] - self.count])
        return out

    def rooted(self, rows: Rows) -> F32:
        """Their signed roots."""
        out = np.empty((len(rows), self.width), np.float32)
        own = rows < self.count
        out[own] = self.photos.rooted(rows[own])
        others = rows[~own]
        out[~own] = signed_root(self.read(others)) if self.kept is None else self.kept[others - self.count]
        return out

    def held(self) -> ExtendedFeatures:
        """The same with the added rows in memory."""
        rows = self.count + np.arange(len(self.added), dtype=np.int64)
        return replace(self, kept=signed_root(self.read(rows)))

    def forget_pages(self) -> None:
        """Gives back the memory of pages read so far."""
        self.photos.forget_pages()
        for view in self.seen:
            view.forget_pages()
