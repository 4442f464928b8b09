"""How strong a head's penalty should be: chosen inside its training rows, on group-safe inner splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.cache import forget_pages
from unfreeze.core.recipe_sections import Probe
from unfreeze.learn.balance import Settled, row_weights
from unfreeze.learn.probe.rotation import Rotation
from unfreeze.learn.probe.softmax import Pieces, fit_softmax, softmax
from unfreeze.learn.probe.thinned import sampled_rows

F32 = NDArray[np.float32]
Rows = NDArray[np.int64]
Split = tuple[Rows, Rows]  # training rows, validation rows
Head = tuple[F32, F32]  # weights (S, r, C) and biases (S, C) in a rotation's coordinates

# Two inner validation folds settle the penalty as well as four, at half the price: macro F1 differed by .003 at most
# on the masks, clothing and trash photos of the benchmarks.
_INNER = 2
# Gradient at which a fit ends where only losses are compared, and where others only begin from what it finds.
_COARSE, _ROUGH = 3e-3, 3e-2
# Of the focal loss, as in training.
_FOCUS = 2.0
_PIECE = 4096
_STRETCH = 1024  # of a file: what both products of a pass read should stay in the processor's cache between them
_BATCH_BYTES = 256 << 20
_GATHERED_BYTES = 144 << 20  # of a file's rows: `_FEW` of them, up to 2,000 wide
# Inner splits of more than twice as many training rows first try all strengths on so many of them.
_FEW = 16_384


@dataclass(frozen=True)
class Data:
    """What is learnt from: class and group of every row, and what is done for small classes."""

    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    classes: int
    words: Settled
    seed: int
    photos: int

    def weights(self, train: NDArray[np.int64]) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        """As `row_weights` of the training rows."""
        return row_weights(self.labels[train], self.units[train], self.classes, self.words, self.seed)


@dataclass(frozen=True)
class Choice:
    """The strength with the least log loss on the inner validation rows, and that loss.

    start: where the fit on all training rows may begin: a solution on some of them. None: from zero.
    """

    strength: float
    loss: float
    start: Head | None = None


def inner_choice(rotation: Rotation, splits: list[Split], data: Data, probe: Probe) -> Choice:
    """The strength that the inner splits speak for.

    Their validation rows are photos as they are, each of weight one, whatever is done for small classes in training;
    with logit adjustment they are told by the logits that were fitted, which have the prior in them.
    The first split tries all strengths, each further one the best so far and its neighbours: losses are smooth along
    the grid, and most of a run's time with cached features is spent here. Large tables: see `_choice_of_many`.
    """
    grid = sorted(probe.strengths)
    if not splits:
        return Choice(grid[len(grid) // 2], 0.0)
    if len(splits[0][0]) > 2 * _FEW:
        return _choice_of_many(rotation, splits[0], data, grid)
    losses = np.zeros(len(grid))
    near = range(len(grid))
    for train, valid in splits:
        heads = solve(rotation, data, train, tuple(grid[s] for s in near), _COARSE)
        outside = np.full(len(grid), np.inf)
        outside[near] = _log_losses(rotation, data, valid, heads)
        losses = losses + outside
        best = int(losses.argmin())
        near = range(max(best - 1, 0), min(best + 2, len(grid)))
    return Choice(grid[int(losses.argmin())], float(losses.min() / len(splits)))


def _choice_of_many(rotation: Rotation, split: Split, data: Data, grid: list[float]) -> Choice:
    """One split of so many rows tells strengths apart as well as two of few ones.

    All strengths are tried on `_FEW` of its training rows. From those solutions the best one and its neighbours go on
    to all of them; more rows want weaker penalties, so that it may lie beyond: then the next ones follow. What is
    found is where the fit on all training rows begins. No validation row has a part in any of these starts.
    """
    train, valid = split
    few = sampled_rows(data.units, train, _FEW, data.seed)
    begun = solve(rotation, data, few, tuple(grid), _ROUGH)
    best = int(_log_losses(rotation, data, valid, begun).argmin())
    losses = np.full(len(grid), np.inf)
    found: dict[int, Head] = {}
    while near := [s for s in (best - 1, best, best + 1) if 0 <= s < len(grid) and s not in found]:
        start = begun[0][near], begun[1][near]
        heads = solve(rotation, data, train, tuple(grid[s] for s in near), _COARSE, start)
        losses[near] = _log_losses(rotation, data, valid, heads)
        found |= {s: (heads[0][[i]], heads[1][[i]]) for i, s in enumerate(near)}
        best = int(losses.argmin())
    return Choice(grid[best], float(losses[best]), found[best])


def _log_losses(rotation: Rotation, data: Data, valid: Rows, heads: Head) -> NDArray[np.float64]:
    """Mean log loss of each head on these rows, (S,)."""
    chosen = np.empty((len(heads[0]), len(valid)))
    for start in range(0, len(valid), 2 * _PIECE):
        rows = valid[start : start + 2 * _PIECE]
        inputs, own = rotation.of(rows), data.labels[rows]
        for s, (weight, bias) in enumerate(zip(*heads, strict=True)):
            chosen[s, start : start + len(rows)] = softmax(inputs @ weight + bias)[np.arange(len(rows)), own]
    losses: NDArray[np.float64] = -np.log(np.maximum(chosen, 1e-15)).mean(1)
    return losses


def inner_splits(train: Rows, units: NDArray[np.int64], folds: NDArray[np.int64], seed: int) -> list[Split]:
    """Group-safe (training rows, validation rows) inside a training part.

    With three outer folds or more, the other outer folds take turns; with two, groups are halved by the seed.
    Empty where all training rows are of one group: nothing can be held out then.
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


def solve(
    rotation: Rotation,
    data: Data,
    train: Rows,
    strengths: tuple[float, ...],
    tolerance: float,
    start: Head | None = None,
) -> Head:
    """Weights (S, r, C) and biases (S, C) for each strength, in batches that fit the memory.

    start: of each of them, to begin from.
    """
    r, classes = rotation.coordinates.shape[1], data.classes
    weights_of_rows, drawn, _ = data.weights(train)
    taken = np.flatnonzero(weights_of_rows > 0)
    if isinstance(rotation.coordinates, np.memmap):  # as they lie in the file
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


def _pieces(rotation: Rotation, train: Rows) -> Pieces:
    """Passes over the coordinates of these rows, in their order.

    What is in memory, or little of a file, is gathered once. Of a file long stretches are taken as they lie there,
    without a copy, so that memory does not grow with the table.
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
        if last - first == part.stop - 1 - part.start:  # they are in order, each once
            return np.asarray(rotation.coordinates[first : last + 1])
        return rotation.of(train[part])

    def passes() -> Iterator[tuple[slice, F32]]:
        for start in range(0, len(train), length):
            part = slice(start, min(start + length, len(train)))
            yield part, piece(part)
            if filed:
                forget_pages(rotation.coordinates)

    return passes
