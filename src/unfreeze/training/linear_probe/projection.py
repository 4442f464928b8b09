"""Dimensionality reduction per fold: standardize on the training rows, then project onto their span.

For an L2-penalized linear head the projection is lossless, because the solution lies in the span of the training rows
(representer theorem). It reduces thousands of features to at most the number of training rows and makes the Hessian
nearly diagonal, so that L-BFGS needs about a dozen iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F32
from unfreeze.core.cache import cache_root, load_array, prune, release_pages, stable_hash
from unfreeze.core.files import atomic_write
from unfreeze.features.matrix import AnyFeatureMatrix

# Maximum number of training rows that span the coordinates. Up to this number the projection is exact; beyond it, it is
# a seeded Nystroem approximation (Williams & Seeger 2001) on this many rows, because the cost of an eigendecomposition
# is cubic.
LANDMARKS = 2000
# Standard deviations are floored at this fraction of the root mean square of their block, so that nearly constant
# channels are not amplified.
FLOOR = 0.05
_PIECE = 512
_KEPT_BYTES, _KEPT_IN_ALL = 64 << 20, 2 << 30
_VERSION = 1
_PARTS = ("coordinates", "scale", "back")


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of the signed square roots of the features, by fold.

    Attributes:
        count: float64 (folds,).
        total: float64 (folds, D).
        square: float64 (folds, D).
    """

    count: NDArray[np.float64]
    total: NDArray[np.float64]
    square: NDArray[np.float64]

    @classmethod
    def joined(cls, some: list[Moments]) -> Moments:
        """Concatenate the moments of several inputs."""
        return cls(some[0].count, np.hstack([m.total for m in some]), np.hstack([m.square for m in some]))

    def standard(self, without: int, blocks: tuple[tuple[str, int], ...]) -> tuple[F32, F32]:
        """Return mean and scale, float32 (D,) each, of the training rows of a fold.

        Args:
            without: The held-out fold.
            blocks: Names and widths of the feature blocks; each block gets the same total variance.

        Returns:
            Mean, and factor to multiply the centered features with.
        """
        n = self.count.sum() - self.count[without]
        mean = (self.total.sum(0) - self.total[without]) / n
        deviation = np.sqrt(np.maximum((self.square.sum(0) - self.square[without]) / n - mean**2, 0))
        scale, start = np.empty_like(mean), 0
        for _, width in blocks:
            part = deviation[start : start + width]
            floor = max(FLOOR * float(np.sqrt((part**2).mean())), 1e-6)
            scale[start : start + width] = 1 / (np.maximum(part, floor) * np.sqrt(width * len(blocks)))
            start += width
        return mean.astype(np.float32), scale.astype(np.float32)


def moments(features: AnyFeatureMatrix, folds: NDArray[np.int64], count: int) -> Moments:
    """Compute the moments of all folds in one pass over the features. Rows with fold -1 are ignored."""
    n, total, square = np.zeros(count), np.zeros((count, features.width)), np.zeros((count, features.width))
    for fold in range(count):
        for rows in pieces_of(np.flatnonzero(folds == fold)):
            x = features.rooted(rows)
            n[fold] += len(rows)
            total[fold] += x.sum(0, dtype=np.float64)
            square[fold] += np.einsum("nd,nd->d", x, x, dtype=np.float64)
        features.forget_pages()
    return Moments(n, total, square)


