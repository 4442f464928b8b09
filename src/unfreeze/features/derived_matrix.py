"""Feature matrices made from others: extra rows appended, and subsamples of groups and columns for large sets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F32, Rows
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.features.matrix import HELD_BYTES, AnyFeatureMatrix, signed_root


@dataclass(frozen=True)
class ExtendedFeatureMatrix:
    """Features of the images, followed by those of the extra samples.

    Attributes:
        photos: Features of the images.
        count: Number of images.
        added: The extra samples.
        seen: For each view of `added`, the features of the images in that view (only of images with an extra sample).
        kept: float32 signed square roots of the extra samples, if `held` keeps them in memory.
    """

    photos: AnyFeatureMatrix
    count: int
    added: ExtraSamples
    seen: tuple[AnyFeatureMatrix, ...]
    kept: F32 | None = None

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.photos.inputs

    @property
    def blocks(self) -> tuple[tuple[str, int], ...]:
        """Name and width of every block, in column order."""
        return self.photos.blocks

    @property
    def width(self) -> int:
        """Number of features per row."""
        return self.photos.width

    @property
    def identity(self) -> list[str]:
        """Cache keys of the images' features and of the views."""
        return [*self.photos.identity, *(name for view in self.seen for name in view.identity)]

    def select(self, inputs: tuple[int, ...]) -> ExtendedFeatureMatrix:
        """Return the features of the given inputs."""
        return replace(
            self, photos=self.photos.select(inputs), seen=tuple(v.select(inputs) for v in self.seen), kept=None
        )

    def read(self, rows: Rows) -> F32:
        """Return the features of `rows`, float32 (len(rows), width)."""
        out = np.empty((len(rows), self.width), np.float32)
        own = rows < self.count
        out[own] = self.photos.read(rows[own])
        for view, features in enumerate(self.seen):
            here = np.flatnonzero(~own)
            here = here[self.added.view[rows[here] - self.count] == view]
            out[here] = features.read(self.added.photo[rows[here] - self.count])
        return out

    def rooted(self, rows: Rows) -> F32:
        """Return the signed square roots of the features of `rows`, float32 (len(rows), width)."""
        out = np.empty((len(rows), self.width), np.float32)
        own = rows < self.count
        out[own] = self.photos.rooted(rows[own])
        others = rows[~own]
        out[~own] = signed_root(self.read(others)) if self.kept is None else self.kept[others - self.count]
        return out

    def held(self) -> ExtendedFeatureMatrix:
        """Return a copy with the extra samples in memory."""
        rows = self.count + np.arange(len(self.added), dtype=np.int64)
        return replace(self, kept=signed_root(self.read(rows)))

    def forget_pages(self) -> None:
        """Release the memory of pages read so far."""
        self.photos.forget_pages()
        for view in self.seen:
            view.forget_pages()


# Number of columns of a sampled matrix; the rank of the projection is never larger.
COLUMNS = 2000


def sample_groups(units: Rows, rows: Rows, most: int, seed: int) -> Rows:
    """Sample whole groups until `most` rows are reached.

    Args:
        units: int (n,), group of each row.
        rows: Rows to sample from.
        most: Maximum number of rows. If the first group drawn is larger, it is used alone.
        seed: Random seed.

    Returns:
        The rows of the sampled groups, in their order; all of `rows` if there are at most `most`.
    """
    if len(rows) <= most:
        return rows
    order = np.random.default_rng(seed).permutation(np.unique(units[rows]))
    sizes = np.bincount(np.searchsorted(np.sort(order), units[rows]))[np.searchsorted(np.sort(order), order)]
    taken = order[: max(1, int(np.searchsorted(np.cumsum(sizes), most, side="right")))]
    return rows[np.isin(units[rows], taken)]


@dataclass(frozen=True)
class SampledFeatureMatrix:
    """Subset of the columns of a feature matrix, in memory.

    Attributes:
        kept: float32 (n, width) signed square roots; unused rows are zero.
        blocks: Names and widths of the blocks, in column order.
        identity: Cache keys.
    """

    kept: NDArray[np.float32]
    blocks: tuple[tuple[str, int], ...]
    identity: list[str]

    @property
    def inputs(self) -> int:
        """Number of inputs: always 1."""
        return 1

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.kept.shape[1])

    def select(self, inputs: tuple[int, ...]) -> SampledFeatureMatrix:
        """Return `self`: there is only one input."""
        return self

    def rooted(self, rows: Rows) -> NDArray[np.float32]:
        """Return the signed square roots of `rows`."""
        return self.kept[rows]

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Return the features of `rows`."""
        return self.kept[rows] * np.abs(self.kept[rows])

    def forget_pages(self) -> None:
        """Do nothing: the features are in memory."""


def subsample_columns(features: AnyFeatureMatrix, rows: Rows, seed: int) -> tuple[AnyFeatureMatrix, bool]:
    """Sample columns of a feature matrix that is too large to hold in memory.

    COLUMNS columns are drawn at random, from each block in proportion to its width.

    Args:
        features: The features.
        rows: Rows that are needed.
        seed: Random seed.

    Returns:
        The features and False if they fit HELD_BYTES or have at most COLUMNS columns; otherwise a sampled matrix and
        True.
    """
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
    return SampledFeatureMatrix(kept, tuple(blocks), [*features.identity, f"thinned {seed}"]), True
