"""Exact and near duplicates by hashing, and the connected components of groups that share duplicates.

Exact duplicates have the same content hash. Near duplicates have similar 256-bit difference hashes and similar color
thumbnails; candidates are found by locality-sensitive hashing over bands of the difference hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Maximum Hamming distance of two 256-bit hashes. Re-encoding and resizing change fewer bits; two images of one scene
# usually differ in more.
NEAR_BITS = 14
# Maximum mean absolute difference of the 8 x 8 color thumbnails (0-255). It separates images that have the same
# gradients in other colors.
NEAR_COLOUR = 6.0
# Buckets with more images than this (blank borders, plain backgrounds, a long burst) are compared with leaders only,
# because comparing all pairs would take quadratic time.
_CROWD = 64
_LEADERS = 64
_AT_ONCE = 1 << 18  # pairs per batch
_ONE_BAND = 2_000_000  # images up to which candidates need to share only one band

Pairs = NDArray[np.int64]


def exact_duplicates(keys: NDArray[np.uint64], usable: NDArray[np.bool_]) -> Pairs:
    """Find images with identical content.

    Args:
        keys: Content hashes, uint64 (n, 2).
        usable: Images to compare, bool (n,).

    Returns:
        int64 (m, 2): each duplicate paired with the first image of the same content, which comes first.
    """
    rows = np.flatnonzero(usable)
    _, first, which = np.unique(keys[rows], axis=0, return_index=True, return_inverse=True)
    original = rows[first[which.ravel()]]
    again = rows != original
    return np.stack([original[again], rows[again]], 1)


def near_duplicates(dhash: NDArray[np.uint64], thumb: NDArray[np.uint8], usable: NDArray[np.bool_]) -> Pairs:
    """Find images that look the same: hashes within NEAR_BITS and thumbnails within NEAR_COLOUR.

    Candidates share at least one of 16 bands of 16 bits. By the pigeonhole principle, all hashes that differ in fewer
    than 16 bits do. Above 2,000,000 images, a single band matches too often by chance, so candidates must share two
    bands; 14 differing bits change at most 14 bands, so at least two remain equal.

    If more than `_CROWD` images share a band, each is compared with at most `_LEADERS` of them instead of with all
    others. Similar images are then connected through a leader, without quadratic time for large sets of plain
    backgrounds.

    Args:
        dhash: 256-bit difference hashes, uint64 (n, 4).
        thumb: Color thumbnails, uint8 (n, 8, 8, 3).
        usable: Images to compare, bool (n,).

    Returns:
        Unique pairs of indices, int64 (m, 2), with first < second.
    """
    rows = np.flatnonzero(usable)
    known = np.zeros(0, np.int64)  # pairs encoded as first * n + second
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
    # Images with identical hashes are compared even if all their bands exceed _CROWD.
    _, first, which = np.unique(dhash[rows], axis=0, return_index=True, return_inverse=True)
    known = np.union1d(known, _numbered(_alike(rows[first[which.ravel()]], rows, dhash, thumb), len(dhash)))
    return np.stack(np.divmod(known, max(len(dhash), 1)), 1)


def _numbered(pairs: Pairs, count: int) -> NDArray[np.int64]:
    """Encode each pair of different images as one integer that does not depend on the order; drop self-pairs."""
    low, high = pairs.min(1), pairs.max(1)
    return (low * count + high)[low != high]


def _bands(words: NDArray[np.uint16], together: int) -> Iterator[NDArray[np.uint16] | NDArray[np.uint32]]:
    """Yield each band of all hashes, or each combination of two bands as one number; words: uint16 (n, 16)."""
    if together == 1:
        yield from (words[:, one] for one in range(words.shape[1]))
        return
    for one, other in combinations(range(words.shape[1]), 2):
        yield words[:, one].astype(np.uint32) * np.uint32(1 << 16) + words[:, other]


def connected_groups(groups: NDArray[Any], *pairs: Pairs) -> NDArray[np.int64]:
    """Merge groups that are connected by pairs of images.

    Args:
        groups: Group of each image, (n,).
        *pairs: Pairs of image indices, int64 (m, 2) each.

    Returns:
        Number of the merged group of each image, int64 (n,).
    """
    _, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    tied = [group[some].reshape(-1, 2) for some in pairs]
    return components(int(group.max()) + 1, *tied)[group]


def components(count: int, *pairs: Pairs) -> NDArray[np.int64]:
    """Label the connected components of an undirected graph.

    Args:
        count: Number of nodes.
        *pairs: Edges, int64 (m, 2) each.

    Returns:
        Number of the component of each node, int64 (count,).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    tied = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = coo_matrix((np.ones(len(tied), np.int32), (tied[:, 0], tied[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def near_mask(pairs: Pairs, dhash: NDArray[np.uint64], thumb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Test given pairs with the criteria of `near_duplicates`.

    Args:
        pairs: Indices, int64 (m, 2).
        dhash: 256-bit difference hashes, uint64 (n, 4).
        thumb: Color thumbnails, uint8 (n, 8, 8, 3).

    Returns:
        Which pairs pass, bool (m,).
    """
    one, two = pairs.T
    near = np.bitwise_count(dhash[one] ^ dhash[two]).sum(1) <= NEAR_BITS
    some = np.flatnonzero(near)
    colour = np.abs(thumb[one[some]].astype(np.int16) - thumb[two[some]]).mean((1, 2, 3))
    near[some] = colour <= NEAR_COLOUR
    return np.asarray(near, bool)


def _alike(a: NDArray[np.int64], b: NDArray[np.int64], dhash: NDArray[np.uint64], thumb: NDArray[np.uint8]) -> Pairs:
    # The first quarter of the hash already rejects nearly all candidates that match by chance.
    near = np.bitwise_count(dhash[a, 0] ^ dhash[b, 0]) <= NEAR_BITS
    a, b = a[near], b[near]
    near = np.bitwise_count(dhash[a] ^ dhash[b]).sum(1) <= NEAR_BITS
    a, b = a[near], b[near]
    colour = np.abs(thumb[a].astype(np.int16) - thumb[b]).mean((1, 2, 3)) <= NEAR_COLOUR
    return np.stack([a[colour], b[colour]], 1)


def _with_leaders(members: NDArray[np.int64], dhash: NDArray[np.uint64], thumb: NDArray[np.uint8]) -> list[Pairs]:
    """Pair each leader with its near duplicates; the next leader is the first image without a leader so far."""
    found = []
    for _ in range(_LEADERS):
        if len(members) < 2:
            break
        leader, members = members[0], members[1:]
        pairs = _alike(np.full(len(members), leader), members, dhash, thumb)
        found.append(pairs)
        members = members[~np.isin(members, pairs[:, 1])]
    return found
