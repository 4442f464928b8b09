"""Power laws: planted ones come back, the interval holds what it should, and more data never hurts."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.judge.powerlaw import EXPONENTS, PowerLaw, draw_spreads, fit_power_law, foretell

N = np.array([20.0, 40, 80, 160, 320])
DRAWS = (4, 4, 3, 2, 1)


@pytest.mark.parametrize(("a", "b", "c"), [(0.1, 2.0, 0.5), (0.0, 1.5, 0.3), (0.2, 0.9, 1.0)])
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
            for c in np.geomspace(0.05, 1.5, 20):
                assert own <= ((a + b * N**-c - points) ** 2).sum() + 1e-6


def test_two_points_take_a_root():
    law = fit_power_law([100, 200], [0.4, 0.3])
    assert law.c == 0.5
    assert [law.error(100), law.error(200)] == pytest.approx([0.4, 0.3])


def observed(seed, a=0.1, b=1.6, c=0.45, noise=0.03, judged=0.02, resamples=200):
    """Draws of a curve: each training set differs by `noise` / sqrt(n / 20), and what is judged by `judged`."""
    draw = np.random.default_rng(seed)
    shared, drawn = draw.normal(0, judged), draw.normal(0, judged, resamples)
    errors, moved = [], []
    for n, count in zip(N, DRAWS, strict=True):
        own = a + b * n**-c + draw.normal(0, noise * np.sqrt(20 / n), count) + shared
        errors.append(own)
        moved.append(own[:, None] + drawn)
    return errors, moved


def test_the_interval_covers_what_doubling_brings():
    truth = {f: 1.6 * 320**-0.45 * (1 - f**-0.45) for f in (2.0, 4.0)}
    missed = {2.0: 0, 4.0: 0}
    for seed in range(40):
        found = foretell(N, *observed(seed), seed=seed)
        for factor, (value, low, high) in found.gains.items():
            assert 0 <= low <= value <= high
            missed[factor] += not low <= truth[factor] <= high
    assert missed[2.0] <= 8 and missed[4.0] <= 8  # 5 % of 40 is 2; few points make it rough


def test_less_noise_less_doubt():
    wide, narrow = (foretell(N, *observed(3, noise=noise)).gains[2.0] for noise in (0.06, 0.005))
    assert narrow[2] - narrow[1] < 0.5 * (wide[2] - wide[1])


def test_four_times_brings_more_than_twice_and_a_flat_curve_nothing():
    gains = foretell(N, *observed(0)).gains
    assert gains[4.0][0] > gains[2.0][0] > 0
    flat = [np.full(count, 0.2) for count in DRAWS]
    still = foretell(N, flat, [np.tile(e[:, None], (1, 50)) for e in flat])
    assert still.gains[2.0][0] == pytest.approx(0, abs=1e-9)
    assert isinstance(still.law, PowerLaw)


def test_spreads_of_points_with_one_draw_are_those_before():
    found = draw_spreads([np.array([0.1, 0.3]), np.array([0.2, 0.2]), np.array([0.2])])
    assert found[0] == pytest.approx(np.sqrt(0.01)) and found[2] == found[1] == found[0]
    assert (draw_spreads([np.array([0.1]), np.array([0.2])]) == 0.01).all()
