"""Class shares without labels: found where they moved, left alone where not, and the score to expect under them."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.label_shift import adjust_to_priors, design_effect, estimate_priors, expected_score, groups_hidden

TRAIN = np.array([0.5, 0.3, 0.2])


def drawn(n, shares, seed, apart=1.2, sharp=1.0, off=0.0):
    """Labels, and probabilities of a model that knows how features were drawn; sharp: too sure of itself above 1."""
    draws = np.random.default_rng(seed)
    labels = draws.choice(3, n, p=shares)
    x = draws.normal(size=(n, 3)) + apart * np.eye(3)[labels] + off * draws.normal(size=(n, 3))
    logits = sharp * (apart * x + np.log(TRAIN))
    p = np.exp(logits - logits.max(1, keepdims=True))
    return labels, p / p.sum(1, keepdims=True)


def expected(shares, sharp=1.0, off=0.0, seed=1):
    labels, proba = drawn(900, TRAIN, 0, sharp=sharp)
    true, test = drawn(600, shares, seed, sharp=sharp, off=off)
    found = expected_score(proba, labels, np.arange(900) // 3, np.arange(900) // 3 % 5, test, np.arange(600))
    real = float(macro_f1(confusion_matrix(true, test.argmax(1), 3)))
    return found, real, np.bincount(true, minlength=3) / 600


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.1, 0.1, 0.8), (0.34, 0.33, 0.33)])
def test_em_finds_the_shares_of_calibrated_probabilities(shares):
    labels, proba = drawn(8000, np.array(shares), 3)
    found = estimate_priors(proba, TRAIN)
    assert found.sum() == pytest.approx(1) and np.abs(found - np.bincount(labels) / 8000).max() < 0.03


def test_em_is_a_fixed_point_and_weights_count_rows():
    _, proba = drawn(400, np.array([0.2, 0.2, 0.6]), 4)
    found = estimate_priors(proba, TRAIN)
    assert adjust_to_priors(proba, TRAIN, found).mean(0) == pytest.approx(found, abs=1e-5)
    twice = estimate_priors(proba, TRAIN, np.r_[np.full(200, 2.0), np.zeros(200)])
    assert twice == pytest.approx(estimate_priors(proba[:200], TRAIN), abs=1e-5)


def test_adjusting_there_and_back_changes_nothing():
    _, proba = drawn(50, TRAIN, 5)
    new = np.array([0.1, 0.6, 0.3])
    there = adjust_to_priors(proba, TRAIN, new)
    assert there.sum(1) == pytest.approx(1)
    assert np.allclose(adjust_to_priors(there, new, TRAIN), proba)


@pytest.mark.parametrize("sharp", [1.0, 2.5])
def test_moved_shares_are_reported_and_the_score_is_predicted_even_by_a_model_too_sure_of_itself(sharp):
    found, real, shares = expected(np.array([0.1, 0.1, 0.8]), sharp)
    assert found.significant.all() and found.distance > 0.4
    assert all(s["low"] - 0.02 <= share <= s["high"] + 0.02 for s, share in zip(found.shares, shares, strict=True))
    assert found.by_shares["low"] > 0.03 and abs(found.by_doubt["value"]) < 0.08
    assert found.macro_f1["low"] <= real <= found.macro_f1["high"]
    assert found.macro_f1["value"] < found.judged - 0.05


def test_the_same_shares_raise_hardly_an_alarm():
    every = [expected(TRAIN, seed=seed) for seed in range(1, 13)]
    assert sum(found.significant.any() for found, _, _ in every) <= 1
    assert all(abs(found.by_doubt["value"]) < 0.08 for found, _, _ in every)
    assert sum(f.macro_f1["low"] <= real <= f.macro_f1["high"] for f, real, _ in every) >= 10


def test_what_the_model_doubts_is_a_cost_of_its_own():
    """The same shares, and features half lost in noise that brings them nearer to each other."""
    labels, proba = drawn(900, TRAIN, 0)
    _, test = drawn(600, TRAIN, 1, apart=0.5)
    test = test**0.5 / (test**0.5).sum(1, keepdims=True)
    found = expected_score(proba, labels, np.arange(900), np.arange(900) % 5, test, np.arange(600))
    assert found.by_doubt["value"] > 0.1 and found.by_doubt["low"] > 0


def test_the_same_seed_gives_the_same_answer():
    one, two = expected(TRAIN)[0], expected(TRAIN)[0]
    assert one.macro_f1 == two.macro_f1 and one.shares == two.shares


def test_a_class_that_is_not_there_any_more_breaks_nothing():
    found, real, _ = expected(np.array([0.6, 0.4, 0.0]))
    assert found.shares[2]["value"] < 0.05 and np.isfinite(list(found.macro_f1.values())).all()
    assert real == pytest.approx(found.macro_f1["value"], abs=0.15)


def grouped(count, seed, size=7, by_group=False):
    """Labels, probabilities and groups of photos whose groups are hard or easy together; the model is calibrated."""
    draws = np.random.default_rng(seed)
    group = np.repeat(np.arange(count), size)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    labels = draws.choice(4, count, p=shares)[group] if by_group else draws.choice(4, count * size, p=shares)
    logits = 2.2 * np.eye(4)[labels] + draws.normal(size=(count * size, 4)) + draws.normal(size=(count, 4))[group]
    logits = 1.2 * logits + np.log(shares)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return labels, p / p.sum(1, keepdims=True), group


def test_test_groups_that_are_not_known_raise_no_alarm_and_the_real_score_is_in_the_interval():
    """20 people of seven photos each in a folder: their class shares are those of 20 labels, not of 140."""
    alarms = inside = 0
    for seed in range(16):
        labels, proba, group = grouped(60, seed, by_group=True)
        true, test, _ = grouped(20, 1000 + seed, by_group=True)
        found = expected_score(proba, labels, group, group % 5, test, np.arange(140), resamples=40, seed=seed)
        assert found.spread > 3
        alarms += bool(found.significant.any())
        inside += (
            found.macro_f1["low"]
            <= float(macro_f1(confusion_matrix(true, test.argmax(1), 4)))
            <= (found.macro_f1["high"])
        )
    assert alarms <= 2 and inside >= 14


def test_a_larger_test_set_has_a_narrower_prediction():
    labels, proba, group = grouped(60, 0)
    widths = []
    for count in (10, 60):
        _, test, of = grouped(count, 1)
        found = expected_score(proba, labels, group, group % 5, test, of, resamples=60)
        assert found.spread == 1
        widths.append(found.macro_f1["high"] - found.macro_f1["low"])
    assert widths[1] < 0.8 * widths[0]


def test_the_design_effect_is_the_size_of_groups_of_one_photo():
    labels, proba = drawn(140, TRAIN, 0)
    same = np.repeat(np.arange(140), 7)
    assert design_effect(proba[same], labels[same], same) == pytest.approx(7, rel=1e-6)
    assert design_effect(proba, labels, np.arange(140)) == pytest.approx(1)
    assert groups_hidden(same, np.arange(50)) and not groups_hidden(same, np.arange(50) // 2)
    assert not groups_hidden(np.arange(50), np.arange(50))
