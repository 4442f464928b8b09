"""Exact and near duplicates, found by hashes and joined with the groups they tie together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of 256 bits. Re-encoding and resizing change fewer; two photos of one scene usually more.
NEAR_BITS = 14
# Mean difference of the 8 x 8 colour thumbnails (0-255): the same gradients in other colours are another photo.
NEAR_COLOUR = 6.0
# Bands that more photos share than this (blank borders, plain backgrounds, a long burst) would cost squares.
_CROWD = 64
_LEADERS = 64
_AT_ONCE = 1 << 18  # pairs compared in one go
_ONE_BAND = 2_000_000

Pairs = NDArray[np.int64]


def exact_duplicates(keys: NDArray[np.uint64], usable: NDArray[np.bool_]) -> Pairs:
    """Pairs (m, 2) of photos with equal bytes: each one with the first of its kind."""
    rows = np.flatnonzero(usable)
    _, first, which = np.unique(keys[rows], axis=0, return_index=True, return_inverse=True)
    original = rows[first[which.ravel()]]
    again = rows != original
    return np.stack([original[again], rows[again]], 1)


def near_duplicates(dhash: NDArray[np.uint64], thumb: NDArray[np.uint8], usable: NDArray[np.bool_]) -> Pairs:
    """Pairs (m, 2) of photos that look the same: difference hashes within NEAR_BITS, thumbnails within NEAR_COLOUR.

    dhash: uint64 (n, 4). thumb: uint8 (n, 8, 8, 3). Candidates share at least one of 16 bands of 16 bits,
    which hashes that differ in fewer than 16 bits must (pigeonhole); above 2,000,000 photos, where chance alone fills
    such a band, they share two: 14 bits can spoil 14 bands at most. Where more than _CROWD photos share a band,
    they are held against at most _LEADERS of them instead of each against each: what looks the same is tied
    together through its leader, and a crowd of plain backgrounds does not cost squares.
    """
    rows = np.flatnonzero(usable)
    known = np.zeros(0, np.int64)  # pairs as one number each, first * n + second
    for band in _bands(dhash[rows].view(np.uint16), 2 if len(rows) > _ONE_BAND else 1):
        order = np.argsort(band, kind="stable")
        members, values = rows[order], band[order]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        sizes = np.diff(np.r_[starts, len(values)])
        found: list[Pairs] = [np.zeros((0, 2), np.int64)]
        for size in range(2, _CROWD + 1):
            buckets = starts[sizes == size]
            i, j = np.triu_indices(size, 1)
            found += [
                _alike(members[some[:, None] + i].ravel(), members[some[:, None] + j].ravel(), dhash, thumb)
                for some in np.array_split(buckets, len(buckets) * len(i) // _AT_ONCE + 1)
            ]
        for start, size in zip(starts[sizes > _CROWD], sizes[sizes > _CROWD], strict=True):
            found += _with_leaders(members[start : start + size], dhash, thumb)
        known = np.union1d(known, _numbered(np.concatenate(found), len(dhash)))
    # Photos whose whole hash is the same are neighbours even where all their bands are crowded.
    _, first, which = np.unique(dhash[rows], axis=0, return_index=True, return_inverse=True)
    known = np.union1d(known, _numbered(_alike(rows[first[which.ravel()]], rows, dhash, thumb), len(dhash)))
    return np.stack(np.divmod(known, max(len(dhash), 1)), 1)


def _numbered(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Each pair of two photos of `count` as one number, the same for both orders."""
    low, high = pairs.min(1), pairs.max(1)
    return (low * count + high)[low != high]


def _bands(words: NDArray[np.uint16], together: int) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
    """Each band of all hashes, or each two of them as one number."""
    if together == 1:
        yield from (words[:, one] for one in range(words.shape[1]))
        return
    for one, other in combinations(range(words.shape[1]), 2):
        yield words[:, one].astype(np.uint32) * np.uint32(1 << 16) + words[:, other]


def joined_groups(groups: NDArray[Any], *pairs: Pairs) -> NDArray[np.int64]:
    """Number of the joined group of each photo, int64 (n,): groups tied by any pair become one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    tied = group[np.concatenate(pairs)] if pairs else np.zeros((0, 2), np.int64)
    count = int(group.max()) + 1
    graph = coo_matrix((np.ones(len(tied), np.int32), (tied[:, 0], tied[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1][group].astype(np.int64)


def _alike(a: NDArray[np.int64], b: NDArray[np.int64], dhash: NDArray[np.uint64], thumb: NDArray[np.uint8]) -> Pairs:
    # A quarter of the hash tells nearly all that only chance has put together.
    near = np.bitwise_count(dhash[a, 0] ^ dhash[b, 0]) <= NEAR_BITS
    a, b = a[near], b[near]
    near = np.bitwise_count(dhash[a] ^ dhash[b]).sum(1) <= NEAR_BITS
    a, b = a[near], b[near]
    colour = np.abs(thumb[a].astype(np.int16) - thumb[b]).mean((1, 2, 3)) <= NEAR_COLOUR
    return np.stack([a[colour], b[colour]], 1)


def _with_leaders(members: NDArray[np.int64], dhash: NDArray[np.uint64], thumb: NDArray[np.uint8]) -> list[Pairs]:
    """Each leader with those that look like it; the next leader is the first that was like none so far."""
    found = []
    for _ in range(_LEADERS):
        if len(members) < 2:
            break
        leader, members = members[0], members[1:]
        pairs = _alike(np.full(len(members), leader), members, dhash, thumb)
        found.append(pairs)
        members = members[~np.isin(members, pairs[:, 1])]
    return found
