"""The rotation changes nothing: Gram matrices, logits, memory or file, cached or not; held-out rows have no part."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.features.matrix import signed_root
from unfreeze.training.linear_probe import projection as module
from unfreeze.training.linear_probe.projection import fit_projection, moments

N = 40
BLOCKS = (("a", 6), ("b", 10))


def table(width, n=N, seed=0):
    """Features (n, width) as float16 keeps them: some negative, one dead column, unequal scales."""
    draw = np.random.default_rng(seed)
    x = draw.normal(0.5, 1, (n, width)) * draw.uniform(0.2, 5, width)
    x[:, 3] = 0.25
    return x.astype(np.float16).astype(np.float32)


def folds_of(n=N, outside=4):
    folds = np.arange(n) % 4
    folds[:outside] = -1
    return folds


def standardised_by_hand(x, train, blocks):
    """(x', mean, scale) in float64 from numpy alone."""
    z = np.sign(x.astype(np.float64)) * np.sqrt(np.abs(x.astype(np.float64)))
    mean, deviation = z[train].mean(0), z[train].std(0)
    scale, start = np.empty_like(mean), 0
    for _, width in blocks:
        part = deviation[start : start + width]
        floored = np.maximum(part, 0.05 * np.sqrt((part**2).mean()))
        scale[start : start + width] = 1 / floored / np.sqrt(width * len(blocks))
        start += width
    return (z - mean) * scale, mean, scale


def turn(features, folds, fold, tmp_path, identity="x", seed=0):
    return fit_projection(
        features,
        moments(features, folds, 4),
        folds,
        fold,
        seed,
        identity,
        tmp_path / "scratch" / f"coordinates-{fold}.npy",
    )


def blocks_for(width):
    return BLOCKS if width == 16 else (("a", 20), ("b", width - 20))


def test_signed_root():
    x = np.array([[-4.0, 0.0, 9.0, -0.25]], np.float32)
    assert signed_root(x).tolist() == [[-2.0, 0.0, 3.0, -0.5]]


@pytest.mark.parametrize("width", [16, 90], ids=["primal", "dual"])
def test_coordinates_have_the_gram_matrix_of_standardised_features(store_features, fresh_cache, tmp_path, width):
    x, folds = table(width), folds_of()
    features = store_features(x, blocks_for(width))
    rotation = turn(features, folds, 1, tmp_path)
    train = np.flatnonzero((folds >= 0) & (folds != 1))
    z, mean, scale = standardised_by_hand(x, train, blocks_for(width))
    assert (rotation.landmarks is None) == (width == 16)
    assert np.array_equal(rotation.train, train)
    np.testing.assert_allclose(rotation.mean, mean, atol=1e-5)
    np.testing.assert_allclose(rotation.deviation, scale, rtol=1e-4)
    c = rotation.coordinates.astype(np.float64)
    # Between training rows, and between them and held-out rows: all that a linear head with an L2 penalty can see.
    inside = np.flatnonzero(folds >= 0)
    np.testing.assert_allclose(c[inside] @ c[train].T, z[inside] @ z[train].T, atol=2e-5)
    np.testing.assert_allclose(rotation.scale, (c[train] ** 2).mean(0), rtol=1e-3, atol=1e-7)
    assert rotation.coordinates.shape[1] <= min(width, len(train))
    # Rotated, not only transformed: the columns are uncorrelated over the training rows.
    gram = c[train].T @ c[train]
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-4 * gram.max()


def test_blocks_weigh_the_same(store_features, fresh_cache, tmp_path):
    """Ten times as many columns in a block do not give it ten times the say; deviations of 1 put the mean norm at 1."""
    folds = folds_of(outside=0)
    x = np.random.default_rng(0).normal(size=(N, 66)).astype(np.float32)
    features = store_features(x, (("small", 6), ("large", 60)))
    rotation = turn(features, folds, 1, tmp_path)
    z = (signed_root(features.read(rotation.train)) - rotation.mean) * rotation.deviation
    assert (z[:, :6] ** 2).sum(1).mean() == pytest.approx(0.5, rel=1e-3)
    assert (z[:, 6:] ** 2).sum(1).mean() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("width", [16, 90], ids=["primal", "dual"])
def test_unfolded_weights_give_the_logits_of_coordinates(store_features, fresh_cache, tmp_path, width):
    features, folds = store_features(table(width), blocks_for(width)), folds_of()
    rotation = turn(features, folds, 2, tmp_path)
    draw = np.random.default_rng(1)
    weight = draw.normal(size=(rotation.coordinates.shape[1], 3)).astype(np.float32)
    bias = draw.normal(size=3).astype(np.float32)
    raw, raw_bias = rotation.unfold(features, weight, bias)
    inside = np.flatnonzero(folds >= 0)
    found = signed_root(features.read(inside)) @ raw + raw_bias
    np.testing.assert_allclose(found, rotation.coordinates[inside] @ weight + bias, atol=1e-3)
    assert raw.shape == (width, 3)


@pytest.mark.parametrize("width", [16, 90], ids=["primal", "dual"])
def test_held_out_rows_change_nothing(store_features, fresh_cache, tmp_path, width):
    """Other features in the outer fold and outside all folds: the same mean, scale, axes, and training coordinates."""
    x, folds, fold = table(width), folds_of(), 3
    other = x.copy()
    held = np.flatnonzero((folds == fold) | (folds < 0))
    other[held] = 7 * np.random.default_rng(5).normal(size=other[held].shape)
    a, b = (
        turn(store_features(v, blocks_for(width)), folds, fold, tmp_path, identity)
        for v, identity in ((x, "a"), (other, "b"))
    )
    # Not bitwise: the held-out fold's sums are added and taken away again.
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-5)
    np.testing.assert_allclose(a.deviation, b.deviation, rtol=1e-4)
    gram = [r.coordinates[r.train] @ r.coordinates[r.train].T for r in (a, b)]
    np.testing.assert_allclose(*gram, atol=1e-4)


