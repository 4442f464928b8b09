"""What stands for a set that is too large to be read a dozen times: some of its groups, some of its features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.learn.probe.inputs import HELD_BYTES, AnyFeatures

Rows = NDArray[np.int64]

# Features that are left of each photo; as many as a rotation has coordinates at most.
COLUMNS = 2000


def sampled_rows(units: Rows, rows: Rows, most: int, seed: int) -> Rows:
    """Of `rows` those of whole groups drawn by the seed until `most` is reached, in order; all if there are no more.

    units: int (n,), the groups. One group larger than `most` is taken if it is drawn first.
    """
    if len(rows) <= most:
        return rows
    order = np.random.default_rng(seed).permutation(np.unique(units[rows]))
    sizes = np.bincount(np.searchsorted(np.sort(order), units[rows]))[np.searchsorted(np.sort(order), order)]
    taken = order[: max(1, int(np.searchsorted(np.cumsum(sizes), most, side="right")))]
    return rows[np.isin(units[rows], taken)]


@dataclass(frozen=True)
class ThinnedFeatures:
    """Some columns of some features in memory, float32 (n, width) of signed roots; rows of no use hold zeros."""

    kept: NDArray[np.float32]
    blocks: tuple[tuple[str, int], ...]
    identity: list[str]

    @property
    def inputs(self) -> int:
        """One."""
        return 1

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.kept.shape[1])

    def select(self, inputs: tuple[int, ...]) -> ThinnedFeatures:
        """Itself: there is one input."""
        return self

    def rooted(self, rows: Rows) -> NDArray[np.float32]:
        """Signed roots of the rows."""
        return self.kept[rows]

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """The features themselves."""
        return self.kept[rows] * np.abs(self.kept[rows])

    def forget_pages(self) -> None:
        """Nothing to give back: they are in memory."""


def thinned(features: AnyFeatures, rows: Rows, seed: int) -> tuple[AnyFeatures, bool]:
    """The features as they are where all fit HELD_BYTES, else COLUMNS of them drawn by the seed, each block by its
    share; and whether they were thinned."""
    n = int(rows.max()) + 1
    if 4 * n * features.width <= HELD_BYTES or features.width <= COLUMNS:
        return features, False
    draws = np.random.default_rng(seed)
    chosen, blocks, start = [], [], 0
    for name, width in features.blocks:
        some = max(1, round(COLUMNS * width / features.width))
        chosen.append(start + np.sort(draws.choice(width, min(some, width), replace=False)))
        blocks.append((name, len(chosen[-1])))
        start += width
    columns = np.concatenate(chosen)
    kept = np.zeros((n, len(columns)), np.float32)
    for begin in range(0, len(rows), 512):
        piece = rows[begin : begin + 512]
        kept[piece] = features.rooted(piece)[:, columns]
    features.forget_pages()
    return ThinnedFeatures(kept, tuple(blocks), [*features.identity, f"thinned {seed}"]), True
