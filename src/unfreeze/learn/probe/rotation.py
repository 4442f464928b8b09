"""Features of a fold in few coordinates: standardised on its training rows, then rotated onto their span.

For an L2-penalised linear head the rotation changes nothing (the solution lies in the span of the training
rows: the representer theorem), but the dimension falls from thousands of features to at most the number of
training rows, and the Hessian becomes nearly diagonal, so that L-BFGS needs a dozen passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import cache_root, fingerprint, forget_pages, load_array, prune
from unfreeze.core.files import write_whole
from unfreeze.learn.probe.inputs import AnyFeatures

F32 = NDArray[np.float32]

# Training rows that span the coordinates. Up to here the rotation is exact; beyond it is a seeded Nystroem
# approximation (Williams & Seeger 2001) on that many rows, because an eigendecomposition costs their cube.
LANDMARKS = 2000
# Deviations are floored at this share of their block's root mean square: nearly dead channels stay quiet.
FLOOR = 0.05
_PIECE = 512
_KEPT_BYTES, _KEPT_IN_ALL = 64 << 20, 2 << 30
_VERSION = 1
_PARTS = ("coordinates", "scale", "back")


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of the rooted features for each fold: float64 (folds,), (folds, D), (folds, D)."""

    count: NDArray[np.float64]
    total: NDArray[np.float64]
    square: NDArray[np.float64]

    @classmethod
    def joined(cls, some: list[Moments]) -> Moments:
        """Those of several inputs side by side."""
        return cls(some[0].count, np.hstack([m.total for m in some]), np.hstack([m.square for m in some]))

    def standard(self, without: int, blocks: tuple[tuple[str, int], ...]) -> tuple[F32, F32]:
        """Mean and scale (D,) for training on all folds but `without`; each block weighs the same in the sum."""
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


def moments(features: AnyFeatures, folds: NDArray[np.int64], count: int) -> Moments:
    """One pass over the features for the moments of all folds; rows of fold -1 take no part."""
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
    """The rows in pieces that fit the memory, in order."""
    for start in range(0, len(rows), _PIECE):
        yield rows[start : start + _PIECE]


@dataclass(frozen=True)
class Rotation:
    """Coordinates of every row for one fold.

    coordinates: float32 (n, r); rows of no use hold zeros. places: int64 (n,), where in them each row of the table is.
    scale: (r,) mean square of each over the training rows. train: the training rows. mean, deviation: (D,), as in
    `Moments.standard`.
    landmarks and back: rows and float32 (len(landmarks), r), so that a weight W in coordinates is the weight
    Z[landmarks].T @ (back @ W) on standardised features Z; or landmarks None, and back (D, r) is the basis.
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
        """Coordinates (len(rows), r) of these rows of the table; of a file, what was read does not stay resident."""
        if not isinstance(self.coordinates, np.memmap):
            return self.coordinates[self.places[rows]]
        out = np.empty((len(rows), self.coordinates.shape[1]), np.float32)
        for part in _emptied(pieces_of(np.arange(len(rows))), self.coordinates):
            out[part] = self.coordinates[self.places[rows[part]]]
        return out

    def unfold(self, features: AnyFeatures, weight: F32, bias: F32) -> tuple[F32, F32]:
        """(r, C) weight and (C,) bias in coordinates -> (D, C) and (C,) on the rooted features themselves."""
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


def rotate(
    features: AnyFeatures,
    moments: Moments,
    folds: NDArray[np.int64],
    fold: int,
    seed: int,
    identity: str,
    place: Path,
) -> Rotation:
    """The rotation for training on all folds but `fold` (rows with fold -1 take no part at all).

    identity: names the rows and folds; a small rotation is kept in the cache under it, since it depends on no
    label: heads can be refitted with other settings in no time. Large coordinates go to the file `place`.
    """
    mean, deviation = moments.standard(fold, features.blocks)
    train = np.flatnonzero((folds >= 0) & (folds != fold))
    primal = features.width <= min(len(train), LANDMARKS)
    landmarks = None if primal else _landmarks(train, seed)
    kept = (
        cache_root() / "rotations" / fingerprint([features.identity, identity, fold, seed, LANDMARKS, FLOOR, _VERSION])
    )
    stored = _load(kept, len(folds))
    if stored is None:
        found = _primal if primal else _dual
        stored = found(features, folds, train, landmarks, mean, deviation, place)
        if not _in_file(*stored[0].shape):
            for name, array in zip(_PARTS, stored, strict=True):
                write_whole(kept / f"{name}.npy", partial(np.save, arr=array))
            prune("rotations", _KEPT_IN_ALL)
    coordinates, scale, back = stored
    return Rotation(coordinates, _places(folds, len(scale)), scale, train, mean, deviation, landmarks, back)


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
    """Where each row's r coordinates are: as in the table, but in a file by fold.

    A training part of a file is then a few long stretches that are read as they lie.
    """
    if not _in_file(len(folds), r):
        return np.arange(len(folds))
    places = np.empty(len(folds), np.int64)
    places[np.argsort(folds, kind="stable")] = np.arange(len(folds))
    return places


def _emptied(pieces: Iterator[NDArray[np.int64]], coordinates: F32) -> Iterator[NDArray[np.int64]]:
    """The pieces; what was touched of a file for one of them does not stay resident (a page brings its neighbours)."""
    for rows in pieces:
        yield rows
        forget_pages(coordinates)


def _room(n: int, r: int, file: Path) -> F32:
    """An array (n, r) of zeros: in memory where it is small, else in a file, which keeps memory bounded."""
    if not _in_file(n, r):
        return np.zeros((n, r), np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(file, "w+", np.float32, (n, r))


def _standardised(features: AnyFeatures, rows: NDArray[np.int64], mean: F32, deviation: F32) -> F32:
    x = features.rooted(rows)
    x -= mean
    x *= deviation
    return x


def _primal(
    features: AnyFeatures,
    folds: NDArray[np.int64],
    train: NDArray[np.int64],
    landmarks: NDArray[np.int64] | None,
    mean: F32,
    deviation: F32,
    file: Path,
) -> tuple[F32, F32, F32]:
    """Fewer features than rows: the principal axes of the training rows, exact."""
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
    features: AnyFeatures,
    folds: NDArray[np.int64],
    train: NDArray[np.int64],
    landmarks: NDArray[np.int64] | None,
    mean: F32,
    deviation: F32,
    file: Path,
) -> tuple[F32, F32, F32]:
    """More features than rows: by the kernel of the landmark rows; exact while all training rows are landmarks."""
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
    """Eigenvalues and vectors, those that float32 cannot tell from zero left out."""
    values, vectors = np.linalg.eigh(symmetric)
    keep = values > 1e-6 * values[-1]
    return values[keep], np.ascontiguousarray(vectors[:, keep])
