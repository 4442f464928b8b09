"""Exact and near duplicates, found by hashes and joined with the groups they tie together."""

from __future__ import annotations

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
    which hashes that differ in fewer than 16 bits must (pigeonhole). Where more than _CROWD photos share a band,
    they are held against at most _LEADERS of them instead of each against each: what looks the same is tied
    together through its leader, and a crowd of plain backgrounds does not cost squares.
    """
    rows = np.flatnonzero(usable)
    bands = dhash[rows].view(np.uint16)
    found: list[Pairs] = [np.zeros((0, 2), np.int64)]
    for b in range(bands.shape[1]):
        order = np.argsort(bands[:, b], kind="stable")
        members, values = rows[order], bands[order, b]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        sizes = np.diff(np.r_[starts, len(values)])
        for size in range(2, _CROWD + 1):
            buckets = starts[sizes == size]
            i, j = np.triu_indices(size, 1)
            found += [
                _alike(members[some[:, None] + i].ravel(), members[some[:, None] + j].ravel(), dhash, thumb)
                for some in np.array_split(buckets, len(buckets) * len(i) // _AT_ONCE + 1)
            ]
        for start, size in zip(starts[sizes > _CROWD], sizes[sizes > _CROWD], strict=True):
            found += _with_leaders(members[start : start + size], dhash, thumb)
    # Photos whose whole hash is the same are neighbours even where all their bands are crowded.
    _, first, which = np.unique(dhash[rows], axis=0, return_index=True, return_inverse=True)
    found.append(_alike(rows[first[which.ravel()]], rows, dhash, thumb))
    pairs = np.concatenate(found)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)


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
