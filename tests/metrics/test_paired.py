"""The paired difference: against scikit-learn, and what its interval says."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.differences import exchange, macro_figure, paired_difference

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def made(seed=0, n=600, wrong=(0.2, 0.2), classes=3):
    """Truth, two predictions wrong at these shares, and groups of three."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, classes, n)
    found = []
    for share in wrong:
        answer = np.where(draw.random(n) < share, draw.integers(0, classes, n), truth)
        found.append(np.eye(classes)[answer])
    return truth, *found, np.arange(n) // 3


def test_value_is_the_difference_of_the_scores():
    truth, first, second, groups = made(wrong=(0.4, 0.1))
    told = paired_difference(truth, first, second, groups)
    f1 = [sklearn_metrics.f1_score(truth, p.argmax(1), average="macro") for p in (first, second)]
    assert told["value"] == pytest.approx(f1[1] - f1[0])
    assert 0 < told["low"] < told["value"] < told["high"]


def test_equal_predictions_differ_by_at_most_one_image():
    truth, first, _, groups = made()
    found = paired_difference(truth, first, first, groups)
    assert found == pytest.approx({"value": 0.0, "low": -1.96 / 600, "high": 1.96 / 600}, rel=0.02)


def test_the_interval_covers_zero_for_two_of_a_kind_nearly_always():
    missed = 0
    for seed in range(100):
        truth, first, second, groups = made(seed, n=240)
        found = paired_difference(truth, first, second, groups, resamples=200)
        missed += not found["low"] <= 0 <= found["high"]
    assert missed <= 10  # of Binomial(100, 0.05) 98.9% are at most 10


@pytest.mark.parametrize(("better", "significant"), [(5, False), (6, True)])
def test_a_handful_of_groups_is_judged_as_by_the_exact_test(better, significant):
    """Better in all of five groups by chance: 2 of 32 ways to exchange them, p = 0.0625; in all of six: p = 0.031."""
    truth = np.zeros(200, np.int64)
    truth[100:] = 1
    second = np.eye(2)[truth]
    first = second.copy()
    first[:better] = first[:better, ::-1]
    found = paired_difference(truth, first, second, np.arange(200), resamples=4000)
    assert (found["low"] > 0) is significant


def test_exchanges_are_the_same_however_many_classes_there_are():
    """Blocks of draws depend on the classes; families over different labels rely on equal exchanges."""
    truth, first, second, groups = made(n=300)
    few = exchange(truth, [(first.argmax(1), second.argmax(1))], groups, 3, macro_figure, resamples=50)
    many = exchange(truth, [(first.argmax(1), second.argmax(1))], groups, 400, macro_figure, resamples=50)
    np.testing.assert_allclose(few.exchanged, many.exchanged)


@pytest.mark.parametrize("gain", [0.0, 0.2, 0.5])
def test_the_interval_holds_the_true_difference_large_or_small(gain):
    """Accuracy, and so macro F1 of even classes, rises from .6 by .4 gain."""
    held, wide = 0, []
    for seed in range(100):
        draw = np.random.default_rng([seed, 5])
        truth = draw.integers(0, 2, 120)
        right = draw.random(120) < 0.6
        better = right | (draw.random(120) < gain)
        both = [np.eye(2)[np.where(one, truth, 1 - truth)] for one in (right, better)]
        found = paired_difference(truth, *both, np.arange(120), resamples=300)
        held += found["low"] <= 0.4 * gain <= found["high"]
        wide.append(found["high"] - found["low"])
    assert held >= 90 and np.mean(wide) < 0.2


def test_images_of_a_group_are_exchanged_together():
    """Twenty copies of each image say no more than one: the interval stays, but for the one image that is added."""
    truth, first, second, _ = made(n=150, wrong=(0.3, 0.2))
    once = paired_difference(truth, first, second, np.arange(150))
    again = [np.repeat(a, 20, axis=0) for a in (truth, first, second)]
    copies = paired_difference(*again, np.repeat(np.arange(150), 20))
    assert copies["value"] == pytest.approx(once["value"])
    assert copies["high"] - copies["low"] == pytest.approx(once["high"] - once["low"], rel=0.1)
    alone = paired_difference(*again, np.arange(3000))
    assert alone["high"] - alone["low"] < 0.4 * (once["high"] - once["low"])


def test_what_both_get_wrong_cancels():
    truth, first, _, groups = made(n=900, wrong=(0.3, 0.3))
    second = first.copy()
    second[:20] = np.eye(3)[truth[:20]]  # the same but for a few photos
    told = paired_difference(truth, first, second, groups)
    assert told["high"] - told["low"] < 0.03
    apart = paired_difference(truth, first, made(seed=9, n=900, wrong=(0.3, 0.3))[1], groups)
    assert apart["high"] - apart["low"] > 2 * (told["high"] - told["low"])


def test_the_same_seed_gives_the_same_interval():
    truth, first, second, groups = made(wrong=(0.3, 0.25))
    assert paired_difference(truth, first, second, groups) == paired_difference(truth, first, second, groups)
    assert paired_difference(truth, first, second, groups, seed=1) != paired_difference(truth, first, second, groups)
