"""The number of wrong labels and their cost, on simulated labels whose truth is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from unfreeze.metrics.label_noise import MOST, Evidence, NoiseModel, class_posterior, estimate_noise, fit_noise

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from label_statistics import noise_row


@pytest.mark.parametrize(("model", "classes", "spread"), [("exact", 10, 8.0), ("exact", 4, 2.5), ("fitted", 3, 2.0)])
def test_clean_labels_count_near_none_and_cost_nothing(model: str, classes: int, spread: float) -> None:
    """100 sets in benchmarks/label_statistics.py: the interval of the cost holds 0 in at least 90."""
    row = noise_row(model, classes, spread, 0.0, 4)
    assert row["wrong"] == 0 and row["reported"] < 3 and abs(row["cost"]) < 0.003
    assert row["covered"] == row["count_covered"] == 4 and row["detected"] == 0


@pytest.mark.parametrize(("spread", "rate"), [(8.0, 0.033), (3.0, 0.1)])
def test_the_count_follows_the_noise_and_probabilities_are_reliable(spread: float, rate: float) -> None:
    row = noise_row("exact", 10, spread, rate, 4)
    assert row["detected"] == 4 and row["count_covered"] >= 3 and row["covered"] == 0
    assert row["reported"] == pytest.approx(row["wrong"], rel=0.2) and row["cost"] > 0.01
    for text in row["reliability"].split("; "):
        predicted, rest = text.split(": ")
        share, of = rest.split(" of ")
        assert abs(float(predicted) - float(share)) < 0.05 + 2 * (0.25 / int(of)) ** 0.5


def test_errors_on_the_likeliest_other_class_are_not_seen() -> None:
    """The documented limit: such errors look like the model's own uncertainty."""
    row = noise_row("exact", 10, 8.0, "0.033 to the likeliest other class", 2)
    assert row["wrong"] > 15 and row["reported"] < row["wrong"] / 2


def test_the_posterior_is_bayes() -> None:
    """One image, three classes, by hand: r / 2 for each wrong label."""
    evidence = Evidence.of(np.array([[0.7, 0.2, 0.1]]), np.array([1]))
    found = NoiseModel(1.0, 0.1).posterior(evidence)[0]
    joint = np.array([0.7 * 0.05, 0.2 * 0.9, 0.1 * 0.05])
    assert found == pytest.approx(joint / joint.sum())


def test_temperature_and_rate_are_distinguished() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 6, (3000, 5))
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = (proba.cumsum(1) < draw.random((3000, 1))).sum(1).clip(0, 4)
    flip = draw.random(3000) < 0.05
    given[flip] = (given[flip] + draw.integers(1, 5, flip.sum())) % 5
    sharp = proba**1.7 / (proba**1.7).sum(1, keepdims=True)  # too sure
    (model,) = fit_noise(Evidence.of(sharp, given))
    assert model.temperature == pytest.approx(1.7, rel=0.07) and model.dissent == 0
    assert model.rate == pytest.approx(flip.mean(), abs=0.006)


def test_a_group_has_one_true_value() -> None:
    """Genders of people: one label of seven that differs is wrong; a whole group may be."""
    unit = np.repeat(np.arange(60), 7)
    true = np.repeat(np.arange(60) % 2, 7)
    given = true.copy()
    given[10] ^= 1
    given[unit == 5] ^= 1
    proba = np.where(np.eye(2)[true] > 0, 0.9, 0.1)
    evidence = Evidence.of(proba, given, unit)
    assert evidence.by_group and evidence.logs.shape == (60, 2) and 0 < evidence.dissent() < 0.01
    (model,) = fit_noise(evidence)
    wrong = 1 - model.posterior(evidence)[np.arange(420), given]
    assert wrong[10] > 0.95 and wrong[unit == 1][[0, 1, 2, 4, 5, 6]].max() < 0.05
    assert wrong[unit == 5].min() > 0.8 and wrong[unit == 5] == pytest.approx(wrong[unit == 5][0])
    clean = estimate_noise([Evidence.of(proba, true, unit)], np.arange(2)[:, None], true, true, unit)
    assert not clean.detected and clean.wrong["value"] < 1


def test_a_class_of_two_attributes_multiplies_their_posteriors() -> None:
    values = np.array([[0, 0], [0, 1], [1, 1], [-1, -1]])  # no class (1, 0), and one without images
    one, two = np.array([[0.8, 0.2]]), np.array([[0.25, 0.75]])
    found = class_posterior([one, two], values)[0]
    joint = np.array([0.8 * 0.25, 0.8 * 0.75, 0.2 * 0.75, 0])
    assert found == pytest.approx(joint / joint.sum())


def test_an_attribute_that_is_read_badly_hides_no_other_one() -> None:
    """Masks are read perfectly and four are wrong; ages are read by chance, and any of them may be."""
    draw = np.random.default_rng(0)
    mask, age = draw.integers(0, 3, 400), draw.integers(0, 3, 400)
    given = mask.copy()
    given[:4] = (mask[:4] + 1) % 3
    well = np.where(np.eye(3)[mask] > 0, 0.999, 0.0005)
    badly = draw.dirichlet(np.ones(3), 400)
    values = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), -1).reshape(-1, 2)
    labels, predicted = given * 3 + age, mask * 3 + badly.argmax(1)
    axes = [Evidence.of(well, given), Evidence.of(badly, age)]
    found = estimate_noise(axes, values, labels, predicted, np.arange(400))
    assert found.wrong["low"] > 1 and found.wrong["value"] == pytest.approx(4, abs=1) and found.wrong["high"] < 8


def test_large_tables_are_sampled_by_whole_groups_and_scaled_up() -> None:
    draw, n = np.random.default_rng(0), 3 * MOST
    true = draw.integers(0, 4, n)
    proba = np.where(np.eye(4)[true] > 0, 0.97, 0.01)
    given = true.copy()
    flip = draw.random(n) < 0.05
    given[flip] = (given[flip] + 1) % 4
    found = estimate_noise([Evidence.of(proba, given)], np.arange(4)[:, None], given, true, np.arange(n) // 3)
    assert found.images == n and found.wrong["value"] == pytest.approx(flip.sum(), rel=0.35)
    assert found.wrong["low"] < flip.sum() < found.wrong["high"] and found.on_errors > 0.5


def test_one_value_and_one_group_are_no_error() -> None:
    only = Evidence.of(np.ones((5, 1)), np.zeros(5, np.int64))
    assert fit_noise(only) == [NoiseModel(1.0, 0.0)]
    zeros = np.zeros(5, np.int64)
    found = estimate_noise([only], np.zeros((1, 1), np.int64), zeros, zeros, zeros)
    assert found.wrong["value"] == 0 and not found.detected
