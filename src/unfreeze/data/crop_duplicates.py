"""Near duplicates by image alignment: copies that were cropped, resized or changed in brightness.

Candidate pairs come from the cosine similarity of low-frequency DCT coefficients. Each candidate is then registered by
a few Gauss-Newton steps and accepted if the aligned image explains nearly all of the variance of the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from unfreeze.core.arrays import Rows
from unfreeze.core.parallel import map_threads

Pairs = NDArray[np.int64]
Floats = NDArray[np.float32]

# Minimum cosine similarity of the low-frequency vectors for a pair to be aligned. Cropping 3% off every side leaves at
# least 0.87 in 99 of 100 real images.
NEAR_COSINE = 0.86
# Minimum share of one image's variance that the other explains after shift, scale, gain and offset. 97 in 100 planted
# copies reach it, and 1 in 100 of the most similar other pairs (benchmarks/checking.py).
NEAR_EXPLAINED = 0.985
# Maximum residuals: root mean square of gray levels, and largest color difference in any of 4 x 4 cells, 0-255. They
# separate images of one person with different masks. 99 in 100 planted copies stay below a color difference of 13.
NEAR_REST = 6.0
NEAR_TINT = 15.0
# Images with a smaller standard deviation of gray levels have too little structure to be aligned.
_FLAT = 8.0
_GAIN = (0.7, 1.45)
_MOVED = 0.16  # maximum displacement of an edge, as a share of the side; half of it for shift and half for scale
_TINT_UNIT = 12  # sum of four pixels, times three channels
_FREQUENCIES = 64
_TILE = 2048
_BEST = 8  # candidates per image and tile; enough to connect a burst through chains of pairs
# Up to this number of images, all pairs are compared; above it, only pairs within the leaves of random trees.
_ALL = 30_000
_TREES = 8
_CHOSEN_AFTER = 4  # trees between two selections: each selection is a sort, but keeping all pairs takes memory
_LEAF = 1024
_BEST_IN_A_LEAF = 3
_BEST_OF_ALL = 4  # candidates per image over all trees
_DRAWN = 256
_AT_ONCE = 512
_STEPS = 3
_WORTH_A_STEP = 0.85


def find_cropped_duplicates(grey: NDArray[np.uint8], thumb: NDArray[np.uint8], usable: NDArray[np.bool_]) -> Pairs:
    """Find pairs of images that differ only by a small crop, a resize or a brightness change.

    Candidates are pairs whose 64 lowest DCT frequencies have a cosine similarity of at least `NEAR_COSINE`. They are
    compared in tiles of at most 2048 x 2048 images, with at most 8 candidates per image and tile. Above 30,000 images,
    comparing all tiles would take quadratic time, so only the leaves of eight random projection trees are compared,
    with at most 3 candidates per image and leaf and the nearest 4 per image overall. On 1,513 pairs among 3,166 real
    images and their planted crops, trees of the depth that a million images need found 99 in 100 pairs. The trees are
    seeded, so the result is deterministic.

    Each candidate is aligned by up to three Gauss-Newton steps over shift and scale of both axes, gain and offset.

    Args:
        grey: Luma of whole images, resized to squares, uint8 (n, 32, 32).
        thumb: Color thumbnails of whole images, resized to squares, uint8 (n, 8, 8, 3).
        usable: Images to compare, bool (n,).

    Returns:
        Pairs of indices, int64 (m, 2), with first < second.

    References:
        Dasgupta and Freund, "Random projection trees and low dimensional manifolds", STOC 2008.
        Lucas and Kanade, "An iterative image registration technique with an application to stereo vision", IJCAI 1981.
        Baker and Matthews, "Lucas-Kanade 20 years on: a unifying framework", IJCV 2004.
    """
    rows = np.flatnonzero(usable)
    rows = rows[_contrast(grey, rows) >= _FLAT]
    low = _low_frequencies(grey, rows)
    likely = _candidates(low, _tiles(len(low)), _BEST)[0] if len(low) <= _ALL else _of_trees(low)

    tint = _tints(thumb, rows)

    def alike(start: int) -> Pairs:
        one, two = np.divmod(likely[start : start + _AT_ONCE], len(low))
        near = np.abs(tint[one] - tint[two]).max(1) <= NEAR_TINT * _TINT_UNIT
        one, two = rows[one[near]], rows[two[near]]
        same = _laid_over(grey[one], grey[two])
        return np.stack([one[same], two[same]], 1)

    with _one_thread_each():
        found = list(map_threads(alike, range(0, len(likely), _AT_ONCE)))
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)


def _one_thread_each() -> threadpool_limits:
    """Limit BLAS to one thread: small products in several Python threads gain nothing from nested BLAS threads."""
    return threadpool_limits(1, user_api="blas")


def _contrast(grey: NDArray[np.uint8], rows: Rows) -> Floats:
    """Standard deviation of the gray levels of each image, float32 (len(rows),)."""
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        out[start : start + len(some)] = grey[some].reshape(len(some), -1).std(1)
    return out


def _low_frequencies(grey: NDArray[np.uint8], rows: Rows) -> Floats:
    """Unit vectors of the lowest DCT frequencies without the constant one, float32 (len(rows), 64)."""
    side = grey.shape[1]
    waves = np.cos(np.pi * (np.arange(side) + 0.5) / side * np.arange(9)[:, None]).astype(np.float32)
    order = np.argsort([i % 9 + i // 9 for i in range(81)], kind="stable")[1 : _FREQUENCIES + 1]
    out = np.empty((len(rows), _FREQUENCIES), np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        some = grey[rows[start : start + _AT_ONCE]].astype(np.float32)
        turned = waves @ some @ waves.T
        out[start : start + _AT_ONCE] = turned.reshape(len(some), -1)[:, order]
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)


def _tiles(count: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield every unordered pair of tiles, including each tile with itself."""
    every = np.arange(count)
    for top in range(0, count, _TILE):
        for left in range(top, count, _TILE):
            yield every[top : top + _TILE], every[left : left + _TILE]


