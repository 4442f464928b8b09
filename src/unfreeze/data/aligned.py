"""The same photo cropped, resized or brightened: found by laying one over the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from unfreeze.core.work import in_threads

Pairs = NDArray[np.int64]
Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

# Cosine of low frequencies from which two photos are laid over each other. A crop of 3 % off every side leaves .87 in
# 99 of 100 real photos.
NEAR_COSINE = 0.86
# Share of one photo's variance that the other explains once shifted, scaled and brightened. Of planted copies 97 in
# 100 reach it, of the likeliest others 1 in 100 (benchmarks/checking.py).
NEAR_EXPLAINED = 0.985
# And what remains: root mean square of grey levels, and the largest colour difference of any of 4 x 4 cells, 0-255:
# a person who has put on another mask is another photo. Of planted copies 99 in 100 stay below 13.
NEAR_REST = 6.0
NEAR_TINT = 15.0
# Photos flatter than this (deviation of grey levels) say too little to be laid over each other.
_FLAT = 8.0
_GAIN = (0.7, 1.45)
_MOVED = 0.16  # of the side: a crop moves an edge no further
_TINT_UNIT = 12  # of four pixels' sum, times three channels
_FREQUENCIES = 64
_TILE = 2048
_BEST = 8  # candidates of a photo in a tile of others: a burst is still tied together, photo by photo
# Photos up to which all are compared with all; above, only within the leaves of some trees.
_ALL = 30_000
_TREES = 8
_CHOSEN_AFTER = 4  # trees: choosing takes a sort, and all pairs of eight trees some memory
_LEAF = 1024
_BEST_IN_A_LEAF = 3
_BEST_OF_ALL = 4  # of the eight trees' together
_DRAWN = 256
_AT_ONCE = 512
_STEPS = 3
_WORTH_A_STEP = 0.85


def aligned_duplicates(grey: NDArray[np.uint8], thumb: NDArray[np.uint8], usable: NDArray[np.bool_]) -> Pairs:
    """Pairs (m, 2), int64, first < second, of photos that are one photo but for a small crop, size or brightness.

    grey: uint8 (n, 32, 32), thumb: uint8 (n, 8, 8, 3), of whole photos pressed into squares. Candidates are those
    whose 64 lowest cosine frequencies point the same way, compared tile by tile: never more than 2048 x 2048 at a
    time, and at most 8 a photo and tile are taken further. Above 30,000 photos not all tiles are compared, which would
    cost squares, but the leaves of eight random projection trees (Dasgupta & Freund 2008), at most 3 a photo and leaf
    and then the nearest 4 of a photo: of 1,513 pairs among 3,166 real photos and their planted crops, trees of the
    depth that a million photos need found 99 in 100, the same ones each time. A candidate is laid over the other by two
    steps of Gauss and Newton over shift and scale of both axes, gain and offset (Lucas & Kanade 1981; Baker & Matthews
    2004).
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
        found = list(in_threads(alike, range(0, len(likely), _AT_ONCE)))
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)


def _one_thread_each() -> threadpool_limits:
    """Of BLAS: such small products gain nothing from threads that wait for each other."""
    return threadpool_limits(1, user_api="blas")


def _contrast(grey: NDArray[np.uint8], rows: Rows) -> Floats:
    """Deviation of each photo's grey levels, float32 (len(rows),)."""
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        out[start : start + len(some)] = grey[some].reshape(len(some), -1).std(1)
    return out


def _low_frequencies(grey: NDArray[np.uint8], rows: Rows) -> Floats:
    """Unit vectors of the lowest cosine frequencies without the constant, float32 (len(rows), 64)."""
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
    """Every pair of tiles, a tile with itself once."""
    every = np.arange(count)
    for top in range(0, count, _TILE):
        for left in range(top, count, _TILE):
            yield every[top : top + _TILE], every[left : left + _TILE]


def _tree(low: Floats, seed: int, leaf: int = _LEAF) -> Iterator[tuple[Rows, Rows]]:
    """The leaves of a tree that halves the photos along random directions, each leaf with itself.

    A direction is drawn as the photos at hand spread (a random combination of some of them), for along those two
    copies lie closest in comparison with the rest. Halves are equal, so that n photos cost n log n.
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
        waiting += [here[first], here[~first]]  # in order, so that rows are read along the memory


def _of_trees(low: Floats) -> Rows:
    """The pairs of all trees, numbered as `_candidates` does; of each photo the nearest few.

    In a million photos nearly every one has as many near ones in each leaf as are taken: without the second choice
    there would be several times as many to lay over each other.
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
    """bool (m,): which pairs are among the `_BEST_OF_ALL` closest of either photo."""
    best = _best_of_each(np.concatenate(np.divmod(pairs, count)), np.tile(close, 2), _BEST_OF_ALL)
    kept = np.zeros(len(pairs), bool)
    kept[best % max(1, len(pairs))] = True
    return kept


def _best_of_each(photo: Rows, close: Floats, most: int) -> Rows:
    """Places of the `most` closest of each photo, photo by photo. photo: (m,), under 2^32; close: (m,), positive."""
    # One key, photo before closeness (positive floats are in the order of their bits), sorts thrice as fast as two.
    key = (photo.astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - close.view(np.uint32))
    order = np.argsort(key, kind="stable")
    photo = photo[order]
    return order[np.arange(len(photo)) - np.searchsorted(photo, photo) < most]


