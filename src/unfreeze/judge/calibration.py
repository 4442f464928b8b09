"""Whether a probability of .8 is right in eight of ten cases: reliability and calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10


def expected_calibration_error(
    confidence: NDArray[np.floating],
    right: NDArray[np.bool_],
    weight: NDArray[Any] | None = None,
    bins: int = BINS,
) -> float:
    """Mean distance of confidence from accuracy over equal-width bins (Guo et al. 2017, arXiv:1706.04599).

    confidence: (n,) probability of the predicted class. right: (n,) bool. weight: (n,) or None.
    """
    weight = np.ones(len(confidence)) if weight is None else weight
    which = bins_of(confidence, bins)
    gap = np.bincount(which, weight * (confidence - right), minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def bins_of(confidence: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """The bin of equal width that each confidence (n,), 0 to 1, falls into: int64 (n,)."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def reliability(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS) -> list[dict[str, float]]:
    """The reliability curve: for each bin that holds photos, `low`, `high`, `confidence`, `accuracy`, `count`."""
    which = bins_of(np.asarray(confidence), bins)
    curve = []
    for b in range(bins):
        inside = which == b
        if inside.any():
            curve.append(
                {
                    "low": b / bins,
                    "high": (b + 1) / bins,
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return curve