def _tree(low: Floats, seed: int, leaf: int = _LEAF) -> Iterator[tuple[Rows, Rows]]:
    """Yield the leaves of a random projection tree, each paired with itself.

    A split direction is a random linear combination of images in the node, so it follows the spread of the data. Along
    such directions two copies are close relative to the other images. Splits are at the median, so building a tree
    over n images takes O(n log n) time.
    """
    draws = np.random.default_rng(seed)
    waiting = [np.arange(len(low))]
    while waiting:
        here = waiting.pop()
        if len(here) <= leaf:
            yield here, here
            continue
        some = low[here[draws.integers(0, len(here), _DRAWN)]]
        direction = draws.normal(0, 1, _DRAWN).astype(np.float32) @ (some - some.mean(0))
        along, half = low[here] @ direction, len(here) // 2
        middle = np.partition(along, half)[half]
        first = along < middle
        first[np.flatnonzero(along == middle)[: half - np.count_nonzero(first)]] = True
        waiting += [here[first], here[~first]]  # indices stay sorted, so rows are read in memory order


def _of_trees(low: Floats) -> Rows:
    """Candidate pairs of all trees, encoded as in `_candidates`, limited to the nearest few of each image.

    Among a million images, nearly every image reaches the candidate limit in each leaf. Without the second selection
    there would be several times as many pairs to align.
    """
    pairs, close = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for seed in range(_TREES):
        further, nearness = _candidates(low, _tree(low, seed), _BEST_IN_A_LEAF)
        pairs, first = np.unique(np.concatenate([pairs, further]), return_index=True)
        close = np.concatenate([close, nearness])[first]
        if seed % _CHOSEN_AFTER == _CHOSEN_AFTER - 1:
            kept = _among_the_best(pairs, close, len(low))
            pairs, close = pairs[kept], close[kept]
    return pairs


