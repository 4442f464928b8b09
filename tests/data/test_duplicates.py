"""Duplicates against brute force, and the groups that they tie together."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.data import duplicates
from unfreeze.data.duplicates import NEAR_BITS, NEAR_COLOUR, connected_groups, exact_duplicates, near_duplicates


def random_looks(n, draw):
    hashes = draw.integers(0, 2**64, (n, 4), dtype=np.uint64)
    return hashes, draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def flip(words, bits, draw):
    """The hash with `bits` of its 256 bits turned over."""
    words = words.copy()
    for bit in draw.choice(256, bits, replace=False).tolist():
        words[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return words


def brute(hashes, thumbs, usable):
    pairs = []
    for a, b in itertools.combinations(np.flatnonzero(usable).tolist(), 2):
        bits = sum(int(x ^ y).bit_count() for x, y in zip(hashes[a].tolist(), hashes[b].tolist(), strict=True))
        colour = np.abs(thumbs[a].astype(int) - thumbs[b].astype(int)).mean()
        if bits <= NEAR_BITS and colour <= NEAR_COLOUR:
            pairs.append([a, b])
    return pairs


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_near_against_brute_force(seed):
    """Copies with 0 to 20 changed bits and a little other color, on both sides of the limits; some unusable."""
    draw = np.random.default_rng(seed)
    hashes, thumbs = random_looks(12, draw)
    thumbs = thumbs // 2 + 60
    for original in draw.integers(0, 12, 40):
        hashes = np.vstack([hashes, flip(hashes[original], int(draw.integers(0, 21)), draw)[None]])
        shift = np.uint8(draw.integers(0, 10))
        thumbs = np.concatenate([thumbs, thumbs[original][None] + shift])
    usable = draw.random(len(hashes)) < 0.9
    assert near_duplicates(hashes, thumbs, usable).tolist() == brute(hashes, thumbs, usable)


def test_a_long_burst_is_one_group():
    """300 frames of one scene: every band is crowded, and yet they must not be torn apart."""
    draw = np.random.default_rng(0)
    hashes, thumbs = random_looks(301, draw)
    for i in range(300):
        hashes[i] = flip(hashes[0], int(draw.integers(0, 5)), draw)
        thumbs[i] = thumbs[0]
    groups = connected_groups(np.arange(301), near_duplicates(hashes, thumbs, np.ones(301, bool)))
    assert len(set(groups[:300])) == 1
    assert groups[300] not in groups[:300]


def test_plain_photos_of_many_colors():
    """One hash, 200 photos in two colors that interleave: two groups, whichever comes first."""
    hashes, thumbs = np.zeros((200, 4), np.uint64), np.zeros((200, 8, 8, 3), np.uint8)
    thumbs[1::2] = 200
    groups = connected_groups(np.arange(200), near_duplicates(hashes, thumbs, np.ones(200, bool)))
    assert len(set(groups[::2])) == len(set(groups[1::2])) == 1
    assert groups[0] != groups[1]


def test_nothing_usable():
    hashes, thumbs = random_looks(3, np.random.default_rng(0))
    for n in (0, 3):
        none = np.zeros(n, bool)
        assert near_duplicates(hashes[:n], thumbs[:n], none).shape == (0, 2)
        assert exact_duplicates(hashes[:n, :2], none).shape == (0, 2)


def test_exact():
    keys = np.array([[1, 2], [3, 4], [1, 2], [0, 0], [0, 0], [1, 2]], np.uint64)
    usable = np.array([1, 1, 1, 0, 0, 1], bool)
    assert exact_duplicates(keys, usable).tolist() == [[0, 2], [0, 5]]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20), st.data())
def test_joining_against_union_find(groups, data):
    index = st.integers(0, len(groups) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), max_size=8))
    found = connected_groups(np.array(groups, object), np.array(pairs, np.int64).reshape(-1, 2))
    root = {name: name for name in groups}

    def top(name):
        return name if root[name] == name else top(root[name])

    for a, b in pairs:
        root[top(groups[a])] = top(groups[b])
    for a, b in itertools.product(range(len(groups)), repeat=2):
        assert (found[a] == found[b]) == (top(groups[a]) == top(groups[b]))


def test_256_ties_between_two_groups():
    """Counted in eight bits they would cancel out."""
    groups = np.repeat([0, 1], 256)
    pairs = np.stack([np.arange(256), np.arange(256, 512)], 1)
    assert len(set(connected_groups(groups, pairs))) == 1
    assert len(set(connected_groups(groups))) == 2


def test_speed():
    hashes, thumbs = random_looks(20_000, np.random.default_rng(0))
    usable = np.ones(20_000, bool)
    started = time.perf_counter()
    assert len(near_duplicates(hashes, thumbs, usable)) == 0
    hashes[:, 0] = 0  # four bands that all share
    near_duplicates(hashes, thumbs, usable)
    hashes[:] = 0
    thumbs[:] = 0
    assert len(set(connected_groups(np.arange(20_000), near_duplicates(hashes, thumbs, usable)))) == 1
    assert time.perf_counter() - started < 8


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10_000))
def test_two_bands_together_find_what_one_band_finds(seed):
    """As for more than 2,000,000 photos: up to NEAR_BITS bits that differ leave two bands of sixteen whole."""
    draw = np.random.default_rng(seed)
    hashes, thumbs = random_looks(60, draw)
    for i in range(30):
        hashes[30 + i] = flip(hashes[i], draw.integers(0, NEAR_BITS + 3), draw)
        thumbs[30 + i] = thumbs[i]
    usable = draw.random(60) < 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ONE_BAND", 0)
        assert near_duplicates(hashes, thumbs, usable).tolist() == brute(hashes, thumbs, usable)


def test_bits_spread_over_as_many_bands_as_can_be():
    """The hardest case: fourteen bits, each in a band of its own."""
    draw = np.random.default_rng(0)
    hashes, thumbs = random_looks(2, draw)
    words = hashes[:1].view(np.uint16).copy()
    words[0, :NEAR_BITS] ^= np.uint16(1)
    hashes[1], thumbs[1] = words.view(np.uint64)[0], thumbs[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ONE_BAND", 0)
        assert near_duplicates(hashes, thumbs, np.ones(2, bool)).tolist() == [[0, 1]]