def _candidates(low: Floats, leaves: Iterator[tuple[Rows, Rows]], most: int) -> tuple[Rows, Floats]:
    """Pairs that point the same way, each once, as `first * len(low) + second` of places in `low`, first < second; and
    their cosines. At most `most` of each first one in a leaf."""

    def of_leaf(leaf: tuple[Rows, Rows]) -> tuple[Rows, Floats]:
        these, those = leaf
        one = low[these]
        same = these[0] == those[0]
        i, j, close = _closest(one @ (one if same else low[those]).T, most, same)
        return these[i] * len(low) + those[j], close

    pairs, nearness = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    with _one_thread_each():
        for some, close in in_threads(of_leaf, leaves):
            pairs.append(some)
            nearness.append(close)
    every, first = np.unique(np.concatenate(pairs), return_index=True)
    return every, np.concatenate(nearness)[first]


def _closest(close: Floats, most: int, same: bool) -> tuple[Rows, Rows, Floats]:
    """Row, column and cosine of the `most` closest from `NEAR_COSINE` of each row. Overwrites close.

    same: rows and columns are the same photos, and only columns after the row count. The largest of each row again and
    again costs a fifth of sorting all that are near: in a large table of like photos those are many.
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
        if 2 * near.sum() < len(near):  # what is left is small: most photos have no near ones at all
            close, rows = close[near], rows[near]
        if not near.any():
            break
    i, j, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, cosine


@lru_cache(4)
def _never_again(size: int) -> Floats:
    """-4 in and below the diagonal, else 0: takes what is a pair already out of the choice. (size, size)."""
    return np.tril(np.full((size, size), -4, np.float32))


def _laid_over(grey_a: NDArray[np.uint8], grey_b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool (n,): which a is b once moved and brightened."""
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
        # One step goes straight; what it explains badly is another photo, and the rest gets another step.
        go_on = ~found & (explained >= _WORTH_A_STEP)
        moved = (moved + further / np.maximum(gain[:, None], 0.3)).clip(-2.5, 2.5)[go_on]
        left = left[go_on]
    return alike


def _step(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """b as gain * a + offset + small moves of a, by least squares over 16 x 16 cells.

    Returns the share of variance explained, the root mean square left, gain, and the moves (n, 4).
    """
    n, side = len(a), a.shape[1]
    half = side // 2
    right, left = _halving(side)
    aim = (left[:half] @ (b.reshape(-1, side) @ right[:, :half]).reshape(n, side, half)).reshape(n, -1)
    turned = (a.reshape(-1, side) @ right).reshape(n, side, 3 * half)
    d = np.ones((n, 6, half, half), np.float32)  # a, one, dx, across * dx, dy, across * dy
    d[:, 0], d[:, 2], d[:, 3] = np.split(left[:half] @ turned, 3, 2)
    d[:, 4], d[:, 5] = np.split(left[half:] @ turned[:, :, :half], 2, 1)
    d = d.reshape(n, 6, half * half)
    normal = d @ d.transpose(0, 2, 1) + np.diag([1e-2, 1e-2, 50, 50, 50, 50]).astype(np.float32)
    p = np.linalg.solve(normal, d @ aim[..., None])[:, :, 0]
    rest = ((aim - (p[:, None] @ d)[:, 0]) ** 2).mean(1)
    return 1 - rest / np.maximum(aim.var(1), 1e-6), np.sqrt(rest), p[:, 0], p[:, 2:]


@lru_cache(1)
def _halving(side: int) -> tuple[Floats, Floats]:
    """What halves a photo's sides, alone, after its slope, and after its slope times the place across: as products.

    right (side, 3 * side / 2) for columns, left (3 * side / 2, side) for rows. Slopes are those of `numpy.gradient`.
    """
    pool = np.kron(np.eye(side // 2), np.full((1, 2), 0.5))
    slope = np.gradient(np.eye(side), axis=0)
    left = np.concatenate([pool, pool @ slope, pool @ (_across(side)[:, None] * slope)]).astype(np.float32)
    return np.ascontiguousarray(left.T), left


def _across(side: int) -> Floats:
    """Place of each pixel, -1 to 1."""
    place: Floats = np.linspace(1 / side - 1, 1 - 1 / side, side, dtype=np.float32)
    return place


def _warped(a: Floats, moved: Floats) -> Floats:
    """a, shifted and scaled along x and y: moved (n, 4) = shift x, scale x, shift y, scale y, in pixels."""
    across = _across(a.shape[1])
    wide = _weights(moved[:, 0], moved[:, 1], across)
    tall = _weights(moved[:, 2], moved[:, 3], across)
    return np.asarray(tall @ a @ wide.transpose(0, 2, 1), np.float32)


def _weights(shift: Floats, scale: Floats, across: Floats) -> Floats:
    """Linear interpolation as matrices, float32 (n, side, side)."""
    side = len(across)
    where = np.clip(np.arange(side) + shift[:, None] + scale[:, None] * across, 0, side - 1).astype(np.float32)
    return np.maximum(0, 1 - np.abs(where[:, :, None] - np.arange(side, dtype=np.float32)))


def _tints(thumb: NDArray[np.uint8], rows: Rows) -> NDArray[np.int16]:
    """Colours less their grey of 4 x 4 cells, in units of 1 / `_TINT_UNIT` of a grey level, (len(rows), 48): exact."""
    out = np.empty((len(rows), 48), np.int16)
    for start in range(0, len(rows), _AT_ONCE):
        some = thumb[rows[start : start + _AT_ONCE]].astype(np.int16)
        cells = some[:, ::2, ::2] + some[:, 1::2, ::2] + some[:, ::2, 1::2] + some[:, 1::2, 1::2]
        cells = 3 * cells - cells.sum(-1, keepdims=True, dtype=np.int16)
        out[start : start + len(some)] = cells.reshape(len(some), 48)
    return out