def _among_the_best(pairs: Rows, close: Floats, count: int) -> NDArray[np.bool_]:
    """bool (m,): which pairs are among the `_BEST_OF_ALL` closest of either image."""
    best = _best_of_each(np.concatenate(np.divmod(pairs, count)), np.tile(close, 2), _BEST_OF_ALL)
    kept = np.zeros(len(pairs), bool)
    kept[best % max(1, len(pairs))] = True
    return kept


def _best_of_each(photo: Rows, close: Floats, most: int) -> Rows:
    """Indices of the `most` closest entries of each image, ordered by image.

    Args:
        photo: Image index of each entry, int64 (m,), below 2^32.
        close: Cosine similarity of each entry, float32 (m,), positive.
        most: Maximum number of entries per image.
    """
    # Positive floats sort like their bit patterns, so image and closeness fit into one uint64 key. Sorting by one key
    # is three times as fast as by two.
    key = (photo.astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - close.view(np.uint32))
    order = np.argsort(key, kind="stable")
    photo = photo[order]
    return order[np.arange(len(photo)) - np.searchsorted(photo, photo) < most]


def _candidates(low: Floats, leaves: Iterator[tuple[Rows, Rows]], most: int) -> tuple[Rows, Floats]:
    """Find pairs with a cosine similarity of at least `NEAR_COSINE` within the given blocks.

    Args:
        low: Unit vectors, float32 (n, 64).
        leaves: Row and column indices of each block to compare.
        most: Maximum number of pairs per row in a block.

    Returns:
        Unique pairs, encoded as `first * n + second` with first < second, int64 (m,), and their cosines, float32 (m,).
    """

    def of_leaf(leaf: tuple[Rows, Rows]) -> tuple[Rows, Floats]:
        these, those = leaf
        one = low[these]
        same = these[0] == those[0]
        i, j, close = _closest(one @ (one if same else low[those]).T, most, same)
        return these[i] * len(low) + those[j], close

    pairs, nearness = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    with _one_thread_each():
        for some, close in map_threads(of_leaf, leaves):
            pairs.append(some)
            nearness.append(close)
    every, first = np.unique(np.concatenate(pairs), return_index=True)
    return every, np.concatenate(nearness)[first]


def _closest(close: Floats, most: int, same: bool) -> tuple[Rows, Rows, Floats]:
    """Row, column and cosine of the `most` closest entries of each row, at or above `NEAR_COSINE`.

    Taking the row maximum repeatedly costs a fifth of sorting all near entries, which are many in a large data set of
    similar images.

    Args:
        close: Cosine similarities, float32 (rows, columns). Overwritten.
        most: Maximum number of entries per row.
        same: Whether rows and columns are the same images; then only entries above the diagonal are used.
    """
    if same:
        close += _never_again(len(close))
    rows = np.arange(len(close))
    found = []
    for _ in range(most):
        column = close.argmax(1)
        each = np.arange(len(close))
        value = close[each, column]
        near = value >= NEAR_COSINE
        found.append((rows[near], column[near], value[near]))
        close[each, column] = -1
        if 2 * near.sum() < len(near):  # most images have no near ones, so shrinking the matrix pays off
            close, rows = close[near], rows[near]
        if not near.any():
            break
    i, j, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, cosine


@lru_cache(4)
def _never_again(size: int) -> Floats:
    """float32 (size, size): -4 on and below the diagonal, else 0, to exclude self-pairs and mirrored pairs."""
    return np.tril(np.full((size, size), -4, np.float32))


