"""Macro F1 corrected for chance, so that tasks with different class priors can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.metrics.bootstrap import bootstrap_confusions, interval
from unfreeze.metrics.classification import macro_f1


def beyond_chance(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[Any],
    classes: int,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[F64, float, float]:
    """Chance-corrected macro F1, (F1 - chance) / (1 - chance), with bootstrap samples over groups.

    Chance is the expected macro F1 of the same predictions assigned to the images at random, as in Cohen's kappa (1960)
    for accuracy. The result is 0 if the predictions are independent of the labels, whatever the class priors, and 1
    without errors. Calls with the same groups and seed use the same draws, so that they can be compared in pairs.

    Args:
        truth: int (n,), true classes.
        predicted: int (n,), out-of-fold predicted classes.
        groups: (n,) any hashable.
        classes: Number of classes.
        resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        float64 (1 + resamples,), the observed value followed by those of the draws; the observed macro F1; and its
        chance level.
    """
    found, chance = np.empty(resamples + 1), np.empty(resamples + 1)
    drawn = bootstrap_confusions(truth, [predicted], groups, classes, resamples, seed)
    for i, table in enumerate(table for tables in drawn for table in tables[0]):
        found[i], chance[i] = macro_f1(table), macro_f1(np.outer(table.sum(1), table.sum(0)) / table.sum())
    return (found - chance) / np.maximum(1 - chance, 1e-9), float(found[0]), float(chance[0])


def chance_corrected_f1(
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[Any],
    classes: int,
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Chance-corrected macro F1 (see `beyond_chance`) with a percentile interval of the cluster bootstrap.

    Returns:
        {"value", "low", "high", "macro_f1", "chance"}.
    """
    draws, found, chance = beyond_chance(truth, predicted, groups, classes, resamples=resamples, seed=seed)
    return {**interval(draws[0], draws[1:], level), "macro_f1": found, "chance": chance}
