"""Groups drawn again and again: what a figure varies by, whatever the figure is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


Sum = tuple[NDArray[np.integer], NDArray[Any] | None, int]
"""What is summed: the bin of each row (n,), the row's value (n,) or None for 1, and how many bins there are."""
# Sums held at once; with many classes and predictions all draws together would be gigabytes.
_MOST_BYTES = 64 << 20
_DRAWS_AT_ONCE = 8


def numbered(groups: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """The number of each row's group, int64 (n,), and how many groups there are. groups: (n,) any hashable."""
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    return member, len(names)


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each of `count` groups is drawn with replacement, int64 (count,): the draws that all figures share."""
    draws = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(draws.integers(0, count, count), minlength=count)


def group_weights(groups: NDArray[Any], resamples: int, seed: int) -> Iterator[F64]:
    """How often each row counts in each of `resamples` draws of groups with replacement, float64 (n,).

    groups: (n,) any hashable; all rows of a group are drawn together (cluster bootstrap: Davison & Hinkley 1997, 3.8).
    The same groups and seed give the same draws, so that differences are paired.
    """
    member, count = numbered(groups)
    for times in _draws(count, resamples, seed):
        yield times[member].astype(np.float64)


def drawn_sums(member: NDArray[np.int64], sums: Sequence[Sum], resamples: int, seed: int) -> Iterator[list[F64]]:
    """Sums over the rows of each draw of groups, some draws at a time: for each sum float64 (draws, bins).

    member: int64 (n,), each row's group as `numbered` gives it. The draws are those of `group_weights`. Rows are summed
    by group once, so that a draw costs no more than the groups and their filled bins do: for a million rows some
    milliseconds.
    """
    from scipy.sparse import coo_matrix, vstack

    count = int(member.max()) + 1
    ones = np.ones(len(member))
    of_groups = vstack(
        [
            coo_matrix((ones if values is None else values, (bins, member)), (width, count))
            for bins, values, width in sums
        ]
    ).tocsr()
    ends = np.cumsum([width for *_, width in sums])[:-1]
    at_once = min(_DRAWS_AT_ONCE, max(1, _MOST_BYTES // (8 * of_groups.shape[0])))
    drawn = _draws(count, resamples, seed)
    while some := list(islice(drawn, at_once)):
        yield np.split((of_groups @ np.stack(some, 1).astype(np.float64)).T, ends, axis=1)


def resampled_sums(member: NDArray[np.int64], sums: Sequence[Sum], resamples: int, seed: int) -> list[F64]:
    """The sums of all draws (see `drawn_sums`): for each of `sums` float64 (resamples, bins)."""
    out = [np.empty((resamples, width)) for *_, width in sums]
    place = 0
    for blocks in drawn_sums(member, sums, resamples, seed):
        for whole, block in zip(out, blocks, strict=True):
            whole[place : place + len(block)] = block
        place += len(blocks[0])
    return out


def drawn_confusions(
    truth: NDArray[np.integer],
    predictions: Sequence[NDArray[np.integer]],
    groups: NDArray[Any],
    classes: int,
    resamples: int,
    seed: int,
) -> Iterator[F64]:
    """Confusion counts (predictions, draws, C, C) of all photos, then of each draw of groups; some draws at a time.

    truth and each of predictions: int (n,), classes of the same photos. groups: (n,) any hashable.
    """
    cells = [truth.astype(np.int64) * classes + p for p in predictions]
    whole = [np.bincount(cell, minlength=classes**2)[None].astype(np.float64) for cell in cells]
    drawn = drawn_sums(numbered(groups)[0], [(cell, None, classes**2) for cell in cells], resamples, seed)
    for tables in chain([whole], drawn):
        yield np.stack(tables).reshape(len(cells), -1, classes, classes)


def interval(value: float, samples: NDArray[Any], level: float = 0.95) -> dict[str, float]:
    """{"value", "low", "high"}: percentile interval of the finite samples; the value itself where there are none."""
    finite = np.asarray(samples, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return {"value": float(value), "low": float(value), "high": float(value)}
    low, high = np.percentile(finite, 100 * np.array([(1 - level) / 2, (1 + level) / 2]))
    return {"value": float(value), "low": float(low), "high": float(high)}


def weighted_confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: int, weight: F64 | None = None) -> F64:
    """float64 (C, C) counts, each row of weight `weight`: row = true class, column = predicted class."""
    cells = np.asarray(truth, np.int64) * classes + predicted
    return np.bincount(cells, weights=weight, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def soft_confusion(proba: F64, predicted: NDArray[Any], weight: F64 | None = None) -> F64:
    """float64 (C, C): the counts to be expected where the truth is not known, but its probabilities are.

    proba: float64 (n, C), calibrated probabilities of the true class. predicted: int (n,).
    """
    classes = proba.shape[1]
    own = proba if weight is None else proba * weight[:, None]
    out = np.zeros((classes, classes))
    np.add.at(out.T, predicted, own)
    return out
