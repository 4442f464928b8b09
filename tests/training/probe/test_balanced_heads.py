"""Heads under each word of `recipe.balance`: what today's default is, what is judged, and what added rows may reach."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.core.recipe_schema import Balance, Probe
from unfreeze.features.derived_matrix import ExtendedFeatureMatrix
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.features.matrix import signed_root
from unfreeze.training.class_balance import log_prior, resolve_balance, sample_weights
from unfreeze.training.linear_probe import heads as module
from unfreeze.training.linear_probe import regularization
from unfreeze.training.linear_probe.heads import fit_folds
from unfreeze.training.linear_probe.solver import fit_softmax

PROBE = Probe(Cs=(1.0, 30.0))
COUNT, FOLDS = 160, 4


@pytest.fixture
def table():
    """Features (160, 24), labels of three classes of unlike size, groups of four, four folds."""
    draw = np.random.default_rng(3)
    units = np.arange(COUNT) // 4
    labels = draw.choice(3, COUNT // 4, p=[0.6, 0.25, 0.15])[units].astype(np.int64)
    labels[:12] = np.repeat([0, 1, 2], 4)
    x = draw.normal(size=(3, 24))[labels] + draw.normal(size=(COUNT, 24))
    return x.astype(np.float32), labels, units.astype(np.int64), (units % FOLDS).astype(np.int64)


def heads(features, labels, units, folds, scratch, identity="x", photos=None, **words):
    chosen = resolve_balance(Balance(**words)) if words else None
    found = fit_folds(features, labels, units, folds, 3, PROBE, 0, identity, scratch, words=chosen, photos=photos)
    return dict(found)


def same(a, b):
    return np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias) and a.strength == b.strength


def test_the_default_is_the_root_of_the_class_frequency_bit_for_bit(
    store_features, fresh_cache, tmp_path, table, monkeypatch
):
    """As before there was `recipe.balance`: count ** -0.5, scaled to a sum of one, and a penalty by the rows."""
    x, *columns = table
    features = store_features(x)
    found = heads(features, *columns, tmp_path)
    recipe = heads(features, *columns, tmp_path, loss="")

    def before(labels, units, classes, words, seed):
        counts = np.maximum(np.bincount(labels, minlength=classes), 1).astype(np.float64)
        row = counts[labels] ** -0.5
        return row / row.sum(), len(labels), counts

    monkeypatch.setattr(regularization, "sample_weights", before)
    old = heads(features, *columns, tmp_path)
    assert all(same(found[k], old[k]) and same(recipe[k], old[k]) for k in range(FOLDS))


def test_none_is_a_fit_without_class_weights(store_features, fresh_cache, tmp_path, table, monkeypatch):
    x, *columns = table
    features = store_features(x)
    none = heads(features, *columns, tmp_path, loss="ce")
    monkeypatch.setattr(
        regularization, "sample_weights", lambda y, u, c, w, s: (np.full(len(y), 1 / len(y)), len(y), None)
    )
    flat = heads(features, *columns, tmp_path)
    assert all(same(none[k], flat[k]) for k in range(FOLDS))


def test_logit_adjustment_is_the_plain_head_with_the_prior_taken_out(store_features, fresh_cache, tmp_path, table):
    x, labels, units, folds = table
    features = store_features(x)
    plain = heads(features, labels, units, folds, tmp_path, loss="ce")
    adjusted = heads(features, labels, units, folds, tmp_path, loss="logit-adjusted")
    for k in range(FOLDS):
        counts = np.bincount(labels[folds != k], minlength=3).astype(float)
        assert np.array_equal(plain[k].weight, adjusted[k].weight) and plain[k].strength == adjusted[k].strength
        np.testing.assert_allclose(adjusted[k].bias, plain[k].bias - log_prior(counts), atol=1e-6)


@pytest.mark.parametrize(
    "words", [{"sampling": "over"}, {"sampling": "under"}, {"loss": "weighted"}, {"loss": "focal"}]
)
def test_a_fold_has_no_part_in_its_own_head(store_features, fresh_cache, tmp_path, table, words):
    x, labels, units, folds = table
    features = store_features(x)
    before = heads(features, labels, units, folds, tmp_path, **words)
    other = np.where(folds == 1, (labels + 1) % 3, labels)
    after = heads(features, other, units, folds, tmp_path, **words)
    assert same(before[1], after[1]) and not same(before[2], after[2])


def test_over_expects_more_of_the_small_class_than_none(store_features, fresh_cache, tmp_path, table):
    x, labels, units, folds = table
    features = store_features(x)

    def called(**words):
        found = heads(features, labels, units, folds, tmp_path, **words)
        rooted = features.rooted(np.arange(COUNT))
        told = [module.softmax(found[k].rooted_logits(rooted[folds == k]))[:, 2] for k in range(FOLDS)]
        return float(np.concatenate(told).mean())

    assert called(sampling="over") > called(loss="ce")


def extended(store_features, x, folds, noise=0.0):
    """The photos with two views of every third photo behind them, and the rows that were added."""
    photo = np.flatnonzero(np.arange(COUNT) % 3 == 0)
    added = ExtraSamples(np.repeat(photo, 2), np.tile([0, 1], len(photo)), ("flip", "crop-10"))
    draw = np.random.default_rng(9)
    views = [x + 0.3 * draw.normal(size=x.shape).astype(np.float32) for _ in added.views]
    if noise:
        views = [np.where((folds == 1)[:, None], v + noise, v) for v in views]
    return ExtendedFeatureMatrix(store_features(x), COUNT, added, tuple(map(store_features, views))), added, views


def test_added_rows_stand_behind_the_photos(store_features, table):
    x, _, _, folds = table
    features, added, views = extended(store_features, x, folds)
    rows = np.array([COUNT + 3, 5, COUNT, COUNT + len(added) - 1])
    want = np.stack([views[1][3], x[5], views[0][0], views[1][added.photo[-1]]])
    np.testing.assert_allclose(features.read(rows), want, atol=0.01)
    for one in (features, features.held(), features.select((0,))):
        np.testing.assert_allclose(one.rooted(rows), signed_root(features.read(rows)), atol=1e-6)


def test_added_rows_are_learnt_from_and_never_held_out(store_features, fresh_cache, tmp_path, table, monkeypatch):
    x, labels, units, folds = table
    features, added, _ = extended(store_features, x, folds)
    columns = [added.extended(c) for c in (labels, units, folds)]
    seen = []
    real = module.choose_penalty

    def spy(rotation, splits, data, probe):
        seen.extend(splits)
        assert (rotation.train >= COUNT).any()
        return real(rotation, splits, data, probe)

    monkeypatch.setattr(module, "choose_penalty", spy)
    found = heads(features, *columns, tmp_path, identity="added", photos=COUNT)
    assert len(seen) == 2 * FOLDS
    for train, valid in seen:
        assert len(valid) and (valid < COUNT).all() and (train >= COUNT).any()
        assert not set(columns[1][train]) & set(units[valid])  # no group on both sides
    monkeypatch.undo()
    monkeypatch.setenv("UNFREEZE_CACHE", str(fresh_cache))
    alone = heads(features.photos, labels, units, folds, tmp_path, identity="alone")
    assert not same(found[0], alone[0])


def test_added_rows_of_a_fold_have_no_part_in_its_head(store_features, fresh_cache, tmp_path, table):
    x, labels, units, folds = table
    runs = []
    for noise in (0.0, 5.0):
        features, added, _ = extended(store_features, x, folds, noise)
        columns = [added.extended(c) for c in (labels, units, folds)]
        runs.append(heads(features, *columns, tmp_path, identity=f"noise {noise}", photos=COUNT))
    assert same(runs[0][1], runs[1][1]) and not same(runs[0][0], runs[1][0])


def test_the_inner_score_knows_no_weights(store_features, fresh_cache, tmp_path, table, monkeypatch):
    """The loss that chooses the penalty is the plain mean over photos, whatever weighs in training."""
    x, labels, units, folds = table
    told = []
    real = module.choose_penalty

    def spy(rotation, splits, data, probe):
        found = real(rotation, splits[:1], data, probe)
        train, valid = splits[0]
        weight, bias = module.fit_penalties(rotation, data, train, (found.strength,), 3e-3)
        p = module.softmax(rotation.coordinates[valid] @ weight[0] + bias[0])
        told.append((found.loss, -np.log(p[np.arange(len(valid)), data.labels[valid]]).mean()))
        return found

    monkeypatch.setattr(module, "choose_penalty", spy)
    heads(store_features(x), labels, units, folds, tmp_path, loss="weighted")
    assert told and all(a == pytest.approx(b, rel=1e-3) for a, b in told)


def test_a_focal_fit_is_where_torchs_focal_loss_is_flat():
    import torch

    from unfreeze.training.fine_tune.losses import focal

    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 120)
    x = (draw.normal(size=(3, 6))[y] + draw.normal(size=(120, 6))).astype(np.float32)
    weights = np.full((1, 120), 1 / 120, np.float32)
    found = fit_softmax(
        lambda: iter([(slice(0, 120), x)]), y, weights, np.array([1e-2]), (x**2).mean(0), 3, tolerance=1e-4, focus=2.0
    )
    w = torch.tensor(found.weight[0], requires_grad=True)
    b = torch.tensor(found.bias[0], requires_grad=True)
    targets = torch.nn.functional.one_hot(torch.from_numpy(y), 3).float()
    loss = focal(torch.from_numpy(x) @ w + b, targets, torch.ones(3)) + 0.5e-2 * (w**2).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(found.loss[0]), rel=1e-4)
    assert w.grad.abs().max() < 1e-3 and b.grad.abs().max() < 1e-3


def test_row_weights_of_every_word_are_finite_where_a_class_is_absent():
    labels = np.array([0, 0, 0, 2])
    for sampling in ("none", "over", "under", "sqrt"):
        for loss in ("", "ce", "weighted", "logit-adjusted"):
            found, _, counts = sample_weights(
                labels, np.arange(4), 4, resolve_balance(Balance(sampling=sampling, loss=loss)), 0
            )
            assert np.isfinite(found).all() and found.sum() == pytest.approx(1) and np.isfinite(log_prior(counts)).all()
