"""Class balancing: how `recipe.balance` translates to sampling and class weights.

The steps apply in this order: extra samples are added, rows are resampled, and the loss is weighted. Weights and priors
are computed from the resampled class counts, so two options never correct the same imbalance twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import Rows
from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Balance
from unfreeze.features.views import check_view

Sampling = Literal["none", "over", "under", "sqrt"]
# Default for a probe: a class has a total weight proportional to the square root of its count, halfway between no
# reweighting and equal class weights.
_USUAL_POWER = 0.5


@dataclass(frozen=True)
class ResolvedBalance:
    """`recipe.balance` with all defaults resolved.

    Attributes:
        sampling: Resampling method.
        loss: Name of the loss.
        power: Exponent of the inverse class frequency if the loss is weighted.
    """

    sampling: Sampling = "none"
    loss: str = "weighted"
    power: float = _USUAL_POWER


def resolve_balance(balance: Balance, from_probe: bool = True) -> ResolvedBalance:
    """Resolve the defaults of `recipe.balance`.

    Args:
        balance: The recipe section.
        from_probe: Whether it is for the head of a probe, or for a network that is initialized from one.

    Returns:
        The resolved options. A weighted loss with power 0 is returned as 'ce'.
    """
    loss, power = balance.loss, balance.class_weight_power
    if loss == "":
        # Resampling replaces the default class weights instead of being combined with them.
        usual = _USUAL_POWER if from_probe and balance.sampling == "none" else 0.0
        loss, power = "weighted", usual if power < 0 else power
    elif loss == "weighted":
        power = 1.0 if power < 0 else power
    if loss != "weighted" or power == 0:
        return ResolvedBalance(balance.sampling, "ce" if loss == "weighted" else loss, 0.0)
    return ResolvedBalance(balance.sampling, loss, power)


def for_probe(balance: Balance) -> ResolvedBalance:
    """Resolve the options for the probe head that a network is initialized from.

    The soft-F1 loss is defined on batches, so the head uses the default loss instead.
    """
    return resolve_balance(balance.model_copy(update={"loss": ""}) if balance.loss == "soft-f1" else balance)


def check_balance(recipe: Recipe) -> None:
    """Check the class balancing options of a recipe before any work is done.

    Raises:
        RecipeError: If options contradict each other, or a view is invalid.
    """
    balance = recipe.balance
    if balance.class_weight_power >= 0 and balance.loss not in ("", "weighted"):
        raise RecipeError(
            f"balance.class_weight_power = {balance.class_weight_power:g}: balance.loss = '{balance.loss}' has "
            "no class weights; set "
            "balance.loss=weighted or leave balance.class_weight_power out."
        )
    if balance.loss == "soft-f1" and recipe.strategy == "probe":
        raise RecipeError(
            "balance.loss = 'soft-f1' is computed on batches, and a probe is fitted on all rows at once; use it with "
            "strategy partial, full or scratch."
        )
    for entry in balance.extra_views:
        for view in entry.views:
            check_view(view)


def expected_draws(labels: Rows, units: Rows, sampling: Sampling, seed: int) -> NDArray[np.float64]:
    """Return the expected number of times each row is drawn per epoch; a head on features uses it as sample weight.

    Args:
        labels: int (n,), class of each training row.
        units: int (n,), group of each training row.
        sampling: 'none': 1 for all rows. 'over': each class is drawn as often as the largest. 'sqrt': n draws,
            distributed over the classes in proportion to the square roots of their counts (Mahajan et al. 2018, arXiv
            1805.00932). 'under': 1 for as many rows of each class as the smallest class has, else 0. Rows are selected
            by the seed, taking one row of every group before a second row of any, so that few groups are lost.
        seed: Random seed.

    Returns:
        float64 (n,).
    """
    if sampling == "none":
        return np.ones(len(labels))
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if sampling == "over":
        return np.asarray((counts.max() / counts)[members], np.float64)
    if sampling == "sqrt":
        roots = np.sqrt(counts)
        return np.asarray((len(labels) * roots / roots.sum() / counts)[members], np.float64)
    times = np.zeros(len(labels))
    for position in range(len(counts)):
        draw = np.random.default_rng([seed, position])
        rows = draw.permutation(np.flatnonzero(members == position))
        turn = _occurrences(units[rows])
        times[rows[np.argsort(turn, kind="stable")[: counts.min()]]] = 1
    return times


def sample_weights(
    labels: Rows, units: Rows, classes: int, words: ResolvedBalance, seed: int
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Compute sample weights for the loss.

    Args:
        labels: int (n,), class of each training row.
        units: int (n,), group of each training row.
        classes: Number of classes.
        words: Resolved class balancing.
        seed: Random seed.

    Returns:
        Weights, float64 (n,), which sum to 1 and are 0 for rows that are not drawn (all 1 / n for 'none' and 'ce'); the
        effective number of rows; and the class counts after resampling, float64 (classes,), 1 for a class without rows.
    """
    times = expected_draws(labels, units, words.sampling, seed)
    drawn = np.bincount(labels, weights=times, minlength=classes).astype(np.float64)
    counts = np.where(drawn > 0, drawn, 1.0)
    weights: NDArray[np.float64] = times * counts[labels] ** -(words.power if words.loss == "weighted" else 0.0)
    return weights / weights.sum(), float(times.sum()), counts


def log_prior(counts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the log class frequencies, float32 (classes,), which logit adjustment adds to the logits in training."""
    return np.log(counts / counts.sum()).astype(np.float32)


def _occurrences(values: Rows) -> Rows:
    """Return the number of earlier occurrences of each value, int64 (n,)."""
    order = np.argsort(values, kind="stable")
    _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    out = np.empty(len(values), np.int64)
    out[order] = np.arange(len(values)) - np.repeat(starts, counts)
    return out