def pieces_of(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the rows in chunks of bounded size, in order."""
    for start in range(0, len(rows), _PIECE):
        yield rows[start : start + _PIECE]


@dataclass(frozen=True)
class Projection:
    """Coordinates of every row for one fold.

    Attributes:
        coordinates: float32 (n, r); unused rows are zero.
        places: int64 (n,), row of `coordinates` for each row of the table.
        scale: float32 (r,), mean square of each coordinate over the training rows.
        train: The training rows.
        mean: float32 (D,), as in `Moments.standard`.
        deviation: float32 (D,), scale as in `Moments.standard`.
        landmarks: Rows that span the coordinates, or None if `back` is a basis of the feature space.
        back: With landmarks, float32 (len(landmarks), r): a weight W in coordinates corresponds to the weight
            Z[landmarks].T @ (back @ W) on the standardized features Z. Otherwise a basis (D, r).
    """

    coordinates: F32
    places: NDArray[np.int64]
    scale: F32
    train: NDArray[np.int64]
    mean: F32
    deviation: F32
    landmarks: NDArray[np.int64] | None
    back: F32

    def of(self, rows: NDArray[np.int64]) -> F32:
        """Return the coordinates (len(rows), r) of the given rows of the table.

        If the coordinates are memory-mapped, pages that were read are released again.
        """
        if not isinstance(self.coordinates, np.memmap):
            return self.coordinates[self.places[rows]]
        out = np.empty((len(rows), self.coordinates.shape[1]), np.float32)
        for part in _emptied(pieces_of(np.arange(len(rows))), self.coordinates):
            out[part] = self.coordinates[self.places[rows[part]]]
        return out

    def unfold(self, features: AnyFeatureMatrix, weight: F32, bias: F32) -> tuple[F32, F32]:
        """Convert weight (r, C) and bias (C,) in coordinates to (D, C) and (C,) on the signed square roots."""
        if self.landmarks is None:
            raw = self.back @ weight
        else:
            amounts = self.back @ weight  # (landmarks, C)
            raw = np.zeros((features.width, weight.shape[1]), np.float32)
            start = 0
            for rows in pieces_of(self.landmarks):
                z = _standardised(features, rows, self.mean, self.deviation)
                raw += z.T @ amounts[start : start + len(rows)]
                start += len(rows)
        raw = raw * self.deviation[:, None]
        return raw, bias - self.mean @ raw


def fit_projection(
    features: AnyFeatureMatrix,
    moments: Moments,
    folds: NDArray[np.int64],
    fold: int,
    seed: int,
    identity: str,
    place: Path,
) -> Projection:
    """Return the projection for training on all folds but one, from the cache or newly computed.

    The projection does not depend on labels, so heads can be refitted quickly with other settings.

    Args:
        features: The features.
        moments: Their moments.
        folds: int64 (n,), fold of each row; rows with -1 are ignored.
        fold: The held-out fold.
        seed: Random seed for the landmarks.
        identity: Hash of the rows and folds, part of the cache key. Only small projections are cached.
        place: File for large coordinates.

    Returns:
        The projection.
    """
    mean, deviation = moments.standard(fold, features.blocks)
    train = np.flatnonzero((folds >= 0) & (folds != fold))
    primal = features.width <= min(len(train), LANDMARKS)
    landmarks = None if primal else _landmarks(train, seed)
    kept = (
        cache_root() / "rotations" / stable_hash([features.identity, identity, fold, seed, LANDMARKS, FLOOR, _VERSION])
    )
    stored = _load(kept, len(folds))
    if stored is None:
        found = _primal if primal else _dual
        stored = found(features, folds, train, landmarks, mean, deviation, place)
        if not _in_file(*stored[0].shape):
            for name, array in zip(_PARTS, stored, strict=True):
                atomic_write(kept / f"{name}.npy", partial(np.save, arr=array))
            prune("rotations", _KEPT_IN_ALL)
    coordinates, scale, back = stored
    return Projection(coordinates, _places(folds, len(scale)), scale, train, mean, deviation, landmarks, back)


def _landmarks(train: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    if len(train) <= LANDMARKS:
        return train
    return np.sort(np.random.default_rng(seed).choice(train, LANDMARKS, replace=False))


def _load(folder: Path, n: int) -> tuple[F32, F32, F32] | None:
    try:
        coordinates, scale, back = (load_array(folder / f"{name}.npy") for name in _PARTS)
    except (OSError, ValueError, EOFError):
        return None
    fits = coordinates.ndim == 2 and len(coordinates) == n and coordinates.shape[1] == len(scale) == back.shape[1]
    return (coordinates, scale, back) if fits else None


def _in_file(n: int, r: int) -> bool:
    return n * r * 4 > _KEPT_BYTES


def _places(folds: NDArray[np.int64], r: int) -> NDArray[np.int64]:
    """Return where the coordinates of each row are: in table order, or, in a file, ordered by fold.

    The training rows of a fold are then a few long contiguous stretches of the file.
    """
    if not _in_file(len(folds), r):
        return np.arange(len(folds))
    places = np.empty(len(folds), np.int64)
    places[np.argsort(folds, kind="stable")] = np.arange(len(folds))
    return places


def _emptied(pieces: Iterator[NDArray[np.int64]], coordinates: F32) -> Iterator[NDArray[np.int64]]:
    """Yield the chunks, and release the pages of a memory-mapped file after each.

    Readahead maps neighboring pages too, so they have to be released explicitly.
    """
    for rows in pieces:
        yield rows
        release_pages(coordinates)


def _room(n: int, r: int, file: Path) -> F32:
    """Return a zero array (n, r): in memory if small, otherwise memory-mapped to bound memory use."""
    if not _in_file(n, r):
        return np.zeros((n, r), np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(file, "w+", np.float32, (n, r))


def _standardised(features: AnyFeatureMatrix, rows: NDArray[np.int64], mean: F32, deviation: F32) -> F32:
    x = features.rooted(rows)
    x -= mean
    x *= deviation
    return x


def _primal(
    features: AnyFeatureMatrix,
    folds: NDArray[np.int64],
    train: NDArray[np.int64],
    landmarks: NDArray[np.int64] | None,
    mean: F32,
    deviation: F32,
    file: Path,
) -> tuple[F32, F32, F32]:
    """Project onto the principal axes of the training rows (fewer features than rows). Exact."""
    covariance = np.zeros((features.width, features.width), np.float32)
    for rows in pieces_of(train):
        z = _standardised(features, rows, mean, deviation)
        covariance += z.T @ z
    values, axes = _eigen(covariance)
    coordinates, places = _room(len(folds), len(values), file), _places(folds, len(values))
    for rows in _emptied(pieces_of(np.flatnonzero(folds >= 0)), coordinates):
        coordinates[places[rows]] = _standardised(features, rows, mean, deviation) @ axes
    features.forget_pages()
    return coordinates, (values / len(train)).astype(np.float32), axes


def _dual(
    features: AnyFeatureMatrix,
    folds: NDArray[np.int64],
    train: NDArray[np.int64],
    landmarks: NDArray[np.int64] | None,
    mean: F32,
    deviation: F32,
    file: Path,
) -> tuple[F32, F32, F32]:
    """Project by the kernel matrix of the landmark rows (more features than rows).

    Exact if all training rows are landmarks.
    """
    assert landmarks is not None
    at = np.empty((len(landmarks), features.width), np.float32)
    for start in range(0, len(landmarks), _PIECE):
        rows = landmarks[start : start + _PIECE]
        at[start : start + len(rows)] = _standardised(features, rows, mean, deviation)
    values, vectors = _eigen(at @ at.T)
    back = vectors / np.sqrt(values)
    coordinates, places = _room(len(folds), len(values), file), _places(folds, len(values))
    coordinates[places[landmarks]] = vectors * np.sqrt(values)
    others = np.flatnonzero(folds >= 0)
    for rows in _emptied(pieces_of(others[~np.isin(others, landmarks)]), coordinates):
        coordinates[places[rows]] = (_standardised(features, rows, mean, deviation) @ at.T) @ back
    features.forget_pages()
    return coordinates, (values / len(landmarks)).astype(np.float32), back.astype(np.float32, copy=False)


def _eigen(symmetric: F32) -> tuple[F32, F32]:
    """Return eigenvalues and eigenvectors without those that are zero within float32 precision."""
    values, vectors = np.linalg.eigh(symmetric)
    keep = values > 1e-6 * values[-1]
    return values[keep], np.ascontiguousarray(vectors[:, keep])
