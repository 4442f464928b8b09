"""Measures of transfer: against their definitions worked out directly, and what they must say of known cases."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.transferability import (
    beyond_chance,
    chance_corrected_f1,
    frechet_distance,
    gaussian_divergence,
    h_score,
    h_scores,
    logme,
    mahalanobis_distance,
)


def drawn(seed=0, n=60, width=5, classes=3, apart=1.0):
    """Features around a center a class, `apart` deviations from each other, and the labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = draw.normal(size=(classes, width)) * apart
    return centres[labels] + draw.normal(size=(n, width)), labels


def evidence(x, y, alpha, beta):
    """log N(y; 0, I / beta + X X' / alpha): the evidence of a Bayesian linear model, written out."""
    covariance = np.eye(len(y)) / beta + x @ x.T / alpha
    sign, log_determinant = np.linalg.slogdet(covariance)
    assert sign > 0
    return -0.5 * (len(y) * np.log(2 * np.pi) + log_determinant + y @ np.linalg.solve(covariance, y))


@pytest.mark.parametrize("width", [4, 40])
def test_logme_is_the_largest_evidence(width):
    x, labels = drawn(n=24, width=width, classes=2)
    grid = np.exp(np.linspace(-7, 9, 65))
    best = [
        max(evidence(x, (labels == c).astype(float), alpha, beta) for alpha in grid for beta in grid) / len(x)
        for c in range(2)
    ]
    found = logme(x, labels, 2)
    assert found == pytest.approx(np.mean(best), abs=2e-3)
    assert found >= np.mean(best) - 1e-9  # no point of a grid beats the maximum


def test_logme_prefers_features_that_separate_the_classes():
    scores = [logme(*drawn(n=90, apart=apart), 3) for apart in (0.0, 0.5, 1.0, 2.0)]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 0.3


def test_logme_of_classes_without_photos_and_constant_features():
    x, labels = drawn()
    assert logme(x, labels, 5) == pytest.approx(logme(x, labels, 3))
    assert np.isfinite(logme(np.ones((20, 3)), np.arange(20) % 2, 2))


def test_h_score_is_its_definition():
    x, labels = drawn(n=90, width=6)
    centred = x - x.mean(0)
    means = np.stack([centred[labels == c].mean(0) for c in labels])
    wanted = np.trace(np.linalg.pinv(np.cov(centred.T, bias=True)) @ np.cov(means.T, bias=True))
    assert h_score(x, labels, shrink=False) == pytest.approx(wanted)


def test_shrunk_h_score_is_its_definition():
    covariance_of = pytest.importorskip("sklearn.covariance").ledoit_wolf
    for width in (6, 150):  # fewer and more features than photos
        x, labels = drawn(n=90, width=width, apart=0.3)
        centred = x - x.mean(0)
        shrunk, amount = covariance_of(centred, assume_centered=True)
        means = np.stack([centred[labels == c].mean(0) for c in labels])
        wanted = (1 - amount) * np.trace(np.linalg.solve(shrunk, means.T @ means / len(x)))
        assert h_score(x, labels) == pytest.approx(wanted, rel=1e-6)


def test_shrinking_keeps_wide_features_from_telling_random_labels():
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(60, 400)), np.arange(60) % 3
    assert h_score(x, labels, shrink=False) == pytest.approx(2)  # all of it, whatever the labels
    assert h_score(x, labels) < 0.7
    assert h_score(*drawn(n=60, width=400, apart=1.0)) > 3 * h_score(x, labels)


def test_many_labelings_at_once():
    x, labels = drawn(n=60, width=100)
    other = np.random.default_rng(0).permutation(labels)
    assert h_scores(x, [labels, other]) == pytest.approx([h_score(x, labels), h_score(x, other)])


def test_separability_of_known_predictions():
    truth = np.arange(300) % 3
    groups = np.arange(300) // 2
    right = chance_corrected_f1(truth, truth, groups, 3)
    assert right["value"] == right["low"] == right["high"] == right["macro_f1"] == 1
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    predicted = np.where(draw.random(300) < 0.4, draw.integers(0, 3, 300), truth)
    found = chance_corrected_f1(truth, predicted, groups, 3)
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"))
    shuffled = [sklearn.f1_score(truth, draw.permutation(predicted), average="macro") for _ in range(300)]
    assert found["chance"] == pytest.approx(np.mean(shuffled), abs=0.01)
    assert found["value"] == pytest.approx((found["macro_f1"] - found["chance"]) / (1 - found["chance"]))
    assert found["low"] < found["value"] < found["high"]


def test_guesses_are_worth_nothing_whatever_the_shares():
    missed = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        truth, predicted = (draw.choice(4, 240, p=p) for p in ([0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]))
        found = chance_corrected_f1(truth, predicted, np.arange(240) // 2, 4, resamples=200)
        missed += not found["low"] <= 0 <= found["high"]
    assert missed <= 6  # 5% of 40 is 2
    largest = chance_corrected_f1(truth, np.zeros(240, np.int64), np.arange(240), 4)
    assert largest["value"] == pytest.approx(0)


def test_draws_of_the_same_groups_are_paired():
    truth, groups = np.arange(120) % 3, np.arange(120) // 3
    first = beyond_chance(truth, truth, groups, 3, resamples=50)[0]
    again = beyond_chance(truth, truth.copy(), groups, 3, resamples=50)[0]
    assert (first == again).all()


def test_divergence_of_normal_distributions():
    mean, variance = np.array([0.3, -1.0, 2.0]), np.array([0.5, 2.0, 1.0])
    other_mean, other_variance = np.array([0.0, -1.0, 1.0]), np.array([1.0, 2.0, 4.0])
    draw = np.random.default_rng(0)
    x = mean + np.sqrt(variance) * draw.normal(size=(400_000, 3))

    def log_density(m, v):
        return -0.5 * (np.log(2 * np.pi * v) + (x - m) ** 2 / v)

    wanted = (log_density(mean, variance) - log_density(other_mean, other_variance)).mean(0)
    found = gaussian_divergence(mean, variance, other_mean, other_variance)
    assert found == pytest.approx(wanted, abs=0.01)
    assert found[1] == 0
    assert np.isfinite(gaussian_divergence(mean, np.zeros(3), other_mean, np.zeros(3))).all()


def test_distances():
    mean, other = np.array([1.0, 0.0]), np.array([0.0, 0.0])
    assert frechet_distance(mean, np.array([4.0, 1.0]), other, np.array([1.0, 1.0])) == pytest.approx(2)
    assert frechet_distance(mean, np.ones(2), mean, np.ones(2)) == 0
    assert mahalanobis_distance(np.array([2.0, 3.0]), other, np.array([4.0, 9.0])) == pytest.approx(1)
