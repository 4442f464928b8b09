"""Groups drawn again and again: what a figure varies by, whatever the figure is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def group_weights(groups: NDArray[Any], resamples: int, seed: int) -> Iterator[F64]:
    """How often each row counts in each of `resamples` draws of groups with replacement, float64 (n,).

    groups: (n,) any hashable; all rows of a group are drawn together (cluster bootstrap: Davison & Hinkley 1997, 3.8).
    The same groups and seed give the same draws, so that differences are paired.
    """
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    count = int(member.max()) + 1
    draws = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(draws.integers(0, count, count), minlength=count)[member].astype(np.float64)


Sum = tuple[NDArray[np.integer], NDArray[Any] | None, int]
"""What is summed: the bin of each row (n,), the row's value (n,) or None for 1, and how many bins there are."""
_DRAWS_AT_ONCE = 8


def resampled_sums(groups: NDArray[Any], sums: Sequence[Sum], resamples: int, seed: int) -> F64:
    """Sums over the rows of each draw of groups, float64 (resamples, all bins of all sums): draws as `group_weights`.

    Rows are summed by group once, so that a draw costs no more than the groups and their filled bins do: for a million
    rows some milliseconds.
    """
    from scipy.sparse import coo_matrix, vstack

    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    count, n = int(member.max()) + 1, len(member)
    of_groups = vstack(
        [
            coo_matrix(
                (np.ones(n) if values is None else np.asarray(values, np.float64), (bins, member)), (width, count)
            )
            for bins, values, width in sums
        ]
    ).tocsr()
    draws = np.random.default_rng(seed)
    out = np.empty((resamples, of_groups.shape[0]))
    for start in range(0, resamples, _DRAWS_AT_ONCE):
        some = range(start, min(start + _DRAWS_AT_ONCE, resamples))
        times = np.stack([np.bincount(draws.integers(0, count, count), minlength=count) for _ in some], 1)
        out[some.start : some.stop] = (of_groups @ times.astype(np.float64)).T
    return out


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
