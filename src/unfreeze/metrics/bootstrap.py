"""Cluster bootstrap: resampling of groups with replacement, and sums and confusion matrices of each draw.

All functions share the draws of `group_weights`: the same groups and seed give the same draws, so that differences
between scores are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64

Sum = tuple[NDArray[np.integer], NDArray[Any] | None, int]
"""A binned sum: the bin of each row (n,), the value of each row (n,) or None for 1, and the number of bins."""
# Maximum size in bytes of the sums held at once: with many classes and predictions all draws would take gigabytes.
_MOST_BYTES = 64 << 20
_DRAWS_AT_ONCE = 8


def group_ids(groups: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Number the groups.

    Args:
        groups: (n,) any hashable.

    Returns:
        The group number of each row, int64 (n,), and the number of groups.
    """
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    return member, len(names)


def effective_groups(groups: NDArray[Any]) -> float:
    """Effective number of groups: the number of groups of equal size that would be equally informative.

    It is (sum s)^2 / sum s^2 for group sizes s, which assumes that the images of a group are perfectly correlated.

    Args:
        groups: (n,) any hashable.

    References:
        Carter, Schnepel & Steigerwald 2017.
    """
    return effective_number(np.bincount(group_ids(groups)[0]).astype(np.float64))


def effective_number(sizes: F64) -> float:
    """Effective number of groups (see `effective_groups`) from group sizes, float64 (G,); 0 if there are none."""
    square = float((sizes**2).sum())
    return float(sizes.sum() ** 2 / square) if square else 0.0


def _draws(count: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Bootstrap draws: how often each of `count` groups is drawn with replacement, int64 (count,)."""
    draws = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(draws.integers(0, count, count), minlength=count)


def group_weights(groups: NDArray[Any], resamples: int, seed: int) -> Iterator[F64]:
    """Cluster bootstrap weights: how often each row counts in each draw of groups with replacement.

    All rows of a group are drawn together. The same groups and seed give the same draws, so that differences are
    paired.

    Args:
        groups: (n,) any hashable.
        resamples: Number of draws.
        seed: Seed of the draws.

    Yields:
        float64 (n,) for each draw.

    References:
        Davison & Hinkley 1997, section 3.8.
    """
    member, count = group_ids(groups)
    for times in _draws(count, resamples, seed):
        yield times[member].astype(np.float64)


def bootstrap_sums(member: NDArray[np.int64], sums: Sequence[Sum], resamples: int, seed: int) -> Iterator[list[F64]]:
    """Binned sums over the rows of each bootstrap draw of groups, in blocks of draws.

    Rows are summed by group once, so that the cost of a draw depends only on the number of groups and of their nonempty
    bins: for a million rows it is some milliseconds. The draws are those of `group_weights`.

    Args:
        member: int64 (n,), group numbers from `group_ids`.
        sums: What is summed.
        resamples: Number of draws.
        seed: Seed of the draws.

    Yields:
        For each block of draws, one array float64 (draws, bins) for each of `sums`.
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


def bootstrap_group_sums(member: NDArray[np.int64], sums: Sequence[Sum], resamples: int, seed: int) -> list[F64]:
    """Binned sums of all bootstrap draws (see `bootstrap_sums`): float64 (resamples, bins) for each of `sums`."""
    out = [np.empty((resamples, width)) for *_, width in sums]
    place = 0
    for blocks in bootstrap_sums(member, sums, resamples, seed):
        for whole, block in zip(out, blocks, strict=True):
            whole[place : place + len(block)] = block
        place += len(blocks[0])
    return out


def bootstrap_confusions(
    truth: NDArray[np.integer],
    predictions: Sequence[NDArray[np.integer]],
    groups: NDArray[Any],
    classes: int,
    resamples: int,
    seed: int,
) -> Iterator[F64]:
    """Confusion matrices of several predictions: of all images, then of each bootstrap draw of groups.

    Args:
        truth: int (n,), true classes.
        predictions: int (n,) each, predicted classes of the same images.
        groups: (n,) any hashable.
        classes: Number of classes C.
        resamples: Number of draws.
        seed: Seed of the draws.

    Yields:
        float64 (predictions, draws, C, C), in blocks of draws. The first block has a single entry: all images.
    """
    cells = [truth.astype(np.int64) * classes + p for p in predictions]
    whole = [np.bincount(cell, minlength=classes**2)[None].astype(np.float64) for cell in cells]
    drawn = bootstrap_sums(group_ids(groups)[0], [(cell, None, classes**2) for cell in cells], resamples, seed)
    for tables in chain([whole], drawn):
        yield np.stack(tables).reshape(len(cells), -1, classes, classes)


def interval(value: float, samples: NDArray[Any], level: float = 0.95) -> dict[str, float]:
    """Percentile interval of bootstrap samples.

    Args:
        value: Point estimate.
        samples: Bootstrap samples of any shape; values that are not finite are ignored.
        level: Confidence level.

    Returns:
        {"value", "low", "high"}; both ends are `value` if there are no finite samples.
    """
    finite = np.asarray(samples, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return {"value": float(value), "low": float(value), "high": float(value)}
    low, high = np.percentile(finite, 100 * np.array([(1 - level) / 2, (1 + level) / 2]))
    return {"value": float(value), "low": float(low), "high": float(high)}


def weighted_confusion(truth: NDArray[Any], predicted: NDArray[Any], classes: int, weight: F64 | None = None) -> F64:
    """Weighted confusion matrix, float64 (C, C): rows are true classes, columns predicted classes."""
    cells = np.asarray(truth, np.int64) * classes + predicted
    return np.bincount(cells, weights=weight, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def soft_confusion(proba: F64, predicted: NDArray[Any], weight: F64 | None = None) -> F64:
    """Expected confusion matrix for unknown labels, float64 (C, C): rows are true classes, columns predicted classes.

    Args:
        proba: float64 (n, C), calibrated probabilities of the true class.
        predicted: int (n,), predicted classes.
        weight: float64 (n,), by default 1.
    """
    classes = proba.shape[1]
    own = proba if weight is None else proba * weight[:, None]
    out = np.zeros((classes, classes))
    np.add.at(out.T, predicted, own)
    return out
