"""Two predictions of the same photos: what one scores more than the other, with an interval over groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import macro_f1


def paired_difference(
    truth: NDArray[np.integer],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    groups: NDArray[np.generic],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Macro F1 of `second` less that of `first`: {"value", "low", "high"}.

    truth: int (n,). first, second: out-of-fold probabilities (n, C) of the same photos. groups: (n,) any hashable.
    Percentile bootstrap over groups, both scored on the same draws, so that what is hard for both cancels
    (cluster resampling: Davison & Hinkley 1997, 3.8).
    """
    classes = first.shape[1]
    _, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    count = int(member.max()) + 1
    draws = np.random.default_rng(seed)
    weights = [np.bincount(draws.integers(0, count, count), minlength=count)[member] for _ in range(resamples)]

    def scores(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Macro F1 as it is, then of each draw."""
        cells = truth.astype(np.int64) * classes + probabilities.argmax(1)
        tables = [np.bincount(cells, weights=w, minlength=classes**2) for w in (np.ones(len(truth)), *weights)]
        return macro_f1(np.stack(tables).reshape(-1, classes, classes))

    difference = scores(second) - scores(first)
    low, high = np.percentile(difference[1:], 100 * np.array([(1 - level) / 2, (1 + level) / 2]))
    return {"value": float(difference[0]), "low": float(low), "high": float(high)}
