"""Activations of the frozen front for several views of each image, read from the cache or held in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import ArrayStore


@dataclass(frozen=True)
class Activations:
    """Outputs of the frozen layers for several views of each image, on disk as float16.

    A row is flat: `pooled` features of the frozen blocks, followed by the activation at the boundary, of shape `shape`.

    Attributes:
        stores: One array store per view. View 0 is the plain one.
        places: One int64 (N, 2) array per view, -1 if absent.
        shape: Shape (C, H, W) of the activation.
        pooled: Number of pooled features.
        mirrored: Index of the horizontally flipped view, or -1.
        kept: float16 (views, N, width), if `held` keeps all rows in memory.
    """

    stores: tuple[ArrayStore, ...]
    places: tuple[NDArray[np.int64], ...]
    shape: tuple[int, ...]
    pooled: int
    mirrored: int = -1
    kept: NDArray[np.float16] | None = None

    @property
    def width(self) -> int:
        """Number of values per row."""
        return self.pooled + math.prod(self.shape)

    def held(self, memory: float) -> Activations:
        """Return a copy in memory if all views of all images take at most `memory` bytes, else `self`."""
        count = len(self.places[0])
        if 2 * len(self.stores) * count * self.width > memory:
            return self
        kept = np.zeros((len(self.stores), count, self.width), np.float16)
        there = np.flatnonzero(np.all([places[:, 0] >= 0 for places in self.places], axis=0))
        for start in range(0, len(there), 256):
            rows = there[start : start + 256]
            for view in range(len(self.stores)):
                kept[view, rows] = self.stores[view].take(self.places[view][rows])
        for store in self.stores:
            store.forget_pages()
        return Activations(self.stores, self.places, self.shape, self.pooled, self.mirrored, kept)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return float16 (n, width): for each image of `rows` (n,), the view given by `views` (n,)."""
        if self.kept is not None:
            return self.kept[views, rows]
        out = np.empty((len(rows), self.width), np.float16)
        for view in np.unique(views).tolist():
            here = views == view
            out[here] = self.stores[view].take(self.places[view][rows[here]])
            self.stores[view].forget_pages()
        return out
