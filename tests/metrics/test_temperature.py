"""Temperatures and biases: found again where they were planted, and judged on folds that they have not seen."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.calibration import TemperatureScaling, fit_scaling, nested_scaling


def drawn(n=4000, classes=4, sharp=1.0, bias=None, seed=0):
    """Calibrated probabilities and labels drawn from them; then the probabilities to the power `sharp`, and biased."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(0, 1.5, (n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > draws.random((n, 1))).argmax(1)
    changed = sharp * logits + (0 if bias is None else np.asarray(bias))
    q = np.exp(changed - changed.max(1, keepdims=True))
    return q / q.sum(1, keepdims=True), labels


def loss(proba, labels):
    return float(-np.log(proba[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("sharp", [0.25, 1.0, 3.0])
def test_a_planted_temperature_is_found(sharp):
    proba, labels = drawn(sharp=sharp)
    found = fit_scaling(proba, labels)
    assert found.temperature == pytest.approx(sharp, rel=0.1) and not found.bias.any()
    assert loss(found(proba), labels) <= loss(proba, labels)


def test_planted_biases_are_found():
    bias = np.array([1.0, 0.0, -1.0, 0.0])
    proba, labels = drawn(sharp=2.0, bias=bias)
    found = fit_scaling(proba, labels, biases=True)
    assert found.scale == pytest.approx(0.5, rel=0.1)
    assert found.bias - found.bias.mean() == pytest.approx(-bias / 2, abs=0.15)


def test_weights_count_rows():
    proba, labels = drawn(600, sharp=2.0)
    weight = np.r_[np.full(300, 2.0), np.zeros(300)]
    some, both = (
        fit_scaling(proba, labels, True, weight),
        fit_scaling(*(np.concatenate([a[:300]] * 2) for a in (proba, labels)), True),
    )
    assert some.scale == pytest.approx(both.scale, rel=1e-4) and np.allclose(some.bias, both.bias, atol=1e-4)


def test_nested_scaling_never_sees_its_own_fold():
    proba, labels = drawn(900, sharp=3.0)
    folds = np.arange(900) % 3
    scaled, scales = nested_scaling(proba, labels, folds)
    assert len(scales) == 3 and scaled.sum(1) == pytest.approx(1)
    other = labels.copy()
    other[folds == 0] = (labels[folds == 0] + 1) % 4
    again, _ = nested_scaling(proba, other, folds)
    assert np.array_equal(again[folds == 0], scaled[folds == 0])
    assert not np.allclose(again[folds == 1], scaled[folds == 1])


def test_what_is_certain_and_right_or_lacks_a_class_stays_finite():
    proba = np.eye(3)[[0, 1, 0, 1]] * 1.0
    found = fit_scaling(proba, np.array([0, 1, 0, 1]), biases=True)
    assert np.isfinite(found.bias).all() and np.isfinite(found(proba)).all()
    wrong = fit_scaling(proba, np.array([1, 0, 1, 0]))
    assert wrong.scale < 0.1


def test_a_scaling_does_not_change_the_call():
    proba, _ = drawn(200)
    assert (TemperatureScaling(0.3, np.zeros(4))(proba).argmax(1) == proba.argmax(1)).all()
