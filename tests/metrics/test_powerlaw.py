"""Power laws: planted ones come back, the interval holds what it should, and more data never hurts."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.intervals import quantile
from unfreeze.metrics.learning_curve import EXPONENTS, PowerLaw, extrapolate, fit_power_law, training_variance

N = np.array([20.0, 40, 80, 160, 320])
SIZES = np.geomspace(20, 320, 8)
SHARES = SIZES / 320
DRAWS = (4, 4, 4, 4, 3, 2, 2, 1)


@pytest.mark.parametrize(("a", "b", "c"), [(0.1, 2.0, 0.5), (0.0, 1.5, 0.3), (0.2, 0.9, 0.9)])
def test_a_planted_law_comes_back(a, b, c):
    law = fit_power_law(N, a + b * N**-c)
    for n in (20, 320, 640, 1280):
        assert law.error(n) == pytest.approx(a + b * n**-c, abs=0.002)
    assert law.c == pytest.approx(c, rel=0.1)


def test_bounds():
    draw = np.random.default_rng(0)
    for _ in range(50):
        law = fit_power_law(N, draw.random(5))
        assert law.a >= 0 and law.b >= 0 and EXPONENTS[0] - 1e-12 <= law.c <= EXPONENTS[-1] + 1e-12
        assert law.error(100) >= law.error(200) >= law.error(10_000) >= law.a
    rising = fit_power_law(N, np.linspace(0.1, 0.5, 5))
    assert rising.b == 0 and rising.a == pytest.approx(0.3)  # more data never hurts: the best is a constant


def test_it_is_the_best_of_its_kind():
    draw = np.random.default_rng(1)
    points = 0.1 + N**-0.4 + draw.normal(0, 0.02, 5)
    law = fit_power_law(N, points)
    own = sum((law.error(n) - p) ** 2 for n, p in zip(N, points, strict=True))
    for a in np.linspace(0, 0.3, 16):
        for b in np.geomspace(0.1, 5, 30):
            for c in np.geomspace(0.05, 1.0, 20):
                assert own <= ((a + b * N**-c - points) ** 2).sum() + 1e-6


def test_two_points_take_a_root():
    law = fit_power_law([100, 200], [0.4, 0.3])
    assert law.c == 0.5
    assert [law.error(100), law.error(200)] == pytest.approx([0.4, 0.3])


def observed(seed, law=lambda n: 0.1 + 1.6 * n**-0.45, noise=0.03, judged=0.02, resamples=200):
    """Draws of a curve, and what was judged.

    Each independent training set of n differs by `noise` * sqrt(20 / n); draws of a share come from one data set, so
    that they overlap. What is judged is off by `judged` for all of them, and so are its resamplings.
    """
    draw = np.random.default_rng(seed)
    drawn, shared = draw.normal(0, judged, resamples), draw.normal(0, judged)
    own_set = draw.normal(0, noise * np.sqrt(20 / SIZES[-1]))
    errors, moved = [], []
    for n, share, count in zip(SIZES, SHARES, DRAWS, strict=True):
        own = draw.normal(0, noise * np.sqrt(20 / n * (1 - share)), count)
        own += law(n) + own_set + shared
        errors.append(own)
        moved.append(own[:, None] + drawn)
    return errors, moved


def of(seed, groups=400, **options):
    return extrapolate(SIZES, SHARES, *observed(seed, **options), groups, seed=seed)


# A power law, one that falls to nothing, one that is flat in the end; and two that are no power laws at all.
LAWS = {
    "power": lambda n: 0.1 + 1.6 * n**-0.45,
    "to nothing": lambda n: 1.6 * n**-0.45,
    "flat": lambda n: 0.2 + 3.0 * n**-1.0,
    "logarithm": lambda n: 0.75 - 0.09 * np.log(n),
    "partial": lambda n: 0.08 + 0.5 / (1 + (n / 150) ** 0.9),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_intervals_cover_the_truth_at_twice_as_many(law):
    """At least 90 of 100: of the level, and of what doubling saves."""
    level = saved = 0
    for seed in range(60):
        found = of(seed, law=law)
        _, low, high = found.error[2.0]
        level += low <= law(640) <= high
        _, low, high = found.saved[2.0]
        saved += low <= law(320) - law(640) <= high
    assert level >= 54 and saved >= 54


def test_the_level_is_the_laws_and_as_uncertain_as_what_is_judged():
    found = of(0)
    assert found.error[2.0][0] == pytest.approx(found.law.error(640))
    assert found.saved[4.0][0] == pytest.approx(found.law.error(320) - found.law.error(1280))
    assert found.saved[4.0][0] > found.saved[2.0][0] > 0
    # An error of 0.02 of what is judged is in the level's interval, and cancels in what is saved.
    for judged, least, most in ((0.02, 0.039, 0.08), (0.0, 0.0, 0.045)):
        _, low, high = of(1, judged=judged).error[2.0]
        assert least < (high - low) / 2 < most
    wide, narrow = (of(1, judged=judged).saved[2.0] for judged in (0.04, 0.0))
    assert wide[2] - wide[1] < 1.5 * (narrow[2] - narrow[1])


def test_less_noise_less_doubt():
    wide, narrow = (of(3, noise=noise).error[2.0] for noise in (0.15, 0.005))
    assert narrow[2] - narrow[1] < 0.8 * (wide[2] - wide[1])


def test_few_groups_widen_the_interval():
    many, few = of(0).error[2.0], of(0, groups=8).error[2.0]
    assert few[2] - few[1] > 1.2 * (many[2] - many[1])
    assert quantile(0.95, 100_000) == pytest.approx(1.96, abs=0.001)


def test_no_interval_with_fewer_than_six_sizes():
    errors, moved = observed(0)
    found = extrapolate(SIZES[3:], SHARES[3:], errors[3:], moved[3:], 400)
    assert found.error[2.0][1:] == (None, None) and found.saved[4.0][1:] == (None, None)
    assert found.error[2.0][0] == pytest.approx(found.law.error(640))
    six = extrapolate(SIZES[2:], SHARES[2:], errors[2:], moved[2:], 400)
    assert six.error[2.0][1] < six.error[2.0][0] < six.error[2.0][2]


def test_a_flat_curve_saves_nothing():
    flat = [np.full(count, 0.2) for count in DRAWS]
    found = extrapolate(SIZES, SHARES, flat, [np.tile(e[:, None], (1, 50)) for e in flat], 400)
    assert found.saved[2.0][0] == pytest.approx(0, abs=1e-9) and found.saved[2.0][1] == 0
    assert isinstance(found.law, PowerLaw)


def test_the_variance_of_independent_sets_is_found_from_draws_that_overlap():
    draw = np.random.default_rng(0)
    population = draw.normal(0, 1, 320)  # of which a draw has the mean of some
    found = []
    for _ in range(200):
        population = draw.normal(0, 1, 320)
        means = [
            np.array([draw.permutation(population)[:size].mean() for _ in range(4)]) for size in (40, 80, 160, 280)
        ]
        sizes = np.array([40.0, 80, 160, 280, 320])
        found.append(training_variance(sizes, sizes / 320, [*means, np.zeros(1)]))
    assert np.mean(found) == pytest.approx(1 / 320, rel=0.1)
    assert training_variance(np.array([4.0]), np.array([1.0]), [np.zeros(1)]) > 0
