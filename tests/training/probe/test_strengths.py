"""The penalty of a large table: found on few rows, settled on all, as good as trying all; files read as they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unfreeze.core.recipe_schema import Probe
from unfreeze.features.derived_matrix import sample_groups
from unfreeze.training.class_balance import ResolvedBalance
from unfreeze.training.linear_probe import projection as rotation_module
from unfreeze.training.linear_probe import regularization as module
from unfreeze.training.linear_probe.projection import Projection, fit_projection, moments
from unfreeze.training.linear_probe.regularization import HeadData, choose_penalty, inner_splits

GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
CLASSES, FOLDS = 3, 4


def table(n=1200, width=24, signal=1.2, seed=0):
    """Features, and labels, groups of four rows and folds of groups."""
    draw = np.random.default_rng(seed)
    units = np.arange(n) // 4
    labels = draw.permutation(np.arange(n // 4) % CLASSES)[units]
    centres = draw.normal(size=(CLASSES, width)) * signal / np.sqrt(width) * 3
    x = centres[labels] + draw.normal(size=(n // 4, width))[units] + 0.5 * draw.normal(size=(n, width))
    return x.astype(np.float32), HeadData(labels, units, CLASSES, ResolvedBalance(), 0, n), units % FOLDS


def turned(store_features, tmp_path: Path, x, folds, identity="x") -> Projection:
    features = store_features(x)
    return fit_projection(features, moments(features, folds, FOLDS), folds, 0, 0, identity, tmp_path / "rows.npy")


def log_loss(rotation, data, train, valid, strength):
    heads = module.fit_penalties(rotation, data, train, (strength,), 1e-4)
    return float(module._log_losses(rotation, data, valid, heads)[0])


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "_FEW", 100)


@pytest.mark.parametrize("signal", [0.0, 0.4, 1.2, 4.0])
def test_what_is_found_from_few_rows_is_as_good_as_the_best_of_all(store_features, fresh_cache, tmp_path, few, signal):
    x, data, folds = table(signal=signal)
    rotation = turned(store_features, tmp_path, x, folds)
    splits = inner_splits(rotation.train, data.units, folds, 0)
    found = choose_penalty(rotation, splits, data, Probe(Cs=GRID))
    train, valid = splits[0]
    every = {s: log_loss(rotation, data, train, valid, s) for s in GRID}
    assert found.loss == pytest.approx(min(every.values()), rel=0.01, abs=0.005)
    assert every[found.strength] == pytest.approx(min(every.values()), rel=0.01, abs=0.005)


def test_the_search_walks_on_while_a_neighbor_is_better(store_features, fresh_cache, tmp_path, few, monkeypatch):
    """Twenty-five groups of much noise want a far stronger penalty than two hundred and twenty-five."""
    x, data, folds = table(signal=0.6, width=60)
    rotation = turned(store_features, tmp_path, x, folds)
    splits = inner_splits(rotation.train, data.units, folds, 0)
    asked: list[tuple[int, tuple[float, ...]]] = []
    real, losses = module.fit_penalties, module._log_losses

    def spy(rotation, data, train, strengths, tolerance, start=None):
        asked.append((len(train), strengths))
        return real(rotation, data, train, strengths, tolerance, start)

    def misled(rotation, data, valid, heads):
        """The few speak for the strongest penalty, whatever they found."""
        return np.arange(len(GRID)) if len(asked) == 1 else losses(rotation, data, valid, heads)

    monkeypatch.setattr(module, "fit_penalties", spy)
    monkeypatch.setattr(module, "_log_losses", misled)
    found = choose_penalty(rotation, splits, data, Probe(Cs=GRID))
    assert asked[0] == (100, GRID) and asked[1] == (len(splits[0][0]), GRID[:2])
    assert [one for _, one in asked[2:]] == [(s,) for s in GRID[2 : 2 + len(asked[2:])]] and len(asked) > 2
    monkeypatch.undo()
    every = [log_loss(rotation, data, *splits[0], s) for s in GRID]
    assert found.loss == pytest.approx(min(every), abs=0.005) and every[0] > min(every) + 0.05


def test_no_validation_row_has_a_part_in_what_the_search_finds(store_features, fresh_cache, tmp_path, few):
    """Other labels there change the loss, and not one bit of the head that comes with the same strength."""
    x, data, folds = table()
    rotation = turned(store_features, tmp_path, x, folds)
    splits = inner_splits(rotation.train, data.units, folds, 0)
    only = Probe(Cs=(10.0,))
    plain = choose_penalty(rotation, splits, data, only)
    labels = data.labels.copy()
    labels[splits[0][1]] = (labels[splits[0][1]] + 1) % CLASSES
    other = choose_penalty(rotation, splits, replace(data, labels=labels), only)
    assert plain.start is not None and other.start is not None and plain.loss != other.loss
    assert all(np.array_equal(a, b) for a, b in zip(plain.start, other.start, strict=True))


def test_a_fit_from_a_start_ends_where_one_from_zero_does(store_features, fresh_cache, tmp_path, few):
    x, data, folds = table()
    rotation = turned(store_features, tmp_path, x, folds)
    found = choose_penalty(rotation, inner_splits(rotation.train, data.units, folds, 0), data, Probe(Cs=GRID))
    ends = [
        module.fit_penalties(rotation, data, rotation.train, (found.strength,), 1e-5, start)
        for start in (None, found.start)
    ]
    logits = [rotation.of(rotation.train) @ weight[0] + bias[0] for weight, bias in ends]
    assert np.abs(logits[0] - logits[1]).max() < 5e-3


def test_rows_are_thinned_by_whole_groups():
    _, data, _ = table()
    train = np.flatnonzero(data.units % 3 != 1)
    some = sample_groups(data.units, train, 100, data.seed)
    assert len(some) == 100 and np.array_equal(some, np.unique(some)) and np.isin(some, train).all()
    assert np.isin(train, some).sum() == np.isin(data.units[train], data.units[some]).sum()
    assert np.array_equal(some, sample_groups(data.units, train, 100, data.seed))
    assert not np.array_equal(some, sample_groups(data.units, train, 100, 1))
    assert np.ptp(some) > len(train) / 2, "from everywhere"


def test_a_file_is_read_as_it_lies(store_features, fresh_cache, tmp_path, monkeypatch):
    x, _, folds = table()
    plain = turned(store_features, tmp_path, x, folds, "memory")
    monkeypatch.setattr(rotation_module, "_KEPT_BYTES", 1000)
    filed = turned(store_features, tmp_path, x, folds, "file")
    monkeypatch.setattr(module, "_GATHERED_BYTES", 1000)
    monkeypatch.setattr(module, "_STRETCH", 50)
    train = np.flatnonzero((folds == 1) | (folds == 3))
    train = train[np.argsort(filed.places[train])]
    got = [(part, piece) for part, piece in module._pieces(filed, train)()]
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in got]), plain.of(train))
    lies = [np.shares_memory(piece, filed.coordinates) for _, piece in got]
    assert sum(lies) == len(lies) == 12 or lies.count(False) == 1, "only where two folds meet is a piece put together"


def test_photos_that_are_all_alike_have_no_coordinates_and_a_head(store_features, fresh_cache, tmp_path):
    x, data, folds = table()
    rotation = turned(store_features, tmp_path, np.ones_like(x), folds)
    cut = replace(rotation, coordinates=rotation.coordinates[:, :0], scale=rotation.scale[:0])
    found = choose_penalty(cut, inner_splits(cut.train, data.units, folds, 0), data, Probe(Cs=GRID))
    weight, bias = module.fit_penalties(cut, data, cut.train, (found.strength,), 1e-3)
    assert weight.shape == (1, 0, CLASSES) and np.isfinite(bias).all()
