"""Learning curves as power laws, error(n) = a + b * n ** -c, and what they foretell, with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# Exponents tried. Hestness et al. 2017 (arXiv 1712.00409) find .07 to .5 where a task is learnt at all; more than 1.5
# would say that twice the data leaves a third of what can be mended, which a few noisy points only feign.
EXPONENTS = np.geomspace(0.05, 1.5, 160)


@dataclass(frozen=True)
class PowerLaw:
    """error(n) = a + b * n ** -c with a >= 0 and b >= 0: `a` is what no number of examples mends."""

    a: float
    b: float
    c: float

    def error(self, n: float) -> float:
        """The error that n training examples (or groups) leave."""
        return self.a + self.b * float(n) ** -self.c


def fit_power_law(
    n: NDArray[Any] | Sequence[float], error: NDArray[Any] | Sequence[float], weight: NDArray[Any] | None = None
) -> PowerLaw:
    """The law of least squares through points (n, error); weight: (points,), by default equal.

    c is the best of EXPONENTS (.05 to 1.5), and for each of them a and b are the exact solution with a, b >= 0. With
    fewer than three different n the exponent cannot be told: it is .5 then.
    """
    points = np.asarray(error, np.float64)
    own = np.ones(len(points)) if weight is None else np.asarray(weight, np.float64)
    a, b, c = fit_power_laws(np.asarray(n, np.float64), points[None], own)
    return PowerLaw(float(a[0]), float(b[0]), float(c[0]))


def fit_power_laws(n: F64, errors: F64, weight: F64) -> tuple[F64, F64, F64]:
    """Many curves over the same n at once: errors (curves, points) -> a, b, c, each (curves,)."""
    grid = EXPONENTS if len(np.unique(n)) > 2 else np.array([0.5])
    # In units of the largest n, so that numbers stay near one whatever is counted.
    top = float(n.max())
    basis = (n / top) ** -grid[:, None]  # (grid, points)
    w = weight / weight.sum()
    centre, mean = basis @ w, errors @ w  # (grid,), (curves,)
    spread = ((basis - centre[:, None]) ** 2) @ w
    cross = (errors * w) @ basis.T - mean[:, None] * centre
    b = np.maximum(cross / np.maximum(spread, 1e-15), 0)
    a = mean[:, None] - b * centre
    # Where the best straight line leaves a below zero, the best one through a = 0; it has b > 0 for errors >= 0.
    through = ((errors * w) @ basis.T) / ((basis**2) @ w)
    b, a = np.where(a < 0, np.maximum(through, 0), b), np.maximum(a, 0)
    left = np.stack([((errors - a[:, [k]] - b[:, [k]] * basis[k]) ** 2) @ w for k in range(len(grid))], 1)
    best, rows = left.argmin(1), np.arange(len(errors))
    c = grid[best]
    return a[rows, best], b[rows, best] * top**c, c


@dataclass(frozen=True)
class Foretold:
    """The law of a curve, and what more data would bring.

    gains: for each factor asked for, value, low and high of the error that so many times the data would save.
    """

    law: PowerLaw
    gains: dict[float, tuple[float, float, float]]


def foretell(
    n: F64,
    errors: Sequence[NDArray[Any]],
    resampled: Sequence[NDArray[Any]],
    factors: Sequence[float] = (2.0, 4.0),
    level: float = 0.95,
    seed: int = 0,
) -> Foretold:
    """Fits the law to points of several draws each, and extrapolates from the largest n.

    n: (points,), how much was learnt from. errors: for each point the error of each draw, (draws,). resampled: for each
    point the same under resamplings of what is judged, (draws, resamples), the same resampling in the same place for
    all points, so that what is hard for all cancels.
    A resampling takes its errors and moves each point by a draw from what its training sets vary by; a law is fitted
    to each, and the interval is that of their percentiles. A point of one draw varies as the next smaller n with
    several does. A bootstrap of laws is what Mahmood et al. 2022 (arXiv 2207.01725) ask for: extrapolating a single
    fit is overconfident. The interval knows nothing of a law that bends later on.
    """
    draws = np.random.default_rng(seed)
    size = resampled[0].shape[1]
    spreads = draw_spreads(errors)
    middle = np.array([e.mean() for e in errors])
    counts = np.array([len(e) for e in errors])
    noise = draws.normal(size=(size, len(n))) * (spreads / np.sqrt(counts))
    moved = np.stack([r.mean(0) for r in resampled], 1) + noise
    # A point counts by what it is known to: the mean of several draws more, and all by a floor alike.
    weight = 1 / (np.maximum(spreads, 0.005) ** 2 / counts + 0.01**2)
    a, b, c = fit_power_laws(n, np.vstack([middle, np.clip(moved, 0, 1)]), weight)
    top = float(n.max())
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    gains = {}
    for factor in factors:
        saved = b * top**-c * (1 - float(factor) ** -c)
        low, high = np.percentile(saved[1:], tails)
        gains[float(factor)] = (float(saved[0]), float(min(low, saved[0])), float(max(high, saved[0])))
    return Foretold(PowerLaw(float(a[0]), float(b[0]), float(c[0])), gains)


def draw_spreads(errors: Sequence[NDArray[Any]]) -> F64:
    """Standard deviation of the draws at each point, (points,), smoothed: of few draws it is itself a guess.

    Each variance is averaged with its neighbours'; a point of one draw gets the last one known.
    """
    known = [float(np.var(e, ddof=1)) if len(e) > 1 else np.nan for e in errors]
    out, last = [], np.nan
    for i, value in enumerate(known):
        near = [v for v in known[max(i - 1, 0) : i + 2] if not np.isnan(v)]
        last = float(np.mean(near)) if not np.isnan(value) and near else last
        out.append(last)
    found = np.array(out)
    if np.isnan(found).all():
        return np.full(len(errors), 0.01)
    first = found[~np.isnan(found)][0]
    return np.sqrt(np.where(np.isnan(found), first, found))
