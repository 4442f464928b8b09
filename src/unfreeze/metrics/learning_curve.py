"""Learning curves: power laws error(n) = a + b * n ** -c, and their extrapolation with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.metrics.intervals import quantile

# Candidate exponents. Hestness et al. 2017 (arXiv 1712.00409) find 0.07 to 0.5 for tasks that are learned at all.
# Exponents above 1 are due to noise in a few points: on real data sets they make the predicted gain too small.
EXPONENTS = np.geomspace(0.05, 1.0, 140)
# Minimum number of points for an interval; the law has three parameters.
LEAST_SIZES = 6
# Standard deviation of the log of the gain per doubling around the fitted law: real curves are not exact power laws. On
# the data sets of docs/recommend.md the two differed by a factor of 1.0 to 1.4.
MISFIT = 0.4
# Minimum standard deviation of a point.
_FLOOR = 0.01
# Standard deviation between training sets of the largest size, if no size has two draws to estimate it from.
_UNKNOWN_SPREAD = 0.02


@dataclass(frozen=True)
class PowerLaw:
    """Power law error(n) = a + b * n ** -c.

    Attributes:
        a: Irreducible error, at least 0.
        b: Scale of the reducible error, at least 0.
        c: Exponent.
    """

    a: float
    b: float
    c: float

    def error(self, n: float) -> float:
        """Error after training on n examples (or groups)."""
        return self.a + self.b * float(n) ** -self.c


def fit_power_law(
    n: NDArray[Any] | Sequence[float], error: NDArray[Any] | Sequence[float], weight: NDArray[Any] | None = None
) -> PowerLaw:
    """Fit a power law by weighted least squares.

    The exponent c is the best of EXPONENTS (0.05 to 1); for each candidate, a and b are the exact solution with a, b >=
    0. With fewer than three different n, the exponent is not identified and is set to .5.

    Args:
        n: (points,), training set sizes.
        error: (points,), errors.
        weight: (points,), by default equal.
    """
    points = np.asarray(error, np.float64)
    own = np.ones(len(points)) if weight is None else np.asarray(weight, np.float64)
    a, b, c = fit_power_laws(np.asarray(n, np.float64), points[None], own)
    return PowerLaw(float(a[0]), float(b[0]), float(c[0]))


def fit_power_laws(n: F64, errors: F64, weight: F64) -> tuple[F64, F64, F64]:
    """Fit power laws to several curves over the same n (see `fit_power_law`).

    Args:
        n: float64 (points,), training set sizes.
        errors: float64 (curves, points).
        weight: float64 (points,).

    Returns:
        a, b and c, each float64 (curves,).
    """
    grid = EXPONENTS if len(np.unique(n)) > 2 else np.array([0.5])
    # In units of the largest n, so that numbers are of order one.
    top = float(n.max())
    basis = (n / top) ** -grid[:, None]  # (grid, points)
    w = weight / weight.sum()
    centre, mean = basis @ w, errors @ w  # (grid,), (curves,)
    spread = ((basis - centre[:, None]) ** 2) @ w
    cross = (errors * w) @ basis.T - mean[:, None] * centre
    b = np.maximum(cross / np.maximum(spread, 1e-15), 0)
    a = mean[:, None] - b * centre
    # If the unconstrained fit has a < 0, use the best fit with a = 0; its b is positive for errors >= 0.
    through = ((errors * w) @ basis.T) / ((basis**2) @ w)
    b, a = np.where(a < 0, np.maximum(through, 0), b), np.maximum(a, 0)
    left = np.stack([((errors - a[:, [k]] - b[:, [k]] * basis[k]) ** 2) @ w for k in range(len(grid))], 1)
    best, rows = left.argmin(1), np.arange(len(errors))
    c = grid[best]
    return a[rows, best], b[rows, best] * top**c, c


Ends = tuple[float, float | None, float | None]
"""A value and the ends of its interval, or None without an interval."""


@dataclass(frozen=True)
class Extrapolation:
    """Fitted power law and its predictions for larger training sets.

    Attributes:
        law: Power law through the points.
        error: For each factor, the predicted error at that multiple of the largest n.
        saved: For each factor, the predicted reduction of the error from the largest n. It does not depend on how hard
            the evaluated examples are.
    """

    law: PowerLaw
    error: dict[float, Ends]
    saved: dict[float, Ends]


def extrapolate(
    n: F64,
    shares: F64,
    errors: Sequence[NDArray[Any]],
    resampled: Sequence[NDArray[Any]],
    groups: int,
    factors: Sequence[float] = (2.0, 4.0),
    level: float = 0.95,
    seed: int = 0,
) -> Extrapolation:
    """Fit a power law to points of several draws each, and extrapolate from the largest n.

    The intervals combine four sources of uncertainty. (1) The evaluated groups: the law is refitted for each
    resampling. (2) The draws: their variance is assumed to be inversely proportional to n and is corrected for their
    overlap; each point varies independently. (3) The data set: a deviation shared by all points, which does not affect
    `saved`. (4) The form of the law: the gain may differ by a factor, MISFIT for each doubling. Mahmood et al. 2022
    (arXiv 2207.01725) recommend a bootstrap of laws, because extrapolating a single fit is overconfident. The quantile
    is Student's t for the number of groups. There is no interval for fewer than LEAST_SIZES points, because the law has
    three parameters.

    Args:
        n: float64 (points,), training set sizes, ascending.
        shares: float64 (points,), fraction of the data set in each draw, 1 at the last point.
        errors: For each point the error of each draw, (draws,).
        resampled: For each point the errors under resampling of the evaluated groups, (draws, resamples), with the same
            resamplings in the same order for all points.
        groups: Number of groups that were resampled.
        factors: Multiples of the largest n.
        level: Confidence level.
        seed: Seed of the simulated deviations.
    """
    draws = np.random.default_rng(seed)
    size, top = resampled[0].shape[1], float(n[-1])
    counts = np.array([len(e) for e in errors])
    spread = training_variance(n, shares, errors)  # at the largest n, between independent data sets
    own = spread * top / n * (1 - shares) / counts + _FLOOR**2
    middle = np.array([e.mean() for e in errors])
    noise = draws.normal(size=(size, len(n))) * np.sqrt(own)
    moved = np.stack([r.mean(0) for r in resampled], 1) + noise
    a, b, c = fit_power_laws(n, np.vstack([middle, np.clip(moved, 0, 1)]), 1 / own)
    shared = np.r_[0, draws.normal(size=size) * np.sqrt(spread)]
    tail = quantile(level, groups)
    error, saved = {}, {}
    for factor in map(float, factors):
        there = a + b * (factor * top) ** -c
        step = b * top**-c * (1 - factor**-c)
        doubt = tail * MISFIT * np.log2(factor)
        # The gain may differ by a factor in either direction, so its interval is asymmetric.
        more, less = step[0] * np.expm1(doubt), -step[0] * np.expm1(-doubt)
        one, other = (tail * float(np.std(values[1:], ddof=1)) for values in (there + shared, step))
        error[factor] = _ends(there[0], np.hypot(one, more), np.hypot(one, less), len(n), 1.0)
        saved[factor] = _ends(step[0], np.hypot(other, less), np.hypot(other, more), len(n), float(middle[-1]))
    return Extrapolation(PowerLaw(float(a[0]), float(b[0]), float(c[0])), error, saved)


def _ends(value: float, down: float, up: float, points: int, most: float) -> Ends:
    """Value with its interval, clipped to 0..`most`; no interval with fewer than LEAST_SIZES points."""
    if points < LEAST_SIZES:
        return float(value), None, None
    return float(value), float(min(max(value - down, 0.0), value)), float(max(min(value + up, most), value))


def training_variance(n: F64, shares: F64, errors: Sequence[NDArray[Any]]) -> float:
    """Variance of the error between independent training sets of the largest n, from draws of fractions of one set.

    The variance is assumed to be inversely proportional to n. Draws of a fraction s without replacement vary 1 - s
    times as much as independent sets (finite population correction: Cochran 1977, "Sampling Techniques", 2.6).

    Args:
        n: float64 (points,), training set sizes, ascending.
        shares: float64 (points,), fraction of the data set in each draw.
        errors: For each point the error of each draw, (draws,).
    """
    total, freedom = 0.0, 0
    for size, share, found in zip(n, shares, errors, strict=True):
        if len(found) > 1 and share < 1:
            total += float(((found - found.mean()) ** 2).sum()) / (1 - share) * size
            freedom += len(found) - 1
    return total / freedom / float(n[-1]) if freedom else _UNKNOWN_SPREAD**2
