"""Log loss with a common floor on probabilities, for model selection and reports."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64

# Probabilities are clipped to this floor: the eps of float32, in which networks and heads compute. scikit-learn's
# log_loss clips float32 predictions by the same value. It limits the loss of an image to 15.9.
FLOOR = float(np.finfo(np.float32).eps)


def log_losses(truth: NDArray[np.integer], proba: NDArray[np.floating]) -> F64:
    """Negative log-probability of the true class.

    Args:
        truth: int (n,), true classes.
        proba: (n, C), probabilities.

    Returns:
        float64 (n,).
    """
    return np.asarray(-np.log(np.maximum(_own(truth, proba), FLOOR)))


def log_loss(truth: NDArray[np.integer], proba: NDArray[np.floating]) -> float:
    """Mean of `log_losses`."""
    return float(log_losses(truth, proba).mean())


def clipped(truth: NDArray[np.integer], proba: NDArray[np.floating]) -> int:
    """Number of rows whose true class has a probability below FLOOR."""
    return int((_own(truth, proba) < FLOOR).sum())


def _own(truth: NDArray[np.integer], proba: NDArray[np.floating]) -> F64:
    return proba[np.arange(len(truth)), truth].astype(np.float64)