def _laid_over(grey_a: NDArray[np.uint8], grey_b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool (n,): which images of `grey_a` equal those of `grey_b` after alignment; both uint8 (n, 32, 32)."""
    alike = np.zeros(len(grey_a), bool)
    left = np.arange(len(grey_a))
    moved = np.zeros((len(left), 4), np.float32)
    for step in range(_STEPS):
        if not len(left):
            break
        a, b = grey_a[left].astype(np.float32), grey_b[left].astype(np.float32)
        explained, rest, gain, further = _step(_warped(a, moved) if step else a, b)
        near = np.abs(moved + further).max(1) <= _MOVED * a.shape[1] / 2
        found = (explained >= NEAR_EXPLAINED) & (rest <= NEAR_REST) & near & (gain >= _GAIN[0]) & (gain <= _GAIN[1])
        alike[left[found]] = True
        # A pair that is poorly explained after one step is not a copy; only the other pairs get a further step.
        go_on = ~found & (explained >= _WORTH_A_STEP)
        moved = (moved + further / np.maximum(gain[:, None], 0.3)).clip(-2.5, 2.5)[go_on]
        left = left[go_on]
    return alike


def aligned_mask(pairs: Pairs, grey: NDArray[np.uint8], thumb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Test given pairs with the criteria of `find_cropped_duplicates`.

    Args:
        pairs: Indices, int64 (m, 2).
        grey: Luma of all images, uint8 (n, 32, 32).
        thumb: Color thumbnails of all images, uint8 (n, 8, 8, 3).

    Returns:
        Which pairs pass, bool (m,).
    """
    rows, place = np.unique(pairs, return_inverse=True)
    one, two = place.reshape(-1, 2).T
    low, tint = _low_frequencies(grey, rows), _tints(thumb, rows)
    contrast = _contrast(grey, rows) >= _FLAT
    same = contrast[one] & contrast[two]
    for start in range(0, len(pairs), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        same[some] &= (low[one[some]] * low[two[some]]).sum(1) >= NEAR_COSINE
        same[some] &= np.abs(tint[one[some]] - tint[two[some]]).max(1) <= NEAR_TINT * _TINT_UNIT
    asked = np.flatnonzero(same)

    def alike(start: int) -> NDArray[np.bool_]:
        first, second = pairs[asked[start : start + _AT_ONCE]].T
        return _laid_over(grey[first], grey[second])

    with _one_thread_each():
        found = list(map_threads(alike, range(0, len(asked), _AT_ONCE)))
    same[asked] = np.concatenate([np.zeros(0, bool), *found])
    return same


def residuals(pairs: Pairs, grey: NDArray[np.uint8]) -> Floats:
    """Root-mean-square residual of each pair after alignment, in gray levels.

    Args:
        pairs: Indices, int64 (m, 2).
        grey: Luma of all images, uint8 (n, 32, 32).

    Returns:
        float32 (m, 2). The first column is the smallest residual over 16 x 16 cells in three alignment steps, the
        second one the residual over 32 x 32 pixels at that alignment. Infinite if no step gives an alignment within
        the limits on displacement and gain.
    """

    def left(start: int) -> Floats:
        first, second = pairs[start : start + _AT_ONCE].T
        a, b = grey[first].astype(np.float32), grey[second].astype(np.float32)
        coarse = np.full(len(a), np.inf, np.float32)
        moved, best = np.zeros((2, len(a), 4), np.float32)
        for step in range(_STEPS):
            _, rest, gain, further = _step(_warped(a, moved) if step else a, b)
            near = np.abs(moved + further).max(1) <= _MOVED * a.shape[1] / 2
            allowed = near & (gain >= _GAIN[0]) & (gain <= _GAIN[1])
            moved = (moved + further / np.maximum(gain[:, None], 0.3)).clip(-2.5, 2.5)
            better = allowed & (rest < coarse)
            coarse[better], best[better] = rest[better], moved[better]
        fine = np.where(np.isfinite(coarse), _rest(_warped(a, best), b), np.inf)
        return np.stack([coarse, fine], 1).astype(np.float32)

    with _one_thread_each():
        found = list(map_threads(left, range(0, len(pairs), _AT_ONCE)))
    return np.concatenate([np.zeros((0, 2), np.float32), *found])


def _rest(a: Floats, b: Floats) -> Floats:
    """Root-mean-square residual of b after the best gain and offset of a, float32 (n,)."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    gain = ((a * b).sum(1) / np.maximum((a * a).sum(1), 1e-3)).clip(*_GAIN)
    return np.asarray(np.sqrt(((b - gain[:, None] * a) ** 2).mean(1)))


def _step(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Do one Gauss-Newton step: fit b by gain, offset, shift and scale of a, by least squares over 16 x 16 cells.

    Args:
        a: Gray levels, float32 (n, 32, 32).
        b: Gray levels, float32 (n, 32, 32).

    Returns:
        Share of variance explained (n,), root-mean-square residual (n,), gain (n,), and the change of shift x, scale x,
        shift y and scale y (n, 4), multiplied by the gain.
    """
    n, side = len(a), a.shape[1]
    half = side // 2
    right, left = _halving(side)
    aim = (left[:half] @ (b.reshape(-1, side) @ right[:, :half]).reshape(n, side, half)).reshape(n, -1)
    turned = (a.reshape(-1, side) @ right).reshape(n, side, 3 * half)
    d = np.ones((n, 6, half, half), np.float32)  # a, 1, dx, x * dx, dy, y * dy
    d[:, 0], d[:, 2], d[:, 3] = np.split(left[:half] @ turned, 3, 2)
    d[:, 4], d[:, 5] = np.split(left[half:] @ turned[:, :, :half], 2, 1)
    d = d.reshape(n, 6, half * half)
    normal = d @ d.transpose(0, 2, 1) + np.diag([1e-2, 1e-2, 50, 50, 50, 50]).astype(np.float32)
    p = np.linalg.solve(normal, d @ aim[..., None])[:, :, 0]
    rest = ((aim - (p[:, None] @ d)[:, 0]) ** 2).mean(1)
    return 1 - rest / np.maximum(aim.var(1), 1e-6), np.sqrt(rest), p[:, 0], p[:, 2:]


@lru_cache(1)
def _halving(side: int) -> tuple[Floats, Floats]:
    """Matrices that downsample by 2 the image, its gradient, and its gradient times the coordinate.

    Gradients are those of `numpy.gradient`.

    Returns:
        right: float32 (side, 3 * side / 2), applied to columns.
        left: float32 (3 * side / 2, side), applied to rows.
    """
    pool = np.kron(np.eye(side // 2), np.full((1, 2), 0.5))
    slope = np.gradient(np.eye(side), axis=0)
    left = np.concatenate([pool, pool @ slope, pool @ (_across(side)[:, None] * slope)]).astype(np.float32)
    return np.ascontiguousarray(left.T), left


def _across(side: int) -> Floats:
    """Coordinates of the pixel centers in -1 to 1, float32 (side,)."""
    place: Floats = np.linspace(1 / side - 1, 1 - 1 / side, side, dtype=np.float32)
    return place


def _warped(a: Floats, moved: Floats) -> Floats:
    """Shift and scale images; a: (n, side, side); moved: (n, 4), shift x, scale x, shift y, scale y, in pixels."""
    across = _across(a.shape[1])
    wide = _weights(moved[:, 0], moved[:, 1], across)
    tall = _weights(moved[:, 2], moved[:, 3], across)
    return np.asarray(tall @ a @ wide.transpose(0, 2, 1), np.float32)


def _weights(shift: Floats, scale: Floats, across: Floats) -> Floats:
    """Linear interpolation matrices, float32 (n, side, side)."""
    side = len(across)
    where = np.clip(np.arange(side) + shift[:, None] + scale[:, None] * across, 0, side - 1).astype(np.float32)
    return np.maximum(0, 1 - np.abs(where[:, :, None] - np.arange(side, dtype=np.float32)))


def _tints(thumb: NDArray[np.uint8], rows: Rows) -> NDArray[np.int16]:
    """Color minus gray of 4 x 4 cells, int16 (len(rows), 48), exact in units of 1 / `_TINT_UNIT` gray level."""
    out = np.empty((len(rows), 48), np.int16)
    for start in range(0, len(rows), _AT_ONCE):
        some = thumb[rows[start : start + _AT_ONCE]].astype(np.int16)
        cells = some[:, ::2, ::2] + some[:, 1::2, ::2] + some[:, ::2, 1::2] + some[:, 1::2, 1::2]
        cells = 3 * cells - cells.sum(-1, keepdims=True, dtype=np.int16)
        out[start : start + len(some)] = cells.reshape(len(some), 48)
    return out
