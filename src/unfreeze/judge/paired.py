"""Two predictions of the same photos: what one scores more than the other, with an interval over groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfreeze.judge.metrics import macro_f1
from unfreeze.judge.resampling import drawn_confusions


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
    drawn = drawn_confusions(truth, [first.argmax(1), second.argmax(1)], groups, classes, resamples, seed)
    scores = np.concatenate([macro_f1(tables) for tables in drawn], axis=1)
    difference = scores[1] - scores[0]
    low, high = np.percentile(difference[1:], 100 * np.array([(1 - level) / 2, (1 + level) / 2]))
    return {"value": float(difference[0]), "low": float(low), "high": float(high)}
