"""Selection of the L2 penalty of a head by cross-validation on group-safe inner splits of its training rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F32, Rows
from unfreeze.core.cache import release_pages
from unfreeze.core.recipe_schema import Probe
from unfreeze.features.derived_matrix import sample_groups
from unfreeze.metrics.log_loss import FLOOR
from unfreeze.training.class_balance import ResolvedBalance, sample_weights
from unfreeze.training.linear_probe.projection import Projection
from unfreeze.training.linear_probe.solver import Pieces, fit_softmax, softmax

Split = tuple[Rows, Rows]  # training rows, validation rows
Head = tuple[F32, F32]  # weights (S, r, C) and biases (S, C) in the coordinates of a projection

# Two inner validation folds select the penalty as well as four at half the cost: macro F1 differed by at most 0.003 on
# the masks, clothing and trash images of the benchmarks.
_INNER = 2
# Gradient tolerances for fits whose losses are only compared, and for fits that only provide a starting point.
_COARSE, _ROUGH = 3e-3, 3e-2
# Gamma of the focal loss, as in fine-tuning.
_FOCUS = 2.0
_PIECE = 4096
_STRETCH = 1024  # rows per chunk of a file: both matrix products of an iteration should read from the processor's cache
_BATCH_BYTES = 256 << 20
_GATHERED_BYTES = 144 << 20  # limit for rows gathered from a file: `_FEW` of them with up to 2,000 coordinates
# Inner splits with more than twice as many training rows first try all strengths on this many of them.
_FEW = 16_384


@dataclass(frozen=True)
class HeadData:
    """Training data of a head.

    Attributes:
        labels: int64 (n,), class of each row.
        units: int64 (n,), group of each row.
        classes: Number of classes.
        words: Resolved class balancing.
        seed: Random seed.
        photos: Number of images; rows from this one on are extra samples.
    """

    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    classes: int
    words: ResolvedBalance
    seed: int
    photos: int

    def weights(self, train: NDArray[np.int64]) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        """Return `sample_weights` of the training rows."""
        return sample_weights(self.labels[train], self.units[train], self.classes, self.words, self.seed)


@dataclass(frozen=True)
class PenaltyChoice:
    """Selected inverse penalty.

    Attributes:
        strength: Inverse penalty with the lowest log loss on the inner validation rows.
        loss: That log loss.
        start: Starting point for the fit on all training rows: a solution on some of them. None means zero.
    """

    strength: float
    loss: float
    start: Head | None = None


def choose_penalty(rotation: Projection, splits: list[Split], data: HeadData, probe: Probe) -> PenaltyChoice:
    """Select the inverse penalty on the inner splits.

    Validation rows are images without extra samples, with weight one each, whatever class balancing is used in
    training. With logit adjustment, they are predicted with the fitted logits, which include the prior.

    The first split tries all strengths, each further split the best so far and its neighbors: losses are smooth along
    the grid, and most of the time of a run with cached features is spent here. For large tables see `_choice_of_many`.

    Args:
        rotation: The projection.
        splits: Inner splits. If empty, the middle of the grid is returned.
        data: The training data.
        probe: Probe section of the recipe, which has the grid.

    Returns:
        The selected inverse penalty.
    """
    grid = sorted(probe.Cs)
    if not splits:
        return PenaltyChoice(grid[len(grid) // 2], 0.0)
    if len(splits[0][0]) > 2 * _FEW:
        return _choice_of_many(rotation, splits[0], data, grid)
    losses = np.zeros(len(grid))
    near = range(len(grid))
    for train, valid in splits:
        heads = fit_penalties(rotation, data, train, tuple(grid[s] for s in near), _COARSE)
        outside = np.full(len(grid), np.inf)
        outside[near] = _log_losses(rotation, data, valid, heads)
        losses = losses + outside
        best = int(losses.argmin())
        near = range(max(best - 1, 0), min(best + 2, len(grid)))
    return PenaltyChoice(grid[int(losses.argmin())], float(losses.min() / len(splits)))


def _choice_of_many(rotation: Projection, split: Split, data: HeadData, grid: list[float]) -> PenaltyChoice:
    """Select the inverse penalty on one split: with so many rows it discriminates as well as two with few.

    All strengths are fitted on about `_FEW` training rows. The best one and its neighbors are then refitted on all
    training rows, starting from these solutions. More rows favor weaker penalties, so if the optimum is at the edge,
    the search continues in that direction. The result is the starting point of the fit on all training rows. No
    validation row influences any of these starting points.
    """
    train, valid = split
    few = sample_groups(data.units, train, _FEW, data.seed)
    begun = fit_penalties(rotation, data, few, tuple(grid), _ROUGH)
    best = int(_log_losses(rotation, data, valid, begun).argmin())
    losses = np.full(len(grid), np.inf)
    found: dict[int, Head] = {}
    while near := [s for s in (best - 1, best, best + 1) if 0 <= s < len(grid) and s not in found]:
        start = begun[0][near], begun[1][near]
        heads = fit_penalties(rotation, data, train, tuple(grid[s] for s in near), _COARSE, start)
        losses[near] = _log_losses(rotation, data, valid, heads)
        found |= {s: (heads[0][[i]], heads[1][[i]]) for i, s in enumerate(near)}
        best = int(losses.argmin())
    return PenaltyChoice(grid[best], float(losses[best]), found[best])


def _log_losses(rotation: Projection, data: HeadData, valid: Rows, heads: Head) -> NDArray[np.float64]:
    """Return the mean log loss of each head on these rows, float64 (S,)."""
    chosen = np.empty((len(heads[0]), len(valid)))
    for start in range(0, len(valid), 2 * _PIECE):
        rows = valid[start : start + 2 * _PIECE]
        inputs, own = rotation.of(rows), data.labels[rows]
        for s, (weight, bias) in enumerate(zip(*heads, strict=True)):
            chosen[s, start : start + len(rows)] = softmax(inputs @ weight + bias)[np.arange(len(rows)), own]
    losses: NDArray[np.float64] = -np.log(np.maximum(chosen, FLOOR)).mean(1)
    return losses


def inner_splits(train: Rows, units: NDArray[np.int64], folds: NDArray[np.int64], seed: int) -> list[Split]:
    """Return group-safe (training rows, validation rows) splits inside a training part.

    With three outer folds or more, two of the other outer folds are held out in turn. With two outer folds, the groups
    are divided into random halves.

    Args:
        train: The training rows.
        units: int64 (n,), group of each row.
        folds: int64 (n,), outer fold of each row.
        seed: Random seed.

    Returns:
        The splits; empty if all training rows belong to one group, so that nothing can be held out.
    """
    inside = np.unique(folds[train])
    if len(inside) >= 2:
        turns = inside[[-1, 0][:_INNER]]
        return [(train[folds[train] != turn], train[folds[train] == turn]) for turn in turns]
    groups = np.random.default_rng(seed).permutation(np.unique(units[train]))
    if len(groups) < 2:
        return []
    first = np.isin(units[train], groups[: len(groups) // 2])
    return [(train[first], train[~first]), (train[~first], train[first])]


def fit_penalties(
    rotation: Projection,
    data: HeadData,
    train: Rows,
    strengths: tuple[float, ...],
    tolerance: float,
    start: Head | None = None,
) -> Head:
    """Fit a head for each inverse penalty, in batches that fit in memory.

    Args:
        rotation: The projection.
        data: The training data.
        train: The training rows.
        strengths: S inverse penalties.
        tolerance: Gradient tolerance.
        start: Starting points.

    Returns:
        Weights (S, r, C) and biases (S, C).
    """
    r, classes = rotation.coordinates.shape[1], data.classes
    weights_of_rows, drawn, _ = data.weights(train)
    taken = np.flatnonzero(weights_of_rows > 0)
    if isinstance(rotation.coordinates, np.memmap):  # in file order
        taken = taken[np.argsort(rotation.places[train[taken]], kind="stable")]
    train, row = train[taken], weights_of_rows[taken].astype(np.float32)
    at_once = max(1, int(_BATCH_BYTES // (4 * 18 * (r + 1) * classes)))
    own, pieces = data.labels[train], _pieces(rotation, train)

    weights, biases = [], []
    for first in range(0, len(strengths), at_once):
        batch = slice(first, first + at_once)
        some = np.array(strengths[batch])
        solution = fit_softmax(
            pieces,
            own,
            np.broadcast_to(row, (len(some), len(train))),
            1 / (some * drawn),
            rotation.scale,
            classes,
            tolerance=tolerance,
            start=(start[0][batch], start[1][batch]) if start else None,
            focus=_FOCUS if data.words.loss == "focal" else 0.0,
        )
        weights.append(solution.weight)
        biases.append(solution.bias)
    return np.concatenate(weights), np.concatenate(biases)


def _pieces(rotation: Projection, train: Rows) -> Pieces:
    """Return a function that iterates over the coordinates of these rows, in their order.

    Coordinates in memory, or small parts of a file, are gathered once. For large parts of a file, contiguous stretches
    are used without a copy, so that memory does not grow with the table.
    """
    row_bytes = 4 * rotation.coordinates.shape[1]
    filed = isinstance(rotation.coordinates, np.memmap) and row_bytes * len(train) > _GATHERED_BYTES
    inside = None if filed else rotation.of(train)
    length = _PIECE if inside is not None else _STRETCH
    places = rotation.places[train]

    def piece(part: slice) -> F32:
        if inside is not None:
            return inside[part]
        first, last = int(places[part.start]), int(places[part.stop - 1])
        if last - first == part.stop - 1 - part.start:  # contiguous: the rows are sorted and distinct
            return np.asarray(rotation.coordinates[first : last + 1])
        return rotation.of(train[part])

    def passes() -> Iterator[tuple[slice, F32]]:
        for start in range(0, len(train), length):
            part = slice(start, min(start + length, len(train)))
            yield part, piece(part)
            if filed:
                release_pages(rotation.coordinates)

    return passes