def test_rows_outside_all_folds_are_left_zero(store_features, fresh_cache, tmp_path):
    folds = folds_of()
    rotation = turn(store_features(table(90), blocks_for(90)), folds, 0, tmp_path)
    assert not rotation.coordinates[folds < 0].any()
    assert rotation.coordinates[folds == 0].any(1).all()
    assert not set(np.flatnonzero(folds < 0)) & set(rotation.train)


def test_moments_are_of_each_fold(store_features, monkeypatch):
    x, folds = table(16), folds_of()
    monkeypatch.setattr(module, "_PIECE", 3)
    found = moments(store_features(x), folds, 4)
    z = np.sign(x) * np.sqrt(np.abs(x))
    assert found.count.tolist() == [9.0] * 4
    np.testing.assert_allclose(found.total, [z[folds == f].sum(0) for f in range(4)], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.square, [(z[folds == f] ** 2).sum(0) for f in range(4)], rtol=1e-5)


def test_landmarks_come_close_to_exact(store_features, fresh_cache, tmp_path, monkeypatch):
    """Features of low rank, as a network's are: half of the rows as landmarks keep nearly all."""
    draw = np.random.default_rng(0)
    n, width = 160, 200
    x = (draw.normal(size=(n, 10)) @ draw.normal(size=(10, width)) + 4).astype(np.float16)
    features, folds = store_features(x), np.arange(n) % 4
    exact = turn(features, folds, 0, tmp_path)
    monkeypatch.setattr(module, "LANDMARKS", 60)
    near = turn(features, folds, 0, tmp_path)
    assert len(near.landmarks) == 60
    assert set(near.landmarks) < set(near.train)
    assert near.coordinates.shape[1] <= 60
    g, h = (r.coordinates @ r.coordinates[r.train].T for r in (exact, near))
    assert np.linalg.norm(g - h) < 0.1 * np.linalg.norm(g)
    # The unfolded weight still says what the coordinates say, for landmarks and others alike.
    weight = draw.normal(size=(near.coordinates.shape[1], 2)).astype(np.float32)
    raw, bias = near.unfold(features, weight, np.zeros(2, np.float32))
    found = signed_root(features.read(np.arange(n))) @ raw + bias
    expected = near.coordinates @ weight
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()
    again = turn(features, folds, 0, tmp_path, identity="another")
    assert np.array_equal(near.landmarks, again.landmarks)
    assert not np.array_equal(near.landmarks, turn(features, folds, 0, tmp_path, seed=1).landmarks)


@pytest.mark.parametrize("width", [16, 90], ids=["primal", "dual"])
def test_large_coordinates_go_to_a_file_and_are_the_same(store_features, fresh_cache, tmp_path, monkeypatch, width):
    features, folds = store_features(table(width), blocks_for(width)), folds_of()
    small = turn(features, folds, 1, tmp_path, "small")
    monkeypatch.setattr(module, "_KEPT_BYTES", 1000)
    large = turn(features, folds, 1, tmp_path, "large")
    assert isinstance(large.coordinates, np.memmap)
    assert (tmp_path / "scratch" / "coordinates-1.npy").is_file()
    every = np.arange(N)
    assert np.array_equal(small.of(every), large.of(every))
    places = large.places[large.train]
    assert np.ptp(places) == len(places) - 1 + (folds == 1).sum(), "folds lie side by side"
    assert len(list((fresh_cache / "rotations").iterdir())) == 1  # the large one is not kept


def test_pieces_change_nothing_that_counts(store_features, fresh_cache, tmp_path, monkeypatch):
    features, folds = store_features(table(90), blocks_for(90)), folds_of()
    whole = turn(features, folds, 1, tmp_path, "whole")
    monkeypatch.setattr(module, "_PIECE", 5)
    cut = turn(features, folds, 1, tmp_path, "cut")
    inside = np.flatnonzero(folds >= 0)
    a, b = (r.coordinates[inside] @ r.coordinates[inside].T for r in (whole, cut))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_cache_is_used_again_and_repaired(store_features, fresh_cache, tmp_path, monkeypatch):
    features, folds = store_features(table(90), blocks_for(90)), folds_of()
    first = turn(features, folds, 1, tmp_path)
    made = []
    dual = module._dual
    monkeypatch.setattr(module, "_dual", lambda *a: made.append(1) or dual(*a))
    second = turn(features, folds, 1, tmp_path)
    assert not made
    assert np.array_equal(first.coordinates, second.coordinates)
    assert np.array_equal(first.back, second.back)
    turn(features, folds, 2, tmp_path)
    turn(features, folds, 1, tmp_path, identity="other folds")
    assert len(made) == 2
    for file in (fresh_cache / "rotations").rglob("coordinates.npy"):
        file.write_bytes(file.read_bytes()[:200])
    third = turn(features, folds, 1, tmp_path)
    assert len(made) == 3
    assert np.array_equal(first.coordinates, third.coordinates)
